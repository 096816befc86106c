"""
Bound the memory and the work of decoding, whatever a stream claims or holds (see `media.limits`).

Memory. FFmpeg refuses frames of more than `max_pixels` before it stores one. A decoder holds the frames that later
ones refer to, at most 16 in H.264 and, for frames that are large enough to matter, far fewer in other codecs, and one
for each of its threads. Streams that hold more than their standard allows are noticed by the memory of the process.

Work. Packets and pixels are counted against the seconds that the stream has covered; nothing depends on the clock.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import MediaError
from .limits import DecodingLimits, variable


# Frames that decoders hold, those on their way to the caller included, by codec ...
_HELD = {"h264": 18, "hevc": 10, "vp9": 10, "av1": 10, "libdav1d": 10, "vp8": 6, "mpeg4": 6, "mpeg2video": 6}
# ... and of all others, whose frames stand by themselves.
_HELD_ALONE = 3
# Bytes per pixel that a codec with references keeps beside each frame, and those of the widest pixels, which a codec
# whose frames stand by themselves may turn to at any frame.
_MOTION_BYTES, _WIDEST_PIXEL = 0.75, 8.0
# Threads that FFmpeg starts at most by itself.
_MOST_THREADS = 16
# Older versions of PyAV pass a file's options to its streams too, and crash if a stream is found late.
_OPTIONS_VERSION = 18
# Frames above so many pixels are watched.
_LARGE = 9e6
# Seconds for which a stream may hold more than its share, and the longest step (seconds) from one packet to the next
# that counts in full: what is longer is a jump. Timestamps that fall back begin at another place, but not endlessly.
_SLACK, _LONGEST_STEP, _MOST_FALLS = 5.0, 10.0, 100
# Seconds of a packet without a timestamp, in a stream without a rate.
_USUAL_STEP = 0.02


def most_streams() -> tuple[int, str]:
    """Return the maximum number of streams of a file, and what an error says of a file that has more."""
    limits = DecodingLimits.from_environment()
    return int(limits.streams), f"has more streams than {_setting('streams', limits)}"


def options_of_probing() -> dict[str, str]:
    """
    Return options of the decoders by which FFmpeg looks into streams as it opens a file. They decode a frame of each
    whose header does not say enough.
    """
    if int(av.__version__.partition(".")[0]) < _OPTIONS_VERSION:
        return {}
    return {"max_pixels": str(_pixels_alone(DecodingLimits.from_environment()))}


def limit_video(stream: Any, name: str, num_threads: int) -> None:
    """
    Set up the decoder of a video stream, which is not open yet, for frames and threads within the limit of memory.

    Args:
        num_threads: Number of threads; 0 lets FFmpeg choose. Large frames are decoded by one.

    Raises:
        MediaError: The header announces larger frames.
    """
    limits, context = DecodingLimits.from_environment(), stream.codec_context
    held, pixel_bytes = _HELD_ALONE, _WIDEST_PIXEL
    if context.name in _HELD:
        held = _HELD[context.name]
        pixel_bytes = _MOTION_BYTES + (context.format.padded_bits_per_pixel / 8 if context.format else _WIDEST_PIXEL)
    pixels = max(context.width * context.height, context.coded_width * context.coded_height)
    room = limits.memory_mb * 1e6 / pixel_bytes
    threads = num_threads or _MOST_THREADS
    if pixels * (held + threads) > room:
        threads = num_threads = 1
    most = room / (held + threads)
    if pixels > most:
        raise MediaError(
            f"{name}: its frames are of {context.width}x{context.height} pixels; expected at most {most / 1e6:.0f} "
            f"megapixels of {context.name}, by {_setting('memory_mb', limits)}"
        )
    stream.thread_type = "AUTO"
    context.thread_count = num_threads
    context.options = {**context.options, "max_pixels": str(max(1, int(most)))}


def limit_sound(stream: Any, name: str) -> None:
    """Raise a [`~errors.MediaError`] if a stream of sound has more samples per second, or channels, than allowed."""
    limits, context = DecodingLimits.from_environment(), stream.codec_context
    for value, field, unit in (
        (context.sample_rate, "sampling_rate", "samples per second"),
        (context.channels, "channels", "channels"),
    ):
        if value > getattr(limits, field):
            raise MediaError(f"{name}: its sound has {value} {unit}; expected at most {_setting(field, limits)}")


def check_picture(width: int, height: int, name: str) -> None:
    """Raise a [`~errors.MediaError`] if a picture by itself has more pixels than the limit of memory allows."""
    limits = DecodingLimits.from_environment()
    if width * height > (most := _pixels_alone(limits)):
        raise MediaError(
            f"{name}: is of {width}x{height} pixels; expected at most {most / 1e6:.0f} megapixels, by "
            f"{_setting('memory_mb', limits)}"
        )


def check_result(size: float, name: str, limits: DecodingLimits) -> None:
    """Raise a [`~errors.MediaError`] if a result of so many bytes is larger than allowed."""
    if size > limits.result_mb * 1e6:
        raise MediaError(
            f"{name}: its frames or its sound take more than {_setting('result_mb', limits)} MB; expected a shorter "
            "part (`start` and `end`), or a stream of segments (`caeav_hf.streaming`)"
        )


def _pixels_alone(limits: DecodingLimits) -> int:
    """Return the maximum pixels of frames that stand by themselves."""
    return max(1, int(limits.memory_mb * 1e6 / (_WIDEST_PIXEL * _HELD_ALONE)))


def _setting(field: str, limits: DecodingLimits) -> str:
    return f"{getattr(limits, field):g} ({variable(field)})"


class Pace:
    """
    Counts the packets of a stream.

    Args:
        stream: The stream.
        name: Name of the file in errors.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self.stream, self.name = stream, name
        self.limits = DecodingLimits.from_environment()
        self._covered = _SLACK
        self._last: float | None = None
        self._falls = 0
        rate = (stream.average_rate or stream.guessed_rate) if stream.type == "video" else None
        self._usual = float(1 / rate) if rate else _USUAL_STEP
        self._packets = self._pixels = 0

    def add(self, packet: Any) -> MediaError | None:
        """Count a packet; return the error if the stream has more of them than it may."""
        ticks, base = packet.dts if packet.pts is None else packet.pts, packet.time_base
        time = None if ticks is None or not base else ticks * base.numerator / base.denominator
        if time is None:
            # Raw streams carry no timestamps: their packets follow each other.
            self._covered += self._usual
        elif self._last is None:
            self._last = time
        elif time > self._last:
            self._covered += min(time - self._last, _LONGEST_STEP)
            self._last = time
        elif time < self._last - _LONGEST_STEP and self._falls < _MOST_FALLS:
            self._falls += 1
            self._last = time
        self._packets += 1
        if self.stream.type != "video":
            return self._error("packet_rate", "packets") if self._exceeds("packet_rate", self._packets) else None
        context = self.stream.codec_context
        if context is not None:
            self._pixels += max(context.width * context.height, context.coded_width * context.coded_height)
        if self._exceeds("frame_rate", self._packets):
            return self._error("frame_rate", "frames")
        if self._exceeds("megapixel_rate", self._pixels / 1e6):
            return self._error("megapixel_rate", "megapixels")
        return None

    def _exceeds(self, field: str, count: float) -> bool:
        return count > getattr(self.limits, field) * self._covered

    def _error(self, field: str, unit: str) -> MediaError:
        return MediaError(
            f"{self.name}: its {self.stream.type} stream has more {unit} than it covers time for; expected at most "
            f"{_setting(field, self.limits)} per second"
        )


