"""
Decode clips with PyAV: the frame at the middle of every segment, and the sound of the same seconds.

Time. A clip's time zero is the first timestamp of its video stream; the sound is placed on the same time line,
whatever timestamp its own stream starts with. Segment t of a clip that is read from `start` covers the seconds
[start + t * segment_seconds, start + (t + 1) * segment_seconds). Its frame is the one on show at its middle: the last
decoded frame whose timestamp is not later. Timestamps decide, never frame counts, so the frame rate may vary.

Spread segments. A long clip may be sampled evenly instead of second after second: it is divided into as many parts as
there are segments, and each segment lies around the middle of its part. The clip's length follows from the timestamps
of its packets, not from its header; nothing is decoded for that.

Clips without sound. A file without an audio stream is an error or, on request, a clip with silence. An audio stream
that cannot be decoded is always an error.

Short clips. Only the segments that the video stream reaches are returned; see [`~media.segments.count_segments`].
Spread segments overlap instead, so their number is always the requested one. Sound that ends before its last segment
is filled up with silence, longer sound is cut.

Broken clips. Packets that cannot be decoded are skipped: the last good frame stays on show, and lost sound becomes
silence of the same length. A file that breaks off is a shorter clip, with a warning in the log, as long as its index
(the `moov` atom of an mp4) and at least one frame can be read. Everything else raises [`~errors.MediaError`].
"""

import gc
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np

from ..errors import CaeAvError, MediaError
from .bounds import FrameScaler, MemoryWatch, check_result, check_sound_work, kept_size, no_frame
from .containers import (
    SEEK_MARGIN,
    MediaFile,
    MediaSource,
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
    with_decoder,
)
from .guard import guarded
from .limits import DecodingLimits
from .memory import keep
from .segments import (
    FRAME_SAMPLINGS,
    TIME_EPSILON,
    FrameSampling,
    check_range,
    count_segments,
    is_spread,
    sample_times,
)
from .skipping import FrameSkipper, UnevenTimestampsError
from .sound import AudioTrack, delay_sound, spread_starts


# Not that of Transformers, which would take a decoding worker seconds to import.
logger = logging.getLogger(__name__)

# FFmpeg's decoders and scalers own threads, and closing them waits for these. A forked process (a loader's worker)
# inherits the objects but not the threads: if its garbage collector closed what the parent had decoded with, it would
# wait for ever. Freezing keeps the collector away from inherited objects.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)

# Frames of so many bytes in all should not exist twice.
_MUCH = 100e6

MissingAudio = Literal["error", "silence"]
"""Whether a file without an audio stream is an error, or a clip whose sound is silence."""


@dataclass(frozen=True, eq=False)
class Clip:
    """
    The decoded segments of a clip, n of them.

    Attributes:
        frames: (n, H, W, 3) uint8 RGB, the frame at the middle of each segment, rotated upright. Frames larger than
            `frame_megapixels` of [`~media.limits.DecodingLimits`], by default 4K, are scaled down.
        waveform: (n * samples of a segment,) float32, mono, in [-1, 1], one segment after the other. Sample 0 is the
            first segment's first instant. Empty if the clip was read with `with_audio=False`.
        frame_times: (n,) float64, timestamps of the frames in seconds after the clip's time zero.
        duration: Seconds of video from `start` to `end` or, if earlier, the end of the stream.
        frame_rate: Average frames per second of the video stream; 0 if the file does not state it.
        size: (H, W) of the frames.
        name: Name of the clip in error messages.
        sampling_rate: Samples per second of `waveform`.
        has_audio: Whether the clip has a sound track. If not, `waveform` is silence.
    """

    frames: np.ndarray
    waveform: np.ndarray
    frame_times: np.ndarray
    duration: float
    frame_rate: float
    size: tuple[int, int]
    name: str
    sampling_rate: int
    has_audio: bool = True


