"""Clips as arrays, images and decoders of `datasets` rows equal their files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.errors import CaeAvError
from caeav_hf.media.clip import Clip, load_clip
from caeav_hf.media.sound import load_audio
from caeav_hf.processing import CaeAvProcessor
from tests.media_factory import count_image, write_clip
from tests.same import assert_same_clip


RATE = 32_000


@pytest.fixture(scope="module")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("inputs") / "three.mp4", seconds=3)


@pytest.fixture(scope="module")
def clip(processor: CaeAvProcessor, path: Path) -> Clip:
    return processor.load_clip(path)


class VideoDecoder:
    """As torchcodec's decoder, with a stream that begins later than 0, like many of broadcasts."""

    begin = 1.4

    def __init__(self, path: Path, dimension_order: str = "NCHW"):
        self.clip = load_clip(path, num_segments=1000, sampling_rate=RATE, segment_seconds=0.04)
        self.order = dimension_order
        end = self.begin + self.clip.duration
        self.metadata = SimpleNamespace(
            begin_stream_seconds=self.begin, end_stream_seconds=end, average_fps=25.0, path="three.mp4"
        )

    def get_frames_played_at(self, seconds: list[float]) -> Any:
        assert all(self.begin <= second < self.metadata.end_stream_seconds for second in seconds)
        numbers = [int((second - self.begin) / 0.04) for second in seconds]
        data = torch.from_numpy(self.clip.frames[numbers])
        times = torch.tensor([self.begin + self.clip.frame_times[number] for number in numbers], dtype=torch.float64)
        return SimpleNamespace(data=data.permute(0, 3, 1, 2) if self.order == "NCHW" else data, pts_seconds=times)


class AudioDecoder:
    def __init__(self, samples: torch.Tensor, rate: int):
        self.samples, self.rate = samples, rate
        self.metadata = SimpleNamespace(path="three.mp4")

    def get_all_samples(self) -> Any:
        return SimpleNamespace(data=self.samples, sample_rate=self.rate)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("first", [True, False])
def test_layouts_and_types_of_frames(processor: CaeAvProcessor, clip: Clip, dtype: Any, first: bool) -> None:
    expected = processor(clip)
    frames: Any = clip.frames.transpose(0, 3, 1, 2) if first else clip.frames
    if isinstance(dtype, torch.dtype):
        frames = torch.tensor(frames)
    if "float" in str(dtype):
        frames = frames / 255
    frames = frames.to(dtype) if isinstance(dtype, torch.dtype) else frames.astype(dtype)
    assert_same_clip(processor(frames, clip.waveform, sampling_rate=RATE), expected)
    assert_same_clip(processor([frames], [clip.waveform], sampling_rate=RATE), expected)


def test_lists_of_images(processor: CaeAvProcessor, clip: Clip) -> None:
    expected = processor(clip)
    images = [Image.fromarray(frame) for frame in clip.frames]
    transparent = [image.convert("RGBA") for image in images]
    for frames in (images, tuple(transparent), list(clip.frames), [torch.tensor(frame) for frame in clip.frames]):
        assert_same_clip(processor(frames, clip.waveform, sampling_rate=RATE), expected)
    two = processor([images, images[:1]], [clip.waveform, clip.waveform[:RATE]], sampling_rate=RATE)
    assert two["frame_mask"].sum(1).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((2, 3, 8, 3), np.uint8), "which fits both layouts"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\); expected \(T, H, W, 3\) or \(T, 3, H, W\)"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64; expected uint8, or floats"),
        (np.full((2, 8, 8, 3), 200.0), "floats from 200 to 200; expected floats in"),
        (np.full((2, 8, 8, 3), np.nan), "floats from nan to nan"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "expected one size"),
    ],
)
def test_frames_that_are_refused(processor: CaeAvProcessor, frames: Any, words: str) -> None:
    with pytest.raises(CaeAvError, match=f"clip 0.*{words}"):
        processor(frames, np.zeros(2 * RATE, np.float32), sampling_rate=RATE)


