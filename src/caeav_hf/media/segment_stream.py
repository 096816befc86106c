"""
Read a video of any length segment by segment, in constant memory, while it runs.

Segments lie on an absolute grid: segment t covers the seconds [t * segment_seconds, (t + 1) * segment_seconds) after
time zero, wherever reading starts, and its frame is the one on show at its middle, as in `media.clip`. Time zero of a
file or an address is the first timestamp of its video; a [`Feed`] has a clock of its own.

What cannot be read is a [`Gap`], and reading continues after it. A picture that is lost for less than a segment leaves
the one before it on show; lost sound is silent up to half a segment. A frame that stands long without any loss, as in
recordings of a screen, is no gap if the file gives its duration, or for `LONGEST_HOLD` seconds; in a feed, for
`FEED_HOLD` seconds.
"""

import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np

from ..errors import CaeAvError, MediaError
from .bounds import FrameScaler, MemoryWatch, no_frame
from .containers import (
    SEEK_MARGIN,
    STREAM_PROTOCOLS,
    MediaFile,
    announced_end,
    audio_stream,
    best_stream,
    frame_rate_of,
    in_seconds,
    packets_of,
    start_time,
    try_packet,
    upright,
    video_decoder,
    video_stream,
)
from .guard import guarded, guarded_iterator
from .limits import DecodingLimits
from .segments import SEGMENT_REST, TIME_EPSILON, check_range
from .sound import AudioTrack


# Not that of Transformers, which would take a decoding worker seconds to import.
logger = logging.getLogger(__name__)

# Seconds for which a frame of a file, and of a feed, stays on show beyond its duration if no other follows.
LONGEST_HOLD, FEED_HOLD = 10.0, 2.0
# Seconds by which the picture may run ahead of the sound, in a file and in a running source, before the sound that is
# missing is taken for silence.
_FILE_SKEW, _LIVE_SKEW = 10.0, 2.0
# Seconds of sound that wait for their picture; earlier ones are forgotten.
_WAITING_SOUND = 30.0
# Seconds for which a frame of a file stays on show at most, whatever duration it claims.
_LONGEST_SHOWN = 3600.0
# Share of a segment's sound that must be known.
_KNOWN_SOUND = 0.5
_NO_PICTURE, _NO_SOUND = "the picture is lost", "the sound is lost"


@dataclass(frozen=True, eq=False)
class Segment:
    """
    A segment of a stream.

    Attributes:
        index: Its place on the grid.
        image: (H, W, 3) uint8 RGB, the frame at its middle, upright; scaled down as those of [`~media.clip.Clip`].
        time: Timestamp of the frame in seconds after time zero.
        sound: (samples of a segment,) float32, mono, in [-1, 1].
        has_audio: Whether the stream has sound. If not, `sound` is silence.
    """

    index: int
    image: np.ndarray
    time: float
    sound: np.ndarray
    has_audio: bool


@dataclass(frozen=True)
class Gap:
    """
    A stretch without results.

    Attributes:
        start, end: Seconds after time zero; `end` is `None` as long as it is not known.
        reason: What happened, for the user.
    """

    start: float
    end: float | None
    reason: str


@dataclass
class Feed:
    """
    A running source of frames and sound, such as a camera.

    Args:
        items: Pairs of a time in seconds and an array: (H, W, 3) uint8 for a frame, (samples,) or (channels, samples)
            of floats in [-1, 1], int16 or int32 for sound. Frames and sound come in the order of their times, each by
            itself, in chunks of any size.
        sampling_rate: Samples per second of the sound; `None` for a source without sound.
        name: Name in results and errors.
        live: Whether the source runs on by itself, so that a slow model has to leave out what it cannot keep up with;
            otherwise the source is read only as fast as it is processed.
    """

    items: Iterable[tuple[float, Any]]
    sampling_rate: int | None = None
    name: str = "<feed>"
    live: bool = True


