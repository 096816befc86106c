"""Waveforms decoded from sound files and videos."""

import numpy as np
import pytest

from caeav_hf.errors import MediaError
from caeav_hf.media.sound import load_audio
from tests.media.test_clip import RATE, load, shift
from tests.media_factory import sound_samples, sweep, write_wav


@pytest.mark.parametrize(
    ("suffix", "codec"), [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("flac", "flac"), ("mp3", "libmp3lame")]
)
def test_load_audio(tmp_path, suffix, codec):
    path = write_wav(tmp_path / f"sound.{suffix}", seconds=2, codec=codec)
    waveform = load_audio(path, sampling_rate=RATE)
    assert waveform.dtype == np.float32
    assert waveform.shape[0] == pytest.approx(2 * RATE, abs=RATE * (0.06 if suffix == "mp3" else 0.001))
    # An mp3 made without a delay header begins with its encoder's delay.
    assert abs(shift(waveform[:RATE], 0.0)) < (0.0125 if suffix == "mp3" else 1e-4)


def test_load_audio_is_exact_without_resampling(tmp_path):
    path = write_wav(tmp_path / "sound.wav", seconds=1, rate=RATE)
    expected = sound_samples(sweep, 1, RATE)[0]
    np.testing.assert_allclose(load_audio(path, sampling_rate=RATE), expected, atol=1 / 32768)
    part = load_audio(path, sampling_rate=RATE, start=0.25, end=0.5)
    np.testing.assert_allclose(part, expected[8000:16_000], atol=1 / 32768)


def test_load_audio_from_video_and_errors(clip_path, tmp_path):
    np.testing.assert_array_equal(
        load_audio(clip_path, sampling_rate=RATE)[: 9 * RATE], load(clip_path).waveform[: 9 * RATE]
    )
    with pytest.raises(MediaError, match=r"missing\.wav: no such file"):
        load_audio(tmp_path / "missing.wav", sampling_rate=RATE)
    with pytest.raises(MediaError, match=r"no sound could be decoded from 60\.0 s"):
        load_audio(clip_path, sampling_rate=RATE, start=60.0)
