"""
Write videos with the masks of what sounds laid over them.

Every frame of the source keeps its time, and its size but for a band of captions below it, with the mask of its
segment tinted, and the source's own sound is copied. Frames that `load_clip` scales down, those larger than 4K, are
scaled here too. Frames are painted as RGB and stored with the colour matrix that they came with, so the source's
colour description stays true.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from tqdm import tqdm

from ..errors import CaeAvError
from ..files import atomic_write
from ..media.bounds import FrameScaler, MemoryWatch, no_frame
from ..media.containers import (
    AUDIO_JITTER,
    MediaFile,
    MediaSource,
    best_stream,
    decode_packet,
    frame_rate_of,
    packets_of,
    start_time,
    upright,
    video_decoder,
)
from ..media.guard import OneByOne, guarded
from ..media.segments import SEGMENT_REST
from .subtitles import CaptionBand


# Okabe and Ito's orange: bright on most pictures and distinguishable with all common forms of colour blindness.
TINT = "#E69F00"

# Audio codecs that players support in an mp4; others are decoded and encoded as AAC.
_MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "alac", "opus"}
_AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
# Frames per second of a stream that does not state its rate.
_USUAL_RATE = 25
# FFmpeg's numbers of colour ranges, and of BT.709 among its matrices.
_LIMITED_RANGE, _FULL_RANGE, _BT709 = 1, 2, 1


def write_overlay(
    source: MediaSource,
    masks: np.ndarray,
    path: str | os.PathLike,
    *,
    segment_seconds: float = 1.0,
    colour: str = TINT,
    opacity: float = 0.5,
    captions: Sequence[str] | None = None,
    sound: np.ndarray | None = None,
    sampling_rate: int | None = None,
    show_progress: bool = False,
) -> None:
    """
    Write a clip as an mp4 (H.264) with its masks laid over it, and captions in a band below it.

    Every frame is written upright, at its time in the source, whatever the frame rate. Odd sides are made even by
    repeating the last row or column, since H.264's common form stores only even ones. Packets of sound are copied if
    an mp4 can hold them, else encoded as AAC. Frames after the last mask are not tinted.

    Args:
        source: The clip: a path, bytes, a binary file object or a mapping, as for [`~media.clip.load_clip`].
        masks: (T, H, W) bool, one per segment, of the size of the clip's frames, as the pipeline returns them; or
            an object with `shape`, `dtype`, `len` and `[index]` that loads one at a time. T may be 0.
        path: The file to write. It appears when it is complete.
        segment_seconds: Seconds of a segment.
        colour: Colour of the tint, as `#RRGGBB`.
        opacity: Opacity of the tint, from 0 to 1; the edge of a mask is opaque.
        captions: One text per mask, shown with it; `None` for a video without the band.
        sound: (samples,) float32 in [-1, 1], heard from the first frame on instead of the source's own sound.
        sampling_rate: Samples per second of `sound`.
        show_progress: Whether to show a progress bar.

    Raises:
        MediaError: The source cannot be decoded.
        CaeAvError: The masks are not of the clip's size, captions are not as many, the rate of a sound is missing,
            `path` is the source itself or cannot be written.
    """
    path = Path(path)
    if not hasattr(masks, "shape"):
        masks = np.asarray(masks)
    if len(masks.shape) != 3 or masks.dtype != bool:
        raise CaeAvError(f"`masks` must be (T, H, W) bool, got shape {masks.shape} of {masks.dtype}")
    if captions is not None and len(captions) != len(masks):
        raise CaeAvError(f"`captions` must be one per mask ({len(masks)}), got {len(captions)}")
    if (sound is None) != (sampling_rate is None):
        raise CaeAvError("`sound` and `sampling_rate` belong together; expected both or neither")
    if path.suffix.lower() != ".mp4":
        raise CaeAvError(f"{path}: expected a file name that ends in .mp4")
    if isinstance(source, str | os.PathLike) and path.exists() and Path(source).exists() and path.samefile(source):
        raise CaeAvError(f"{path}: is the clip itself; give the overlay another name")
    try:
        tint = tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
    except ValueError as error:
        raise CaeAvError(f"`colour` must be #RRGGBB, got {colour!r}") from error
    media = MediaFile.of(source, None)
    style = _Style(segment_seconds, tint, opacity, None if captions is None else list(captions))
    given = None if sound is None or sampling_rate is None else (sound, sampling_rate)
    with atomic_write(path) as partial:
        where = (os.path.abspath(partial), str(path))
        _write_overlay(media, where, OneByOne(masks), style, given, show_progress)


@dataclass(frozen=True)
class _Style:
    """How frames are painted: seconds of a segment, tint (RGB), its opacity, and captions."""

    segment_seconds: float
    tint: tuple[int, ...]
    opacity: float
    captions: list[str] | None


# Painting and encoding take several times as long as decoding.
@guarded(seconds=lambda media, *others: math.inf, effort=5.0, writes=True)
def _write_overlay(
    media: MediaFile,
    where: tuple[str, str],
    masks: OneByOne,
    style: _Style,
    given: tuple[np.ndarray, int] | None,
    show_progress: bool,
) -> None:
    """Write the video; `where` is the path, and its name in errors."""
    path, name = where
    with media.open() as container:
        overlay = _Overlay(container, _Painter(masks, style, media.name), media.name, given)
        # Errors in reading end the reading or are MediaErrors, so any other is about writing.
        try:
            with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as output:
                overlay.write(output, show_progress)
        except (av.FFmpegError, OSError) as error:
            raise CaeAvError(f"{name}: cannot be written: {error}") from error


def tint_weights(mask: np.ndarray, opacity: float) -> np.ndarray:
    """Return the share of tint for each pixel of a mask (H, W), float32: `opacity` inside, 1 along the edge."""
    padded = np.pad(mask, 1)
    inside = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.where(mask, np.where(inside, opacity, 1.0), 0.0).astype(np.float32)


class _Painter:
    """Tints upright RGB frames by the mask, and captions them by the text, of the segment that their time is in."""

    def __init__(self, masks: OneByOne, style: _Style, name: str) -> None:
        self.masks, self.segment_seconds, self.opacity, self.name = masks, style.segment_seconds, style.opacity, name
        self.tint, self.captions = style.tint, style.captions
        self._band: CaptionBand | None = None
        self._segment: int | None = None
        self._weights: Image.Image | None = None

    def paint(self, image: np.ndarray, time: float) -> np.ndarray:
        """Tint and caption a frame (H, W, 3) uint8 that is shown `time` seconds after the clip begins."""
        segment = self._segment_at(time)
        painted = image if segment is None else self._tinted(image, segment)
        if self.captions is None:
            return painted
        if self._band is None:
            self._band = CaptionBand(self.captions, image.shape[1])
        return self._band.below(painted, segment)

    def _tinted(self, image: np.ndarray, segment: int) -> np.ndarray:
        mask = self.masks[segment]
        if mask.shape != image.shape[:2]:
            raise CaeAvError(
                f"`masks` are of {mask.shape[1]}x{mask.shape[0]} pixels, but the frames of {self.name} of "
                f"{image.shape[1]}x{image.shape[0]}; expected the clip's own resolution"
            )
        if segment != self._segment:
            weights = np.rint(255 * tint_weights(mask, self.opacity)).astype(np.uint8)
            self._segment, self._weights = segment, Image.fromarray(weights)
        picture = Image.fromarray(image)
        picture.paste(self.tint, mask=self._weights)
        return np.asarray(picture)

    def _segment_at(self, time: float) -> int | None:
        """Return the mask's index for a time; as in reading a clip, a short rest belongs to the last segment."""
        if not len(self.masks):
            return None
        place = max(0.0, time / self.segment_seconds + 1e-6)
        last = len(self.masks) - 1
        return min(int(place), last) if place < len(self.masks) + SEGMENT_REST else None


