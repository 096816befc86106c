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
from typing import Any, NamedTuple

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
# whose frames stand by themselves may turn to at any frame. The usual ones are those of 10 bits.
_MOTION_BYTES, _WIDEST_PIXEL, _USUAL_PIXEL = 0.75, 8.0, 3.0
# Threads that FFmpeg starts at most by itself.
_MOST_THREADS = 16
# Samples per second, over all channels, that usual sound has at most (16 channels of 48 kHz), and the samples that a
# second of processor time surely converts to mono: a core of an AMD EPYC took 230 million.
_USUAL_SOUND, _CONVERTED_PER_SECOND = 16 * 48_000, 1e8
# Samples per second of anything that is called sound. Fewer would grow a file a thousandfold.
_LEAST_RATE = 1000
# Streams that nearly all files have at most.
_FEW_STREAMS = (5, 16)
# Older versions of PyAV pass a file's options to its streams too, and crash if a stream is found late.
_OPTIONS_VERSION = 18
# Frames above so many pixels are watched. They may be stored with a little more pixels than they show.
_LARGE, _CODED_SHARE = 9e6, 1.1
# Seconds for which a stream may hold more than its share, and the longest step (seconds) from one packet to the next
# that counts in full: what is longer is a jump. Timestamps that fall back begin at another place, but not endlessly.
_SLACK, _LONGEST_STEP, _MOST_FALLS = 2.0, 10.0, 100
# Seconds of a packet without a timestamp, in a stream without a rate.
_USUAL_STEP = 0.02


class Probing(NamedTuple):
    """
    How FFmpeg looks into a file as it opens it.

    Attributes:
        streams: Streams that it may have.
        pixels: Pixels of a frame that is decoded for that.
        is_last: Whether there is no further attempt.
    """

    streams: int
    pixels: int
    is_last: bool

    @property
    def options(self) -> dict[str, str]:
        """Options of the container. FFmpeg leaves out what is beyond its limit in some formats without a word."""
        return {"max_streams": str(self.streams + 1)}

    @property
    def decoder_options(self) -> dict[str, str]:
        """Options of the decoders."""
        is_old = int(av.__version__.partition(".")[0]) < _OPTIONS_VERSION
        return {} if is_old else {"max_pixels": str(self.pixels)}

    @property
    def too_many(self) -> str:
        """What an error says of a file with more streams."""
        return f"has more streams than {self.streams} ({variable('streams')})"


def probings(is_once: bool) -> list[Probing]:
    """
    Return how to try to open a file, with more and more streams. Each is decoded for a frame that is kept meanwhile.

    Args:
        is_once: Whether the file can be opened only once.
    """
    limits = DecodingLimits.from_environment()
    most = max(1, int(limits.streams))
    counts = [most] if is_once else sorted({min(few, most) for few in (*_FEW_STREAMS, most)})
    return [
        Probing(count, max(1, int(limits.memory_mb * 1e6 / (_WIDEST_PIXEL * count))), count == most)
        for count in counts
    ]


def limit_video(stream: Any, name: str, num_threads: int) -> None:
    """
    Set up the decoder of a video stream, which is not open yet, for frames and threads within the limit of memory.

    Args:
        num_threads: Number of threads; 0 lets FFmpeg choose. Large frames are decoded by one.

    Raises:
        MediaError: The header announces larger frames.
    """
    context = stream.codec_context
    largest = _LargestFrame.of(context, num_threads)
    if context.width * context.height > largest.pixels:
        raise largest.error(name, context.width, context.height)
    stream.thread_type = "AUTO"
    context.thread_count = largest.num_threads
    context.options = {**context.options, "max_pixels": str(max(1, int(largest.pixels)))}


class _LargestFrame(NamedTuple):
    """
    The largest frames that a decoder may have.

    Attributes:
        pixels: Their pixels.
        num_threads: Threads to decode them by; 0 lets FFmpeg choose.
        codec: Name of the codec.
    """

    pixels: float
    num_threads: int
    codec: str

    @classmethod
    def of(cls, context: Any, num_threads: int = 0) -> "_LargestFrame":
        """Return that of a codec's context for so many threads, or for one where frames of its size need that."""
        held, pixel_bytes = _HELD_ALONE, _WIDEST_PIXEL
        if context.name in _HELD:
            held = _HELD[context.name]
            pixel = context.format.padded_bits_per_pixel / 8 if context.format else _USUAL_PIXEL
            pixel_bytes = _MOTION_BYTES + pixel
        room = DecodingLimits.from_environment().memory_mb * 1e6 / pixel_bytes
        if context.width * context.height * (held + (num_threads or _MOST_THREADS)) > room:
            num_threads = 1
        return cls(room / (held + (num_threads or _MOST_THREADS)), num_threads, context.name)

    def error(self, name: str, width: int, height: int) -> MediaError:
        """Return the error for larger frames; `width` and `height` are 0 if they are not known."""
        size = f"of {width}x{height} pixels" if width else "too large"
        return MediaError(
            f"{name}: its frames are {size}; expected at most {self.pixels / 1e6:.1f} megapixels of {self.codec} "
            f"({_setting('memory_mb', DecodingLimits.from_environment())})"
        )


