"""Small real clips, written with PyAV, whose content is known, so that decoding can be checked.

Frame k of a clip shows the two digits of `count_image(k)` as greys, and `read_count` reads k from a
decoded frame. Its sound is any function of time.
"""

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


Sound = Callable[[np.ndarray], np.ndarray]
"""From times in seconds (n,) to samples in [-1, 1], (n,) for all channels or (channels, n)."""

_TICKS = 90_000


def count_image(index: int, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, 3) uint8: left half as bright as the tens of `index`, right half as its units."""
    image = np.empty((*size, 3), dtype=np.uint8)
    image[:, : size[1] // 2] = 20 + 24 * (index // 10 % 10)
    image[:, size[1] // 2 :] = 20 + 24 * (index % 10)
    return image


def read_count(frame: np.ndarray) -> int:
    """Return the `index` of a decoded `count_image`, modulo 100."""
    half = frame.shape[1] // 2
    tens, units = (round((float(part.mean()) - 20) / 24) for part in (frame[:, : half - 2], frame[:, half + 2 :]))
    return 10 * tens + units


def corner_image(index: int, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, 3) uint8 of four coloured quadrants, red green / blue white, which shows rotations."""
    image = np.full((*size, 3), 250, dtype=np.uint8)
    half_h, half_w = size[0] // 2, size[1] // 2
    image[:half_h, :half_w] = (250, 0, 0)
    image[:half_h, half_w:] = (0, 250, 0)
    image[half_h:, :half_w] = (0, 0, 250)
    return image


def tone(frequency: float = 440.0, level: float = 0.5) -> Sound:
    return lambda times: level * np.sin(2 * math.pi * frequency * times)


def sweep(times: np.ndarray) -> np.ndarray:
    """Return a tone that rises from 200 Hz by 300 Hz per second; a shift of it can be measured at every instant."""
    return 0.5 * np.sin(2 * math.pi * (200 * times + 150 * times**2))


