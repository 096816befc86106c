"""Skipping frames that are not needed leaves the selected ones identical to the last bit."""

import numpy as np
import pytest

from caeav_hf.media import clip as media
from caeav_hf.media.clip import load_clip
from caeav_hf.media.skipping import FrameSkipper
from tests.media_factory import corrupt, truncate, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Write six seconds, in which about a third of the frames are not referenced."""
    return write_clip(tmp_path_factory.mktemp("skipping") / "clip.mp4", seconds=6, fps=25)


def load(path, **options):
    return load_clip(path, **{"num_segments": 6, "sampling_rate": 8000, "num_threads": 1, **options})


def load_whole(path, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameSkipper, "suits", staticmethod(lambda stream: False))
        return load(path, **options)


def assert_same(clip, other):
    assert np.array_equal(clip.frames, other.frames)
    assert np.array_equal(clip.frame_times, other.frame_times)
    assert np.array_equal(clip.waveform, other.waveform)
    assert clip.duration == other.duration


def count_frames(monkeypatch):
    counted, decode = [], media.try_packet

    def counting(stream, packet):
        frames = decode(stream, packet)
        counted.extend(frame for frame in frames or () if stream.type == "video")
        return frames

    monkeypatch.setattr(media, "try_packet", counting)
    return counted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": 2.3},
        {"start": 1.0, "end": 4.2},
        {"num_segments": 9},
        {"num_segments": 4, "frame_sampling": "spread"},
        {"num_segments": 150, "segment_seconds": 0.04},
    ],
)
def test_what_is_taken_does_not_change(clip, options):
    assert_same(load(clip, **options), load_whole(clip, **options))


def test_frames_that_nothing_refers_to_are_left_out(clip, monkeypatch):
    counted = count_frames(monkeypatch)
    load(clip)
    assert len(counted) < 110
    counted.clear()
    load_whole(clip)
    assert len(counted) > 130


def test_frames_of_uneven_times(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.3, 60))
    path = write_clip(tmp_path / "uneven.mkv", frame_times=[0.0, *times.round(3)])
    assert_same(load(path), load_whole(path))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_decoded_frame_by_frame(clip, tmp_path, seed):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(clip.read_bytes())
    first = 0.2 * (seed + 1)
    corrupt(path, first, first + 0.02, seed=seed)
    assert_same(load(path), load_whole(path))


def test_a_file_that_breaks_off(tmp_path):
    path = truncate(write_clip(tmp_path / "cut.mp4", seconds=6, index_first=True), 0.5)
    assert_same(load(path), load_whole(path))