def no_frame(stream: Any, name: str) -> MediaError:
    """Return the error for a video stream without a frame that could be decoded."""
    context = stream.codec_context
    if not context.width:
        # So FFmpeg leaves a decoder that it has refused a size.
        return _LargestFrame.of(context).error(name, 0, 0)
    return MediaError(f"{name}: no frame could be decoded; expected a readable video stream")


def limit_sound(stream: Any, name: str) -> None:
    """Raise a [`~errors.MediaError`] if a stream of sound has more samples per second, or channels, than allowed."""
    limits, context = DecodingLimits.from_environment(), stream.codec_context
    if 0 < context.sample_rate < _LEAST_RATE:
        raise MediaError(
            f"{name}: its sound has {context.sample_rate} samples per second; expected at least {_LEAST_RATE}"
        )
    for value, field, unit in (
        (context.sample_rate, "sampling_rate", "samples per second"),
        (context.channels, "channels", "channels"),
    ):
        if value > getattr(limits, field):
            raise MediaError(f"{name}: its sound has {value} {unit}; expected at most {_setting(field, limits)}")


def check_sound_work(excess: float, name: str, limits: DecodingLimits) -> None:
    """
    Raise a [`~errors.MediaError`] if converting a sound takes too long, because it has many more samples than usual.

    Args:
        excess: Decoded samples, over all channels, beyond those of usual sound: see [`excess_samples`].
    """
    if excess > limits.seconds * _CONVERTED_PER_SECOND:
        raise MediaError(
            f"{name}: its sound has too many channels and samples per second to convert for so long; expected usual "
            f"sound, a shorter part (`start` and `end`), or more time ({_setting('seconds', limits)})"
        )


def excess_samples(frame: Any) -> float:
    """Return the samples of a frame of sound, over all channels, beyond those of usual sound of its length."""
    return frame.samples * max(0.0, frame.layout.nb_channels - _USUAL_SOUND / frame.sample_rate)


def check_picture(width: int, height: int, name: str) -> None:
    """Raise a [`~errors.MediaError`] if a picture by itself has more pixels than the limit of memory allows."""
    limits = DecodingLimits.from_environment()
    if width * height > (most := _pixels_alone(limits)):
        raise MediaError(
            f"{name}: is of {width}x{height} pixels; expected at most {most / 1e6:.1f} megapixels "
            f"({_setting('memory_mb', limits)})"
        )


def check_result(size: float, name: str, limits: DecodingLimits) -> None:
    """Raise a [`~errors.MediaError`] if a result of so many bytes is larger than allowed."""
    if size > limits.result_mb * 1e6:
        raise MediaError(
            f"{name}: its frames or its sound take more than {limits.result_mb:g} MB ({variable('result_mb')}); "
            "expected a shorter part (`start` and `end`), or a stream of segments (`caeav_hf.streaming`)"
        )


def _pixels_alone(limits: DecodingLimits) -> int:
    """Return the maximum pixels of frames that stand by themselves."""
    return max(1, int(limits.memory_mb * 1e6 / (_WIDEST_PIXEL * _HELD_ALONE)))


def _setting(field: str, limits: DecodingLimits) -> str:
    return f"{variable(field)}={getattr(limits, field):.12g}"


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
        self._is_video = stream.type == "video"
        self._context = stream.codec_context if self._is_video else None
        self._most_packets = self.limits.frame_rate if self._is_video else self.limits.packet_rate
        self._most_pixels = self.limits.megapixel_rate * 1e6
        # Read once, since PyAV makes a fraction at each access.
        self._unit = float(stream.time_base or 0)
        rate = (stream.average_rate or stream.guessed_rate) if self._is_video else None
        self._usual = float(1 / rate) if rate else _USUAL_STEP
        self._covered = _SLACK
        self._last: float | None = None
        self._falls = self._packets = self._pixels = 0

    def add(self, packet: Any) -> MediaError | None:
        """Count a packet; return the error if the stream has more of them than it may."""
        ticks = packet.pts
        if ticks is None:
            ticks = packet.dts
        if ticks is None or not self._unit:
            # Raw streams carry no timestamps: their packets follow each other.
            self._covered += self._usual
        elif self._last is None:
            self._last = ticks * self._unit
        elif (time := ticks * self._unit) > self._last:
            self._covered += min(time - self._last, _LONGEST_STEP)
            self._last = time
        elif time < self._last - _LONGEST_STEP and self._falls < _MOST_FALLS:
            self._falls += 1
            self._last = time
        self._packets += 1
        if self._packets > self._most_packets * self._covered:
            return self._error("frame_rate", "frames") if self._is_video else self._error("packet_rate", "packets")
        if (context := self._context) is not None:
            # The coded size is known once a decoder is open.
            self._pixels += context.coded_width * context.coded_height or context.width * context.height
            if self._pixels > self._most_pixels * self._covered:
                return self._error("megapixel_rate", "megapixels")
        return None

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
        self.limits, self.largest = DecodingLimits.from_environment(), _LargestFrame.of(self.context)
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
        if width * height > self.largest.pixels * _CODED_SHARE:
            raise self.largest.error(self.name, width, height)
        grown = _resident_bytes() - self._before - result
        if grown > self.limits.memory_mb * 1e6:
            raise MediaError(
                f"{self.name}: decoding its frames of {width}x{height} pixels takes {grown / 1e6:.0f} MB; expected at "
                f"most {self.limits.memory_mb:g} MB ({variable('memory_mb')})"
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
