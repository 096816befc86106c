"""The public behaviour of the model: outputs, masks, captions, freezing, saving, loading, numerics."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel
from caeav_hf.task import tasks
from tests.lanes import METHODS, slow_after
from tests.modeling.helpers import (
    toy_answering_model,
    toy_batch,
    toy_model,
    toy_parsing_model,
    toy_segmentation_model,
)


FORMULATIONS = ("paper", "official")
PER_FRAME = ("event_logits", "visual_hidden_state", "audio_hidden_state", "caption_agreement")


def run(model: CaeAvForEventLocalization, batch: dict) -> dict:
    with torch.no_grad():
        return model(**batch)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "task",
    [name for name, task in tasks().items() if "interaction" not in task.preset and task.config_class is CaeAvConfig],
)
@pytest.mark.parametrize("formulation", slow_after(1, FORMULATIONS))
def test_every_preset_computes(task: str, formulation: str) -> None:
    model = toy_model(task=task, formulation=formulation)
    batch = toy_batch(model.config, num_frames=3)
    labels = batch.pop("labels").clamp(max=model.config.num_labels)
    outputs = run(model, {**batch, "labels": labels, "output_feature_maps": True})
    assert outputs.event_logits.shape == (2, 3)
    assert outputs.class_logits.shape == (2, model.config.num_labels)
    assert [m.shape[-1] for m in outputs.visual_feature_maps] == [16, 32, 64, 128]
    assert len(outputs.agreement) == len(outputs.enrichment_weights) == 4
    blocks = sum(model.config.audio_config.depths[stage - 1] for stage in model.config.adapter_stages)
    assert len(outputs.router_probs) == blocks
    for probs in outputs.router_probs:
        assert probs.shape == (2, 3, 4, model.config.num_experts)
        assert_close(probs.sum(-1), torch.ones(2, 3, 4))
    assert torch.isfinite(outputs.loss)


@pytest.mark.parametrize(
    "make", slow_after(2, [toy_model, toy_answering_model, toy_segmentation_model, toy_parsing_model])
)
def test_hidden_states_of_both_streams(make) -> None:
    model = make()
    batch = toy_batch(model.config, num_frames=3)
    del batch["labels"]
    if make is toy_answering_model:
        batch["question_ids"] = torch.tensor([[1, 2], [3, 4]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    expected = run(model, {**batch, "frame_mask": mask, "output_feature_maps": True})
    assert expected.visual_hidden_states is expected.audio_hidden_states is None
    asked = run(model, {**batch, "frame_mask": mask, "output_hidden_states": True})
    model.config.output_hidden_states = True
    configured = run(model, {**batch, "frame_mask": mask})
    refused = run(model, {**batch, "frame_mask": mask, "output_hidden_states": False})
    assert refused.visual_hidden_states is refused.audio_hidden_states is None
    sizes = [(256, 16), (256, 16), (64, 32), (16, 64), (4, 128)]
    for outputs in (asked, configured):
        for states in (outputs.visual_hidden_states, outputs.audio_hidden_states):
            assert [tuple(state.shape) for state in states] == [(2, 3, *size) for size in sizes]
            assert not any(state[~mask].any() for state in states)
        for state, tokens in zip(outputs.visual_hidden_states[1:-1], expected.visual_feature_maps[:-1], strict=True):
            assert_close(state, tokens)
        # The last state is before CASE, which enriches it from the captions.
        assert not torch.allclose(outputs.audio_hidden_states[-1], outputs.audio_hidden_state)
    del batch["visual_caption_ids"], batch["audio_caption_ids"], batch["visual_caption_mask"]
    del batch["audio_caption_mask"]
    plain = run(model, batch)
    assert_close(plain.audio_hidden_states[-1], plain.audio_hidden_state)
    assert_close(plain.visual_hidden_states[-1], plain.visual_hidden_state)


def test_padded_frame_anywhere() -> None:
    """The LSTMs skip a gap in the middle, as if the frames after it followed directly."""
    model = toy_model()
    batch = toy_batch(model.config, 1, 4)
    mask = torch.tensor([[True, False, True, True]])
    outputs = run(model, {**batch, "frame_mask": mask})
    assert torch.isfinite(outputs.loss)
    assert not outputs.visual_hidden_state[0, 1].any()


def test_eager_equals_sdpa() -> None:
    eager, fused = toy_model(attn_implementation="eager"), toy_model(attn_implementation="sdpa")
    assert eager.config._attn_implementation == "eager"
    batch = toy_batch(eager.config)
    batch["frame_mask"] = torch.tensor([[True] * 4, [True, True, False, False]])
    one, other = run(eager, batch), run(fused, batch)
    for name in (*PER_FRAME, "class_logits", "loss"):
        assert_close(one[name], other[name])


def test_formulations_differ() -> None:
    """Same weights, different equations (the table of differences is tested point by point elsewhere)."""
    paper, official = toy_model(formulation="paper"), toy_model(formulation="official")
    official.load_state_dict(paper.state_dict(), strict=False)
    batch = toy_batch(paper.config)
    assert not torch.allclose(run(paper, batch).event_logits, run(official, batch).event_logits, atol=1e-3)


class TestCaptions:
    def test_features_equal_ids(self) -> None:
        model = toy_model()
        batch = toy_batch(model.config)
        expected = run(model, batch)
        for kind in ("visual", "audio"):
            batch[f"{kind}_caption_embeds"] = model.model.get_caption_features(batch.pop(f"{kind}_caption_ids"))
        assert_close(run(model, batch).loss, expected.loss)

    def test_padding_of_captions_is_masked_in_the_paper(self) -> None:
        for formulation, is_masked in (("paper", True), ("official", False)):
            model = toy_model(formulation=formulation)
            batch = toy_batch(model.config)
            longer = dict(batch)
            for kind in ("visual", "audio"):
                for part in ("ids", "mask"):
                    name = f"{kind}_caption_{part}"
                    longer[name] = torch.nn.functional.pad(batch[name], (0, 3))
            same = torch.allclose(run(model, batch).event_logits, run(model, longer).event_logits, atol=1e-5)
            assert same is is_masked

    def test_absent_captions_skip_case_and_say_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        model = toy_model()
        batch = {name: value for name, value in toy_batch(model.config).items() if "caption" not in name}
        outputs = run(model, batch)
        assert outputs.caption_agreement is None
        assert outputs.visual_selected_tokens is None
        assert set(outputs.loss_dict) == {"task", "alignment"}

    def test_a_clip_without_captions_in_a_batch(self) -> None:
        model = toy_model()
        batch = toy_batch(model.config)
        without = {name: value for name, value in batch.items() if "caption" not in name}
        batch["visual_caption_mask"][1] = 0
        batch["audio_caption_mask"][1] = 0
        mixed, skipped = run(model, batch), run(model, without)
        assert_close(mixed.event_logits[1], skipped.event_logits[1])
        assert not torch.allclose(mixed.event_logits[0], skipped.event_logits[0], atol=1e-3)
        assert all(torch.isfinite(value) for value in mixed.loss_dict.values())

    def test_no_clip_has_captions(self) -> None:
        model = toy_model()
        batch = toy_batch(model.config)
        batch["visual_caption_mask"].zero_()
        batch["audio_caption_mask"].zero_()
        outputs = run(model, batch)
        assert torch.isfinite(outputs.loss)
        assert outputs.loss_dict["caption"] == 0

    def test_one_caption_is_an_error(self) -> None:
        model = toy_model()
        batch = {name: value for name, value in toy_batch(model.config).items() if "audio_caption" not in name}
        with pytest.raises(CaeAvError, match="both captions"):
            run(model, batch)

    def test_each_caption_is_encoded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = toy_model()
        tower = model.model.text_tower
        encoded = []
        encode = type(tower).encode
        monkeypatch.setattr(type(tower), "encode", lambda self, ids: encoded.append(len(ids)) or encode(self, ids))
        ids = torch.tensor([[1, 5, 6], [1, 7, 8], [1, 5, 6]])
        first = tower(ids)
        again = tower(ids[:2])
        assert encoded == [1, 1]  # each alone, so that its features do not depend on the batch
        assert torch.equal(again[1], encode(tower, ids[1:2])[0])
        assert torch.equal(first[0], first[2])
        assert torch.equal(again, first[:2])
        tower.load_state_dict(tower.state_dict())
        tower(ids)
        assert encoded == [1, 1, 1, 1]
        monkeypatch.setattr(type(tower), "cache_size", 1)
        tower(ids[1:2])
        assert len(tower._cache) == 1


class TestFrozen:
    def test_towers_stay_in_evaluation_mode_and_get_no_gradient(self) -> None:
        model = toy_model()
        batch = toy_batch(model.config)
        before = {name: value.clone() for name, value in model.model.audio_tower.named_buffers()}
        model.train()
        model(**batch).loss.backward()
        for tower in model.model.towers():
            assert not any(module.training for module in tower.modules())
            assert all(not p.requires_grad and p.grad is None for p in tower.parameters())
        for name, value in model.model.audio_tower.named_buffers():
            assert torch.equal(value, before[name])

    def test_gradient_flows_through_a_frozen_block_to_earlier_adapters(self) -> None:
        model = toy_model(adapter_stages=(1,)).train()
        model(**toy_batch(model.config)).loss.backward()
        adapter = model.model.interactions[0][0].visual_attention_adapter
        assert adapter.cross_modal_map.tokens.weight.grad.abs().sum() > 0

    def test_new_tower_weights_renew_the_cached_biases(self) -> None:
        model, other = toy_model(seed=0), toy_model(seed=1)
        batch = toy_batch(model.config)
        run(model, batch)
        model.load_state_dict(other.state_dict())
        assert_close(run(model, batch).event_logits, run(other, batch).event_logits)

    def test_training_after_inference_mode(self) -> None:
        model = toy_model()
        batch = toy_batch(model.config)
        with torch.inference_mode():
            model(**batch)
        model.train()
        model(**batch).loss.backward()


@pytest.mark.parametrize("formulation", slow_after(1, FORMULATIONS))
def test_gradient_checkpointing_changes_no_gradient(formulation: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = toy_model(formulation=formulation).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.case.visual_stream.feed_forward.gradient_checkpointing
        batch = toy_batch(model.config, 2, 3)
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputing_counts_no_batch_twice(checkpointing: bool) -> None:
    """Batch normalisation in the adapters counts each training step once, also if the backward pass recomputes."""
    model = toy_model().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = toy_batch(model.config)
    loss = model(**batch).loss
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "batch_norm" in name}
    loss.backward()
    for name, buffer in model.named_buffers():
        if "batch_norm" in name and "tower" not in name:
            assert torch.equal(buffer, before[name])
            if name.endswith("num_batches_tracked"):
                assert buffer == 1


class TestSaving:
    def test_round_trip_keeps_every_bit_of_the_weights(self, tmp_path: Path) -> None:
        model = toy_model()
        model.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.bin"))
        loaded, report = CaeAvForEventLocalization.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert not loaded.training
        state, other = model.state_dict(), loaded.state_dict()
        assert state.keys() == other.keys() == load_file(tmp_path / "model.safetensors").keys()
        assert all(torch.equal(state[name], other[name]) for name in state)
        assert all(not p.requires_grad for tower in loaded.model.towers() for p in tower.parameters())

    def test_auto_classes(self, tmp_path: Path) -> None:
        model = toy_model()
        model.save_pretrained(tmp_path)
        assert isinstance(AutoConfig.from_pretrained(tmp_path), CaeAvConfig)
        base = AutoModel.from_pretrained(tmp_path)
        assert isinstance(base, CaeAvModel)
        batch = toy_batch(model.config)
        batch.pop("labels")
        assert_close(base(**batch).visual_hidden_state, model(**batch).visual_hidden_state)

    def test_base_model_loads_into_a_head(self, tmp_path: Path) -> None:
        base = toy_model().model
        base.save_pretrained(tmp_path)
        model, report = CaeAvForEventLocalization.from_pretrained(tmp_path, output_loading_info=True)
        assert all(name.startswith("head.") for name in report["missing_keys"])
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())

    @pytest.mark.slow
    @pytest.mark.parametrize("method", [None, *METHODS])
    @pytest.mark.parametrize("device_map", ["auto", "cpu"])
    def test_device_map_and_dtype(self, tmp_path: Path, device_map: str, method: str | None) -> None:
        model = toy_model(method=method)
        model.save_pretrained(tmp_path)
        loaded = CaeAvForEventLocalization.from_pretrained(tmp_path, device_map=device_map)
        batch = toy_batch(model.config)
        assert_close(run(loaded, batch).loss, run(model, batch).loss)
        half = CaeAvForEventLocalization.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        outputs = run(half, batch)
        assert outputs.visual_hidden_state.dtype == torch.bfloat16
        assert torch.isfinite(outputs.loss)
        if method is None:
            assert (outputs.agreement[0].float() - run(model, batch).agreement[0]).abs().max() < 0.1

    def test_built_on_the_meta_device(self, tmp_path: Path) -> None:
        model = toy_model()
        with torch.device("meta"):
            empty = CaeAvForEventLocalization(model.config)
        assert {p.device.type for p in empty.parameters()} == {"meta"}
        empty.load_state_dict(model.state_dict(), assign=True)
        assert all(torch.equal(a, b) for a, b in zip(empty.parameters(), model.parameters(), strict=True))

    def test_configuration_is_readable(self, tmp_path: Path) -> None:
        model = toy_model(id2label={0: "bell", 1: "drum"})
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["id2label"] == {"0": "bell", "1": "drum"}
        assert saved["vision_config"]["image_size"] == 64


@pytest.mark.parametrize("method", slow_after(1, [None, *METHODS]))
def test_bfloat16_autocast_trains(method: str | None) -> None:
    model = toy_model(method=method).train()
    batch = toy_batch(model.config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def any_model() -> CaeAvForEventLocalization:
    return toy_model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": torch.zeros(2, 3, 64, 64)}, "pixel_values_videos"),
        ({"pixel_values_videos": torch.zeros(2, 4, 3, 32, 32)}, "64x64"),
        ({"input_features": torch.zeros(2, 3, 1, 101, 32)}, "agree in batch and frames"),
        ({"input_features": torch.zeros(2, 4, 1, 101, 16)}, "input_features"),
        ({"frame_mask": torch.ones(2, 5)}, "frame_mask"),
        ({"frame_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "at least one real frame"),
        ({"labels": torch.zeros(2, 3, dtype=torch.long)}, "labels"),
        ({"visual_caption_mask": torch.ones(2, 2)}, "visual_caption"),
    ],
)
def test_bad_input_names_the_argument(any_model: CaeAvForEventLocalization, change: dict, message: str) -> None:
    with pytest.raises(CaeAvError, match=message):
        any_model(**{**toy_batch(any_model.config), **change})


@pytest.mark.parametrize(
    ("formulation", "trainable"),
    # The official formulation also has layers that the authors' code builds but never runs; see docs/model.md.
    [("official", 200_847_849), ("paper", 184_823_531)],
)
def test_number_of_trainable_parameters(formulation: str, trainable: int) -> None:
    with torch.device("meta"):
        model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", formulation=formulation))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_unused_parameters_of_the_official_formulation() -> None:
    """Of 200,847,849, the relation blocks' templates and the decoders' self-attention never run."""
    with torch.device("meta"):
        model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", formulation="official"))
    unused = {
        name: p.numel()
        for name, p in model.named_parameters()
        if ".template." in name or "unused_self_attention" in name
    }
    self_attention = sum(count for name, count in unused.items() if ".layer.unused_self_attention" in name)
    assert self_attention == 526_336
    assert sum(unused.values()) == 526_336 + 3_685_376
