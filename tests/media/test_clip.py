"""Clips are decoded by their timestamps, and errors name what cannot be decoded."""

import gc
import io
import logging
import multiprocessing
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media import clip as media
from caeav_hf.media.clip import Clip, load_clip, probe
from caeav_hf.media.sound import AudioTrack, delay_sound, load_audio, spread_sound
from tests.lanes import slow_after
from tests.media_factory import (
    corner_image,
    corrupt,
    count_image,
    read_count,
    sound_samples,
    sweep,
    tone,
    truncate,
    write_clip,
    write_cover_song,
    write_jpg,
    write_wav,
)


RATE = 32_000


def load(source, num_segments=10, **kwargs) -> Clip:
    return load_clip(source, num_segments=num_segments, sampling_rate=RATE, **kwargs)


def counts(clip: Clip) -> list[int]:
    return [read_count(frame) for frame in clip.frames]


def shift(waveform: np.ndarray, begin: float) -> float:
    """Return the seconds by which `waveform` lags behind the sweep that starts at `begin`, by cross-correlation."""
    reference = sound_samples(sweep, begin + len(waveform) / RATE, RATE)[0][round(begin * RATE) :][: len(waveform)]
    most = 400
    products = np.correlate(np.pad(waveform, most), reference, "valid")
    return (int(products.argmax()) - most) / RATE


# Decoding


def test_frames_and_sound_of_every_second(clip_path):
    clip = load(clip_path)
    assert clip.frames.shape == (10, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    # The middle of second t is between frames 25 t + 12 (at .48) and 25 t + 13 (at .52).
    assert counts(clip) == [(25 * t + 12) % 100 for t in range(10)]
    np.testing.assert_allclose(clip.frame_times, [t + 0.48 for t in range(10)], atol=1e-6)
    assert clip.waveform.shape == (10 * RATE,)
    assert clip.waveform.dtype == np.float32
    assert shift(clip.waveform[:RATE], 0.0) == 0
    assert shift(clip.waveform[-RATE:], 9.0) == 0
    assert (clip.duration, clip.frame_rate, clip.size, clip.sampling_rate) == (10.0, 25.0, (48, 64), RATE)
    assert clip.name == str(clip_path)


@pytest.mark.parametrize("suffix", slow_after(1, ["mkv", "mov", "ts", "flv", "webm"]))
def test_containers(tmp_path, suffix):
    codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "audio_rate": 48_000} if suffix == "webm" else {}
    # Frame 15 is displayed from exactly .5 s, the middle, on.
    clip = load(write_clip(tmp_path / f"clip.{suffix}", seconds=3, fps=30, gop=90, **codecs))
    assert counts(clip) == [15, 45, 75]
    assert abs(shift(clip.waveform[:RATE], 0.0)) < 1e-3


@pytest.mark.parametrize(
    ("seconds", "num_segments", "expected"),
    [(0.3, 10, 1), (1.0, 10, 1), (1.04, 10, 1), (1.3, 10, 2), (4.02, 10, 4), (3.92, 10, 4), (5.0, 3, 3)],
)
def test_real_segments_of_short_clips(tmp_path, seconds, num_segments, expected):
    clip = load(write_clip(tmp_path / "short.mp4", seconds=seconds, fps=50), num_segments)
    assert len(clip.frames) == len(clip.frame_times) == expected
    assert clip.waveform.shape == (expected * RATE,)
    assert clip.duration == pytest.approx(seconds, abs=0.021)
    # After its end, a clip shows its last frame and is silent.
    wanted = [min(50 * t + 25, round(seconds * 50) - 1) % 100 for t in range(expected)]
    assert counts(clip) == wanted
    silent_from = round((seconds + 0.1) * RATE)
    assert not clip.waveform[silent_from:].any()


def test_other_segment_lengths(clip_path):
    clip = load(clip_path, 4, segment_seconds=2.5)
    np.testing.assert_allclose(clip.frame_times, [1.24, 3.72, 6.24, 8.72], atol=1e-6)
    assert clip.waveform.shape == (10 * RATE,)


def test_variable_frame_rate_follows_timestamps(tmp_path):
    shown = [0, 0.1, 0.2, 1.2, 1.45, 1.55, 3.0, 3.9]
    clip = load(write_clip(tmp_path / "vfr.mp4", frame_times=shown), 4)
    assert counts(clip) == [2, 4, 5, 6]
    np.testing.assert_allclose(clip.frame_times, [0.2, 1.45, 1.55, 3.0], atol=1e-3)