class _Overlay:
    """
    One pass over the packets of a source: frames are decoded, painted and encoded, sound is copied, or replaced by
    `given`, a waveform and its rate.
    """

    def __init__(
        self, container: Any, painter: _Painter, name: str, given: tuple[np.ndarray, int] | None = None
    ) -> None:
        self.container, self.painter, self.name, self.given = container, painter, name, given
        self.video = video_decoder(container, name, 0)
        self.watch = MemoryWatch(self.video, name)
        audio = best_stream(container, "audio") if given is None else None
        self.audio = None if audio is None or audio.codec_context is None else audio
        self.origin = start_time(self.video, container)
        # The earlier of the two streams begins at zero, so that the written clip has no empty start.
        starts = [self.origin] if self.audio is None else [self.origin, start_time(self.audio, container)]
        self.shift = min(starts)
        self.time_base = Fraction(self.video.time_base)
        self.output: Any = None
        self.picture: Any = None
        self.sound: _Sound | None = None
        # One scaler for each direction: setting one up takes longer than converting a small frame.
        self._scaler, self._from_rgb = FrameScaler(), VideoReformatter()
        self._last_time: int | None = None
        self._durations: dict[int, int] = {}
        self._waiting: list[Any] = []

    def write(self, output: Any, show_progress: bool) -> None:
        """Write all streams to an open container."""
        self.output = output
        if self.audio is not None:
            self.sound = _Sound(self.audio, output, self.shift)
        if self.given is not None:
            self._write(_encoded(*self.given, output))
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        with tqdm(total=self.video.frames or None, unit="frame", disable=not show_progress) as progress:
            for _, packet in packets_of(self.container, streams, self.name):
                if packet is None or not packet.size:
                    continue  # both decoders are flushed below
                if self.sound is not None and packet.stream.index == self.sound.stream.index:
                    self._write(self.sound.take(packet))
                    continue
                for frame in decode_packet(self.video, packet):
                    self._add_frame(frame)
                    progress.update()
            for frame in decode_packet(self.video, None):
                self._add_frame(frame)
                progress.update()
        if self.picture is None:
            raise no_frame(self.video, self.name)
        self._encode(None)
        if self.sound is not None:
            self._write(self.sound.finish())

    def _add_frame(self, frame: Any) -> None:
        time = self._ticks(frame)
        if self._last_time is not None and time <= self._last_time:
            return
        self._last_time = time
        self.watch.check()
        seconds = float(time * self.time_base) + self.shift - self.origin
        image = self.painter.paint(self._upright_rgb(frame), seconds)
        image = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], mode="edge")
        if self.picture is None:
            self._open_picture(frame, image.shape[1], image.shape[0])
        painted = self._from_rgb.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=self.picture.codec_context.colorspace,
            dst_color_range=_LIMITED_RANGE,
        )
        painted.pts, painted.time_base = time, self.time_base
        if frame.duration:
            self._durations[time] = frame.duration
        self._encode(painted)

    def _upright_rgb(self, frame: Any) -> np.ndarray:
        """Return a frame upright, (H, W, 3) uint8."""
        known = frame.color_range in (_LIMITED_RANGE, _FULL_RANGE)
        colours = {"src_color_range": frame.color_range} if known else {}
        return upright(self._scaler.to_rgb(frame, **colours), frame)

    def _ticks(self, frame: Any) -> int:
        """Return when the frame is shown, in ticks from the beginning of the written clip."""
        if frame.pts is None:  # raw streams have no timestamps: their frames follow each other at the stream's rate
            step = 1 / (frame_rate_of(self.video) or _USUAL_RATE)
            return 0 if self._last_time is None else self._last_time + max(1, round(step / self.time_base))
        return frame.pts - round(self.shift / self.time_base)

    def _open_picture(self, frame: Any, width: int, height: int) -> None:
        """Open the video stream, whose size the first frame gives."""
        rate = self.video.average_rate or self.video.guessed_rate or _USUAL_RATE
        self.picture = self.output.add_stream("h264", rate=Fraction(rate))
        self.picture.width, self.picture.height, self.picture.pix_fmt = width, height, "yuv420p"
        # No macroblock tree: x264's reads memory beyond small frames, so the same clip would give different bytes.
        self.picture.options = {"crf": "18", "preset": "veryfast", "mbtree": "0"}
        context, source = self.picture.codec_context, self.video.codec_context
        context.time_base = self.time_base
        context.color_range = _LIMITED_RANGE
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        context.colorspace = _BT709 if frame.format.is_rgb else source.colorspace
        if shape := self.video.sample_aspect_ratio:
            context.sample_aspect_ratio = 1 / shape if _is_turned(frame) else shape

    def _encode(self, frame: Any) -> None:
        packets = self.picture.encode(frame)
        for packet in packets:
            # The encoder knows only the usual step, but the last frame may have another duration.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
        self._write(packets)

    def _write(self, packets: list[Any]) -> None:
        """Write packets, once all streams are open: the container's header names them."""
        self._waiting += packets
        if self.picture is not None:
            self.output.mux(self._waiting)
            self._waiting = []


