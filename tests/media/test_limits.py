"""Whatever a file claims or holds, decoding keeps its limits."""

import json
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from caeav_hf.data.images import read_frame, read_mask
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media import bounds
from caeav_hf.media.clip import Clip, load_clip, probe
from caeav_hf.media.limits import DecodingLimits
from caeav_hf.media.segment_stream import Feed, Gap, Segment, read_segments
from caeav_hf.media.sound import load_audio
from caeav_hf.visualization.overlay import write_overlay
from tests.media_factory import corner_image, read_count, write_clip, write_wav


RATE = 8000


@pytest.fixture
def limit(monkeypatch):
    """Return a function that sets limits."""

    def set_limits(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"CAEAV_DECODING_{name.upper()}", str(value))

    return set_limits


def load(path: Path, num_segments: int = 10, **kwargs) -> Clip:
    return load_clip(path, num_segments=num_segments, sampling_rate=RATE, **kwargs)


def segments_of(source, **kwargs) -> list[Segment | Gap]:
    return list(read_segments(source, segment_seconds=1.0, sampling_rate=RATE, **kwargs))


def replaced(path: Path, kind: bytes, content: bytes) -> Path:
    """Overwrite the content of the first box of a kind, which must not be shorter, with zeros after it."""
    data = bytearray(path.read_bytes())
    place = data.index(kind) + 4
    length = struct.unpack(">I", data[place - 8 : place - 4])[0] - 8
    assert len(content) <= length
    data[place : place + length] = content.ljust(length, b"\0")
    path.write_bytes(data)
    return path


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def test_limits_are_settings(limit):
    assert DecodingLimits.from_environment() == DecodingLimits()
    limit(memory_mb=800)
    assert DecodingLimits.from_environment() == DecodingLimits(memory_mb=800)
    for text in ("none", "0", "-3", "nan", "inf"):
        limit(seconds=text)
        with pytest.raises(CaeAvError, match=f"CAEAV_DECODING_SECONDS is '{text}'; expected a positive number"):
            DecodingLimits.from_environment()


# Frame sizes


@pytest.mark.parametrize("matrix", [None, (0, 1, -1, 0)])
def test_large_frames_are_scaled_down_as_they_are_decoded(tmp_path, limit, matrix):
    path = write_clip(tmp_path / "large.mp4", seconds=2, size=(96, 128), image=corner_image, matrix=matrix)
    whole = load(path)
    limit(frame_megapixels=96 * 128 / 16e6)
    small = load(path)
    assert small.size == (24, 32) if matrix is None else (32, 24)
    assert small.frames.shape == (2, *small.size, 3)
    means = whole.frames.reshape(2, small.size[0], 4, small.size[1], 4, 3).mean((2, 4))
    assert np.abs(means - small.frames).mean() < 3
    for segment, frame in zip(segments_of(path), small.frames, strict=True):
        np.testing.assert_array_equal(segment.image, frame)
    # What was found for the small frames is laid over a video of their size.
    write_overlay(path, np.zeros((2, *small.size), bool), tmp_path / "overlay.mp4")
    assert probe(tmp_path / "overlay.mp4").size == small.size


def test_large_images_are_scaled_down_like_their_masks(tmp_path, limit):
    Image.fromarray(corner_image(0, (96, 128))).save(tmp_path / "frame.png")
    Image.fromarray(np.pad(np.ones((48, 64), np.uint8), ((0, 48), (0, 64)))).save(tmp_path / "mask.png")
    limit(frame_megapixels=96 * 128 / 16e6)
    assert read_frame(tmp_path / "frame.png").shape == (24, 32, 3)
    mask = read_mask(tmp_path / "mask.png").pixels
    np.testing.assert_array_equal(mask, np.pad(np.ones((12, 16), bool), ((0, 12), (0, 16))))


def test_frames_that_take_too_much_memory_are_refused(tmp_path, limit):
    path = write_clip(tmp_path / "large.mp4", seconds=1)
    limit(memory_mb=0.1)
    expected = (
        r"large\.mp4: its frames are of 64x48 pixels; expected at most 0\.0 megapixels of h264 \(CAEAV_DECODING_M"
    )
    for read in (load, segments_of):
        with pytest.raises(MediaError, match=expected):
            read(path)
    with pytest.raises(MediaError, match=expected):
        write_overlay(path, np.zeros((1, 48, 64), bool), tmp_path / "overlay.mp4")
    assert probe(path).size == (48, 64)


def test_images_that_take_too_much_memory_are_refused(tmp_path, limit):
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    limit(memory_mb=1)
    for read in (read_frame, read_mask):
        with pytest.raises(MediaError, match=r"large\.png: is of 300x200 pixels; expected at most 0\.0 megapixels"):
            read(tmp_path / "large.png")