def is_live(source: Any) -> bool:
    """Return whether a source runs on by itself: a [`Feed`] says so, and of addresses all but those of http."""
    if isinstance(source, Feed):
        return source.live
    protocol = source.partition("://")[0].lower() if isinstance(source, str) else ""
    return protocol in STREAM_PROTOCOLS and protocol not in ("http", "https")


def announced_seconds(source: Any, timeout: float | None = None) -> float | None:
    """
    Return the seconds of video that the header of a file or an address announces; `None` if it does not say, as that
    of a running source, or of one that can be read only once.

    Raises:
        MediaError: The source cannot be opened, or has no video.
    """
    media = MediaFile.of_stream(source, None)
    return None if media.is_pipe else _announced_seconds(media, timeout)


@guarded()
def _announced_seconds(media: MediaFile, timeout: float | None) -> float | None:
    with media.open(timeout) as container:
        return announced_end(video_stream(container, media.name), container)


def read_segments(
    source: Any,
    *,
    segment_seconds: float,
    sampling_rate: int,
    start: float = 0.0,
    end: float | None = None,
    name: str | None = None,
    on_missing_audio: str = "silence",
    timeout: float | None = None,
    num_threads: int = 0,
) -> Iterator[Segment | Gap]:
    """
    Yield the segments of a source, and the gaps between them, in order.

    Args:
        source: A file, as for [`~media.clip.load_clip`], a pipe, an address that FFmpeg reads, or a [`Feed`].
        segment_seconds: Seconds of a segment.
        sampling_rate: Samples per second of the returned sound.
        start, end: Part to read, in seconds after time zero: from the segment that contains `start` to the one that
            `end` lies in or borders on.
        name: Name in errors.
        on_missing_audio: `"silence"` or `"error"`, for a source without sound.
        timeout: Seconds to wait for an address.
        num_threads: Threads of the video decoder; 0 lets FFmpeg choose.

    Raises:
        MediaError: The source cannot be opened, has no video, or none of it can be decoded. Errors after the first
            frame are gaps.
        CaeAvError: An argument is out of range, or an item of a feed is no frame or sound.
    """
    check_range(start, end, sampling_rate)
    first = math.floor(start / segment_seconds + TIME_EPSILON)
    last = math.inf if end is None else math.ceil(end / segment_seconds - TIME_EPSILON)
    skew = _LIVE_SKEW if is_live(source) else _FILE_SKEW
    hold = FEED_HOLD if isinstance(source, Feed) else LONGEST_HOLD
    places = _Places(segment_seconds, sampling_rate, first, last, skew, hold)
    if isinstance(source, Feed):
        has_audio, assembler = source.sampling_rate is not None, _Assembler(places)
        events: Iterator[None] = _feed(source, assembler)
        name = name or source.name
        return _assembled(assembler, events, name, has_audio, on_missing_audio)
    media = MediaFile.of_stream(source, name)
    return _of_media(media, places, start, on_missing_audio, timeout, num_threads)


@dataclass(frozen=True)
class _Places:
    """
    Where segments lie, and how long they wait.

    Args:
        seconds, rate: Seconds of a segment, and samples per second of its sound.
        first, last: The segments to make; `last` is exclusive, and may be infinite.
        skew: Seconds by which the picture may run ahead of the sound.
        hold: Seconds for which a frame stays on show beyond its duration.
    """

    seconds: float
    rate: int
    first: int
    last: float
    skew: float
    hold: float


@guarded_iterator(
    Segment,
    Gap,
    first_seconds=lambda media, places, start, *others: start + places.seconds,
    seconds=lambda media, places, *others: places.seconds,
)
def _of_media(
    media: MediaFile,
    places: _Places,
    start: float,
    on_missing_audio: str,
    timeout: float | None,
    num_threads: int,
) -> Iterator[Segment | Gap]:
    assembler = _Assembler(places)
    with media.open(timeout) as container:
        video = video_decoder(container, media.name, num_threads)
        audio = None if best_stream(container, "audio") is None else audio_stream(container, media.name)
        latest = math.inf if media.is_address else DecodingLimits.from_environment().duration
        events = _decode(container, media.name, video, audio, assembler, start, latest)
        yield from _assembled(assembler, events, media.name, audio is not None, on_missing_audio)