class _Sound:
    """The sound of the source in the new container: its packets, or AAC if an mp4 cannot hold them."""

    def __init__(self, stream: Any, output: Any, shift: float) -> None:
        self.stream, self.shift = stream, shift
        context = stream.codec_context
        self.copies = context.codec.canonical_name in _MP4_SOUND
        self._last_time: int | None = None
        self._samples: int | None = None
        self._format: tuple[str, str, int] | None = None
        self._resampler: Any = None
        if self.copies:
            self.target = output.add_stream_from_template(stream)
            return
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48_000
        self.target = output.add_stream("aac", rate=rate)
        self.target.codec_context.layout = "mono" if context.channels == 1 else "stereo"

    def take(self, packet: Any) -> list[Any]:
        """Return the packets to write for one of the source."""
        if not self.copies:
            return [new for frame in decode_packet(self.stream, packet) for new in self._convert(frame)]
        if packet.is_corrupt:  # the file breaks off in it
            return []
        shift = round(self.shift / packet.time_base)
        time = packet.pts if packet.dts is None else packet.dts
        if time is None or (self._last_time is not None and time - shift <= self._last_time):
            return []  # damaged: containers need ascending times
        packet.dts = self._last_time = time - shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        packet.stream = self.target
        return [packet]

    def finish(self) -> list[Any]:
        """Return the packets left in decoder and encoder."""
        if self.copies:
            return []
        packets = [new for frame in decode_packet(self.stream, None) for new in self._convert(frame)]
        if self._resampler is not None:
            packets += self._encode(self._resampler.resample(None))
        return packets + self.target.encode(None)

    def _convert(self, frame: Any) -> list[Any]:
        packets = []
        rate = self.target.codec_context.sample_rate
        if frame.pts is not None:
            # Count samples, since timestamps may be rounded; only a gap moves the count.
            sample = round((float(frame.pts * self.stream.time_base) - self.shift) * rate)
            if self._samples is None or sample > self._samples + AUDIO_JITTER * rate:
                self._samples = max(0, sample)
            frame.pts = None
        described = (frame.format.name, frame.layout.name, frame.sample_rate)
        if described != self._format:
            if self._resampler is not None:
                packets += self._encode(self._resampler.resample(None))
            context = self.target.codec_context
            self._resampler = av.AudioResampler(context.format, context.layout, context.sample_rate)
            self._format = described
        return packets + self._encode(self._resampler.resample(frame))

    def _encode(self, frames: list[Any]) -> list[Any]:
        packets = []
        for frame in frames:
            frame.pts, frame.time_base = self._samples or 0, Fraction(1, frame.sample_rate)
            self._samples = frame.pts + frame.samples
            packets += self.target.encode(frame)
        return packets


def _encoded(sound: np.ndarray, rate: int, output: Any) -> list[Any]:
    """Return the packets of a waveform as AAC, in a new stream of the container."""
    target = output.add_stream("aac", rate=rate if rate in _AAC_RATES else 48_000, layout="mono")
    context = target.codec_context
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None], np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler(context.format, context.layout, context.sample_rate)
    return [
        packet
        for part in (frame, None)
        for converted in resampler.resample(part)
        for packet in target.encode(converted)
    ] + target.encode(None)


def _is_turned(frame: Any) -> bool:
    """Return whether a frame is upright only after a quarter turn."""
    return upright(np.zeros((1, 2, 1), np.uint8), frame).shape[0] == 2