@pytest.mark.parametrize("frame", [0, 12])
def test_frames_that_claim_more_than_their_container_are_not_stored(tmp_path, frame):
    path = tmp_path / "lie.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for k in range(24):
            picture = av.VideoFrame.from_ndarray(corner_image(k, (48, 64)), "rgb24")
            for encoded in stream.encode(picture):
                content = bytearray(bytes(encoded))
                if k >= frame:
                    content[16:24] = struct.pack(">II", 16_000, 16_000)
                packet = av.Packet(bytes(content))
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 12), k, k
                packet.is_keyframe = True
                container.mux(packet)
    if frame:
        assert load(path, on_missing_audio="silence").frames.shape == (1, 48, 64, 3)
    else:
        with pytest.raises(MediaError, match=r"lie\.mov: its frames are too large; expected at most .* megapixels"):
            load(path, on_missing_audio="silence")


def test_frames_of_a_stream_that_holds_too_many_are_noticed(tmp_path, limit, monkeypatch):
    path = write_clip(tmp_path / "many.mp4", seconds=1)
    used = iter(range(0, 10**15, 10**9))
    monkeypatch.setattr(bounds, "_resident_bytes", lambda: next(used))
    assert len(load(path).frames) == 1
    monkeypatch.setattr(bounds, "_LARGE", 0)
    with pytest.raises(MediaError, match=r"many\.mp4: decoding its frames of 64x48 pixels takes 2000 MB; expected at"):
        load(path)


# Rates


@pytest.mark.parametrize(
    ("name", "value", "stream", "unit"),
    [("frame_rate", 10, "video", "frames"), ("megapixel_rate", 0.02, "video", "megapixels")],
)
def test_streams_that_hold_more_than_their_time_are_refused(tmp_path, limit, name, value, stream, unit):
    path = write_clip(tmp_path / "fast.mp4", seconds=4, fps=50)
    limit(**{name: value})
    expected = f"its {stream} stream has more {unit} than it covers time for; .* CAEAV_DECODING_{name.upper()}={value}"
    for how in ("consecutive", "spread"):
        with pytest.raises(MediaError, match=rf"fast\.mp4: {expected} per second"):
            load(path, frame_sampling=how)
    # What was read until then is kept.
    *_, gap = segments_of(path)
    assert isinstance(gap, Gap)
    assert f"stream has more {unit}" in gap.reason


def test_sound_that_holds_more_than_its_time_is_refused(tmp_path, limit):
    path = write_clip(tmp_path / "fast.mp4", seconds=4, fps=10)
    limit(packet_rate=15)
    for read in (load, lambda path: load_audio(path, sampling_rate=RATE)):
        with pytest.raises(MediaError, match=r"its audio stream has more packets .* CAEAV_DECODING_PACKET_RATE=15"):
            read(path)


@pytest.mark.parametrize(("name", "value"), [("sampling_rate", 44_000), ("channels", 1)])
def test_formats_of_sound_are_limited(tmp_path, limit, name, value):
    path = write_clip(tmp_path / "wide.mp4", seconds=1)
    limit(**{name: value})
    for read in (load, segments_of, lambda path: load_audio(path, sampling_rate=RATE)):
        with pytest.raises(
            MediaError, match=rf"wide\.mp4: its sound has .*; .* CAEAV_DECODING_{name.upper()}={value}"
        ):
            read(path)


def test_sound_of_few_samples_is_refused(tmp_path):
    path = write_wav(tmp_path / "slow.wav", seconds=1, rate=RATE)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", 1)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"slow\.wav: its sound has 1 samples per second; expected at least 1000"):
        load_audio(path, sampling_rate=RATE)


def test_sound_of_many_samples_is_not_converted_for_ever(tmp_path, limit, monkeypatch):
    path = write_clip(tmp_path / "wide.mp4", seconds=4, fps=10)
    usual = load_audio(path, sampling_rate=RATE)
    limit(seconds=1)
    monkeypatch.setattr(bounds, "_CONVERTED_PER_SECOND", 100_000)
    np.testing.assert_array_equal(load_audio(path, sampling_rate=RATE), usual)
    monkeypatch.setattr(bounds, "_USUAL_SOUND", 30_000)
    for read in (load, lambda path: load_audio(path, sampling_rate=RATE)):
        with pytest.raises(MediaError, match=r"wide\.mp4: its sound has too many .*CAEAV_DECODING_SECONDS=1"):
            read(path)
    # A part of it has fewer.
    assert len(load_audio(path, sampling_rate=RATE, end=1.0))


# Streams


def test_streams_of_a_file_are_limited(tmp_path, limit, monkeypatch):
    path = write_clip(tmp_path / "three.mp4", seconds=1, second_video=corner_image)
    whole = load(path)
    # Opened with more and more streams.
    monkeypatch.setattr(bounds, "_FEW_STREAMS", (1, 2))
    np.testing.assert_array_equal(load(path).frames, whole.frames)
    for suffix in ("mp4", "mkv", "ts"):
        path = write_clip(tmp_path / f"three.{suffix}", seconds=1, second_video=corner_image)
        limit(streams=3)
        assert probe(path).has_video
        limit(streams=2)
        with pytest.raises(MediaError, match=r"three.*has more streams than 2 \(CAEAV_DECODING_STREAMS\)"):
            probe(path)


