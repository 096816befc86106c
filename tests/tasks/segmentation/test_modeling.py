"""The segmentation model: shapes, padding, losses, saving."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForSegmentation
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.tasks.segmentation.head import TPAVI, MaskLogits
from tests.modeling.helpers import as_double, randomise, toy_batch, toy_segmentation_model, without_padding
from tests.same import assert_close


def batch_with_masks(config: CaeAvConfig, batch_size: int = 2, num_frames: int = 3, seed: int = 0) -> dict:
    batch = toy_batch(config, batch_size, num_frames, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, num_frames, config.mask_size, config.mask_size)
    return {**batch, "labels": torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)}


@settings(max_examples=6, deadline=None)
@given(
    formulation=st.sampled_from(["paper", "official"]),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_padding_changes_nothing(formulation: str, lengths: list[int], seed: int) -> None:
    model = toy_segmentation_model(formulation=formulation).double()
    batch = batch_with_masks(model.config, len(lengths), max(lengths) + 1, seed)
    batch = as_double(batch)
    mask = torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        padded = model(**batch, frame_mask=mask).logits
        for index, length in enumerate(lengths):
            alone = without_padding(batch, mask, index, ("pixel_values_videos", "input_features", "labels"))
            torch.testing.assert_close(padded[index, :length], model(**alone).logits[0])
            assert not padded[index, length:].any()


@pytest.mark.parametrize(("image_size", "mask_size"), [(64, 64), (64, 96), (96, 64)])
def test_any_size_of_tower_and_mask(image_size: int, mask_size: int) -> None:
    model = toy_segmentation_model(mask_size=mask_size, vision_config={"image_size": image_size})
    outputs = model(**batch_with_masks(model.config))
    assert outputs.logits.shape == (2, 3, 1, mask_size, mask_size)
    assert torch.isfinite(outputs.loss)


def test_tpavi_is_attention_over_all_pixels_of_a_clip() -> None:
    """The published form: a map between all pixels, divided by their number."""
    torch.manual_seed(0)
    module = randomise(TPAVI(8, 4)).double().eval()
    maps, audio = torch.randn(4, 8, 3, 3, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    actual, aligned = module(maps, audio, FrameLayout(2, 2))
    pixels = maps.permute(0, 2, 3, 1).reshape(2, 18, 8)
    sound = aligned[:, None].expand(-1, 9, -1).reshape(2, 18, 8)
    scores = module.query(pixels) @ module.key(sound).transpose(1, 2) / 18
    attended = module.output(scores @ module.value(pixels))
    attended = module.batch_norm(attended.flatten(0, 1)).view_as(pixels)
    expected = module.norm(attended + pixels).view(4, 3, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected)


def test_only_frames_with_a_mask_count() -> None:
    """Single-source training labels the first frame of each clip."""
    model = toy_segmentation_model(task="avs_s4")
    batch = batch_with_masks(model.config)
    batch["labels"][:, 1:] = -100
    outputs = model(**batch)
    expected = F.binary_cross_entropy_with_logits(outputs.logits[:, 0, 0], batch["labels"][:, 0].float())
    torch.testing.assert_close(outputs.loss_dict["task"], expected)
    assert "matching" not in outputs.loss_dict
    batch["labels"][:] = -100
    assert model(**batch).loss_dict["task"] == 0


def test_multi_source_adds_matching_and_load_balancing() -> None:
    model = toy_segmentation_model(task="avs_ms3")
    outputs = model(**batch_with_masks(model.config))
    assert set(outputs.loss_dict) == {"task", "caption", "alignment", "entropy", "load_balancing", "matching"}
    weights = {"task": 1, "caption": 0.1, "alignment": 0.05, "entropy": 0.005, "load_balancing": 0.01, "matching": 0.5}
    expected = sum(weights[name] * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, expected)


def test_matching_loss_is_zero_where_sound_and_masked_picture_agree() -> None:
    head = toy_segmentation_model().head
    audio = torch.randn(2, 64)
    maps = [audio[:, :, None, None].expand(-1, -1, 4, 4)]
    same = MaskLogits(torch.randn(2, 1, 64, 64), maps, [audio])
    torch.testing.assert_close(head.matching_loss(same), torch.zeros(()), atol=1e-6, rtol=0)
    other = MaskLogits(same.logits, maps, [audio.flip(0)])
    assert head.matching_loss(other) > 0.01


def test_round_trip_and_gradients(tmp_path: Path) -> None:
    model = toy_segmentation_model()
    batch = batch_with_masks(model.config)
    model.save_pretrained(tmp_path)
    loaded = CaeAvForSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(loaded(**batch).logits, model(**batch).logits)
    loaded.train()
    loaded(**batch).loss.backward()
    assert [n for n, p in loaded.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for tower in loaded.model.towers() for p in tower.parameters())


def test_wrong_labels() -> None:
    model = toy_segmentation_model()
    batch = batch_with_masks(model.config)
    with pytest.raises(CaeAvError, match="labels"):
        model(**{**batch, "labels": batch["labels"][:, :, :32]})


def test_a_new_decoder_marks_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = CaeAvForSegmentation(CaeAvConfig.from_preset("avs_ms3", size="toy")).eval()
    with torch.no_grad():
        probabilities = model(**batch_with_masks(model.config)).logits.sigmoid()
    assert 0.05 < probabilities.mean() < 0.25
