"""Decoding of clips with PyAV: the frame at the middle of every segment, and the sound of the same seconds.

Time. A clip's time zero is the first timestamp of its video stream; the sound is laid on the same time line, whatever
timestamp its own stream starts with. Segment t of a clip that is read from `start` covers the seconds
[start + t * segment_seconds, start + (t + 1) * segment_seconds). Its frame is the one on show at its middle: the last
decoded frame whose timestamp is not later. Timestamps decide, never frame counts, so any frame rate may vary.

Spread segments. A long clip may also be sampled evenly instead of second after second: it is divided into as many
parts as there are segments, and each segment lies around the middle of its part. How long the clip is follows from the
timestamps of its packets, not from what its header says; nothing is decoded for that.

Clips without sound. A file without an audio stream is an error, or, if wanted, a clip whose sound is silence. An audio
stream that cannot be decoded is always an error.

Short clips. Only the segments that the video stream reaches are returned; see [`count_segments`]. Spread segments
overlap instead, so there are always as many as wanted. Sound that ends before its last segment is filled up with
silence, sound that goes on longer is cut.

Broken clips. A packet that cannot be decoded is passed over: the last good frame stays on show, and lost sound becomes
silence of the same length. A file that breaks off is a shorter clip, with a warning in the log, as long as its index
(the `moov` atom of an mp4) and at least one frame can be read. Everything else raises [`~errors.MediaError`].
"""

import gc
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from transformers.utils import logging

from ..errors import CaeAvError, MediaError
from .containers import (
    AUDIO_JITTER,
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
    video_stream,
    with_decoder,
)
from .skipping import FrameSkipper, UnevenTimestampsError


logger = logging.get_logger(__name__)

# FFmpeg's decoders and scalers own threads, and closing them waits for these. A forked process (a loader's worker)
# inherits the objects but not the threads: if its garbage collector closed what the parent had decoded with, it would
# wait for ever. Freezing puts what is inherited out of the collector's reach.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)

FrameSampling = Literal["consecutive", "spread"]
"""Whether segments follow each other from the clip's beginning, or lie around the middles of equal parts of it."""

MissingAudio = Literal["error", "silence"]
"""Whether a file without an audio stream is an error, or a clip whose sound is silence."""

# Share of a segment that a clip may go on after its last whole segment before that rest becomes a segment of its own:
# encoders round durations up to whole frames (10.02 s), and a tenth of a second shows and sounds like nothing.
SEGMENT_REST = 0.1
# Timestamps come in ticks of the stream's time base; two that mean the same instant may differ by rounding.
_TIME_EPSILON = 1e-6
# Seeking aims this much earlier than wanted (seconds): decoders of sound need some packets before they are exact.
_SEEK_MARGIN = 0.5
# Gaps of more than this (seconds) in a sound file are no gaps but damaged timestamps.
_LONGEST_SILENCE = 3600.0


@dataclass(frozen=True, eq=False)
class Clip:
    """
    The decoded segments of a clip, n of them.

    Attributes:
        frames: (n, H, W, 3) uint8 RGB, the frame at the middle of each segment, turned as the file says.
        waveform: (n * samples of a segment,) float32, mono, in [-1, 1], one segment after the other. Sample 0 is the
            first segment's first instant. Empty if the clip was read with `with_audio=False`.
        frame_times: (n,) float64, seconds after the clip's time zero at which the frames are shown first.
        duration: Seconds of video from `start` to `end` or, if earlier, the end of the stream.
        frame_rate: Frames a second, on average, of the video stream; 0 where the file does not tell.
        size: (H, W) of the frames.
        name: What error messages call the clip.
        sampling_rate: Samples a second of `waveform`.
        has_audio: Whether the clip has a sound track. Without one, `waveform` is silence.
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
    What the header of a media file says. Values of a stream that is missing are None.

    Attributes:
        name: What error messages call the file.
        duration: Seconds that the file announces, None where it does not.
        has_video, has_audio: Whether there is a stream of that kind.
        frame_rate: Frames a second, on average.
        size: (H, W) as stored, before the file's rotation is applied.
        sampling_rate: Samples a second of the stored sound.
        channels: Channels of the stored sound.
    """

    name: str
    duration: float | None
    has_video: bool
    has_audio: bool
    frame_rate: float | None = None
    size: tuple[int, int] | None = None
    sampling_rate: int | None = None
    channels: int | None = None


