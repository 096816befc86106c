"""Decoding in guarded workers: the same results, and a clear error where a file takes too much or kills its worker."""

import io

import numpy as np
import pytest

from caeav_hf.errors import MediaError
from caeav_hf.media.clip import load_clip, probe
from caeav_hf.media.guard import guarded_decoding
from caeav_hf.media.segment_stream import read_segments
from caeav_hf.media.sound import load_audio
from tests.media_factory import write_clip


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("guard") / "clip.mp4", seconds=2)


def everything_of(source):
    """Return what the functions that open media give for a clip."""
    clip = load_clip(source, num_segments=2, sampling_rate=16_000)
    spread = load_clip(source, num_segments=3, sampling_rate=16_000, frame_sampling="spread")
    segments = list(read_segments(source, segment_seconds=1.0, sampling_rate=16_000))
    return [clip, spread, load_audio(source, sampling_rate=8_000), probe(source), *segments]


def assert_same(given, expected):
    if isinstance(expected, np.ndarray):
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(given) is type(expected)
        for name in expected.__dataclass_fields__:
            assert_same(getattr(given, name), getattr(expected, name))
    else:
        assert given == expected


def test_results_are_the_same_bit_for_bit(short_clip):
    content = short_clip.read_bytes()
    for make in (lambda: short_clip, lambda: io.BytesIO(content), lambda: {"bytes": content, "path": "a.mp4"}):
        expected = everything_of(make())
        with guarded_decoding():
            given = everything_of(make())
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)


def test_errors_keep_class_and_text(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(MediaError) as alone:
        load_clip(path, num_segments=1, sampling_rate=16_000)
    with guarded_decoding(), pytest.raises(MediaError) as guarded:
        load_clip(path, num_segments=1, sampling_rate=16_000)
    assert type(guarded.value) is type(alone.value)
    assert str(guarded.value) == str(alone.value)