# Times


def test_timestamps_that_jump_are_not_believed(tmp_path, limit):
    path = tmp_path / "jump.mkv"
    write_clip(path, frame_times=[*np.arange(50) / 10, 1000.0], audio=False)
    limit(duration=100)
    clip = load(path, 5, frame_sampling="spread", on_missing_audio="silence")
    assert clip.duration == pytest.approx(5, abs=0.2)
    assert [read_count(frame) for frame in clip.frames] == [4, 14, 24, 34, 44]
    items = segments_of(path)
    assert [item.index for item in items if isinstance(item, Segment)][:5] == list(range(5))
    assert len(items) < 20


def test_a_stretch_without_frames_takes_neither_memory_nor_time():
    frame = np.zeros((8, 8, 3), np.uint8)
    items = segments_of(Feed([(0.0, frame), (1e12, frame), (1e12 + 1, frame)]))
    *segments, gap, last = items
    assert [segment.index for segment in segments] == [0, 1]
    assert (gap.start, gap.end) == (2.0, 1e12)
    assert last.index == 10**12


def test_frames_that_claim_to_last_for_days_stay_on_show_for_an_hour(tmp_path):
    path = write_clip(tmp_path / "long.mp4", seconds=0.04, audio=False)
    path = replaced(path, b"stts", struct.pack(">IIII", 0, 1, 1, 90_000 * 10_000))
    items = segments_of(path)
    assert 3600 <= sum(isinstance(item, Segment) for item in items) <= 3620


# Results


def test_results_are_limited(tmp_path, limit):
    path = write_clip(tmp_path / "long.mp4", seconds=3)
    limit(result_mb=0.02)
    for read in (load, lambda path: load_audio(path, sampling_rate=RATE)):
        with pytest.raises(MediaError, match=r"long\.mp4: its frames or its sound take more than 0\.02 MB \(CAEAV_D"):
            read(path)
    # A shorter part fits.
    assert len(load(path, end=1.0, with_audio=False).frames) == 1


# Headers of mp4


def test_headers_that_claim_too_much_are_not_read(tmp_path):
    path = write_clip(tmp_path / "edited.mp4", seconds=1, index_first=True)
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    length = struct.unpack(">I", data[moov : moov + 4])[0]

    def with_box(content: bytes) -> Path:
        changed = struct.pack(">I", length + len(content)) + data[moov + 4 : moov + length] + content
        path.write_bytes(data[:moov] + changed + data[moov + length :])
        return path

    edits = box(b"elst", struct.pack(">II", 0, 20_000) + bytes(20_000 * 12))
    with pytest.raises(MediaError, match=r"edited\.mp4: has an edit list of 20000 entries; expected at most 10000"):
        probe(with_box(edits))
    # Many entries, since some versions of FFmpeg write files whose unit of time is far below a millisecond.
    edits = box(b"elst", struct.pack(">II", 0, 1000) + struct.pack(">IIHH", 2**32 - 1, 0, 1, 0) * 1000)
    with pytest.raises(MediaError, match=r"edited\.mp4: has an edit list of \d+ s; .* \(CAEAV_DECODING_DURATION\)"):
        probe(with_box(edits))
    packed = box(b"cmvd", struct.pack(">I", 10**9) + bytes(8))
    with pytest.raises(MediaError, match=r"edited\.mp4: its compressed header claims 1000 MB; expected at most 64"):
        load_clip(with_box(packed).read_bytes(), num_segments=1, sampling_rate=RATE, name="edited.mp4")
    assert probe(with_box(box(b"free", b"elst, a word"))).has_video


def test_fragments_that_claim_too_many_samples_are_not_read(tmp_path):
    path = tmp_path / "fragments.mp4"
    whole = write_clip(tmp_path / "whole.mp4", seconds=1)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "frag_keyframe"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(load(path, on_missing_audio="silence").frames) == 1
    replaced(path, b"trun", struct.pack(">II", 0, 80_000_000))
    with pytest.raises(MediaError, match=r"fragments\.mp4: its fragments claim \d+ samples; expected fewer than"):
        probe(path)


# All in all


@pytest.mark.slow
def test_bombs_keep_the_limits(tmp_path):
    """Among them frames of 8K, which are decoded; the whole list takes long."""
    script, out = Path(__file__).parents[2] / "benchmarks" / "bombs.py", tmp_path / "out.json"
    command = [sys.executable, str(script), "--only", "h264 7680", "a fragment", "wav of", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 25
    assert all(row["gb"] is not None and row["gb"] < 1.5 for row in rows), rows
    assert not any(row["outcome"].startswith("RAW") for row in rows), rows
    assert [row["outcome"] for row in rows[:2]] == ["10 frames of 4000x2250"] * 2