def count_segments(duration: float, segment_seconds: float = 1.0, num_segments: int | None = None) -> int:
    """
    Number of real segments in `duration` seconds: one for every started `segment_seconds`, at least 1 and at most
    `num_segments`. A rest below a tenth of a segment is rounding, not a segment: 10.02 s are ten segments of one
    second, 9.95 s too, 10.3 s are eleven and 0.3 s are one.
    """
    # The epsilon keeps 1.1 s, which is 1.1000000000000001, at one segment.
    count = max(1, math.ceil(duration / segment_seconds - SEGMENT_REST - _TIME_EPSILON))
    return count if num_segments is None else min(count, num_segments)


def sample_times(
    duration: float, num_segments: int | None, segment_seconds: float, frame_sampling: FrameSampling
) -> list[float]:
    """
    Seconds at which the segments of a clip show their frame, as in [`load_clip`].

    Args:
        duration: Seconds of the clip.
        num_segments: Most segments, or, if they are spread, how many. None for all that there are.
    """
    count = count_segments(duration, segment_seconds, None if frame_sampling == "spread" else num_segments)
    if frame_sampling == "spread":
        return _middles_of_parts(count if num_segments is None else num_segments, duration)
    return [min((t + 0.5) * segment_seconds, duration - 2 * _TIME_EPSILON) for t in range(count)]


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
) -> Clip:
    """
    Decode the first `num_segments` segments of a clip; a shorter clip gives fewer (see [`count_segments`]). Or, with
    `frame_sampling="spread"`, decode `num_segments` segments from all of it: the clip is divided into that many equal
    parts; each gives the frame at its middle, and `segment_seconds` of sound around it, moved into the clip where they
    would reach out of it. In a clip shorter than its segments together they overlap.

    Only the frames that are kept are converted to RGB, and decoding stops with the last segment. Frames that are
    neither kept nor needed to decode these are left out, where the codec allows it (see `processing.skipping`).

    Args:
        source: Path, bytes, binary file object (read from its beginning, left open), or `{"bytes": ..., "path": ...}`.
        num_segments: Most segments to return; if they are spread, exactly so many.
        sampling_rate: Samples a second of the returned waveform.
        segment_seconds: Seconds of a segment.
        frame_sampling: `"consecutive"` or `"spread"`.
        start, end: Part of the video to read, in seconds after its time zero; `end=None` reads to its end.
        name: What to call the clip in errors; by default what [`source_name`] says.
        with_audio: Whether the sound is wanted. Without it the file needs no audio stream.
        on_missing_audio: What a file without an audio stream does if the sound is wanted: `"error"` raises,
            `"silence"` gives a clip with silence and `has_audio=False`.
        num_threads: Threads of the video decoder; 0 lets FFmpeg choose. Workers that decode side by side want 1.

    Raises:
        MediaError: `source` is missing, empty, no media file, has no video (or, if wanted, no audio) stream, ends
            before `start`, or none of it can be decoded. The message begins with the clip's name.
        CaeAvError: An argument is out of range.
    """
    _check_range(start, end, sampling_rate)
    if num_segments < 1:
        raise CaeAvError(f"`num_segments` must be at least 1, got {num_segments}")
    if not segment_seconds > 0 or round(segment_seconds * sampling_rate) < 1:
        raise CaeAvError(f"`segment_seconds` must be positive, got {segment_seconds}")
    if frame_sampling not in ("consecutive", "spread"):
        raise CaeAvError(f"`frame_sampling` must be 'consecutive' or 'spread', got {frame_sampling!r}")
    check_missing_audio(on_missing_audio)
    media = MediaFile.of(source, name)
    spread = frame_sampling == "spread"
    request = _Request(
        num_segments, segment_seconds, sampling_rate, start, end, with_audio, on_missing_audio, num_threads, spread
    )
    if spread:
        # Where the parts lie depends on the length of the whole.
        last = _video_end(media, segment_seconds)
        if last <= start + _TIME_EPSILON:
            raise MediaError(_ends_early(media.name, last, start))
        request = replace(request, end=last if end is None else min(end, last))
    for seek in (True, False) if start > _SEEK_MARGIN else (False,):
        for skip in (True, False):
            try:
                return _read_clip(media, request, seek, skip)
            except UnevenTimestampsError:
                # Damaged, or of an odd kind: those are decoded frame by frame.
                logger.debug(f"{media.name}: its frames are not what its packets announce")
            except _SeekMissedError:
                # Some containers have no index, or a wrong one: those are read from their beginning.
                logger.debug(f"{media.name}: seeking to {start} s missed")
                break
    raise AssertionError("reading from the beginning, frame by frame, gives a clip or an error")


