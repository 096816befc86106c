"""Skipping frames that are not needed leaves the selected ones identical to the last bit."""

import av
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
        {"num_segments": 2, "frame_sampling": "spread"},
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


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_the_decoder_does_not_get_frames_that_nothing_refers_to(tmp_path, monkeypatch, suffix):
    """A frame that it skips would keep one of its threads waiting; transport streams have start codes."""
    path, given, decode = write_clip(tmp_path / f"clip.{suffix}", seconds=6, fps=25), [], media.try_packet

    def counting(stream, packet):
        given.extend([packet] if stream.type == "video" and packet is not None and packet.size else [])
        return decode(stream, packet)

    monkeypatch.setattr(media, "try_packet", counting)
    skipping = load(path, num_threads=3)
    assert len(given) < 110
    assert_same(skipping, load_whole(path))


def test_a_packet_whose_lengths_are_damaged_is_decoded(clip):
    """Its frame may be a reference, and the decoder tells of damage."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        skipper = FrameSkipper(stream, [0.0])
        damaged = next(packet for packet in packets if not skipper._is_reference(packet))
        assert skipper._is_reference(av.Packet(bytes(damaged)[:-1]))


@pytest.mark.parametrize("num_segments", [6, 9])
def test_any_number_of_threads_gives_the_same_clip(clip, num_segments):
    expected = load_whole(clip, num_segments=num_segments)
    for num_threads in (0, 2, 4):
        assert_same(load(clip, num_segments=num_segments, num_threads=num_threads), expected)


def test_groups_without_a_wanted_frame_are_left_out(clip, monkeypatch):
    """Of thirteen groups of twelve frames, the two wanted frames, at 1.5 s and 4.5 s, are in two."""
    counted = count_frames(monkeypatch)
    load(clip, num_segments=2, frame_sampling="spread")
    times = {round(float(frame.time), 2) for frame in counted}
    # The first frame tells where the clip begins. A frame may refer to a later one, and another shows it is complete.
    assert {0.0, 1.48, 4.48} <= times
    assert [time for time in times if not (time == 0 or 1.44 <= time <= 1.56 or 4.32 <= time <= 4.92)] == []


@pytest.mark.parametrize(
    ("params", "suffix"),
    [("open-gop=1:bframes=3:b-adapt=0", "mkv"), ("intra-refresh=1", "ts"), ("bframes=5:b-pyramid=normal:ref=6", "ts")],
)
def test_references_across_key_frames_that_are_not_idr_pictures(tmp_path, params, suffix, monkeypatch):
    """Key frames of an open group, and recovery points, do not end references; transport streams have start codes."""
    path = tmp_path / f"clip.{suffix}"
    generator = np.random.default_rng(0)
    scene = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8).repeat(2, axis=0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": "20", "x264-params": f"{params}:scenecut=0:keyint=20:min-keyint=1"}
        for number in range(150):
            image = np.ascontiguousarray(scene[number % 60 :, number % 30 :][:48, :64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    options = {"with_audio": False, "frame_sampling": "spread"}
    for num_segments in (2, 5):
        assert_same(
            load(path, num_segments=num_segments, **options), load_whole(path, num_segments=num_segments, **options)
        )
    counted = count_frames(monkeypatch)
    load(path, num_segments=2, **options)
    if params.startswith("bframes"):
        assert len(counted) < 60


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