@pytest.mark.parametrize("start", [0.2, 3.0, 7.5])
def test_start_reads_the_same_as_decoding_everything(clip_path, start):
    whole, part = load(clip_path), load(clip_path, 2, start=start)
    assert counts(part) == [int((start + t + 0.5) * 25 + 1e-6) % 100 for t in range(2)]
    np.testing.assert_allclose(part.frame_times, [int((start + t + 0.5) * 25 + 1e-6) / 25 for t in range(2)])
    assert shift(part.waveform[:RATE], start) == 0
    # To the sample, the two differ only in where the resampler began.
    offset = round(start * RATE)
    assert np.abs(part.waveform - whole.waveform[offset : offset + 2 * RATE])[200:-200].max() < 0.1


def test_start_and_end_trim(clip_path):
    clip = load(clip_path, start=2.0, end=4.3)
    assert clip.duration == pytest.approx(2.3)
    # The third segment's middle lies after `end`: its frame is the last one before.
    np.testing.assert_allclose(clip.frame_times, [2.48, 3.48, 4.28], atol=1e-6)
    assert clip.waveform.shape == (3 * RATE,)
    assert clip.waveform[: int(2.2 * RATE)].any()
    assert not clip.waveform[round(2.3 * RATE) :].any()
    assert len(load(clip_path, start=8.0, end=100.0).frames) == 2


def test_sound_is_aligned_to_the_first_frame(tmp_path):
    late_sound = load(write_clip(tmp_path / "late_sound.mp4", seconds=3, audio_start=0.5))
    assert not np.abs(late_sound.waveform[: round(0.45 * RATE)]).max() > 0.01
    assert abs(shift(late_sound.waveform[RATE : 2 * RATE], 0.5)) < 1e-3
    late_frames = load(write_clip(tmp_path / "late_frames.mp4", seconds=3, video_start=0.5))
    assert counts(late_frames) == [12, 37, 62]
    np.testing.assert_allclose(late_frames.frame_times, [0.48, 1.48, 2.48], atol=1e-3)
    assert abs(shift(late_frames.waveform[:RATE], 0.5)) < 1e-3


def test_sound_shorter_or_longer_than_the_video(tmp_path):
    short = load(write_clip(tmp_path / "short_sound.mp4", seconds=3, audio_seconds=1.2))
    assert short.waveform.shape == (3 * RATE,)
    assert short.waveform[:RATE].any()
    assert not short.waveform[round(1.3 * RATE) :].any()
    # Reading after the end of the sound gives silence, not an error.
    assert not load(tmp_path / "short_sound.mp4", start=2.0).waveform.any()
    long = load(write_clip(tmp_path / "long_sound.mp4", seconds=2, audio_seconds=4))
    assert len(long.frames) == 2
    assert long.waveform.shape == (2 * RATE,)


@pytest.mark.parametrize(
    ("layout", "audio_rate"), [("mono", 8_000), ("mono", 32_000), ("stereo", 48_000), ("5.1", 44_100)]
)
def test_rates_and_channels(tmp_path, layout, audio_rate):
    path = write_clip(tmp_path / "sound.mp4", seconds=1, layout=layout, audio_rate=audio_rate, sound=tone(440, 0.5))
    waveform = load(path).waveform
    reference = sound_samples(tone(440, 0.5), 1, RATE)[0]
    # Equal channels keep their level when mixed. (The encoder is less exact than the resampler.)
    assert np.sqrt(np.mean((waveform - reference)[4000:-4000] ** 2)) < 0.03


