"""Videos overlaid with masks: what stays of the source, and what changes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from caeav_hf.visualization.overlay import TINT, write_overlay
from tests.media_factory import corner_image, truncate, write_clip, write_cover_song


RATE = 8000


def grey(index, size):
    return np.full((*size, 3), 90, dtype=np.uint8)


def masks_for(path, **options):
    """Return masks of the upper left quarter in every second segment, from the first."""
    clip = load_clip(path, num_segments=100, sampling_rate=RATE, **options)
    masks = np.zeros((len(clip.frames), *clip.size), dtype=bool)
    masks[::2, : clip.size[0] // 2, : clip.size[1] // 2] = True
    return masks


def decode(path):
    """Return all displayed frames, their times, the end of the last one, and the number of audio samples."""
    with av.open(str(path)) as container:
        images, times, samples, end = [], [], 0, 0.0
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                images.append(frame.to_ndarray(format="rgb24"))
                times.append(float(frame.pts * frame.time_base))
                end = times[-1] + float((frame.duration or 0) * frame.time_base)
            else:
                samples += frame.samples
    return images, np.array(times), end, samples


def sound_packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def overlay(path, tmp_path, **options):
    out = tmp_path / f"overlay of {path.name}.mp4"
    write_overlay(path, masks_for(path), out, **options)
    assert not list(tmp_path.glob("*.part"))
    return out


def is_tinted(image):
    tint = [int(TINT[start : start + 2], 16) for start in (1, 3, 5)]
    middle = image[image.shape[0] // 4, image.shape[1] // 4].astype(float)
    return np.abs(middle - (np.array(tint) + 90) / 2).max() < 12


def test_every_frame_is_kept_and_those_of_a_mask_are_tinted(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=3.0, fps=10, image=grey)
    out = overlay(path, tmp_path)
    before, after = decode(path), decode(out)
    assert len(after[0]) == 30
    np.testing.assert_allclose(after[1], before[1], atol=1e-4)
    assert after[2] == pytest.approx(before[2], abs=0.1)
    assert [is_tinted(image) for image in after[0]] == [True] * 10 + [False] * 10 + [True] * 10
    # Outside the mask only the encoding changes pixels.
    assert np.abs(after[0][0][:, 40:].astype(int) - before[0][0][:, 40:]).max() <= 3
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("start", [{}, {"audio_start": 0.4}, {"video_start": 0.4}], ids=["", "late sound", "late"])
def test_the_sound_is_copied(tmp_path, start):
    path = write_clip(tmp_path / "clip.mp4", fps=10, size=(32, 32), audio_seconds=4.0, **start)
    out = overlay(path, tmp_path)
    assert sound_packets(out) == sound_packets(path)
    first, second = (load_clip(file, num_segments=3, sampling_rate=RATE) for file in (path, out))
    np.testing.assert_array_equal(first.waveform, second.waveform)
    assert decode(out)[3] == decode(path)[3]


@pytest.mark.parametrize(
    ("name", "options", "codec"),
    [
        ("clip.mkv", {"audio_codec": "pcm_s16le", "audio_rate": 11_000, "layout": "mono"}, "aac"),
        ("clip.mkv", {"audio_codec": "flac"}, "aac"),
        ("clip.ts", {"video_start": 3.0, "audio_start": 3.0}, "aac"),
        ("clip.webm", {"audio_codec": "libopus", "audio_rate": 48_000, "video_codec": "libvpx-vp9"}, "opus"),
    ],
)
def test_any_container_and_codec_of_sound(tmp_path, name, options, codec):
    path = write_clip(tmp_path / name, fps=10, size=(32, 32), seconds=2.0, **options)
    out = overlay(path, tmp_path)
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.name == codec
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.1)
    assert len(decode(out)[0]) == 20
    first, second = (load_clip(file, num_segments=2, sampling_rate=RATE).waveform for file in (path, out))
    # The same sound at the same time: the sweep's lag is at most a sample or two of rounded timestamps.
    middle = slice(4000, 12_000)
    lags = {lag: np.abs(first[middle] - np.roll(second, lag)[middle]).mean() for lag in range(-80, 81)}
    assert abs(min(lags, key=lags.__getitem__)) <= 8
    assert min(lags.values()) < 0.03


def test_a_clip_without_sound(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", fps=10, size=(32, 32), seconds=1.0, audio=False)
    out = tmp_path / "out.mp4"
    write_overlay(path, masks_for(path, with_audio=False), out)
    with av.open(str(out)) as container:
        assert not container.streams.audio
        assert sum(1 for _ in container.decode(video=0)) == 10


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.04, 0.5, 0.9, 1.0, 1.7, 2.6]
    path = write_clip(tmp_path / "clip.mp4", image=grey, frame_times=times)
    images, shown, _, _ = decode(overlay(path, tmp_path))
    np.testing.assert_allclose(shown, times, atol=1e-3)
    assert [is_tinted(image) for image in images] == [True, True, True, True, False, False, True]


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1), (-1, 0, 0, 1)])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_a_turned_clip_of_any_size_is_written_upright(tmp_path, matrix, size):
    path = write_clip(tmp_path / "clip.mp4", size=size, seconds=1.0, fps=4, matrix=matrix, image=corner_image)
    upright = load_clip(path, num_segments=1, sampling_rate=RATE)
    out = tmp_path / "out.mp4"
    write_overlay(path, np.zeros((1, *upright.size), dtype=bool), out)
    image = decode(out)[0][0]
    height, width = upright.size
    assert image.shape == (height + height % 2, width + width % 2, 3)
    inside = np.s_[:height, :width]
    difference = np.abs(image[inside].astype(int) - upright.frames[0]).mean(-1)
    # Colours are stored at half the resolution, so pixels along the quadrants' borders mix.
    assert np.median(difference) <= 3
    assert (difference > 20).mean() < 0.08
    with av.open(str(out)) as container:
        assert next(container.decode(video=0)).side_data.get("DISPLAYMATRIX") is None


@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 9], ids=["BT.709", "untagged", "BT.470BG", "BT.601", "BT.2020"])
def test_the_shape_of_pixels_and_the_colours_are_kept(tmp_path, matrix):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        context = stream.codec_context
        context.sample_aspect_ratio = Fraction(4, 3)
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = matrix, 1, 1, 1
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(corner_image(number, (48, 64)), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = tmp_path / "out.mp4"
    masks = np.zeros((1, 48, 64), dtype=bool)
    masks[:, :24, :32] = True
    write_overlay(path, masks, out, opacity=1.0)
    with av.open(str(path)) as before, av.open(str(out)) as after:
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            contexts = [container.streams.video[0].codec_context for container in (before, after)]
            assert getattr(contexts[0], name) == getattr(contexts[1], name)
        assert after.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    image = decode(out)[0][0]
    expected = [tuple(int(TINT[start : start + 2], 16) for start in (1, 3, 5)), (0, 250, 0), (0, 0, 250), (250,) * 3]
    for colour, (y, x) in zip(expected, [(12, 16), (12, 48), (36, 16), (36, 48)], strict=True):
        np.testing.assert_allclose(image[y, x].astype(int), colour, atol=5)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("mjpeg", "yuvj420p"), ("png", "rgb24")])
def test_sources_of_the_full_range_and_of_rgb(tmp_path, codec, pix_fmt):
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner_image(number, (48, 64)), format="rgb24")))
        container.mux(stream.encode(None))
    out = tmp_path / "out.mp4"
    write_overlay(path, np.zeros((1, 48, 64), dtype=bool), out)
    before, after = (load_clip(file, num_segments=1, sampling_rate=RATE, with_audio=False) for file in (path, out))
    assert np.median(np.abs(before.frames.astype(int) - after.frames)) <= 4


def test_frames_after_the_last_mask_stay_as_they_are(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=3.0, fps=10, image=grey)
    out = tmp_path / "out.mp4"
    write_overlay(path, masks_for(path)[:1], out)
    # A tenth of a second more belongs to the last segment, as in reading a clip.
    assert [is_tinted(image) for image in decode(out)[0]][:12] == [True] * 11 + [False]


def test_a_clip_that_breaks_off_gives_what_there_is(tmp_path):
    path = truncate(write_clip(tmp_path / "clip.mp4", seconds=3.0, fps=10, index_first=True), 0.6)
    images, _, _, samples = decode(overlay(path, tmp_path))
    assert 3 <= len(images) < 30
    assert samples > 0


def test_bytes_and_open_files(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=1.0, fps=4, size=(32, 32))
    outs = [tmp_path / f"{name}.mp4" for name in ("path", "bytes", "file")]
    with path.open("rb") as file:
        for source, out in zip((str(path), path.read_bytes(), file), outs, strict=True):
            write_overlay(source, masks_for(path), out)
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()


def test_errors_name_what_is_wrong(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=1.0, fps=4, size=(32, 32))
    masks = masks_for(path)
    before = path.read_bytes()
    cases = [
        ((path, masks[0], tmp_path / "o.mp4"), CaeAvError, "masks"),
        ((path, masks.astype(int), tmp_path / "o.mp4"), CaeAvError, "bool"),
        ((path, masks[:, :30], tmp_path / "o.mp4"), CaeAvError, "32x32"),
        ((path, masks, tmp_path / "o.avi"), CaeAvError, r"\.mp4"),
        ((path, masks, path), CaeAvError, "the clip itself"),
        ((path, masks, tmp_path / "no" / "o.mp4"), CaeAvError, "cannot be written"),
        ((tmp_path / "none.mp4", masks, tmp_path / "o.mp4"), MediaError, r"none\.mp4"),
        ((write_cover_song(tmp_path / "song.m4a"), masks, tmp_path / "o.mp4"), MediaError, "no video stream"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            write_overlay(*arguments)
    with pytest.raises(CaeAvError, match="colour"):
        write_overlay(path, masks, tmp_path / "o.mp4", colour="orange")
    assert sorted(file.name for file in Path(tmp_path).iterdir()) == ["clip.mp4", "song.m4a"]
    assert path.read_bytes() == before


def test_another_sound_replaces_the_own_one(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=2.0, audio_start=0.3)
    none = np.zeros((0, 48, 64), bool)
    times = np.arange(2 * RATE) / RATE
    sound = np.where(times < 1, 0, 0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    write_overlay(path, none, tmp_path / "out.mp4", sound=sound, sampling_rate=RATE)
    given, written = decode(path), decode(tmp_path / "out.mp4")
    assert len(written[0]) == len(given[0])
    assert written[1] == pytest.approx(given[1], abs=1e-6)
    heard = load_clip(tmp_path / "out.mp4", num_segments=2, sampling_rate=RATE).waveform
    # The encoder smears the beginning by less than a hundredth of a second.
    assert np.abs(heard[: round(0.98 * RATE)]).max() < 0.01
    assert np.sqrt(np.mean(heard[round(1.1 * RATE) : round(1.9 * RATE)] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    with pytest.raises(CaeAvError, match="belong together"):
        write_overlay(path, none, tmp_path / "out.mp4", sound=sound)