def load_audio(
    source: MediaSource,
    *,
    sampling_rate: int,
    start: float = 0.0,
    end: float | None = None,
    name: str | None = None,
) -> np.ndarray:
    """
    Decode the sound of a file (wav, flac, mp3, or the audio stream of a video) to mono.

    Args:
        source: As in [`load_clip`].
        sampling_rate: Samples a second of the returned waveform.
        start, end: Part to read, in seconds after the sound's first timestamp; `end=None` reads to its end.
        name: What to call the file in errors.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        MediaError: No sound can be decoded from `source`; the message begins with its name.
        CaeAvError: An argument is out of range.
    """
    _check_range(start, end, sampling_rate)
    media = MediaFile.of(source, name)
    with media.open() as container:
        stream = audio_stream(container, media.name)
        origin = start_time(stream, container)
        track = _AudioTrack(sampling_rate, origin + start, None if end is None else origin + end)
        for frame in _decoded_frames(container, [stream], done := set()):
            if track.push(frame):
                done.add(stream.index)
    if track.silence > _LONGEST_SILENCE:
        # Filling the gaps could take more memory than there is.
        raise MediaError(
            f"{media.name}: its sound has gaps of {track.silence:.0f} s in all; expected a readable audio stream"
        )
    waveform = track.waveform()
    if not waveform.size:
        raise MediaError(
            f"{media.name}: no sound could be decoded from {start} s on; expected a readable audio stream"
        )
    return waveform


def spread_sound(
    waveform: np.ndarray, *, num_segments: int, segment_seconds: float, sampling_rate: int, seconds: float
) -> np.ndarray:
    """
    The sound of spread segments: `segment_seconds` around the middle of each of `num_segments` equal parts of
    `seconds`, moved into them where they would reach out.

    Args:
        waveform: (samples,) from the first instant on; silence is added where it ends before `seconds`.

    Returns:
        (num_segments * samples of a segment,), one segment after the other.
    """
    samples, whole = round(segment_seconds * sampling_rate), round(seconds * sampling_rate)
    sound = np.zeros(max(whole, samples), waveform.dtype)
    kept = min(len(waveform), whole)
    sound[:kept] = waveform[:kept]
    starts = [
        min(max(round((middle - segment_seconds / 2) * sampling_rate), 0), len(sound) - samples)
        for middle in _middles_of_parts(num_segments, seconds)
    ]
    return np.concatenate([sound[start : start + samples] for start in starts])


def _middles_of_parts(count: int, seconds: float) -> list[float]:
    """Seconds at the middles of `count` equal parts of `seconds`."""
    return [(part + 0.5) * seconds / count for part in range(count)]


def probe(source: MediaSource, *, name: str | None = None) -> MediaInfo:
    """
    Read the header of a media file; nothing is decoded, so a file that breaks off later is not noticed.

    Raises:
        MediaError: `source` is missing, empty or no media file. A missing stream is no error here.
    """
    media = MediaFile.of(source, name)
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
        )