@dataclass(frozen=True)
class MediaInfo:
    """
    The header of a media file. Values of a missing stream are None.

    Attributes:
        name: Name of the file in error messages.
        duration: Seconds that the header announces, or None.
        has_video, has_audio: Whether there is a stream of that kind.
        frame_rate: Average frames per second.
        size: (H, W) as stored, before the file's rotation is applied.
        sampling_rate: Samples per second of the stored sound.
        channels: Channels of the stored sound.
        video_codec: FFmpeg's name of the decoder of the pictures, such as "h264".
    """

    name: str
    duration: float | None
    has_video: bool
    has_audio: bool
    frame_rate: float | None = None
    size: tuple[int, int] | None = None
    sampling_rate: int | None = None
    channels: int | None = None
    video_codec: str | None = None


def load_clip(
    source: MediaSource,
    *,
    num_segments: int,
    sampling_rate: int,
    segment_seconds: float = 1.0,
    frame_sampling: FrameSampling = "consecutive",
    start: float = 0.0,
    end: float | None = None,
    name: str | None = None,
    with_audio: bool = True,
    on_missing_audio: MissingAudio = "error",
    num_threads: int = 0,
    sound_delay: float = 0.0,
) -> Clip:
    """
    Decode the first `num_segments` segments of a clip; a shorter clip gives fewer (see
    [`~media.segments.count_segments`]). With `frame_sampling="spread"`, decode `num_segments` segments from all of it:
    the clip is divided into that many equal parts, and each gives the frame at its middle and `segment_seconds` of
    sound around it, moved into the clip where they would reach beyond its ends. In a clip shorter than its segments
    together they overlap.

    Only frames that are returned are converted to RGB, and decoding stops with the last segment. Frames that are
    neither returned nor needed to decode these are skipped, if the codec allows it (see `media.skipping`).

    Args:
        source: Path, bytes, binary file object (read from its beginning, left open), or `{"bytes": ..., "path": ...}`.
        num_segments: Maximum number of segments to return; the exact number if they are spread.
        sampling_rate: Samples per second of the returned waveform.
        segment_seconds: Seconds of a segment.
        frame_sampling: `"consecutive"`, `"spread"` or `"spread_to_ends"`, see [`~media.segments.FrameSampling`].
        start, end: Part of the video to read, in seconds after its time zero; `end=None` reads to its end.
        name: Name of the clip in error messages; by default that of [`~media.containers.source_name`].
        with_audio: Whether to decode the sound. Without it the file needs no audio stream.
        on_missing_audio: How to treat a file without an audio stream if sound is wanted: `"error"` raises,
            `"silence"` returns a clip with silence and `has_audio=False`.
        num_threads: Threads of the video decoder; 0 lets FFmpeg choose. Use 1 for workers that decode side by side.
        sound_delay: Seconds by which the sound is heard later, or, if negative, earlier than it is in the file. It is
            silent where it has not begun or has ended.

    Raises:
        MediaError: `source` is missing, empty, no media file, has no video (or, if wanted, no audio) stream, ends
            before `start`, none of it can be decoded, or it exceeds [`~media.limits.DecodingLimits`]. The message
            begins with the clip's name.
        CaeAvError: An argument is out of range.
    """
    check_range(start, end, sampling_rate)
    if num_segments < 1:
        raise CaeAvError(f"`num_segments` must be at least 1, got {num_segments}")
    if not segment_seconds > 0 or round(segment_seconds * sampling_rate) < 1:
        raise CaeAvError(f"`segment_seconds` must be positive, got {segment_seconds}")
    if frame_sampling not in FRAME_SAMPLINGS:
        raise CaeAvError(
            f"`frame_sampling` must be one of {', '.join(map(repr, FRAME_SAMPLINGS))}, got {frame_sampling!r}"
        )
    check_missing_audio(on_missing_audio)
    media = MediaFile.of(source, name)
    request = _Request(
        num_segments=num_segments,
        segment_seconds=segment_seconds,
        sampling_rate=sampling_rate,
        start=start,
        end=end,
        with_audio=with_audio,
        on_missing_audio=on_missing_audio,
        num_threads=num_threads,
        frame_sampling=frame_sampling,
        sound_delay=sound_delay,
    )
    return _load_clip(media, request)


