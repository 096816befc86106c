"""Frames are resized, scaled and normalised as Swin-V2's weights expect, in ragged batches too."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caeav_hf import CaeAvConfig
from caeav_hf.errors import CaeAvError
from caeav_hf.processing import CaeAvProcessor, CaeAvVideoProcessor


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_equals_pillow_up_to_rounding():
    frames = clip(2, 300, 400)
    pixels = CaeAvVideoProcessor()(frames)["pixel_values_videos"]
    assert pixels.shape == (1, 2, 3, 192, 192)
    assert pixels.dtype == torch.float32
    resized = np.stack([np.asarray(Image.fromarray(f).resize((192, 192), Image.Resampling.BICUBIC)) for f in frames])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((resized / 255 - mean) / std).transpose(0, 3, 1, 2)
    # One level of 255 is .0175 after the normalisation.
    assert np.abs(pixels[0].numpy() - expected).max() < 0.018


def test_ragged_batch_equals_single():
    processor = CaeAvVideoProcessor(size={"height": 64, "width": 64})
    clips = [clip(3, 50, 70, 1), clip(1, 300, 64, 2), clip(3, 50, 70, 3), clip(2, 64, 64, 4)]
    batch = processor(clips)
    assert batch["frame_mask"].sum(1).tolist() == [3, 1, 3, 2]
    for index, frames in enumerate(clips):
        single = processor(frames)["pixel_values_videos"][0]
        assert torch.equal(batch["pixel_values_videos"][index, : len(frames)], single)
        assert not batch["pixel_values_videos"][index, len(frames) :].any()


def test_channels_first_and_tensors_give_the_same():
    processor = CaeAvVideoProcessor(size={"height": 32, "width": 32})
    frames = clip(2, 40, 50)
    expected = processor(frames)["pixel_values_videos"]
    first = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    for other in (torch.from_numpy(frames), first, torch.from_numpy(first), [frames]):
        assert torch.equal(processor(other)["pixel_values_videos"], expected)
    arrays = processor(frames, return_tensors="np")
    np.testing.assert_array_equal(arrays["pixel_values_videos"], expected.numpy())


def test_input_is_not_changed():
    frames = clip(2, 192, 192)
    before = frames.copy()
    CaeAvVideoProcessor()(frames)
    np.testing.assert_array_equal(frames, before)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=4),
    side=st.integers(4, 48),
)
def test_shapes(shapes, side):
    batch = CaeAvVideoProcessor(size={"height": side, "width": side})([clip(*shape) for shape in shapes])
    longest = max(shape[0] for shape in shapes)
    assert batch["pixel_values_videos"].shape == (len(shapes), longest, 3, side, side)
    assert batch["frame_mask"].sum(1).tolist() == [shape[0] for shape in shapes]


def test_save_and_load(tmp_path):
    processor = CaeAvVideoProcessor(size={"height": 48, "width": 48}, image_mean=[0.5, 0.5, 0.5])
    processor.save_pretrained(tmp_path)
    loaded = CaeAvVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    frames = clip(1, 60, 50)
    assert torch.equal(loaded(frames)["pixel_values_videos"], processor(frames)["pixel_values_videos"])


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (clip(2, 20, 20).astype(np.float32), "torch.float32; expected uint8"),
        ([clip(2, 20, 20), clip(2, 20, 20)[0]], r"clip 1 has shape \(20, 20, 3\)"),
        (clip(1, 20, 20)[:0], r"clip 0 has shape \(0, 20, 20, 3\)"),
        ("dog.mp4", "decode files with `load_clip`"),
    ],
)
def test_errors(videos, words):
    with pytest.raises(CaeAvError, match=words):
        CaeAvVideoProcessor()(videos)


def test_floats_without_rescaling():
    frames = clip(1, 20, 20) / np.float32(255)
    processor = CaeAvVideoProcessor(do_rescale=False, size={"height": 20, "width": 20})
    expected = CaeAvVideoProcessor(size={"height": 20, "width": 20})(clip(1, 20, 20))["pixel_values_videos"]
    torch.testing.assert_close(processor(frames)["pixel_values_videos"], expected, atol=1e-5, rtol=0)


def test_cropped_frames_keep_their_aspect_ratio(tmp_path):
    config = CaeAvConfig.from_preset("ave", size="toy", frame_crop=True)
    processor = CaeAvProcessor.from_config(config).video_processor
    frames = np.zeros((2, 40, 120, 3), np.uint8)
    frames[:, :, 40:80] = 255
    found = processor([frames])["pixel_values_videos"]
    assert found.shape == (1, 2, 3, 64, 64)
    # The middle third is what is left of it, up to the edges of its sides.
    white = processor([np.full((2, 40, 40, 3), 255, np.uint8)])["pixel_values_videos"]
    torch.testing.assert_close(found[..., 2:-2], white[..., 2:-2])
    processor.save_pretrained(tmp_path)
    again = CaeAvVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(again([frames])["pixel_values_videos"], found)
    with pytest.raises(StrictDataclassClassValidationError, match="`frame_crop` of CaeAvConfig must be False"):
        CaeAvConfig.from_preset("avs_s4", frame_crop=True)
