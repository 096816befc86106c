"""The rows of the paper's tables that are variants of the model, each a field of the configuration."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from caeav_hf import CaeAvConfig
from caeav_hf.modeling.frames import FrameLayout
from tests.lanes import slow_after
from tests.modeling.helpers import toy_batch, toy_model


# Table VI: CASTE, CASE and the alignment losses on and off.
ROWS = {
    "AVMoE": {"interaction": "avmoe", "use_case": False},
    "CASTE": {"use_case": False},
    "CASE": {"interaction": "avmoe"},
    "CASTE and CASE": {"caption_loss_weight": 0, "alignment_loss_weight": 0, "entropy_loss_weight": 0},
    "all": {},
}


@pytest.mark.parametrize("formulation", slow_after(1, ["paper", "official"]))
@pytest.mark.parametrize("row", slow_after(2, ROWS))
def test_rows_of_table_vi_train(row: str, formulation: str) -> None:
    model = toy_model(formulation=formulation, **ROWS[row]).train()
    batch = toy_batch(model.config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss))
    assert losses[-1] < losses[0]
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("caste" in name for name in names) == (model.config.interaction == "cae_av")
    assert any(".case." in name for name in names) == model.config.use_case
    if row == "CASTE and CASE":
        assert float(output.loss) == pytest.approx(float(output.loss_dict["task"]))


@pytest.mark.parametrize("position", ["before", "between", "after"])
@pytest.mark.parametrize("formulation", slow_after(1, ["paper", "official"]))
@torch.no_grad()
def test_position_of_caste(position: str, formulation: str) -> None:
    """Table VIII: it enriches the tokens before, between or after the adapters."""
    model = toy_model(formulation=formulation, caste_position=position)
    batch = toy_batch(model.config)
    read = []
    layer = model.model.interactions[0][0]
    visual_block, audio_block = model.model.vision_tower.blocks(0)[0], model.model.audio_tower.blocks(0)[0]
    frames = FrameLayout(2, 4)
    visual = model.model.vision_tower.embed(batch["pixel_values_videos"].flatten(0, 1))
    audio = model.model.audio_tower.embed(batch["input_features"].flatten(0, 1))
    layer.visual_caste.register_forward_hook(lambda _, args, output: read.append((args[0], output[0])))
    adapted = []
    for name in ("visual_attention_adapter", "visual_feed_forward_adapter"):
        getattr(layer, name).register_forward_hook(lambda _, args, output: adapted.append((args[0], output[0])))
    output = layer(visual, audio, visual_block, audio_block, frames)
    assert {"enrichment_weights", "audio_enrichment_weights"} < set(output.explained)
    ((tokens, added),) = read
    between = visual + visual_block.attention(visual) + adapted[0][1]
    after = between + visual_block.feed_forward(between) + adapted[1][1]
    expected = {"before": visual, "between": between, "after": after}[position]
    torch.testing.assert_close(tokens, expected)
    if position == "before":
        torch.testing.assert_close(adapted[0][0], visual + added)
    elif position == "between":
        torch.testing.assert_close(adapted[1][0], between + added)
    torch.testing.assert_close(output.visual, after + added if position == "after" else after)


@pytest.mark.slow
def test_positions_train() -> None:
    outputs = []
    for position in ("before", "between", "after"):
        model = toy_model(caste_position=position).train()
        model.eval()
        output = model(**toy_batch(model.config))
        output.loss.backward()
        gradient = model.model.interactions[1][0].visual_caste.gamma.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        outputs.append(output.class_logits.detach())
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_gates_of_the_authors_adapters() -> None:
    """Their visual adapters have gates whatever the flag says, except in video parsing."""
    layer = toy_model(formulation="official", adapter_gate=False).model.interactions[0][0]
    assert layer.visual_attention_adapter.cross_modal_experts[0].gate is not None
    assert layer.audio_attention_adapter.cross_modal_experts[0].gate is None
    layer = toy_model(formulation="paper", adapter_gate=False).model.interactions[0][0]
    assert layer.visual_attention_adapter.cross_modal_experts[0].gate is None


@torch.no_grad()
def test_adapters_without_norms() -> None:
    model = toy_model(adapter_norm_before=False, adapter_norm_after=False)
    adapters = [name for name, _ in model.named_parameters() if "_adapter." in name]
    assert not any("norm_" in name.replace("batch_norm", "") for name in adapters)
    assert model(**toy_batch(model.config)).class_logits.isfinite().all()


@torch.no_grad()
def test_event_head_without_relations_sees_frames_alone() -> None:
    model = toy_model(event_head="cmbs_linear", interaction="avmoe", use_case=False)
    batch = toy_batch(model.config)
    whole = model(**batch).event_logits
    alone = model(**{name: value[:, :1] for name, value in batch.items() if "caption" not in name}).event_logits
    torch.testing.assert_close(alone, whole[:, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_one_tower_for_both_streams(formulation: str, tmp_path) -> None:
    """Table II's shared rows: the visual tower, stored once, also reads the sound as an image."""
    model = toy_model(formulation=formulation, shared_tower=True)
    assert not [name for name, _ in model.named_parameters() if "audio_tower" in name]
    batch = toy_batch(model.config)
    output = model(**batch)
    assert output.audio_hidden_state.shape == output.visual_hidden_state.shape
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch).class_logits, output.class_logits, rtol=1e-5, atol=1e-5)
    settings = [{**m.config.audio_config.to_dict(), "dtype": None} for m in (model, again)]
    assert settings[0] == settings[1]

    # Without adapters the streams are the tower's own, for three equal channels as for a picture.
    bare = toy_model(
        formulation=formulation, shared_tower=True, adapter_stages=[], interaction="avmoe", use_case=False
    )
    batch["pixel_values_videos"] = batch["input_features"].expand(-1, -1, 3, -1, -1)
    output = bare(**batch)
    torch.testing.assert_close(output.audio_hidden_state, output.visual_hidden_state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shared_tower": True, "audio_config": {"num_mel_bins": 42}}, "num_mel_bins"),
        ({"audio_config": {"mel_scale": "kaldi"}}, "shared_tower"),
    ],
)
def test_shared_tower_needs_images(values: dict, message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CaeAvConfig.from_preset("ave", size="toy", **values)
