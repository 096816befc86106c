"""SSUFormer: switches, losses and their gradients, decoding, padding, freezing, saving, precision."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as hf_logging

from caeav_hf import CaeAvConfig, CaeAvError, SsuFormerConfig, SsuFormerForSoundSourceUnderstanding, SsuFormerModel
from caeav_hf.assets import aligned_toy_towers, toy_towers
from caeav_hf.cli import main as caeav
from caeav_hf.exporting import export_program
from caeav_hf.modeling.ssuformer.description_decoder import description_loss
from caeav_hf.modeling.ssuformer.mask_decoder import dice_loss
from caeav_hf.modeling.ssuformer.region import consistency_loss, masked_frames, soft_text
from caeav_hf.towers.frozen import trained_names
from caeav_hf.towers.lora import tower_lora_config
from tests.lanes import slow_after
from tests.modeling.helpers import as_double
from tests.same import assert_close
from tests.tasks.sound_source_understanding.helpers import (
    NO_DROPOUT,
    SMALL,
    small_batch,
    small_config,
    small_model,
    without_targets,
)


DECODED = ("logits", "description_logits", "router_probs")


@pytest.fixture(scope="module")
def model() -> SsuFormerForSoundSourceUnderstanding:
    """A model in double precision, which tests must not change."""
    return small_model(**NO_DROPOUT).double()


@pytest.fixture(scope="module")
def batch(model) -> dict[str, torch.Tensor]:
    return as_double(small_batch(model.config))


def changed(module: torch.nn.Module) -> bool:
    return any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in module.parameters())


def loss_gradient(model: SsuFormerForSoundSourceUnderstanding, batch: dict, name: str) -> dict[str, bool]:
    """Return which modules, and towers, the term of the loss moves."""
    model.zero_grad()
    model(**batch).loss_dict[name].backward()
    moved = {name: changed(module) for name, module in model.named_children()}
    moved["towers"] = any(map(changed, model.model.towers()))
    model.zero_grad()
    return moved


def test_sizes_of_the_specification() -> None:
    """The paper prints 319.62 M parameters, of an architecture that leaves some sizes open."""
    with torch.device("meta"):
        model = SsuFormerForSoundSourceUnderstanding(SsuFormerConfig.from_preset("ra_ssu"))
    millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in model.named_modules()}
    assert round(millions["model.vision_tower"], 1) == 81.4
    assert round(millions["model.audio_tower"], 1) == 72.1
    assert round(millions["model.region_tower"], 1) == 86.2
    assert round(millions[""] - millions["model.text_tower"]) == 314


def test_shapes_and_the_sum_of_the_losses(model, batch) -> None:
    config = model.config
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.logits.shape == (2, 3, 1, 32, 32)
    assert outputs.description_logits.shape == (2, 3, 5, config.decoder_config.vocab_size)
    assert outputs.router_probs.shape == (2, 3, 5, 2)
    torch.testing.assert_close(outputs.router_probs.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    terms = outputs.loss_dict
    expected = 0.25 * terms["segmentation"] + 0.75 * terms["description"] + 0.1 * terms["consistency"]
    torch.testing.assert_close(outputs.loss, expected)
    with torch.no_grad():
        masks = model(**{name: value for name, value in batch.items() if name != "description_ids"})
    torch.testing.assert_close(masks.loss, 0.25 * terms["segmentation"])
    assert masks.description_ids is not None


@pytest.mark.parametrize(
    "case",
    slow_after(
        2,
        [
            ({"outputs": "masks"}, {"vision", "audio"}, {"segmentation"}),
            ({"outputs": "descriptions"}, {"vision", "audio", "text"}, {"description"}),
            (
                {"use_mcm": False, "use_mohe": False},
                {"vision", "audio", "region", "text"},
                {"segmentation", "description", "consistency"},
            ),
            ({"use_rcc": False, "use_mohe": False}, {"vision", "audio", "region"}, {"segmentation", "description"}),
            (
                {"use_mcm": False, "use_rcc": False, "use_mohe": False},
                {"vision", "audio"},
                {"segmentation", "description"},
            ),
        ],
    ),
    ids=lambda case: str(case[0]),
)
def test_switches(case: tuple[dict, set, set]) -> None:
    switches, towers, losses = case
    model = small_model(**switches)
    batch = small_batch(model.config)
    outputs = model(**batch)
    assert set(model.model.named_towers()) == towers
    assert set(outputs.loss_dict) == losses
    assert (outputs.logits is not None) is ("segmentation" in losses)
    assert (outputs.description_logits is not None) is ("description" in losses)
    assert (outputs.router_probs is not None) is model.config.reads_captions
    model.train()
    model(**batch).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert not any(map(changed, model.model.towers()))


def test_text_trains_the_masks_and_never_a_frozen_tower(model, batch) -> None:
    moved = loss_gradient(model, batch, "description")
    assert moved == {"model": True, "mask_decoder": True, "description_decoder": True, "towers": False}
    moved = loss_gradient(model, batch, "consistency")
    assert moved == {"model": True, "mask_decoder": True, "description_decoder": True, "towers": False}
    moved = loss_gradient(model, batch, "segmentation")
    assert moved == {"model": True, "mask_decoder": True, "description_decoder": False, "towers": False}
    alone = small_model(use_mcm=False, use_rcc=False)
    assert not loss_gradient(alone, small_batch(alone.config), "description")["mask_decoder"]
    compared = small_model(use_mcm=False)
    assert loss_gradient(compared, small_batch(compared.config), "consistency")["mask_decoder"]


def test_dice_moves_an_empty_frame_and_skips_frames_without_annotation() -> None:
    logits = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(3, 4, 4, dtype=torch.int8)
    labels[1, :2] = 1
    labels[2] = -100
    p, m = logits.detach().sigmoid()[:2, 0], labels[:2].double()
    expected = [1 - (2 * (a * b).sum() + 1) / ((a * a).sum() + (b * b).sum() + 1) for a, b in zip(p, m, strict=True)]
    loss = dice_loss(logits, labels)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert (logits.grad[0] > 0).all()
    assert not logits.grad[2].any()
    assert dice_loss(torch.full((1, 1, 4, 4), -50.0), torch.zeros(1, 4, 4)) == 0


def test_focal_loss_counts_ids_up_to_the_end() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[3, 1, 4, -100], [3, 4, -100, -100]])
    right = logits.log_softmax(-1)[[0, 0, 1], [0, 1, 0], [1, 4, 4]]
    torch.testing.assert_close(description_loss(logits, ids, 2.0), (-((1 - right.exp()) ** 2) * right).mean())
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(description_loss(logits, ids, 0), plain)
    assert description_loss(logits, torch.full((2, 4), -100), 2.0) == 0
    sure = torch.zeros(1, 1, 5, requires_grad=True)
    description_loss(sure + torch.tensor([200.0, 0, 0, 0, 0]), torch.tensor([[3, 0]]), 0.5).backward()
    assert sure.grad.isfinite().all()


def test_consistency_is_the_distance_of_directions_over_frames_with_a_sentence() -> None:
    one, other = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    described = torch.tensor([True, False, True])
    cosine = F.cosine_similarity(one, other)
    expected = (2 - 2 * cosine + 1e-6).sqrt()[described].mean()
    torch.testing.assert_close(consistency_loss(one, other, described), expected)
    assert consistency_loss(one, other, torch.zeros(3, dtype=torch.bool)) == 0
    same = one.clone().requires_grad_()
    consistency_loss(same, one, described).backward()
    assert same.grad.isfinite().all()


def test_soft_text_of_certain_ids_is_their_text(model) -> None:
    ids = torch.tensor([[512, 5, 7, 513, 0], [512, 9, 513, 0, 0]])
    certain = F.one_hot(ids[:, 1:], 514).double()
    tower = model.model.text_tower
    none = torch.zeros(0, 16, dtype=torch.float64)
    torch.testing.assert_close(soft_text(certain, ids, tower), tower.embed_prompts(ids, none))


def test_masked_frames_are_black_outside_the_mask() -> None:
    config = small_config(region_image_mean=[0.2, 0.3, 0.4], region_image_std=[0.5, 0.6, 0.7])
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    colours = torch.rand(2, 3, 32, 32)
    logits = torch.full((2, 1, 16, 16), 30.0)
    logits[1] = -30
    masked = masked_frames((colours - mean) / std, logits, config)
    own_mean, own_std = (
        torch.tensor(values)[:, None, None] for values in (config.region_image_mean, config.region_image_std)
    )
    torch.testing.assert_close(masked[0], (colours[0] - own_mean) / own_std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked[1], (-own_mean / own_std).expand(3, 32, 32), atol=1e-5, rtol=1e-5)


def test_a_padded_batch_gives_what_its_clips_give(model) -> None:
    lengths = [2, 1, 7]  # the last has more frames than the configuration
    batch = as_double(small_batch(model.config, len(lengths), 8, seed=1))
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    inputs = without_targets(batch)
    with torch.no_grad():
        padded = model(**batch, frame_mask=mask)
        decoded = model(**inputs, frame_mask=mask, max_length=5)
        noise = batch["pixel_values_videos"].where(mask[..., None, None, None], 1e3)
        assert torch.equal(model(**{**batch, "pixel_values_videos": noise}, frame_mask=mask).loss, padded.loss)
        for index, length in enumerate(lengths):
            alone = {
                name: value[index : index + 1] if "caption" in name else value[index : index + 1, :length]
                for name, value in batch.items()
            }
            outputs = model(**alone)
            for name in DECODED:
                torch.testing.assert_close(padded[name][index, :length], outputs[name][0])
                assert not padded[name][index, length:].any()
            ids = model(**without_targets(alone), max_length=5).description_ids
            assert torch.equal(decoded.description_ids[index, :length, : ids.shape[2]], ids[0])
    assert (decoded.description_ids[~mask] == -100).all()


def test_decoding_with_a_cache_is_decoding_without(model, batch) -> None:
    inputs = without_targets(batch)
    with torch.no_grad():
        cached, plain = (model(**inputs, max_length=9, use_cache=use_cache) for use_cache in (True, False))
        assert torch.equal(cached.description_ids, plain.description_ids)
        torch.testing.assert_close(cached.router_probs, plain.router_probs)
        assert cached.description_ids.shape == (2, 3, 9)
        assert (cached.description_ids[..., 0] == 512).all()
        assert len(cached.description_ids.unique()) > 3
        # Greedy: each id has the highest score, given those before it.
        taught = model(**inputs, description_ids=cached.description_ids)
        assert torch.equal(taught.description_logits.argmax(-1), cached.description_ids[..., 1:])
        torch.testing.assert_close(taught.router_probs, cached.router_probs)
        assert model(**inputs, max_new_tokens=3).description_ids.shape[2] == 4
        assert torch.equal(model(**inputs, max_length=4).description_ids, cached.description_ids[..., :4])
    with pytest.raises(CaeAvError, match=r"max_new_tokens.*2 to 77"):
        model(**inputs, max_new_tokens=77)


def test_descriptions_end(model, batch) -> None:
    inputs, decoder = without_targets(batch), model.description_decoder
    with torch.no_grad():
        free = model(**inputs, max_length=9).description_ids
        decoder.end_id = int(free[0, 0, 3])
        try:
            ended, plain = (
                model(**inputs, max_length=9, use_cache=use_cache).description_ids for use_cache in (True, False)
            )
        finally:
            decoder.end_id = 513
    assert torch.equal(ended, plain)
    for found, other in zip(ended.flatten(0, 1), free.flatten(0, 1), strict=True):
        is_end = other == free[0, 0, 3]
        end = int(is_end.int().argmax()) if is_end.any() else 8
        end = min(end, len(found) - 1)
        assert torch.equal(found[: end + 1], other[: end + 1])
        assert (found[end + 1 :] == -100).all()
    assert (ended[0, 0, 4:] == -100).all()


def test_without_a_text_the_expert_changes_nothing(model, batch, caplog) -> None:
    hf_logging.warning_once.cache_clear()
    inputs = {name: value for name, value in batch.items() if "caption" not in name}
    alone = small_model(**NO_DROPOUT, use_mohe=False).double()
    alone.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        plain, again = model(**inputs), model(**inputs)
        expected = alone(**inputs)
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
        mixed = model(**{**batch, "visual_caption_mask": mask})
        both = model(**batch)
    assert plain.router_probs is None
    torch.testing.assert_close(plain.description_logits, expected.description_logits)
    torch.testing.assert_close(mixed.description_logits[1], plain.description_logits[1])
    torch.testing.assert_close(mixed.description_logits[0], both.description_logits[0])
    assert not torch.allclose(both.description_logits[0], plain.description_logits[0])
    assert torch.equal(mixed.router_probs[1], torch.tensor([1.0, 0]).double().expand(3, 5, 2))
    torch.testing.assert_close(again.description_logits, plain.description_logits)
    assert sum("without the expert's text" in record.message for record in caplog.records) == 1


def test_features_of_the_text_are_as_good_as_its_ids(model, batch) -> None:
    given = dict(batch)
    with torch.no_grad():
        given["visual_caption_embeds"] = model.model.get_caption_features(given.pop("visual_caption_ids"))
        torch.testing.assert_close(model(**given).loss, model(**batch).loss)


def test_the_tower_of_frames_is_trained_from_its_epoch_on() -> None:
    model = small_model(unfreeze_vision_epoch=2).train()
    batch = small_batch(model.config)
    assert any(name.startswith("model.vision_tower") for name in trained_names(model))
    for epoch in (0, 1, 2):
        model.start_epoch(epoch)
        model.zero_grad()
        model(**batch).loss.backward()
        assert changed(model.model.vision_tower) is (epoch == 2)
    assert not any(changed(getattr(model.model, f"{kind}_tower")) for kind in ("audio", "region", "text"))


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient(batch) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = small_model(**NO_DROPOUT, unfreeze_vision_epoch=0).double().train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.slow
def test_eager_attention_is_fused_attention(model, batch) -> None:
    eager = small_model(**NO_DROPOUT, attn_implementation="eager").double()
    assert eager.config.decoder_config._attn_implementation == "eager"
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        one, other = eager(**batch, frame_mask=mask), model(**batch, frame_mask=mask)
    for name in (*DECODED, "loss"):
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("dtype", slow_after(1, [torch.bfloat16, torch.float16]))
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    half = SsuFormerForSoundSourceUnderstanding.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    batch = small_batch(model.config)
    with torch.no_grad():
        outputs, expected = half(**batch), model(**batch)
        decoded = half(**without_targets(batch), max_length=4)
    assert outputs.logits.dtype == dtype
    assert (outputs.loss - expected.loss).abs() < 0.05 * expected.loss
    assert decoded.description_ids.shape == (2, 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    """As mixed precision does; Accelerate offers float16 on GPUs alone, autocast on CPUs too."""
    model = small_model(**NO_DROPOUT).train()
    batch = small_batch(model.config)
    expected = model(**batch)
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(**batch)
    for name, value in expected.loss_dict.items():
        torch.testing.assert_close(outputs.loss_dict[name].float(), value, rtol=0.03, atol=0)
    (outputs.loss * 64).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_lora_on_its_towers(tmp_path: Path) -> None:
    model = small_model(**NO_DROPOUT)
    batch = small_batch(model.config)
    with torch.no_grad():
        before = model(**batch)
    model.add_lora(tower_lora_config(rank=2, towers=("vision", "audio", "text"), model=model))
    towers = {name for name, _ in model.named_parameters() if "_tower." in name}
    trained = {name for name, one in model.named_parameters() if one.requires_grad} & towers
    assert trained == {name for name in towers if "lora_" in name}
    for kind in ("vision", "audio", "text"):
        assert any(f"{kind}_tower." in name for name in trained)
    with torch.no_grad():
        assert_close(model(**batch).logits, before.logits)
    model.train()
    optimizer = torch.optim.SGD([model.get_parameter(name) for name in trained], lr=0.5)
    model(**batch).loss.backward()
    without = [name for name in trained if "lora_B" in name and not model.get_parameter(name).grad.any()]
    assert not without
    optimizer.step()
    model.eval()
    with torch.no_grad():
        after = model(**batch)
    assert not torch.allclose(after.logits, before.logits, atol=1e-5)
    assert not torch.allclose(after.description_logits, before.description_logits, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = SsuFormerForSoundSourceUnderstanding.from_pretrained(tmp_path)
    loaded.merge_lora()
    with torch.no_grad():
        merged = loaded(**batch)
    for name in DECODED:
        assert_close(merged[name], after[name])
    with pytest.raises(CaeAvError, match="must be some of vision, audio, text, got region"):
        tower_lora_config(towers=("region",), model=model)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded, report = SsuFormerForSoundSourceUnderstanding.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(not p.requires_grad for tower in loaded.model.towers() for p in tower.parameters())
    batch = small_batch(model.config)
    with torch.no_grad():
        assert_close(loaded(**batch).loss, model(**batch).loss)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SsuFormerConfig)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SsuFormerModel)
    inputs = {name: batch[name] for name in ("pixel_values_videos", "input_features")}
    with torch.no_grad():
        assert_close(base(**inputs).query_hidden_state, model.model(**inputs).query_hidden_state)


@pytest.mark.parametrize("unfreeze", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_checkpoints_without_towers(tmp_path: Path, unfreeze: int | None) -> None:
    aligned = aligned_toy_towers()
    towers = {**toy_towers(), "text": aligned["text"], "region": aligned["vision"]}
    torch.manual_seed(0)
    model = SsuFormerForSoundSourceUnderstanding.from_backbones(**towers, size="toy", unfreeze_vision_epoch=unfreeze)
    model.save_pretrained(tmp_path, adapter_only=True)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == trained_names(model)
    has_vision = any(name.startswith("model.vision_tower") for name in stored)
    assert has_vision is (unfreeze is not None)
    again = SsuFormerForSoundSourceUnderstanding.from_pretrained(tmp_path)
    one, other = model.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert trained_names(again) == trained_names(model)
    with pytest.raises(CaeAvError, match="`region` is missing"):
        SsuFormerForSoundSourceUnderstanding.from_backbones(**{**towers, "region": None}, size="toy")
    with pytest.raises(CaeAvError, match="`text` is not used"):
        SsuFormerForSoundSourceUnderstanding.from_backbones(**{**towers, "region": None}, size="toy", outputs="masks")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 3, 16, 16)}, "labels"),
        ({"description_ids": torch.zeros(2, 3, 78, dtype=torch.long)}, "description_ids"),
        ({"description_ids": torch.zeros(2, 4, 5, dtype=torch.long)}, "description_ids"),
        ({"frame_mask": torch.ones(2, 4)}, "frame_mask"),
        ({"input_features": torch.zeros(2, 2, 1, 101, 32)}, "agree in batch and frames"),
        ({"visual_caption_mask": torch.ones(2, 4)}, "visual_caption"),
    ],
)
def test_bad_input_names_the_argument(model, batch, change: dict, message: str) -> None:
    with pytest.raises(CaeAvError, match=message):
        model(**{**batch, **as_double(change)})


def test_its_configuration_comes_back(tmp_path: Path) -> None:
    for size in ("full", "toy"):
        config = SsuFormerConfig.from_preset("ra_ssu", size, use_mcm=False)
        config.save_pretrained(tmp_path)
        again = SsuFormerConfig.from_pretrained(tmp_path)
        ignored = ("auto_map", "custom_pipelines", "_name_or_path")
        one, other = ({k: v for k, v in c.to_dict().items() if k not in ignored} for c in (config, again))
        assert one == other
    assert SsuFormerConfig().to_dict() == SsuFormerConfig.from_preset("ra_ssu").to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 20, "num_attention_heads": 3}, "num_attention_heads"),
        ({"outputs": "sentences"}, "outputs"),
        ({"max_description_length": 78}, "max_description_length"),
        ({"region_config": {"projection_dim": 8}}, "projection_dim"),
        ({"decoder_config": {"vocab_size": 600}}, "one vocabulary"),
        ({"decoder_config": {"add_cross_attention": False}}, "add_cross_attention"),
        ({"vision_config": {"depths": (1, 1), "num_heads": (1, 2), "pretrained_window_sizes": (0, 0)}}, "four stages"),
        ({"use_mcmm": True}, "use_mcm"),
        ({"task": "ave"}, "a CaeAvConfig, not a SsuFormerConfig"),
    ],
)
def test_wrong_values_of_the_configuration_are_named(change: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        SsuFormerConfig.from_preset(**{"task": "ra_ssu", "size": "toy", **change})


def test_other_configurations_refuse_the_task() -> None:
    with pytest.raises(ValueError, match="a SsuFormerConfig, not a CaeAvConfig"):
        CaeAvConfig.from_preset("ra_ssu", "toy")


@pytest.mark.slow
def test_masks_are_exported_as_a_graph(tmp_path: Path, capsys) -> None:
    """By the command, which compares the file with the model. Captions are for the sentences alone."""
    import onnxruntime

    smallest = {
        "vision_config": {**SMALL["vision_config"], "depths": (1, 1, 1, 1)},
        "audio_config": {"depths": (1, 1), "num_attention_heads": (1, 2), "hidden_size": 32},
        "num_integration_layers": 1,
    }
    model = small_model(**smallest)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.onnx"
    assert caeav(["export", str(tmp_path / "model"), "--onnx", str(file)]) == 0
    assert "largest difference to the model" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file))
    inputs = without_captions(without_targets(small_batch(model.config, num_frames=4)))
    inputs["frame_mask"] = torch.ones(2, 4, dtype=torch.bool)
    assert {one.name for one in session.get_inputs()} == inputs.keys()
    assert [one.name for one in session.get_outputs()] == ["logits"]
    (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).logits, rtol=1e-4, atol=1e-4)


def without_captions(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if "_caption_" not in name}


def test_descriptions_are_not_exported() -> None:
    """Decoding is a loop of the model's own, which a graph does not have."""
    with pytest.raises(CaeAvError, match="no logits, and a graph does not decode description_ids"):
        export_program(small_model(outputs="descriptions"), captions=None)
    with pytest.raises(CaeAvError, match=r"unknown names \['description_ids'\]"):
        export_program(small_model(), captions=None, outputs=["description_ids"])