def _assembled(
    assembler: "_Assembler", events: Iterator[None], name: str, has_audio: bool, on_missing_audio: str
) -> Iterator[Segment | Gap]:
    """Yield what the assembler has completed after each event."""
    if not has_audio and on_missing_audio == "error":
        raise MediaError(f"{name}: no audio stream; expected one, or `on_missing_audio='silence'`")
    assembler.has_audio = has_audio
    for _ in events:
        yield from assembler.completed()
        if assembler.is_done:
            yield from assembler.close_gap()
            return
    if not assembler.has_started:
        reason = f" ({assembler.failure})" if assembler.failure else ""
        raise MediaError(f"{name}: no frame could be decoded{reason}; expected a readable video stream")
    yield from assembler.finished()


def _decode(
    container: Any, name: str, video: Any, audio: Any, assembler: "_Assembler", start: float, latest: float
) -> Iterator[None]:
    """
    Decode a container into the assembler; yield after each packet. Timestamps later than `latest`, seconds after time
    zero, are damaged.
    """
    origin, rate = start_time(video, container), frame_rate_of(video)
    assembler.track.begin = origin
    assembler.begins_at_first = True
    if start > SEEK_MARGIN:
        try:
            container.seek(round((origin + start - SEEK_MARGIN) * av.time_base))
        except (av.FFmpegError, OSError, OverflowError) as error:
            logger.debug(f"reading from the beginning, since seeking failed: {error}")
    scaler, watch = FrameScaler(), MemoryWatch(video, name)
    waiting: list[float] = []  # times of packets whose frames have not come out of the decoder
    errors: list[Exception] = []
    read_until = -math.inf

    def to_rgb(frame: Any) -> np.ndarray:
        return upright(scaler.to_rgb(frame), frame)

    for stream, packet in packets_of(container, [video] if audio is None else [video, audio], name, errors):
        if stream.index != video.index:
            for frame in try_packet(stream, packet) or ():
                assembler.add_sound(frame)
            yield
            continue
        if packet is not None and packet.size and not packet.is_discard:
            time = in_seconds(packet.pts, packet.time_base)
            if time is not None and time - origin <= latest:
                heapq.heappush(waiting, time - origin)
                length = in_seconds(packet.duration, packet.time_base) or (1 / rate if rate else 0.0)
                read_until = max(read_until, time - origin + length)
        for frame in try_packet(stream, packet) or ():
            watch.check()
            if frame.is_corrupt:
                continue
            shown = in_seconds(frame.pts, frame.time_base)
            # Raw streams carry no timestamps: their frames follow each other at the stream's rate.
            begin = max(assembler.shown_until, 0.0) if shown is None else shown - origin
            if begin > latest:
                continue
            lost = False
            while waiting and waiting[0] <= begin + TIME_EPSILON:
                # Frames come in the order of their times: an earlier packet has none.
                lost |= assembler.shown_time + TIME_EPSILON < heapq.heappop(waiting) < begin - TIME_EPSILON
            length = in_seconds(frame.duration, frame.time_base) or (1 / rate if rate else 0.0)
            assembler.add_frame(begin, partial(to_rgb, frame), length, lost)
        yield
    assembler.read_until = read_until
    announced = announced_end(video, container)
    if not assembler.has_started and not video.codec_context.width:
        assembler.failure = str(no_frame(video, name)).removeprefix(f"{name}: ")
    elif errors:
        assembler.failure = f"cannot be read on: {errors[0]}"
    elif announced is not None:
        assembler.failure = f"breaks off before the end at {announced:.2f} s that it announces"
    assembler.announced = announced