def test_opposite_channels_cancel(tmp_path):
    def opposite(times):
        return np.stack([tone()(times), -tone()(times)])

    path = write_wav(tmp_path / "opposite.wav", seconds=1, layout="stereo", sound=opposite)
    assert np.abs(load_audio(path, sampling_rate=RATE)).max() < 1e-3


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), "rg/bw"),
        ((0, 1, -1, 0), "br/wg"),  # a quarter turn clockwise
        ((-1, 0, 0, -1), "wb/gr"),
        ((0, -1, 1, 0), "gw/rb"),
        ((-1, 0, 0, 1), "gr/wb"),  # mirrored
    ],
)
def test_display_matrix_is_applied(tmp_path, matrix, corners):
    path = write_clip(tmp_path / "turned.mp4", seconds=0.5, image=corner_image, matrix=matrix)
    clip = load(path)
    assert clip.size == ((64, 48) if matrix[0] == 0 else (48, 64)) == clip.frames.shape[1:3]
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True,) * 3: "w"}
    pixels = [[clip.frames[0, y, x] > 128 for x in (6, -7)] for y in (6, -7)]
    assert "/".join("".join(names[tuple(map(bool, pixel))] for pixel in row) for row in pixels) == corners


def test_odd_sizes(tmp_path):
    clip = load(write_clip(tmp_path / "odd.mp4", seconds=1, size=(47, 33)))
    assert clip.size == (47, 33)
    assert counts(clip) == [12]


def test_default_video_stream_is_taken(tmp_path):
    path = write_clip(tmp_path / "two.mp4", seconds=2, second_video=lambda k, size: count_image(99, size))
    assert counts(load(path)) == [12, 37]


def test_audio_is_optional_on_request(tmp_path):
    path = write_clip(tmp_path / "mute.mp4", seconds=2, audio=False)
    clip = load(path, with_audio=False)
    assert counts(clip) == [12, 37]
    assert clip.waveform.shape == (0,)


# Sources


def test_bytes_file_objects_and_mappings_give_the_same(clip_path, tmp_path):
    expected = load(clip_path, 3)
    data = clip_path.read_bytes()

    class Pipe(io.RawIOBase):
        """Cannot seek, like a socket."""

        def __init__(self):
            self.inner = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.inner.readinto(buffer)

    with clip_path.open("rb") as file:
        file.seek(100)  # read from the beginning wherever it stands
        sources = [data, str(clip_path), file, io.BytesIO(data), Pipe(), {"bytes": data, "path": "cat.mp4"}]
        sources.append({"bytes": None, "path": str(clip_path)})
        for source in sources:
            clip = load(source, 3)
            np.testing.assert_array_equal(clip.frames, expected.frames)
            np.testing.assert_array_equal(clip.waveform, expected.waveform)
        assert not file.closed


def test_names_of_sources(clip_path):
    with clip_path.open("rb") as file:
        assert load(file, 1).name == str(clip_path)
    data = clip_path.read_bytes()
    assert load(data, 1).name == f"<{len(data)} bytes>"
    assert load({"bytes": data, "path": "dog.mp4"}, 1).name == "dog.mp4"
    assert load(data, 1, name="row 7").name == "row 7"


def test_thread_count_changes_nothing(clip_path):
    np.testing.assert_array_equal(load(clip_path, num_threads=1).frames, load(clip_path, num_threads=3).frames)


def test_a_file_name_is_never_a_protocol(clip_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(clip_path, "concat:a|b.mp4")
    assert len(load("concat:a|b.mp4", 2).frames) == 2


# Clips that are broken


def check_error(source, *parts, **kwargs):
    with pytest.raises(MediaError) as caught:
        load(source, **kwargs)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize("suffix", ["mp4", "txt", "mkv", "wav"])
def test_text_is_no_clip(tmp_path, suffix):
    path = tmp_path / f"notes.{suffix}"
    path.write_text("A dog barks at the postman.\n" * 50)
    message = check_error(path, str(path), "expected")
    assert message.startswith(str(path))


def test_files_that_hold_no_clip(tmp_path, clip_path):
    (tmp_path / "empty.mp4").touch()
    check_error(tmp_path / "empty.mp4", "empty.mp4: empty file", "expected")
    check_error(tmp_path / "missing.mp4", "missing.mp4: no such file")
    check_error(tmp_path, str(tmp_path), "directory")
    check_error(b"", "<0 bytes>: empty")
    check_error(b"nonsense" * 100, "<800 bytes>")
    check_error({"bytes": None, "path": None}, "expected a mapping with")
    check_error("ftp://example.org/dog.mp4", "ftp://example.org/dog.mp4: no address that can be read", "https://")
    check_error(io.BytesIO(b""), "BytesIO")
    with pytest.raises(CaeAvError, match="float is no media source"):
        load(3.5)
    with clip_path.open(encoding="latin-1") as file:
        check_error(file, "binary mode")


def test_missing_streams(tmp_path):
    check_error(write_clip(tmp_path / "mute.mp4", seconds=1, audio=False), "mute.mp4: no audio stream")
    check_error(write_clip(tmp_path / "blind.mp4", seconds=1, video=False), "blind.mp4: no video stream")
    check_error(write_wav(tmp_path / "song.wav", seconds=1), "song.wav: no video stream")
    check_error(write_cover_song(tmp_path / "song.m4a"), "song.m4a: no video stream")
    check_error(write_jpg(tmp_path / "photo.jpg"), "photo.jpg", "expected a media file with a video and an audio")
    with pytest.raises(MediaError, match=r"mute\.mp4: no audio stream"):
        load_audio(tmp_path / "mute.mp4", sampling_rate=RATE)


def test_playlists_are_not_followed(tmp_path, clip_path):
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip_path}\n#EXT-X-ENDLIST\n"
    )
    check_error(tmp_path / "list.m3u8", "list.m3u8")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{clip_path.name}'\n")
    check_error(tmp_path / "list.ffconcat", "format")