def write_clip(
    path: str | Path,
    *,
    seconds: float = 3.0,
    fps: float = 25,
    size: tuple[int, int] = (48, 64),
    image: Callable[[int, tuple[int, int]], np.ndarray] = count_image,
    frame_times: Sequence[float] | None = None,
    video: bool = True,
    video_codec: str = "libx264",
    video_start: float = 0.0,
    gop: int = 12,
    matrix: tuple[int, int, int, int] | None = None,
    second_video: Callable[[int, tuple[int, int]], np.ndarray] | None = None,
    audio: bool = True,
    audio_codec: str = "aac",
    audio_seconds: float | None = None,
    audio_start: float = 0.0,
    audio_rate: int = 44_100,
    layout: str = "stereo",
    sound: Sound = sweep,
    index_first: bool = False,
) -> Path:
    """
    Write a clip; by its suffix an mp4, mkv, mov, ...

    Args:
        seconds, fps: Length and rate of the video.
        size: (H, W). Odd sizes are stored without chroma subsampling.
        image: Gives frame k.
        frame_times: Seconds at which the frames are shown, for a variable frame rate; replaces `seconds` and `fps`.
        video_start, audio_start: Timestamps of the first frame and the first sample.
        gop: Frames from one key frame to the next.
        matrix: (a, b, c, d) of the display matrix, each -1, 0 or 1 (mp4 and mov only).
        second_video: Gives the frames of another, shorter video stream that is not the default.
        audio_seconds: Length of the sound; by default that of the video.
        sound: Gives the samples.
        index_first: Put the index (moov) of an mp4 before its media data.
    """
    path = Path(path)
    times = list(frame_times) if frame_times is not None else [k / fps for k in range(round(seconds * fps))]
    length = seconds if frame_times is None else times[-1] + 1 / fps
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        streams = []
        if video:
            streams.append((_video_stream(container, video_codec, fps, size, gop), image, times))
        if second_video is not None:
            stream = _video_stream(container, video_codec, fps, size, gop)
            streams.append((stream, second_video, times[: len(times) // 2]))
        if audio:
            sound_stream = container.add_stream(audio_codec, rate=audio_rate)
            sound_stream.codec_context.layout = layout
        for stream, draw, shown in streams:
            for k, time in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(draw(k, size), format="rgb24")
                frame.time_base = Fraction(1, _TICKS)
                frame.pts = round((video_start + time) * _TICKS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if audio:
            samples = sound_samples(sound, length if audio_seconds is None else audio_seconds, audio_rate, layout)
            _encode_sound(container, sound_stream, samples, audio_rate, layout, round(audio_start * audio_rate))
    if matrix is not None:
        set_display_matrix(path, matrix)
    return path


def write_wav(
    path: str | Path,
    *,
    seconds: float = 3.0,
    rate: int = 44_100,
    layout: str = "mono",
    sound: Sound = sweep,
    codec: str = "pcm_s16le",
) -> Path:
    """Write a sound file; by its suffix and codec a wav, flac, m4a, mp3, ..."""
    path = Path(path)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        _encode_sound(container, stream, sound_samples(sound, seconds, rate, layout), rate, layout, 0)
    return path


def write_jpg(path: str | Path, *, size: tuple[int, int] = (48, 64)) -> Path:
    path = Path(path)
    Image.fromarray(corner_image(0, size)).save(path)
    return path


def write_cover_song(path: str | Path, *, seconds: float = 1.0) -> Path:
    """Write an m4a whose only picture is a cover: it has a video stream in name, but no video."""
    path = Path(path)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        stream.codec_context.layout = "mono"
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(corner_image(0, (48, 64)), format="rgb24")
        container.mux(cover.encode(frame.reformat(format="yuvj420p")))
        container.mux(cover.encode(None))
        _encode_sound(container, stream, sound_samples(sweep, seconds, 44_100, "mono"), 44_100, "mono", 0)
    return path


def truncate(path: str | Path, share: float) -> Path:
    """Cut a file after `share` of its bytes."""
    path = Path(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def corrupt(path: str | Path, first: float, last: float, seed: int = 0) -> Path:
    """Replace the bytes between two shares of a file's media data (mdat) by noise."""
    path = Path(path)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    length = struct.unpack(">I", data[begin - 8 : begin - 4])[0] - 8
    low, high = begin + int(length * first), begin + int(length * last)
    data[low:high] = np.random.default_rng(seed).integers(0, 256, high - low, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))
    return path


def set_display_matrix(path: str | Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write (a, b, c, d) into the first track header of an mp4: pixel (p, q) goes to (ap + cq, bp + dq)."""
    path = Path(path)
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    offset = data.index(b"tkhd") + 44
    data[offset : offset + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def sound_samples(sound: Sound, seconds: float, rate: int, layout: str = "mono") -> np.ndarray:
    """Return the samples (channels, n) float32 that `write_clip` encodes."""
    channels = av.AudioLayout(layout).nb_channels
    samples = np.asarray(sound(np.arange(round(seconds * rate)) / rate), dtype=np.float32)
    return np.ascontiguousarray(np.broadcast_to(samples, (channels, samples.shape[-1])))


def _video_stream(container, codec: str, fps: float, size: tuple[int, int], gop: int):
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = size
    stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
    stream.codec_context.gop_size = gop
    stream.codec_context.time_base = Fraction(1, _TICKS)
    if codec == "libx264":
        stream.options = {"crf": "8", "preset": "ultrafast", "bf": "2"}
    elif codec == "libvpx-vp9":
        stream.options = {"deadline": "realtime", "cpu-used": "8"}
    return stream


def _encode_sound(container, stream, samples: np.ndarray, rate: int, layout: str, first: int) -> None:
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    for begin in range(0, samples.shape[1], 1024):
        # Interleaved, since PyAV miscounts the planes of eight channels.
        interleaved = np.ascontiguousarray(samples[:, begin : begin + 1024].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + begin
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        container.mux(stream.encode(converted))
    container.mux(stream.encode(None))
