"""Videos read segment by segment: against whole clips, from feeds, and with what can break in between."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from caeav_hf.media.segment_stream import Feed, Gap, Segment, announced_seconds, is_live, read_segments
from caeav_hf.media.sound import AudioTrack
from tests.media_factory import corrupt, read_count, sound_samples, sweep, truncate, write_clip


RATE = 8000
FORM = {"segment_seconds": 1.0, "sampling_rate": RATE}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=12.0, fps=5, gop=5)


def split(items) -> tuple[list[Segment], list[Gap]]:
    items = list(items)
    return [one for one in items if isinstance(one, Segment)], [one for one in items if isinstance(one, Gap)]


def test_segments_are_those_of_the_whole_clip(clip: Path) -> None:
    segments, gaps = split(read_segments(clip, **FORM))
    whole = load_clip(clip, num_segments=20, sampling_rate=RATE)
    assert [segment.index for segment in segments] == list(range(12))
    np.testing.assert_array_equal([segment.image for segment in segments], whole.frames)
    np.testing.assert_array_equal([segment.time for segment in segments], whole.frame_times)
    np.testing.assert_allclose(np.concatenate([segment.sound for segment in segments]), whole.waveform, atol=1e-6)
    assert not gaps
    assert announced_seconds(clip) == pytest.approx(12.0)


def test_a_part_lies_on_the_same_grid(clip: Path) -> None:
    whole, _ = split(read_segments(clip, **FORM))
    part, gaps = split(read_segments(clip, start=4.7, end=8.2, **FORM))
    assert [segment.index for segment in part] == [4, 5, 6, 7, 8]
    assert not gaps
    for segment in part:
        np.testing.assert_array_equal(segment.image, whole[segment.index].image)
        np.testing.assert_allclose(segment.sound, whole[segment.index].sound, atol=2e-3)


def test_frames_of_a_variable_rate_stay_until_the_next(tmp_path: Path) -> None:
    times = [0.0, 0.3, 0.6, 7.4, 7.6, 9.4]
    path = write_clip(tmp_path / "screen.mp4", frame_times=times, fps=5, audio=False)
    segments, gaps = split(read_segments(path, **FORM))
    whole = load_clip(path, num_segments=20, with_audio=False, sampling_rate=RATE)
    np.testing.assert_array_equal([segment.image for segment in segments], whole.frames)
    assert [read_count(segment.image) for segment in segments[:10]] == [1, *[2] * 6, 3, 4, 5]
    assert not gaps
    assert not any(segment.has_audio or segment.sound.any() for segment in segments)
    with pytest.raises(MediaError, match="no audio stream"):
        list(read_segments(path, on_missing_audio="error", **FORM))


@pytest.mark.parametrize(("audio_seconds", "sounding"), [(9.0, 4), (2.0, 2)])
def test_sound_that_is_longer_or_shorter_than_the_picture(tmp_path: Path, audio_seconds: float, sounding: int) -> None:
    path = write_clip(tmp_path / "clip.mkv", seconds=4.0, fps=4, audio_seconds=audio_seconds)
    segments, gaps = split(read_segments(path, **FORM))
    assert [bool(np.abs(segment.sound[2000:6000]).max() > 0.1) for segment in segments] == [
        second < sounding for second in range(4)
    ]
    assert not gaps


def test_a_broken_stretch_is_a_gap(tmp_path: Path) -> None:
    path = corrupt(write_clip(tmp_path / "clip.mp4", seconds=20.0, fps=5, gop=5), 0.35, 0.6)
    segments, gaps = split(read_segments(path, **FORM))
    indices = [segment.index for segment in segments]
    missing = sorted(set(range(20)) - set(indices))
    assert indices[0] == 0
    assert indices[-1] == 19
    assert 3 <= len(missing) <= 8
    assert [(gap.start, gap.end) for gap in gaps] == [(float(missing[0]), float(missing[-1] + 1))]
    assert "the picture is lost" in gaps[0].reason


def test_a_truncated_file_ends_with_a_gap(tmp_path: Path) -> None:
    path = truncate(write_clip(tmp_path / "clip.mp4", seconds=20.0, fps=5, index_first=True), 0.6)
    segments, gaps = split(read_segments(path, **FORM))
    assert 8 <= len(segments) <= 14
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert gaps[-1].start == len(segments)
    assert gaps[-1].end == pytest.approx(20.0)
    assert "breaks off" in gaps[-1].reason


def test_a_pipe_whose_writer_is_killed(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "clip.mkv", seconds=12.0, fps=5).read_bytes()
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content[: len(content) // 2])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        segments, _ = split(read_segments(pipe, **FORM))
    writer.join()
    assert 4 <= len(segments) <= 8
    assert [segment.index for segment in segments] == list(range(len(segments)))


def test_errors_before_the_first_frame_are_raised(tmp_path: Path) -> None:
    for source, message in ((tmp_path / "no.mp4", "no such file"), (io.BytesIO(b"no clip"), "cannot be read")):
        with pytest.raises(MediaError, match=message):
            list(read_segments(source, **FORM))
    with pytest.raises(MediaError, match="no frame could be decoded"):
        list(read_segments(Feed([]), **FORM))
    with pytest.raises(CaeAvError, match="pairs of a time"):
        list(read_segments(Feed([5]), **FORM))
    with pytest.raises(CaeAvError, match="`start`"):
        read_segments(tmp_path / "no.mp4", start=-1.0, **FORM)


def feed_items(seconds: float, chunk: float, fps: float = 4.0, begin: float = 0.0):
    """Yield frames whose grey is their number, and chunks of a sweep."""
    samples = sound_samples(sweep, seconds, RATE)[0]
    time = 0.0
    for number in range(round(seconds * fps)):
        while time < (number + 1) / fps:
            part = samples[round(time * RATE) : round((time + chunk) * RATE)]
            yield begin + time, part
            time += chunk
        yield begin + number / fps, np.full((12, 16, 3), 2 * number, np.uint8)


@pytest.mark.parametrize("chunk", [0.013, 0.25, 3.1])
def test_a_feed_of_chunks_of_any_size(chunk: float) -> None:
    segments, gaps = split(read_segments(Feed(feed_items(6.0, chunk), RATE), **FORM))
    assert [segment.index for segment in segments] == list(range(6))
    assert [int(segment.image[0, 0, 0]) for segment in segments] == [2 * (4 * second + 2) for second in range(6)]
    expected = sound_samples(sweep, 6.0, RATE)[0]
    np.testing.assert_allclose(np.concatenate([segment.sound for segment in segments]), expected, atol=1e-4)
    assert not gaps


def test_a_feed_keeps_its_clock() -> None:
    segments, _ = split(read_segments(Feed(feed_items(3.0, 0.25, begin=1000.0), RATE), **FORM))
    assert [segment.index for segment in segments] == [1000, 1001, 1002]
    assert all(segment.sound.any() for segment in segments)


def test_a_feed_that_fails_keeps_what_was_read() -> None:
    def items():
        yield from feed_items(5.0, 0.25)
        raise RuntimeError("the cable was pulled")

    segments, gaps = split(read_segments(Feed(items(), RATE), **FORM))
    assert [segment.index for segment in segments] == list(range(5))
    assert gaps == [Gap(5.0, None, "the source failed: the cable was pulled")]


def test_a_pause_of_the_camera_is_a_gap() -> None:
    items = [item for item in feed_items(30.0, 0.25) if not 8.0 <= item[0] < 24.0]
    segments, gaps = split(read_segments(Feed(items, RATE), **FORM))
    assert [segment.index for segment in segments][-6:] == [24, 25, 26, 27, 28, 29]
    assert len(gaps) == 1
    assert gaps[0].end == 24.0
    assert 8.0 <= gaps[0].start <= 19.0


def test_addresses_that_run_by_themselves() -> None:
    assert is_live("rtsp://camera/1")
    assert not is_live("https://example.org/clip.mp4")
    assert is_live(Feed([]))
    assert not is_live(Feed([], live=False))
    assert not is_live(Path("clip.mp4"))


def test_memory_does_not_grow_while_a_stream_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that never comes again leaves the sound behind it bounded."""
    kept = []

    def items():
        yield from feed_items(2.0, 0.25)
        for second in range(2, 120):
            yield float(second), np.full(RATE, 0.1, np.float32)

    forget = AudioTrack.forget
    monkeypatch.setattr(
        AudioTrack,
        "forget",
        lambda track, first: (forget(track, first), kept.append(sum(len(piece) for _, piece in track._pieces))),
    )
    list(read_segments(Feed(items(), RATE), **FORM))
    assert max(kept) <= 32 * RATE


def test_sound_of_many_channels_is_aligned(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=3, layout="7.1", audio_start=0.123)
    whole = list(read_segments(path, segment_seconds=1.0, sampling_rate=RATE))
    assert np.abs(whole[1].sound).max() > 0.1
    (later,) = read_segments(path, segment_seconds=1.0, sampling_rate=RATE, start=2.0)
    np.testing.assert_allclose(later.sound, whole[2].sound, atol=1e-3)