class MemoryWatch:
    """
    Checks, while large frames are decoded, that the process does not grow by more than allowed. It sees nothing on
    systems other than Linux.

    Args:
        stream: The video stream.
        name: Name of the file in errors.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self.context, self.name = stream.codec_context, name
        self.limits = DecodingLimits.from_environment()
        self._before = _resident_bytes()

    def check(self, result: int = 0) -> None:
        """
        Check the memory after a frame.

        Args:
            result: Bytes that belong to the result.

        Raises:
            MediaError: The process has grown too much.
        """
        width, height = self.context.coded_width, self.context.coded_height
        if width * height <= _LARGE:
            return
        grown = _resident_bytes() - self._before - result
        if grown > self.limits.memory_mb * 1e6:
            raise MediaError(
                f"{self.name}: decoding its frames of {width}x{height} pixels takes {grown / 1e6:.0f} MB; expected at "
                f"most {_setting('memory_mb', self.limits)}"
            )


def _resident_bytes() -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class FrameScaler:
    """
    Converts decoded frames of a stream to RGB, each scaled down, with the mean over areas, to the megapixels that are
    allowed. A stream that changes its size keeps that of its first converted frame.
    """

    def __init__(self) -> None:
        # One reformatter for all frames: otherwise each would set up a separate scaler with threads.
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._how: dict[str, Any] = {}

    def to_rgb(self, frame: Any, **how: Any) -> np.ndarray:
        """
        Return a frame as stored, (h, w, 3) uint8.

        Args:
            how: Further arguments of [`~av.video.reformatter.VideoReformatter.reformat`].
        """
        if self._size is None:
            self._size = kept_size(frame.width, frame.height)
            if self._size != (frame.width, frame.height):
                self._how = {"interpolation": Interpolation.AREA}
        return self._reformatter.reformat(frame, *self._size, "rgb24", **self._how, **how).to_ndarray()


def kept_size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) at which a frame of a size is returned: its own, or the largest that is allowed."""
    share = DecodingLimits.from_environment().frame_megapixels * 1e6 / (width * height)
    if share >= 1:
        return width, height
    return max(1, int(width * share**0.5)), max(1, int(height * share**0.5))
