"""The log-mel front end equals HTS-AT's, and batches equal single clips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from caeav_hf.errors import CaeAvError
from caeav_hf.media.segments import count_segments
from caeav_hf.processing import CaeAvFeatureExtractor
from tests.golden import GoldenCase


RATE = 32_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    return samples.astype(np.float32)


def test_golden_log_mel():
    case = GoldenCase("htsat_small")
    extractor = CaeAvFeatureExtractor(tile_seconds=1)
    features = extractor(list(case.inputs["waveform"]), sampling_rate=RATE)["input_features"]
    assert features.shape == (2, 1, 1, 101, 64)
    assert features.dtype == torch.float32
    # 1.3e-5 dB is reached.
    assert (features[:, 0, 0] - case.outputs["logmel"]).abs().max() < 1e-4


@pytest.mark.parametrize("segment_seconds", [1.0, 2.0, 0.7, 2.5, 3.0, 10.0])
def test_tiling_equals_the_spectrogram_of_the_whole_tile(segment_seconds):
    """Segments that divide the tile are computed from two periods; all others from the whole tile."""
    extractor = CaeAvFeatureExtractor(segment_seconds=segment_seconds)
    segment = noise(segment_seconds)
    features = extractor(segment, sampling_rate=RATE)["input_features"]
    assert features.shape == (1, 1, 1, 1001, 64)
    tile = torch.from_numpy(np.resize(segment, 10 * RATE))
    spectrum = torch.stft(
        tile, 1024, 320, window=torch.hann_window(1024, periodic=True), center=True, return_complex=True
    )
    expected = 10 * torch.log10((spectrum.abs().square().T @ torch.from_numpy(extractor.mel_filters)).clamp(1e-10))
    torch.testing.assert_close(features[0, 0, 0], expected, atol=1e-4, rtol=0)


def test_silence_is_the_floor_and_padding_is_zero():
    extractor = CaeAvFeatureExtractor()
    inputs = extractor([np.zeros(RATE, np.float32), noise(3)], sampling_rate=RATE)
    assert (inputs["input_features"][0, 0] == -100).all()
    assert (inputs["input_features"][0, 1:] == 0).all()
    assert inputs["frame_mask"].tolist() == [[True, False, False], [True] * 3]


def test_batch_equals_single():
    extractor = CaeAvFeatureExtractor()
    waveforms = [noise(3.0, 1), noise(0.3, 2), noise(1.96, 3), noise(2.3, 4)]
    batch = extractor(waveforms, sampling_rate=RATE)
    for index, waveform in enumerate(waveforms):
        single = extractor(waveform, sampling_rate=RATE)["input_features"][0]
        assert len(single) == count_segments(len(waveform) / RATE) == batch["frame_mask"][index].sum()
        torch.testing.assert_close(batch["input_features"][index, : len(single)], single, rtol=0, atol=1e-3)


def test_last_segment_is_filled_with_silence():
    extractor = CaeAvFeatureExtractor(tile_seconds=1)
    waveform = noise(1.5)
    padded = np.concatenate([waveform, np.zeros(RATE // 2, np.float32)])
    torch.testing.assert_close(
        extractor(waveform, sampling_rate=RATE)["input_features"], extractor(padded, RATE)["input_features"]
    )


def test_num_segments_cuts():
    extractor = CaeAvFeatureExtractor(tile_seconds=1)
    waveform = noise(3)
    cut = extractor(waveform, RATE, num_segments=2)["input_features"]
    torch.testing.assert_close(cut, extractor(waveform, RATE)["input_features"][:, :2], rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.lists(st.integers(1, 3 * 8000), min_size=1, max_size=4),
    segment_seconds=st.sampled_from([0.5, 1.0, 1.3]),
    tile_seconds=st.sampled_from([1.3, 2, 3.0]),
    mels=st.sampled_from([8, 16]),
)
def test_shapes(samples, segment_seconds, tile_seconds, mels):
    extractor = CaeAvFeatureExtractor(
        feature_size=mels,
        sampling_rate=8000,
        fft_window_size=256,
        hop_length=80,
        frequency_max=4000,
        segment_seconds=segment_seconds,
        tile_seconds=tile_seconds,
    )
    inputs = extractor([np.zeros(n) for n in samples], sampling_rate=8000)
    counts = [count_segments(n / 8000, segment_seconds) for n in samples]
    frames = round(tile_seconds * 8000) // 80 + 1
    assert inputs["input_features"].shape == (len(samples), max(counts), 1, frames, mels)
    assert inputs["frame_mask"].sum(1).tolist() == counts
    assert extractor.num_spectrogram_frames == frames


def test_array_kinds_give_the_same():
    extractor = CaeAvFeatureExtractor(tile_seconds=1)
    waveform = noise(1)
    expected = extractor(waveform, RATE)["input_features"]
    for other in (torch.from_numpy(waveform), waveform.astype(np.float64), [waveform], (waveform,)):
        torch.testing.assert_close(extractor(other, RATE)["input_features"], expected, rtol=0, atol=1e-3)
    arrays = extractor(waveform, RATE, return_tensors="np")
    assert isinstance(arrays["input_features"], np.ndarray)
    np.testing.assert_allclose(arrays["input_features"], expected.numpy(), rtol=0, atol=1e-3)


def test_save_and_load(tmp_path):
    extractor = CaeAvFeatureExtractor(feature_size=32, segment_seconds=0.5, tile_seconds=2, frequency_max=9000)
    extractor.save_pretrained(tmp_path)
    loaded = CaeAvFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert "mel_filters" not in (tmp_path / "preprocessor_config.json").read_text()
    waveform = noise(2)
    expected = extractor(waveform, RATE)["input_features"]
    torch.testing.assert_close(loaded(waveform, RATE)["input_features"], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        (noise(1), None, "`sampling_rate` of the waveforms must be given"),
        (noise(1), 44_100, "44100 Hz; expected 32000 Hz"),
        (np.zeros((2, RATE), np.float32), RATE, r"waveform 0 has shape \(2, 32000\)"),
        ([noise(1), np.zeros(0, np.float32)], RATE, r"waveform 1 has shape \(0,\)"),
        (np.zeros(RATE, np.int16), RATE, "expected floats"),
        ([noise(1), np.full(RATE, np.nan, np.float32)], RATE, "waveform 1 holds values that are not finite"),
        ([], RATE, "empty list"),
    ],
)
def test_errors(audio, rate, words):
    with pytest.raises(CaeAvError, match=words):
        CaeAvFeatureExtractor()(audio, sampling_rate=rate)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"frequency_max": 33_000}, "`frequency_max`"),
        ({"segment_seconds": 2.0, "tile_seconds": 1}, "`tile_seconds` must be at least"),
        ({"segment_seconds": 0}, "positive"),
        ({"segment_seconds": 0.01, "tile_seconds": 0.01}, "half a window"),
    ],
)
def test_configuration_errors(kwargs, words):
    with pytest.raises(CaeAvError, match=words):
        CaeAvFeatureExtractor(**kwargs)


@pytest.mark.parametrize(("bands", "hop"), [(192, 83), (64, 250)])
def test_filter_bank_equals_transformers_kaldi_spectrogram(bands, hop):
    rate = 16_000
    settings = {"feature_size": bands, "sampling_rate": rate, "fft_window_size": 400, "hop_length": hop}
    extractor = CaeAvFeatureExtractor(
        **settings, frequency_min=20, frequency_max=8000, tile_seconds=1, mel_scale="kaldi"
    )
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * rate).astype(np.float32) + 0.1
    features = extractor(sound, sampling_rate=rate)["input_features"]
    assert features.shape == (1, 2, 1, bands, bands)
    filters = mel_filter_bank(257, bands, 20, 8000, rate, None, "kaldi", triangularize_in_mel_space=True)
    for segment, mine in zip(np.split(sound, 2), features[0, :, 0], strict=True):
        expected = spectrogram(
            segment,
            window_function(400, "hann", periodic=False),
            frame_length=400,
            hop_length=hop,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=filters,
            log_mel="log",
            mel_floor=np.finfo(np.float32).eps,
            remove_dc_offset=True,
        ).T
        expected = (expected + 4.984795570373535) / (2 * 3.7079780101776123)
        assert len(expected) < bands
        np.testing.assert_allclose(mine[: len(expected)], expected, atol=2e-4)
        assert not mine[len(expected) :].any()


@pytest.mark.parametrize(("seconds", "window"), [(10, 1.0), (5, 1.95)])
def test_windows_lie_evenly_over_a_clip(seconds: int, window: float) -> None:
    """As STG-CMA's code spaces them: the last one ends a tenth of a second before the clip."""
    rate, settings = 16_000, {"feature_size": 40, "fft_window_size": 400, "frequency_min": 20, "frequency_max": 8000}
    settings |= {"sampling_rate": rate, "mel_scale": "kaldi", "hop_length": 160, "spectrogram_frames": 102}
    extractor = CaeAvFeatureExtractor(**settings, window_seconds=window)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, rate * seconds).astype(np.float32)
    found = extractor(sound, sampling_rate=rate)["input_features"][0, :, 0]
    assert len(found) == seconds
    # Each as the only segment of a sound of its own, with the mean of the clip.
    alone = CaeAvFeatureExtractor(**settings, segment_seconds=window)
    starts = np.linspace(0, rate * seconds - rate * (window + 0.1), seconds).astype(int)
    assert rate * seconds - starts[-1] == pytest.approx(rate * (window + 0.1), abs=1)
    for segment, start in zip(found, starts, strict=True):
        piece = sound[start : start + round(rate * window)] - sound.mean()
        expected = alone(piece, sampling_rate=rate)["input_features"][0, 0, 0]
        torch.testing.assert_close(segment, expected, atol=1e-4, rtol=1e-4)
    # A window of 1.95 s fills all rows, where a second leaves the last ones empty.
    assert bool(found[:, -1].any()) == (window > 1)


def test_a_sound_shorter_than_its_windows_is_read_whole() -> None:
    settings = {"feature_size": 40, "fft_window_size": 400, "frequency_min": 20, "frequency_max": 8000}
    settings |= {"sampling_rate": 16_000, "mel_scale": "kaldi", "hop_length": 160, "spectrogram_frames": 120}
    extractor = CaeAvFeatureExtractor(**settings, window_seconds=1.95)
    short, long = (np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * n).astype(np.float32) for n in (1, 5))
    features = extractor([short, long], sampling_rate=16_000)["input_features"]
    assert not features[0, 0, 0, 98:].any()
    assert features[0, 0, 0, :98].all(-1).any()
    assert features[1, :, 0, -1].any(-1).all()
    again = extractor(short, sampling_rate=16_000)["input_features"]
    torch.testing.assert_close(again[0, 0], features[0, 0])
    assert CaeAvFeatureExtractor.from_dict(extractor.to_dict()).window_seconds == 1.95
    with pytest.raises(CaeAvError, match="`window_seconds` needs `mel_scale` 'kaldi'"):
        CaeAvFeatureExtractor(window_seconds=1.0)