@dataclass(frozen=True)
class _Request:
    """The arguments of [`load_clip`], and what follows from them alone."""

    num_segments: int
    segment_seconds: float
    sampling_rate: int
    start: float
    end: float | None
    with_audio: bool
    on_missing_audio: MissingAudio
    num_threads: int
    spread: bool = False

    @property
    def stop(self) -> float:
        """Second at which the last wanted segment ends, or `end` if that is earlier; that is the whole, if spread."""
        if self.spread:
            assert self.end is not None, "spread segments need the clip's end"
            return self.end
        stop = self.start + self.num_segments * self.segment_seconds
        return stop if self.end is None else min(stop, self.end)

    @property
    def middles(self) -> list[float]:
        """Seconds at which the wanted segments show their frame: their middles, but always before `end`."""
        if self.spread:
            return [self.start + m for m in _middles_of_parts(self.num_segments, self.stop - self.start)]
        last = self.stop - 2 * _TIME_EPSILON
        count = count_segments(self.stop - self.start, self.segment_seconds, self.num_segments)
        return [min(self.start + (t + 0.5) * self.segment_seconds, last) for t in range(count)]


class _SeekMissedError(Exception):
    """Seeking is not possible, or landed later than what is wanted."""


def check_missing_audio(value: str) -> None:
    """Raise a [`~errors.CaeAvError`] if `value` is no [`MissingAudio`]."""
    if value not in ("error", "silence"):
        raise CaeAvError(f"`on_missing_audio` must be 'error' or 'silence', got {value!r}")


def _check_range(start: float, end: float | None, sampling_rate: int) -> None:
    if sampling_rate < 1:
        raise CaeAvError(f"`sampling_rate` must be positive, got {sampling_rate}")
    if not 0 <= start < math.inf:
        raise CaeAvError(f"`start` must be a time of 0 s or later, got {start}")
    if end is not None and not end > start:
        raise CaeAvError(f"`end` must be later than `start`, got {start} to {end}")