def test_file_without_its_index(tmp_path):
    # The index (moov) is at the end, so an incomplete download lacks it.
    check_error(truncate(write_clip(tmp_path / "half.mp4", seconds=2), 0.5), "half.mp4", "expected")


def test_truncated_file_gives_what_is_there(tmp_path, caplog):
    path = truncate(write_clip(tmp_path / "cut.mp4", seconds=6, index_first=True), 0.5)
    logger = logging.getLogger("caeav_hf.media.clip")
    logger.addHandler(caplog.handler)
    try:
        clip = load(path)
    finally:
        logger.removeHandler(caplog.handler)
    assert 1 <= len(clip.frames) < 6
    assert clip.duration < 5
    assert counts(clip)[:2] == [12, 37]
    assert clip.waveform.shape == (len(clip.frames) * RATE,)
    assert "cut.mp4: breaks off" in caplog.text
    nothing = truncate(write_clip(tmp_path / "nothing.mp4", seconds=6, index_first=True), 0.05)
    check_error(nothing, "nothing.mp4")


@pytest.mark.parametrize("seed", slow_after(1, range(3)))
def test_corrupt_packets_are_passed_over(tmp_path, seed):
    path = corrupt(write_clip(tmp_path / "noise.mp4", seconds=6), 0.3, 0.5, seed)
    clip = load(path)
    assert len(clip.frames) == 6
    assert clip.waveform.shape == (6 * RATE,)
    assert counts(clip)[:2] == [12, 37]
    assert counts(clip)[-2:] == [(25 * t + 12) % 100 for t in (4, 5)]
    # The sound after the gap keeps its time.
    assert abs(shift(clip.waveform[-RATE:], 5.0)) < 1e-3


def test_nothing_decodable(tmp_path):
    path = corrupt(write_clip(tmp_path / "noise.mp4", seconds=2), 0.0, 1.0)
    check_error(path, "noise.mp4: no", "could be decoded")


@pytest.mark.slow  # a hundred files
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_a_clip_or_a_media_error(damage_base, data):
    damaged = bytearray(data.draw(st.sampled_from(damage_base)))
    del damaged[round(len(damaged) * data.draw(st.sampled_from([0.2, 0.7, 0.95, 1.0]))) :]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Headers are a small part of a file, and the most vulnerable one.
    reach = data.draw(st.sampled_from([3000, len(damaged)]))
    places = rng.integers(0, reach, rng.integers(1, 40))
    np.frombuffer(damaged, dtype=np.uint8)[places] = rng.integers(0, 256, len(places))
    try:
        clip = load(bytes(damaged), 3, start=data.draw(st.sampled_from([0.0, 0.8])))
    except MediaError:
        return
    assert clip.waveform.shape == (len(clip.frames) * RATE,)
    assert np.isfinite(clip.duration)
    assert clip.frames.shape == (len(clip.frame_times), *clip.size, 3)