def probe(source: MediaSource, *, name: str | None = None) -> MediaInfo:
    """
    Read the header of a media file; nothing is decoded, so a file that breaks off later is not noticed.

    Raises:
        MediaError: `source` is missing, empty or no media file. A missing stream is no error here.
    """
    return _probe(MediaFile.of(source, name))


@guarded(MediaInfo)
def _probe(media: MediaFile) -> MediaInfo:
    with media.open() as container:
        video, audio = best_stream(container, "video"), best_stream(container, "audio")
        for stream in filter(None, (video, audio)):
            with_decoder(stream, media.name)
        return MediaInfo(
            name=media.name,
            duration=in_seconds(container.duration, Fraction(1, av.time_base)),
            has_video=video is not None,
            has_audio=audio is not None,
            frame_rate=frame_rate_of(video) or None if video is not None else None,
            size=(video.height, video.width) if video is not None else None,
            sampling_rate=audio.sample_rate if audio is not None else None,
            channels=audio.channels if audio is not None else None,
            video_codec=video.codec_context.name if video is not None else None,
        )


@dataclass(frozen=True)
class _Request:
    """The arguments of [`load_clip`] and the values that follow from them alone."""

    num_segments: int
    segment_seconds: float
    sampling_rate: int
    start: float
    end: float | None
    with_audio: bool
    on_missing_audio: MissingAudio
    num_threads: int
    frame_sampling: FrameSampling
    sound_delay: float

    @property
    def stop(self) -> float:
        """Second at which the last wanted segment ends, or `end` if that is earlier; the clip's end if spread."""
        if self.spread:
            assert self.end is not None, "spread segments need the clip's end"
            return self.end
        stop = self.start + self.num_segments * self.segment_seconds
        return stop if self.end is None else min(stop, self.end)

    @property
    def kept_sound(self) -> list[tuple[int, int]] | None:
        """Ranges of samples of the sound in the file that spread segments read; `None` for all of it."""
        if not self.spread:
            return None
        samples = round(self.segment_seconds * self.sampling_rate)
        delay = round(self.sound_delay * self.sampling_rate)
        return [(start - delay, start - delay + samples) for start in self.spread_starts]

    @property
    def spread_starts(self) -> list[int]:
        """First samples of spread segments."""
        return spread_starts(
            self.num_segments, self.segment_seconds, self.sampling_rate, self.stop - self.start, self.frame_sampling
        )

    @property
    def spread(self) -> bool:
        return is_spread(self.frame_sampling)

    @property
    def middles(self) -> list[float]:
        """Seconds at which the wanted segments show their frame: their middles, but always before `end`."""
        seconds = self.stop - self.start
        times = sample_times(seconds, self.num_segments, self.segment_seconds, self.frame_sampling)
        return [self.start + time for time in times]


class _SeekMissedError(Exception):
    """Seeking failed, or landed later than the wanted start."""


def check_missing_audio(value: str) -> None:
    """Raise a [`~errors.CaeAvError`] if `value` is no [`MissingAudio`]."""
    if value not in ("error", "silence"):
        raise CaeAvError(f"`on_missing_audio` must be 'error' or 'silence', got {value!r}")


def _seconds_to_read(media: MediaFile, request: _Request) -> float:
    if request.spread:
        return math.inf if request.end is None else request.end
    # From the beginning, as files without a valid index are read.
    return request.stop


@guarded(Clip, seconds=_seconds_to_read)
def _load_clip(media: MediaFile, request: _Request) -> Clip:
    if request.spread:
        # The parts depend on the length of the whole clip.
        last, start = _video_end(media, request.segment_seconds), request.start
        if last <= start + TIME_EPSILON:
            raise MediaError(_ends_early(media.name, last, start))
        request = replace(request, end=last if request.end is None else min(request.end, last))
    # Try the fast way first: seek, and skip frames. Damaged files are decoded frame by frame, and those without a
    # valid index from their beginning.
    for seek in (True, False) if request.start > SEEK_MARGIN else (False,):
        for skip in (True, False):
            try:
                return _read_clip(media, request, seek, skip)
            except UnevenTimestampsError:
                logger.debug(f"{media.name}: its frames are not what its packets announce")
            except _SeekMissedError:
                logger.debug(f"{media.name}: seeking to {request.start} s missed")
                break
    raise AssertionError("reading from the beginning, frame by frame, gives a clip or an error")