def _video_end(media: MediaFile, tolerance: float) -> float:
    """
    Seconds after time zero at which the video ends, by its packets; none is decoded. Says so in the log if that is
    more than `tolerance` seconds before the end that the header announces.
    """
    with media.open() as container:
        stream = video_stream(container, media.name)
        rate, count, last = frame_rate_of(stream), 0, -math.inf
        for _, packet in packets_of(container, [stream]):
            if packet is None or not packet.size or packet.is_discard:
                continue
            count += 1
            length = in_seconds(packet.duration, packet.time_base) or (1 / rate if rate else 0.0)
            time = in_seconds(packet.pts, packet.time_base)
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
    container: Any, streams: list[Any], done: set[int], skipper: FrameSkipper | None = None
) -> Iterator[Any]:
    """
    The frames of `streams` in the order of the file, until all their indices are in `done` (which the caller fills),
    without those that `skipper` leaves out. Packets that cannot be decoded are passed over; a file that breaks off
    ends the iteration.
    """
    packets = packets_of(container, streams)
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
    One pass over the file, from shortly before `start` (`seek`) or from its beginning, with every frame decoded or
    only those that are needed (`skip`).
    """
    with media.open() as container:
        video = video_stream(container, media.name)
        video.thread_type = "AUTO"
        video.codec_context.thread_count = request.num_threads
        streams = [video]
        has_audio = best_stream(container, "audio") is not None
        if request.with_audio and not has_audio and request.on_missing_audio == "error":
            raise MediaError(
                f"{media.name}: no audio stream; expected a video with sound, or `on_missing_audio='silence'`"
            )
        decodes_sound = request.with_audio and has_audio
        if decodes_sound:
            streams.append(audio_stream(container, media.name))
        origin = start_time(video, container)
        if seek:
            try:
                container.seek(round((origin + request.start - _SEEK_MARGIN) * av.time_base))
            except (av.FFmpegError, OSError, OverflowError) as error:
                raise _SeekMissedError from error

        targets = [origin + middle for middle in request.middles]
        picker = _FramePicker(targets, frame_rate_of(video))
        skipper = FrameSkipper(video, targets) if skip and FrameSkipper.suits(video) else None
        track = _AudioTrack(request.sampling_rate, origin + request.start, origin + request.stop)
        for frame in _decoded_frames(container, streams, done := set(), skipper):
            if isinstance(frame, av.VideoFrame):
                if picker.push(frame):
                    done.add(video.index)
            elif track.push(frame):
                done.add(streams[1].index)
        reached_end = video.index not in done
        if skipper is not None:
            skipper.check(picker.first_time, picker.times)

        if seek and (
            picker.first_time is None
            or picker.first_time > origin + request.middles[0] + _TIME_EPSILON
            or (decodes_sound and _starts_late(track, streams[1], container, origin + request.start))
        ):
            raise _SeekMissedError
        if picker.first_time is None:
            raise MediaError(f"{media.name}: no frame could be decoded; expected a readable video stream")
        if decodes_sound and track.first_time is None:
            raise MediaError(f"{media.name}: no sound could be decoded; expected a readable audio stream")

        announced = announced_end(video, container)
        video_end = picker.end_time - origin
        if not reached_end:
            video_end = max(video_end, announced or 0.0)
        if video_end <= request.start + _TIME_EPSILON:
            raise MediaError(_ends_early(media.name, video_end, request.start))
        if request.spread:
            # Known from the packets. Where the last ones cannot be decoded, the last good frame stays on show.
            duration, count = request.stop - request.start, request.num_segments
        else:
            if reached_end:
                _warn_if_cut(media.name, video_end, announced, request.segment_seconds)
            duration = (video_end if request.end is None else min(video_end, request.end)) - request.start
            count = count_segments(duration, request.segment_seconds, len(request.middles))
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
            has_audio=has_audio,
        )


def _sound_of(track: "_AudioTrack", request: _Request, count: int) -> np.ndarray:
    """The sound of `count` segments, (count * samples of a segment,); nothing if it is not wanted."""
    if not request.with_audio:
        return track.waveform(0)
    if not request.spread:
        return track.waveform(count * round(request.segment_seconds * request.sampling_rate))
    seconds = request.stop - request.start
    return spread_sound(
        track.waveform(round(seconds * request.sampling_rate)),
        num_segments=count,
        segment_seconds=request.segment_seconds,
        sampling_rate=request.sampling_rate,
        seconds=seconds,
    )


def _starts_late(track: "_AudioTrack", stream: Any, container: Any, begin: float) -> bool:
    """Whether seeking lost sound: what was decoded begins after the wanted instant, although the stream does not."""
    if track.first_time is None:
        return True
    return track.first_time > begin + _TIME_EPSILON and track.first_time > start_time(stream, container) + AUDIO_JITTER


class _FramePicker:
    """
    Takes decoded frames one by one and keeps those on show at the `targets` (ascending, seconds). One frame is held at
    a time, and only a frame that is kept is converted.
    """

    def __init__(self, targets: list[float], frame_rate: float):
        self.targets = targets
        self.frame_rate = frame_rate
        self.first_time: float | None = None
        self._shown: Any = None
        self._shown_time = -math.inf
        self._images: list[np.ndarray] = []
        self._times: list[float] = []
        self._reformatter = av.video.reformatter.VideoReformatter()

    def push(self, frame: Any) -> bool:
        """Take the next frame; True once no more are needed."""
        time = in_seconds(frame.pts, frame.time_base)
        if time is None:
            # Raw streams carry no timestamps: their frames follow each other at the stream's rate.
            time = 0.0 if self._shown is None else self.end_time
        if time <= self._shown_time:
            return False
        if self._shown is None:
            self.first_time = time
        else:
            # A target before the very first frame takes that one, the nearest there is.
            while len(self._images) < len(self.targets) and self.targets[len(self._images)] < time - _TIME_EPSILON:
                self._take()
        self._shown, self._shown_time = frame, time
        return len(self._images) == len(self.targets)

    def finish(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the first `count` targets, (count, H, W, 3) uint8, and their times; the last frame stays on."""
        while len(self._images) < count:
            self._take()
        return np.stack(self._images[:count]), np.array(self._times[:count])

    @property
    def times(self) -> list[float]:
        """Times of the frames on show at the targets, as far as these were reached, and of the last frame."""
        reached = len(self._times)
        if self._shown is None or reached == len(self.targets):
            return self._times
        return [*self._times, self._shown_time]

    @property
    def end_time(self) -> float:
        """Second at which the last frame seen so far goes off."""
        duration = in_seconds(self._shown.duration, self._shown.time_base)
        return self._shown_time + (duration or (1 / self.frame_rate if self.frame_rate else 0.0))

    def _take(self) -> None:
        if self._times and self._times[-1] == self._shown_time:
            image = self._images[-1]
        else:
            image = upright(self._to_rgb(self._shown), self._shown)
        self._images.append(image)
        self._times.append(self._shown_time)

    def _to_rgb(self, frame: Any) -> np.ndarray:
        """(h, w, 3) uint8 as stored. A stream that changes its size keeps that of its first kept frame."""
        if not self._images:
            self._stored_size = (frame.width, frame.height)
        width, height = self._stored_size
        # One reformatter for all frames: each would otherwise set up a scaler, with threads, of its own.
        return self._reformatter.reformat(frame, width, height, "rgb24").to_ndarray()