def _feed(source: Feed, assembler: "_Assembler") -> Iterator[None]:
    """Read a feed into the assembler; yield after each item."""
    # Imported here since a decoding worker, which reads no feeds, should not load PyTorch.
    from .inputs import as_frames, as_waveform

    items = iter(source.items)
    expected = "expected pairs of a time in seconds and a frame (H, W, 3) uint8 or sound (samples,)"
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except CaeAvError:
            raise
        except Exception as error:
            # Whatever a camera's driver raises ends the source, but not what was found before.
            assembler.failure = f"the source failed: {error or type(error).__name__}"
            return
        try:
            time, array = item
            time = float(time)
        except (TypeError, ValueError) as error:
            raise CaeAvError(f"{source.name}: gave a {type(item).__name__}; {expected}") from error
        if not math.isfinite(time):
            raise CaeAvError(f"{source.name}: gave the time {time}; {expected}")
        if np.ndim(array) == 3:
            image = as_frames([array], source.name)[0]
            assembler.add_frame(time, partial(np.asarray, image), 0.0, lost=False)
        elif np.size(array):
            rate = source.sampling_rate
            sound = as_waveform(array, f"the sound of {source.name}", sampling_rate=rate, wanted=rate or 0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate or 1)
            frame.pts = round(time * frame.sample_rate)
            assembler.add_sound(frame)
        yield