def _video_end(media: MediaFile, tolerance: float) -> float:
    """
    Return the seconds after time zero at which the video ends, by the timestamps of its packets; nothing is decoded.
    Logs a warning if that is more than `tolerance` seconds before the end that the header announces.
    """
    with media.open() as container:
        stream = video_stream(container, media.name)
        rate, count, last = frame_rate_of(stream), 0, -math.inf
        latest = start_time(stream, container) + DecodingLimits.from_environment().duration
        for _, packet in packets_of(container, [stream], media.name):
            if packet is None or not packet.size or packet.is_discard:
                continue
            time = in_seconds(packet.pts, packet.time_base)
            if time is not None and time > latest:
                continue  # a damaged timestamp
            count += 1
            length = in_seconds(packet.duration, packet.time_base) or (1 / rate if rate else 0.0)
            # Raw streams carry no timestamps: their frames follow each other at the stream's rate.
            last = max(last, count * length if time is None else time + length)
        if not count:
            raise MediaError(f"{media.name}: no frame could be decoded; expected a readable video stream")
        end, announced = last - start_time(stream, container), announced_end(stream, container)
        _warn_if_cut(media.name, end, announced, tolerance)
        return end


def _warn_if_cut(name: str, end: float, announced: float | None, tolerance: float) -> None:
    if announced is not None and announced - end > tolerance:
        logger.warning(f"{name}: breaks off after {end:.2f} s of the {announced:.2f} s it announces")


def _ends_early(name: str, end: float, start: float) -> str:
    return f"{name}: its video ends at {end:.2f} s; expected it to outlast `start` {start} s"


def _decoded_frames(
    container: Any, streams: list[Any], name: str, done: set[int], skipper: FrameSkipper | None
) -> Iterator[Any]:
    """
    Yield the frames of `streams` in the order of the file, without those that `skipper` leaves out, until the caller
    has put all their indices into `done`. Packets that cannot be decoded are skipped; a file that breaks off ends the
    iteration.
    """
    packets = packets_of(container, streams, name)
    for stream, packet in packets if skipper is None else skipper.packets(packets):
        if stream.index not in done:
            frames = try_packet(stream, packet)
            if skipper is not None and stream.index == skipper.stream.index:
                skipper.check_decoded(frames)
            yield from frames or ()
        if len(done) == len(streams):
            return