@pytest.fixture(scope="module")
def damage_base(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("damage")
    paths = [
        write_clip(folder / f"base.{suffix}", seconds=1.5, fps=10, gop=5, index_first=suffix == "mp4")
        for suffix in ("mp4", "mkv", "ts")
    ]
    return [path.read_bytes() for path in paths]


def test_arguments_out_of_range(clip_path):
    for kwargs, words in (
        ({"num_segments": 0}, "`num_segments` must be at least 1"),
        ({"segment_seconds": 0.0}, "`segment_seconds` must be positive"),
        ({"start": -1.0}, "`start` must be"),
        ({"start": 2.0, "end": 2.0}, "`end` must be later"),
    ):
        with pytest.raises(CaeAvError, match=words):
            load(clip_path, **kwargs)
    with pytest.raises(CaeAvError, match="`sampling_rate` must be positive"):
        load_clip(clip_path, num_segments=1, sampling_rate=0)
    for start in (12.0, 1e300):
        check_error(clip_path, "its video ends at 10.00 s", f"`start` {start}", start=start)


# Lost sound, and headers


def test_lost_sound_becomes_silence_of_its_length(tmp_path):
    """With packets missing from the file, the sound after them keeps its time."""
    source, gap = write_clip(tmp_path / "whole.mp4", seconds=4), tmp_path / "gap.mp4"
    with av.open(str(source)) as container, av.open(str(gap), "w") as output:
        streams = {s.index: output.add_stream_from_template(s) for s in container.streams}
        for packet in container.demux():
            if packet.dts is None or (packet.stream.type == "audio" and 1.0 < packet.pts * packet.time_base < 2.0):
                continue
            packet.stream = streams[packet.stream.index]
            output.mux(packet)
    waveform = load(gap).waveform
    assert np.abs(waveform[round(1.1 * RATE) : round(1.9 * RATE)]).max() == 0
    assert abs(shift(waveform[round(2.5 * RATE) : round(3.5 * RATE)], 2.5)) < 1e-3


def test_probe(clip_path, tmp_path):
    info = probe(clip_path)
    assert (info.has_video, info.has_audio, info.size, info.frame_rate) == (True, True, (48, 64), 25.0)
    assert (info.sampling_rate, info.channels, info.name) == (44_100, 2, str(clip_path))
    assert info.duration == pytest.approx(10, abs=0.05)
    sound = probe(write_wav(tmp_path / "sound.wav", seconds=1, rate=8000))
    assert (sound.has_video, sound.size, sound.frame_rate) == (False, None, None)
    assert (sound.has_audio, sound.sampling_rate, sound.channels) == (True, 8000, 1)
    with pytest.raises(MediaError, match=r"missing\.mp4: no such file"):
        probe(tmp_path / "missing.mp4")


# Forked processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_does_not_wait_for_the_threads_of_what_its_parent_decoded(clip_path):
    # Without collection, decoders are left to the child's garbage collector.
    gc.disable()
    try:
        for _ in range(4):
            load(clip_path, num_threads=2)
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
    finally:
        gc.enable()
    child.join(timeout=60)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_ffmpegs_log_does_not_keep_decoding_from_ending(tmp_path):
    """A decoder's threads that find errors wait for Python's lock to log them."""
    path = corrupt(write_clip(tmp_path / "noise.mp4", seconds=6, size=(240, 320)), 0.2, 0.9)

    def decode() -> None:
        av.logging.set_level(av.logging.ERROR)
        logging.getLogger("libav").setLevel(logging.CRITICAL)
        for _ in range(15):
            load(path, 2, num_threads=4)

    child = multiprocessing.get_context("fork").Process(target=decode)
    child.start()
    child.join(timeout=60)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()


# Segments spread over the clip


def spread(source, num_segments=10, **kwargs) -> Clip:
    return load(source, num_segments, frame_sampling="spread", **kwargs)


@pytest.fixture(scope="module")
def long_path(tmp_path_factory) -> Path:
    """Write a minute at 5 frames per second with a key frame every 12 frames."""
    return write_clip(
        tmp_path_factory.mktemp("media") / "minute.mp4", seconds=60, fps=5, audio_rate=16_000, sound=slow
    )


def slow(times: np.ndarray) -> np.ndarray:
    """Return a sweep like `sweep`, but slow enough for a minute."""
    return 0.5 * np.sin(2 * np.pi * (200 * times + 20 * times**2))


def lag(waveform: np.ndarray, begin: float) -> float:
    """Return the seconds by which a second of sound lags behind the slow sweep that starts at `begin`."""
    reference = slow(begin + np.arange(len(waveform)) / RATE)
    most = 400
    padded = np.pad(waveform, most)
    # Correlated by FFT, since `np.correlate` uses all cores, which other tests need.
    spectrum = np.fft.rfft(padded) * np.fft.rfft(reference, len(padded)).conj()
    return (int(np.fft.irfft(spectrum, len(padded))[: 2 * most + 1].argmax()) - most) / RATE


def test_spread_segments_lie_around_the_middles_of_equal_parts(long_path):
    clip = spread(long_path)
    middles = [6 * t + 3 for t in range(10)]
    assert clip.frames.shape == (10, 48, 64, 3)
    assert counts(clip) == [5 * middle % 100 for middle in middles]
    np.testing.assert_allclose(clip.frame_times, middles, atol=1e-6)
    assert clip.waveform.shape == (10 * RATE,)
    for part, middle in zip(clip.waveform.reshape(10, RATE), middles, strict=True):
        assert abs(lag(part, middle - 0.5)) < 2e-3
    assert clip.duration == pytest.approx(60)


def test_sound_that_is_spread_to_the_ends_begins_at_equal_distances(long_path):
    """As STG-CMA's code spaces it; the frames stay at the middles."""
    clip = load(long_path, 10, frame_sampling="spread_to_ends")
    np.testing.assert_allclose(clip.frame_times, [6 * t + 3 for t in range(10)], atol=1e-6)
    for part, begin in zip(clip.waveform.reshape(10, RATE), np.linspace(0, 58.9, 10), strict=True):
        assert abs(lag(part, begin)) < 2e-3


def test_only_the_frames_that_are_kept_are_converted(long_path, monkeypatch):
    converted = []
    to_rgb = media._FramePicker._to_rgb
    monkeypatch.setattr(
        media._FramePicker, "_to_rgb", lambda self, frame: converted.append(frame.pts) or to_rgb(self, frame)
    )
    spread(long_path, 7)
    assert len(converted) == 7


def test_spread_over_a_part_of_the_clip(long_path):
    clip = spread(long_path, 4, start=20.0, end=36.0)
    np.testing.assert_allclose(clip.frame_times, [22, 26, 30, 34], atol=1e-6)
    assert counts(clip) == [10, 30, 50, 70]
    for part, middle in zip(clip.waveform.reshape(4, RATE), (22, 26, 30, 34), strict=True):
        assert abs(lag(part, middle - 0.5)) < 2e-3
    assert clip.duration == pytest.approx(16)
    # An end after the clip's end is the clip's end.
    assert spread(long_path, 4, start=20.0, end=99.0).duration == pytest.approx(40)


@pytest.mark.parametrize("seconds", [0.6, 3.0, 9.4])
def test_spread_segments_of_a_short_clip_overlap_inside_of_it(tmp_path, seconds):
    clip = spread(write_clip(tmp_path / "short.mp4", seconds=seconds, fps=25, sound=slow, layout="mono"))
    middles = np.arange(0.5, 10) * seconds / 10
    assert counts(clip) == [int(middle * 25 + 1e-6) % 100 for middle in middles]
    assert clip.waveform.shape == (10 * RATE,)
    if seconds >= 1:
        for part, middle in zip(clip.waveform.reshape(10, RATE), middles, strict=True):
            assert abs(lag(part, min(max(middle - 0.5, 0), seconds - 1))) < 2e-3
    else:
        # All of it, and silence after it.
        for part in clip.waveform.reshape(10, RATE):
            assert np.abs(part[: round(seconds * RATE)]).max() > 0.3
            assert not part[round(seconds * RATE) :].any()


def test_spread_equals_consecutive_where_parts_are_segments(clip_path):
    whole, parts = load(clip_path), spread(clip_path)
    np.testing.assert_array_equal(whole.frames, parts.frames)
    np.testing.assert_array_equal(whole.waveform, parts.waveform)
    np.testing.assert_array_equal(whole.frame_times, parts.frame_times)


@settings(max_examples=10, deadline=None)
@given(num_segments=st.integers(1, 13), start=st.floats(0, 9), seconds=st.floats(0.2, 9))
def test_spread_frames_are_those_on_show(clip_path, num_segments, start, seconds):
    end = min(start + seconds, 10.0)
    clip = spread(clip_path, num_segments, start=start, end=start + seconds, with_audio=False)
    middles = [start + (t + 0.5) * (end - start) / num_segments for t in range(num_segments)]
    assert counts(clip) == [int(middle * 25 + 1e-4) % 100 for middle in middles]
    assert not clip.waveform.size


def test_spread_follows_timestamps_of_a_variable_rate(tmp_path):
    shown = [0, 0.1, 0.2, 1.2, 1.45, 1.55, 3.0, 3.9]
    clip = spread(write_clip(tmp_path / "vfr.mp4", frame_times=shown), 4)
    assert clip.duration == pytest.approx(3.94, abs=0.1)
    assert counts(clip) == [2, 4, 5, 6]


@pytest.mark.parametrize("suffix", slow_after(1, ["mkv", "mov", "ts", "flv", "webm"]))
def test_spread_in_every_container(tmp_path, suffix):
    codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "audio_rate": 48_000} if suffix == "webm" else {}
    path = write_clip(tmp_path / f"clip.{suffix}", seconds=6, fps=10, video_start=1.4, audio_start=1.4, **codecs)
    clip = spread(path, 3)
    assert clip.duration == pytest.approx(6, abs=0.11)
    assert counts(clip) == [10, 30, 50]