def test_channels_and_types_of_sound(processor: CaeAvProcessor, path: Path) -> None:
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, RATE)).astype(np.float32)
    stereo, mono = np.stack([left, right]), ((left + right) / 2)
    for given in (mono, stereo, stereo.T, torch.tensor(stereo), stereo.astype(np.float64), mono[None], mono[:, None]):
        np.testing.assert_allclose(processor.load_sound(given, sampling_rate=RATE), mono, atol=1e-6)
    for dtype, scale in ((np.int16, 2**15), (np.int32, 2**31)):
        whole = (stereo.astype(np.float64) * scale).astype(dtype)
        np.testing.assert_allclose(processor.load_sound(whole, sampling_rate=RATE), mono, atol=1 / 2**15)
        np.testing.assert_allclose(processor.load_sound(torch.tensor(whole), sampling_rate=RATE), mono, atol=1 / 2**15)
    assert processor.load_sound(mono, sampling_rate=RATE).tobytes() == mono.tobytes()
    given = {"array": mono, "sampling_rate": RATE}
    np.testing.assert_array_equal(processor.load_sound(given), mono)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_is_resampled(processor: CaeAvProcessor, rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    heard = processor.load_sound(tone, sampling_rate=rate)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    assert heard.shape == expected.shape
    # The ends are filtered against silence.
    np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (np.zeros((4, 4)), "of which no axis is clearly its channels"),
        (np.zeros((100, 100)), "of which no axis is clearly its channels"),
        (np.zeros((1, 2, RATE)), r"has shape \(1, 2, 32000\)"),
        (np.zeros(RATE, np.int64), "int64; expected floats in"),
        (np.full(RATE, np.nan), "not finite"),
    ],
)
def test_sounds_that_are_refused(processor: CaeAvProcessor, sound: np.ndarray, words: str) -> None:
    with pytest.raises(CaeAvError, match=words):
        processor.load_sound(sound, sampling_rate=16_000)
    with pytest.raises(CaeAvError, match="no `sampling_rate` was given for the sound"):
        processor.load_sound(np.zeros(RATE, np.float32))


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_decoders(processor: CaeAvProcessor, path: Path, order: str) -> None:
    stored = load_audio(path, sampling_rate=44_100)[: 3 * 44_100]
    inputs = processor(VideoDecoder(path, order), AudioDecoder(torch.tensor(np.stack([stored] * 2)), 44_100))
    expected = processor(path)
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])
    waveform = processor.load_sound(AudioDecoder(torch.tensor(stored[None]), 44_100))
    decoded = load_audio(path, sampling_rate=RATE)[: 3 * RATE]
    assert waveform.shape == decoded.shape
    # Where the sound was cut, the filter sees silence.
    np.testing.assert_allclose(waveform[:-500], decoded[:-500], atol=1e-3)
    assert inputs["input_features"].shape == expected["input_features"].shape


def test_decoders_of_rows_are_read_as_stored(processor: CaeAvProcessor, path: Path) -> None:
    """`datasets` stores the source on a decoder, so the video's sound is available too."""
    expected = processor(path)
    for stored in ({"path": str(path), "bytes": None}, {"path": "x.mp4", "bytes": path.read_bytes()}):
        video, sound = VideoDecoder(path), AudioDecoder(torch.zeros(1, 100), 8000)
        video._hf_encoded = sound._hf_encoded = stored  # type: ignore[attr-defined]
        assert_same_clip(processor(video), expected)
        assert torch.equal(processor(video, sound)["pixel_values_videos"], expected["pixel_values_videos"])
        assert processor.load_sound(sound).shape[0] > 2 * RATE
    with pytest.raises(CaeAvError, match=r"three\.mp4: read with 0 samples"):
        processor(VideoDecoder(path))


def test_frames_of_a_batch_may_differ_in_kind(processor: CaeAvProcessor, clip: Clip, path: Path) -> None:
    floats = np.stack([count_image(0, (8, 20))]).transpose(0, 3, 1, 2) / 255
    inputs = processor([floats, path], [np.zeros((RATE // 2, 2), np.int16), clip.waveform], sampling_rate=RATE)
    assert inputs["frame_mask"].sum(1).tolist() == [1, 3]