def _read_clip(media: MediaFile, request: _Request, seek: bool, skip: bool) -> Clip:
    """
    Read the clip in one pass over the file, from shortly before `start` (`seek`) or from its beginning, decoding only
    the frames that are needed (`skip`) or all.

    Raises:
        _SeekMissedError: The pass began after the first wanted frame or sample.
        UnevenTimestampsError: The decoded frames are not those that skipping relied on.
    """
    with media.open() as container:
        video, audio = _streams_of(container, media.name, request)
        origin = start_time(video, container)
        if seek:
            _seek(container, origin + request.start - SEEK_MARGIN)
        targets = [origin + middle for middle in request.middles]
        picker = _FramePicker(targets, frame_rate_of(video))
        limits = DecodingLimits.from_environment()
        skipper = FrameSkipper(video, targets) if skip and FrameSkipper.suits(video) else None
        track = AudioTrack(
            request.sampling_rate, origin + request.start, origin + request.stop, kept=request.kept_sound
        )

        # Packets of both streams alternate in the file, and one may be complete long before the other: a stream whose
        # index is in `done` is not decoded any further.
        done: set[int] = set()
        streams, watch = [video] if audio is None else [video, audio], MemoryWatch(video, media.name)
        kept = 0
        for frame in _decoded_frames(container, streams, media.name, done, skipper):
            if isinstance(frame, av.VideoFrame):
                watch.check(kept)
                if picker.push(frame):
                    done.add(video.index)
            elif track.push(frame):
                done.add(audio.index)
            kept = picker.nbytes + track.nbytes
            check_result(kept, media.name, limits)
            check_sound_work(track.excess, media.name, limits)

        # Whether this pass can be trusted comes first: a frame may be missing only because it was skipped or because
        # seeking landed after it, and then another pass finds it. Only a pass without either gives a final error.
        if skipper is not None:
            skipper.check(picker.first_time, picker.times)
        if seek and (
            picker.first_time is None
            or picker.first_time > targets[0] + TIME_EPSILON
            or (audio is not None and track.starts_late(audio, container))
        ):
            raise _SeekMissedError
        if picker.first_time is None:
            raise no_frame(video, media.name)
        if audio is not None and track.first_time is None:
            raise MediaError(f"{media.name}: no sound could be decoded; expected a readable audio stream")

        reached_end = video.index not in done
        decoded_end, announced = picker.end_time - origin, announced_end(video, container)
        duration, count = _extent(media.name, request, decoded_end, announced, reached_end)
        samples = count * round(request.segment_seconds * request.sampling_rate) if request.with_audio else 0
        check_result(count * picker.frame_bytes + 4 * samples, media.name, limits)
        frames, times = picker.finish(count)
        return Clip(
            frames=frames,
            waveform=_sound_of(track, request, count),
            frame_times=times - origin,
            duration=duration,
            frame_rate=frame_rate_of(video),
            size=(frames.shape[1], frames.shape[2]),
            name=media.name,
            sampling_rate=request.sampling_rate,
            has_audio=best_stream(container, "audio") is not None,
        )


def _streams_of(container: Any, name: str, request: _Request) -> tuple[Any, Any]:
    """Return the video stream and the audio stream to decode; None for the latter if there is no sound to decode."""
    video = video_decoder(container, name, request.num_threads)
    if not request.with_audio:
        return video, None
    if best_stream(container, "audio") is None:
        if request.on_missing_audio == "error":
            raise MediaError(f"{name}: no audio stream; expected a video with sound, or `on_missing_audio='silence'`")
        return video, None
    return video, audio_stream(container, name)


def _seek(container: Any, seconds: float) -> None:
    try:
        container.seek(round(seconds * av.time_base))
    except (av.FFmpegError, OSError, OverflowError) as error:
        raise _SeekMissedError from error


def _extent(
    name: str, request: _Request, decoded_end: float, announced: float | None, reached_end: bool
) -> tuple[float, int]:
    """
    Return the duration of the requested part of a clip in seconds and its number of segments.

    Args:
        decoded_end: Second at which the last decoded frame goes off.
        announced: Second at which the header says that the video ends, or None.
        reached_end: Whether the video was decoded to its end, rather than to its last wanted frame. If not, the
            header states its duration.
    """
    video_end = decoded_end if reached_end else max(decoded_end, announced or 0.0)
    if video_end <= request.start + TIME_EPSILON:
        raise MediaError(_ends_early(name, video_end, request.start))
    if request.spread:
        # Known from the packets. If the last ones cannot be decoded, the last good frame stays visible.
        return request.stop - request.start, request.num_segments
    if reached_end:
        _warn_if_cut(name, video_end, announced, request.segment_seconds)
    duration = (video_end if request.end is None else min(video_end, request.end)) - request.start
    return duration, count_segments(duration, request.segment_seconds, len(request.middles))