class _Assembler:
    """Puts frames and sound together to segments; holds one decoded frame and the segments that wait for sound."""

    def __init__(self, places: _Places) -> None:
        self.seconds, self.last, self.skew, self.hold = places.seconds, places.last, places.skew, places.hold
        self.samples = round(places.seconds * places.rate)
        self.track = AudioTrack(places.rate, 0.0, None, is_aligned=True)
        self.has_audio = True
        # Whether the source has pictures from the first segment on, so that earlier ones are missing.
        self.begins_at_first = False
        # What ended the source, and what a file says of its pictures: the end of its header, that of its packets.
        self.failure = ""
        self.announced: float | None = None
        self.read_until = -math.inf
        self.shown_time = self.shown_until = -math.inf
        self._next = places.first  # the next segment without a picture
        self._image: Callable[[], np.ndarray] | None = None
        self._converted: np.ndarray | None = None
        # Runs of segments, from the first to the last, exclusive: their picture, its time, or why there is none.
        self._pictures: deque[tuple[int, int, np.ndarray | None, float, str]] = deque()
        self._gap: tuple[int, int, str] | None = None

    @property
    def has_started(self) -> bool:
        """Whether there was a frame."""
        return self._image is not None

    @property
    def is_done(self) -> bool:
        """Whether all wanted segments are complete."""
        return self._next >= self.last and not self._pictures

    def add_frame(self, time: float, image: Callable[[], np.ndarray], duration: float, lost: bool) -> None:
        """
        Add the next frame.

        Args:
            time: Seconds after time zero; a frame that is not later than the one before is ignored.
            image: Returns it as (H, W, 3) uint8.
            duration: Seconds for which it is shown; 0 if they are unknown.
            lost: Whether frames before it are known to be missing.
        """
        if time <= self.shown_time:
            return
        if self._image is None:
            begin = int(min(math.floor(time / self.seconds + TIME_EPSILON), self.last))
            if self.begins_at_first and begin > self._next:
                self._pictures.append((self._next, begin, None, 0.0, _NO_PICTURE))
            self._next = max(self._next, begin)
            # A frame that comes after the middle of its segment is the nearest one to it.
            shown = min(time, (self._next + 0.5) * self.seconds)
        else:
            self._take_pictures(math.ceil((time - TIME_EPSILON) / self.seconds - 0.5), lost)
            shown = time
        self._image, self._converted = image, None
        self.shown_time, self.shown_until = shown, time + min(duration, _LONGEST_SHOWN)

    def add_sound(self, frame: Any) -> None:
        """Add the next frame of sound, whose timestamp is on the time line of the track."""
        self.track.push(frame)
        waiting = self._pictures[0][0] if self._pictures else self._next
        if self.track.end_time > waiting * self.seconds + _WAITING_SOUND:
            self.track.forget(round((self.track.end_time - _WAITING_SOUND) * self.track.rate))

    def completed(self, sound_is_over: bool = False) -> Iterator[Segment | Gap]:
        """Yield the segments that are complete, and the gaps before them."""
        track = self.track
        while self._pictures:
            index, end, image, time, reason = self._pictures.popleft()
            if image is None:
                track.forget(round(end * self.seconds * track.rate))
                self._miss(index, end, reason)
                continue
            begin, until = index * self.seconds, (index + 1) * self.seconds
            goes_on = track.end_time >= until
            is_late = self.shown_time - max(track.end_time, begin) >= self.skew
            if self.has_audio and not (goes_on or sound_is_over or is_late):
                self._pictures.appendleft((index, end, image, time, reason))
                return
            if index + 1 < end:
                self._pictures.appendleft((index + 1, end, image, time, reason))
            has_begun = track.first_time is not None and track.first_time - track.begin <= begin + TIME_EPSILON
            first = round(begin * track.rate)
            sound, known = track.take(first, first + self.samples)
            if has_begun and goes_on and known < _KNOWN_SOUND * self.samples:
                self._miss(index, index + 1, _NO_SOUND)
            else:
                yield from self.close_gap()
                yield Segment(index, image, time, sound, self.has_audio)

    def finished(self) -> Iterator[Segment | Gap]:
        """Yield the rest, at the end of the source."""
        self.track.finish()
        read_until = max(self.shown_until, self.shown_time, self.read_until)
        lost = self.read_until > self.shown_until + self.seconds
        count = math.ceil(read_until / self.seconds - SEGMENT_REST - TIME_EPSILON)
        self._take_pictures(count, lost)
        yield from self.completed(sound_is_over=True)
        if self._next < self.last:
            # A header's end may be that of the sound.
            rest = -math.inf if self.announced is None else self.announced - max(read_until, self.track.end_time)
            if rest > self.seconds or (self.failure and self.announced is None):
                first = self._next if self._gap is None else self._gap[0]
                self._gap = None
                yield Gap(first * self.seconds, self.announced, self.failure)
        yield from self.close_gap()

    def close_gap(self) -> Iterator[Gap]:
        """Yield the gap before the next segment, if there is one."""
        if self._gap is not None:
            first, last, reason = self._gap
            self._gap = None
            yield Gap(first * self.seconds, last * self.seconds, reason)

    def _take_pictures(self, until: int, lost: bool) -> None:
        """Give the frame on show to the segments before `until`, but for those at whose middle it was gone."""
        assert self._image is not None, "there is no frame yet"
        end = int(min(until, self.last))
        shown_until = self.shown_until + (self.seconds if lost else self.hold)
        gone = min(end, max(self._next, math.floor(shown_until / self.seconds - 0.5) + 1))
        if gone > self._next:
            if self._converted is None:
                self._converted = self._image()
            self._pictures.append((self._next, gone, self._converted, self.shown_time, ""))
        if end > max(gone, self._next):
            reason = _NO_PICTURE if lost else f"no frame for more than {self.hold:g} s"
            self._pictures.append((gone, end, None, 0.0, reason))
        self._next = max(self._next, end)

    def _miss(self, index: int, until: int, reason: str) -> None:
        """Add segments to the gap before the next one."""
        first, known = (index, "") if self._gap is None else (self._gap[0], self._gap[2])
        if reason not in known:
            known = f"{known}; {reason}" if known else reason
        self._gap = (first, until, known)
