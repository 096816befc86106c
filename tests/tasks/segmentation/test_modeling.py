"""The segmentation model: shapes, losses, the decoder."""

import pytest
import torch
import torch.nn.functional as F

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForSegmentation, CaeAvProcessor
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.tasks.segmentation.head import TPAVI, MaskLogits
from tests.modeling.helpers import randomise, task_batch, toy_segmentation_model


@pytest.mark.parametrize(("image_size", "mask_size"), [(64, 64), (64, 96), (96, 64)])
def test_any_size_of_tower_and_mask(image_size: int, mask_size: int) -> None:
    model = toy_segmentation_model(mask_size=mask_size, vision_config={"image_size": image_size})
    outputs = model(**task_batch(model.config, num_frames=3))
    assert outputs.logits.shape == (2, 3, 1, mask_size, mask_size)
    assert torch.isfinite(outputs.loss)


@torch.no_grad()
def test_frames_of_another_size_are_resized_in_the_model() -> None:
    """The model resizes the processor's frames, of `frame_size`, to its tower's size."""
    model = toy_segmentation_model(frame_size=80)
    batch = task_batch(model.config, num_frames=3)
    tower = CaeAvConfig.from_preset("avs_ms3", size="toy").vision_config.input_size
    assert (model.config.input_size, tower) == ((80, 80), (64, 64))
    size = CaeAvProcessor.from_config(model.config).video_processor.size
    assert dict(size) == {"height": 80, "width": 80}
    large = torch.randn(2, 3, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(large.flatten(0, 1), size=tower, mode="bicubic").unflatten(0, (2, 3))
    expected = model(**{**batch, "pixel_values_videos": resized}).logits  # of the tower's size already
    actual = model(**{**batch, "pixel_values_videos": large}).logits
    torch.testing.assert_close(actual, expected)
    model.config.frame_size = None
    with pytest.raises(CaeAvError, match="64x64 pixels"):
        model(**{**batch, "pixel_values_videos": large})


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
    batch = task_batch(model.config, num_frames=3)
    batch["labels"][:, 1:] = -100
    outputs = model(**batch)
    expected = F.binary_cross_entropy_with_logits(outputs.logits[:, 0, 0], batch["labels"][:, 0].float())
    torch.testing.assert_close(outputs.loss_dict["task"], expected)
    assert "matching" not in outputs.loss_dict
    batch["labels"][:] = -100
    assert model(**batch).loss_dict["task"] == 0


def test_multi_source_adds_matching_and_load_balancing() -> None:
    model = toy_segmentation_model(task="avs_ms3")
    outputs = model(**task_batch(model.config, num_frames=3))
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


def test_matching_loss_of_avsbench() -> None:
    """Each frame and scale alone: logits averaged before the sigmoid, all pixels in the mean, frames summed."""
    head = toy_segmentation_model(matching_loss_form="sum").double().head
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits, audio = 4 * randn(3, 1, 8, 8), [randn(3, 5), randn(3, 5)]
    maps = [randn(3, 5, 4, 4), randn(3, 5, 2, 2)]
    expected = 0.0
    for sound, image in zip(audio, maps, strict=True):
        side, step = image.shape[-1], 8 // image.shape[-1]
        for frame in range(3):
            pixels = []
            for row in range(side):
                for column in range(side):
                    patch = logits[frame, 0, row * step : (row + 1) * step, column * step : (column + 1) * step]
                    pixels.append(image[frame, :, row, column] * patch.mean().sigmoid())
            seen, heard = (sum(pixels) / side**2).softmax(0), sound[frame].softmax(0)
            expected = expected + (heard * (heard.log() - seen.log())).sum() / 2
    loss = head.matching_loss(MaskLogits(logits, maps, audio))
    torch.testing.assert_close(loss, expected.float())
    head.matching_loss_form = "mean"
    assert abs(head.matching_loss(MaskLogits(logits, maps, audio)) - expected) > 0.01
    assert CaeAvConfig.from_preset("avs_ms3", size="toy", method="dg_sct").matching_loss_form == "sum"
    assert CaeAvConfig.from_preset("avs_ms3", size="toy").matching_loss_form == "mean"


def test_a_new_decoder_marks_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = CaeAvForSegmentation(CaeAvConfig.from_preset("avs_ms3", size="toy")).eval()
    with torch.no_grad():
        probabilities = model(**task_batch(model.config, num_frames=3)).logits.sigmoid()
    assert 0.05 < probabilities.mean() < 0.25