class _AudioTrack:
    """
    Takes decoded audio frames one by one and lays their sound, mono at `rate`, on the time line that begins at `begin`
    and ends at `end` (seconds).

    Frames that follow each other without a gap run through one resampler. Where a timestamp jumps (a lost packet), or
    the sound's format changes, the next run is laid where its own timestamp says.
    """

    def __init__(self, rate: int, begin: float, end: float | None):
        self.rate = rate
        self.begin = begin
        self.end = end
        self.first_time: float | None = None
        self._resampler: Any = None
        self._format: tuple[str, str, int] | None = None
        self._run_time = 0.0
        self._run_samples = 0
        self._cursor = 0
        self._pieces: list[tuple[int, np.ndarray]] = []

    def push(self, frame: Any) -> bool:
        """Take the next frame; True once the end of the time line is reached."""
        expected = self._run_time + self._run_samples / frame.sample_rate
        time = in_seconds(frame.pts, frame.time_base)
        time = expected if time is None else time
        if self.first_time is None:
            self.first_time = time
        # One frame more than needed, since a resampler's last samples before its end of input are less exact.
        if self.end is not None and time >= self.end + AUDIO_JITTER:
            return True
        described = (frame.format.name, frame.layout.name, frame.sample_rate)
        if described != self._format or abs(time - expected) > AUDIO_JITTER:
            self._flush()
            # Integer samples, because swresample then scales a downmix so that it cannot exceed full scale (stereo
            # becomes the mean of its channels); with floating point it would add the channels' powers.
            self._resampler = av.AudioResampler(format="s32p", layout="mono", rate=self.rate)
            self._format = described
            self._run_time, self._run_samples = time, 0
            self._cursor = round((time - self.begin) * self.rate)
        self._run_samples += frame.samples
        # The resampler is to go on through jitter, and would fill or cut at every wrong timestamp.
        frame.pts = None
        self._store(self._resampler.resample(frame))
        return False

    def waveform(self, samples: int | None = None) -> np.ndarray:
        """(samples,) float32; silence where there is no sound. Without a number: to the end of the sound."""
        self._flush()
        limit = None if self.end is None else round((self.end - self.begin) * self.rate)
        if samples is None:
            samples = self._length if limit is None else min(self._length, limit)
        waveform = np.zeros(samples, dtype=np.float32)
        for offset, piece in self._pieces:
            first, last = max(offset, 0), min(offset + len(piece), samples, samples if limit is None else limit)
            if last > first:
                waveform[first:last] = piece[first - offset : last - offset]
        waveform *= np.float32(2**-31)  # a power of two: exact
        return waveform

    @property
    def silence(self) -> float:
        """Seconds, up to the end of the sound, for which there is none."""
        return (self._length - sum(len(piece) for _, piece in self._pieces)) / self.rate

    @property
    def _length(self) -> int:
        """Samples from the beginning of the time line to the end of the sound."""
        return max((offset + len(piece) for offset, piece in self._pieces), default=0)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._store(self._resampler.resample(None))
            self._resampler = None

    def _store(self, frames: list[Any]) -> None:
        for frame in frames:
            # Mono has one plane, whose memory is the frame's and may be longer than its samples.
            piece = np.frombuffer(frame.planes[0], np.int32, frame.samples).copy()
            # Sound from before the beginning, which seeking brings along, is not worth keeping.
            if self._cursor + len(piece) > 0:
                self._pieces.append((self._cursor, piece))
            self._cursor += len(piece)