def test_spread_over_turned_and_early_silent_clips(tmp_path):
    path = write_clip(tmp_path / "turned.mov", seconds=4, image=corner_image, matrix=(0, 1, -1, 0), audio_seconds=1.5)
    clip = spread(path, 2)
    assert clip.size == (64, 48)
    parts = clip.waveform.reshape(2, RATE)
    assert parts[0].any()
    assert not parts[1].any()


def test_spread_over_what_is_left_of_a_clip_that_breaks_off(tmp_path, caplog):
    path = write_clip(tmp_path / "whole.mp4", seconds=10, index_first=True)
    whole = spread(path, 5)
    broken = truncate(path, 0.6)
    logger = logging.getLogger("caeav_hf.media.clip")
    logger.addHandler(caplog.handler)
    try:
        clip = spread(broken, 5)
    finally:
        logger.removeHandler(caplog.handler)
    assert "whole.mp4: breaks off" in caplog.text
    assert clip.frames.shape == whole.frames.shape
    assert 4 < clip.duration < 8
    assert clip.frame_times[-1] == pytest.approx(0.9 * clip.duration, abs=0.05)


def test_spread_refuses_what_it_cannot_read(tmp_path, clip_path):
    with pytest.raises(MediaError, match=r"ten\.mp4: its video ends at 10\.00 s; expected it to outlast"):
        spread(clip_path, start=12.0)
    with pytest.raises(CaeAvError, match=r"`frame_sampling` must be one of 'consecutive', 'spread', .* got 'all'"):
        load(clip_path, frame_sampling="all")
    with pytest.raises(MediaError, match=r"sound\.mp4: no video stream"):
        spread(write_clip(tmp_path / "sound.mp4", video=False))
    with pytest.raises(MediaError, match=r"silent\.mp4: no audio stream"):
        spread(write_clip(tmp_path / "silent.mp4", audio=False))


@pytest.mark.parametrize("frame_sampling", ["spread", "spread_to_ends"])
@pytest.mark.parametrize("delay", [0.0, 1.3, -2.1])
def test_spread_sound_is_that_of_the_whole_but_little_is_kept(clip_path, monkeypatch, frame_sampling, delay) -> None:
    form = {"segment_seconds": 0.6, "sampling_rate": 8000}
    kept = []
    finish = AudioTrack.finish
    monkeypatch.setattr(
        AudioTrack, "finish", lambda track: (finish(track), kept.append(sum(len(p) for _, p in track._pieces)))
    )
    clip = load_clip(clip_path, num_segments=4, frame_sampling=frame_sampling, sound_delay=delay, **form)
    whole = load_clip(clip_path, num_segments=20, end=10.0, **form).waveform[:80_000]
    expected = spread_sound(
        delay_sound(whole, round(8000 * delay)),
        num_segments=4,
        segment_seconds=0.6,
        sampling_rate=8000,
        seconds=10.0,
        frame_sampling=frame_sampling,
    )
    np.testing.assert_array_equal(clip.waveform, expected)
    assert kept[0] < 4 * (0.6 * 8000 + 2 * 1024)