def _sound_of(track: AudioTrack, request: _Request, count: int) -> np.ndarray:
    """Return the sound of `count` segments, (count * samples of a segment,); empty if none was requested."""
    if not request.with_audio:
        return track.waveform(0)
    delay = round(request.sound_delay * request.sampling_rate)
    if not request.spread:
        samples = count * round(request.segment_seconds * request.sampling_rate)
        return delay_sound(track.waveform(samples), delay)
    # Segment by segment, as the sound of a long clip would take much memory.
    track.finish()
    samples = round(request.segment_seconds * request.sampling_rate)
    whole = round((request.stop - request.start) * request.sampling_rate)
    waveform = np.zeros((count, samples), np.float32)
    for part, start in zip(waveform, request.spread_starts, strict=True):
        first, last = max(start, delay, 0), min(start + samples, whole, whole + delay)
        if last > first:
            part[first - start : last - start] = track.read(first - delay, last - delay)[0]
    return waveform.ravel()


class _FramePicker:
    """
    Collects the frames on show at the `targets` (ascending, seconds) from decoded frames. It holds one decoded frame
    at a time and converts only those that it keeps, while the decoder's threads continue.
    """

    def __init__(self, targets: list[float], frame_rate: float):
        self.targets = targets
        self.frame_rate = frame_rate
        self.first_time: float | None = None
        self._shown: Any = None
        self._shown_time = -math.inf
        self._images: list[np.ndarray] = []
        self._room: np.ndarray | None = None
        self._times: list[float] = []
        self._scaler = FrameScaler()

    def push(self, frame: Any) -> bool:
        """Add the next frame; return True once no more are needed."""
        time = in_seconds(frame.pts, frame.time_base)
        if time is None:
            # Raw streams carry no timestamps: their frames follow each other at the stream's rate.
            time = 0.0 if self._shown is None else self.end_time
        if time <= self._shown_time:
            return False
        if self._shown is None:
            self.first_time = time
        else:
            # The shown frame stays until this one begins, so it serves all targets before that; a target before the
            # very first frame takes that one, the nearest.
            while len(self._images) < len(self.targets) and self.targets[len(self._images)] < time - TIME_EPSILON:
                self._take()
        self._shown, self._shown_time = frame, time
        return len(self._images) == len(self.targets)

    def finish(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return frames (count, H, W, 3) uint8 and times of the first `count` targets; the last frame stays on."""
        while len(self._images) < count:
            self._take()
        images = self._images[:count]
        self._images = []
        if self._room is not None:
            return self._room[:count], np.array(self._times[:count])
        frames = np.empty((count, *images[0].shape), np.uint8)
        images.reverse()
        for frame in frames:
            frame[...] = images.pop()  # freed one by one
        return frames, np.array(self._times[:count])

    @property
    def nbytes(self) -> int:
        """Bytes of the frames taken so far."""
        return len(self._images) * self.frame_bytes if self._images else 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of a taken frame."""
        if self._images:
            return self._images[0].nbytes
        return 3 * math.prod(kept_size(self._shown.width, self._shown.height))

    @property
    def times(self) -> list[float]:
        """Times of the frames on show at the targets reached so far, and of the last frame."""
        reached = len(self._times)
        if self._shown is None or reached == len(self.targets):
            return self._times
        return [*self._times, self._shown_time]

    @property
    def end_time(self) -> float:
        """Second at which the last frame so far goes off."""
        duration = in_seconds(self._shown.duration, self._shown.time_base)
        return self._shown_time + (duration or (1 / self.frame_rate if self.frame_rate else 0.0))

    def _take(self) -> None:
        if self._times and self._times[-1] == self._shown_time:
            image = self._images[-1]
        else:
            image = upright(self._to_rgb(self._shown), self._shown)
        keep(image.nbytes)
        if not self._images and len(self.targets) * image.nbytes < _MUCH:
            # Memory of the result, so that no copies are left for the end, when the decoder's threads have stopped.
            self._room = np.empty((len(self.targets), *image.shape), np.uint8)
        if self._room is not None:
            self._room[len(self._images)] = image
            image = self._room[len(self._images)]
        self._images.append(image)
        self._times.append(self._shown_time)

    def _to_rgb(self, frame: Any) -> np.ndarray:
        return self._scaler.to_rgb(frame)
