"""
Decode waveforms with PyAV: mono, at any rate, laid on a time line by their timestamps.

Sound that ends early is filled with silence, later sound is cut. A packet that cannot be decoded becomes silence of
the same length.
"""

import math
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from ..errors import MediaError
from .bounds import check_result, check_sound_work, excess_samples
from .containers import (
    AUDIO_JITTER,
    MediaFile,
    MediaSource,
    announced_end,
    audio_stream,
    decode_packet,
    in_seconds,
    packets_of,
    start_time,
)
from .guard import guarded
from .limits import DecodingLimits
from .memory import keep
from .segments import TIME_EPSILON, FrameSampling, check_range, middles_of_parts, spaced_starts


# Longer gaps (seconds) in a sound file are taken for damaged timestamps.
_LONGEST_SILENCE = 3600.0
# Longest time (seconds) from one sample that two rates share to the next for which a track is aligned to it.
_LONGEST_PERIOD = 0.1


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
        source: As in [`~media.clip.load_clip`].
        sampling_rate: Samples per second of the returned waveform.
        start, end: Part to read, in seconds after the sound's first timestamp; `end=None` reads to its end.
        name: Name of the file in error messages.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        MediaError: No sound can be decoded from `source`; the message begins with its name.
        CaeAvError: An argument is out of range.
    """
    check_range(start, end, sampling_rate)
    return _load_audio(MediaFile.of(source, name), sampling_rate, start, end)


@guarded(seconds=lambda media, sampling_rate, start, end: math.inf if end is None else end)
def _load_audio(media: MediaFile, sampling_rate: int, start: float, end: float | None) -> np.ndarray:
    with media.open() as container:
        stream = audio_stream(container, media.name)
        origin = start_time(stream, container)
        limits, announced = DecodingLimits.from_environment(), announced_end(stream, container) or math.inf
        if announced <= limits.duration and not stream.codec_context.name.startswith("pcm"):
            # Known before anything is decoded. Headers of PCM are often wrong, and it is as large as its result.
            seconds = min(announced, math.inf if end is None else end) - start
            check_result(4 * sampling_rate * seconds, media.name, limits)
        track = AudioTrack(sampling_rate, origin + start, None if end is None else origin + end)
        for _, packet in packets_of(container, [stream], media.name):
            if any(track.push(frame) for frame in decode_packet(stream, packet)):
                break
            check_result(track.nbytes, media.name, limits)
            check_sound_work(track.excess, media.name, limits)
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
    waveform: np.ndarray,
    *,
    num_segments: int,
    segment_seconds: float,
    sampling_rate: int,
    seconds: float,
    frame_sampling: FrameSampling = "spread",
) -> np.ndarray:
    """
    Return the sound of spread segments: `segment_seconds` around the middle of each of `num_segments` equal parts of
    `seconds`, moved inside where they would reach beyond the ends. With `"spread_to_ends"` they begin at
    [`~media.segments.spaced_starts`] instead.

    Args:
        waveform: (samples,) from the first instant on; silence is added if it ends before `seconds`.

    Returns:
        (num_segments * samples of a segment,), one segment after the other.
    """
    samples, whole = round(segment_seconds * sampling_rate), round(seconds * sampling_rate)
    sound = np.zeros(max(whole, samples), waveform.dtype)
    kept = min(len(waveform), whole)
    sound[:kept] = waveform[:kept]
    starts = spread_starts(num_segments, segment_seconds, sampling_rate, seconds, frame_sampling)
    return np.concatenate([sound[start : start + samples] for start in starts])


def spread_starts(
    num_segments: int, segment_seconds: float, sampling_rate: int, seconds: float, frame_sampling: FrameSampling
) -> list[int]:
    """Return the first samples of spread segments, see [`spread_sound`]."""
    samples, whole = round(segment_seconds * sampling_rate), round(seconds * sampling_rate)
    if frame_sampling == "spread_to_ends":
        return spaced_starts(num_segments, whole, segment_seconds, sampling_rate)
    return [
        min(max(round((middle - segment_seconds / 2) * sampling_rate), 0), max(whole, samples) - samples)
        for middle in middles_of_parts(num_segments, seconds)
    ]


def delay_sound(waveform: np.ndarray, samples: int) -> np.ndarray:
    """
    Return a waveform (n,) that is late by a number of samples, or early if negative. It is silent where it has not
    begun or has ended.
    """
    if not samples:
        return waveform
    delayed = np.zeros_like(waveform)
    if samples > 0:
        delayed[samples:] = waveform[:-samples]
    else:
        delayed[:samples] = waveform[-samples:]
    return delayed


class AudioTrack:
    """
    Collects decoded audio frames and places their sound, mono at `rate`, on the time line from `begin` to `end`
    (seconds).

    Frames that follow each other without a gap run through one resampler. Where a timestamp jumps (a lost packet) or
    the sound's format changes, a new run begins at the place that its own timestamp gives.

    With `is_aligned`, the samples lie at the same instants, multiples of `1 / rate` after `begin`, wherever a run
    begins: the first samples of a run, a few milliseconds, are dropped up to one that falls on such an instant.

    Of a long track, only the sound that overlaps one of the ranges `kept`, from sample to sample, may be kept.

    Attributes:
        nbytes: Bytes of the sound that is kept.
        excess: Samples of the pushed frames beyond those of usual sound, see [`~media.bounds.excess_samples`].
    """

    def __init__(
        self,
        rate: int,
        begin: float,
        end: float | None,
        is_aligned: bool = False,
        kept: Sequence[tuple[int, int]] | None = None,
    ):
        self.rate = rate
        self.is_aligned = is_aligned
        self.kept = kept
        self.begin = begin
        self.end = end
        self.first_time: float | None = None
        self._resampler: Any = None
        self._format: tuple[str, str, int] | None = None
        self._run_time = 0.0
        self._run_samples = 0
        self._cursor = 0
        self._pieces: deque[tuple[int, np.ndarray]] = deque()
        self.nbytes = 0
        self.excess = 0.0

    def push(self, frame: Any) -> bool:
        """Add the next frame; return True once the end of the time line is reached."""
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
            if self.is_aligned:
                frame, time = self._aligned(frame, time)
                if frame is None:
                    return False
            self._flush()
            # Integer samples, because swresample then scales a downmix so that it cannot exceed full scale (stereo
            # becomes the mean of its channels); in floating point it would add the channels' powers.
            self._resampler = av.AudioResampler(format="s32p", layout="mono", rate=self.rate)
            self._format = described
            self._run_time, self._run_samples = time, 0
            self._cursor = round((time - self.begin) * self.rate)
        self._run_samples += frame.samples
        self.excess += excess_samples(frame)
        # Without timestamps the resampler runs on through jitter; with them it would fill or cut at every wrong one.
        frame.pts = None
        self._store(self._resampler.resample(frame))
        return False

    def starts_late(self, stream: Any, container: Any) -> bool:
        """
        Return whether seeking lost sound: whether what was decoded begins after the time line does, although the
        stream does not.
        """
        if self.first_time is None:
            return True
        stream_start = start_time(stream, container)
        return self.first_time > self.begin + TIME_EPSILON and self.first_time > stream_start + AUDIO_JITTER

    def waveform(self, samples: int | None = None) -> np.ndarray:
        """
        Return (samples,) float32, silent where there is no sound; by default up to the end of the sound. The track
        forgets it.
        """
        self._flush()
        limit = None if self.end is None else round((self.end - self.begin) * self.rate)
        if samples is None:
            samples = self._length if limit is None else min(self._length, limit)
        waveform = np.zeros(samples, dtype=np.float32)
        while self._pieces:
            offset, piece = self._pieces.popleft()  # freed one by one, so that not all exist twice
            first, last = max(offset, 0), min(offset + len(piece), samples, samples if limit is None else limit)
            if last > first:
                waveform[first:last] = piece[first - offset : last - offset]
        waveform *= np.float32(2**-31)  # a power of two: exact
        return waveform

    @property
    def end_time(self) -> float:
        """Seconds on the time line up to which the sound is known."""
        return self._cursor / self.rate if self._format is not None else -math.inf

    def take(self, first: int, last: int) -> tuple[np.ndarray, int]:
        """
        Return the sound of the samples `first` to `last`, exclusive, (last - first,) float32, and how many of them are
        known; the others are silent. What is earlier than `last` is then forgotten.
        """
        waveform, known = self.read(first, last)
        self.forget(last)
        return waveform, known

    def read(self, first: int, last: int) -> tuple[np.ndarray, int]:
        """Do as [`take`], but keep everything."""
        waveform, known = np.zeros(last - first, dtype=np.float32), 0
        for offset, piece in self._pieces:
            low, high = max(offset, first), min(offset + len(piece), last)
            if high > low:
                waveform[low - first : high - first] = piece[low - offset : high - offset]
                known += high - low
        waveform *= np.float32(2**-31)  # a power of two: exact
        return waveform, known

    def forget(self, first: int) -> None:
        """Drop sound that ends before the sample `first`."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= first:
            self.nbytes -= self._pieces.popleft()[1].nbytes

    def finish(self) -> None:
        """Add what the resampler still holds, at the end of the sound."""
        self._flush()

    @property
    def silence(self) -> float:
        """Seconds without sound before its end."""
        return (self._length - sum(len(piece) for _, piece in self._pieces)) / self.rate

    @property
    def _length(self) -> int:
        """Samples from the beginning of the time line to the end of the sound."""
        return max((offset + len(piece) for offset, piece in self._pieces), default=0)

    def _aligned(self, frame: Any, time: float) -> tuple[Any, float]:
        """Return the first frame of a run without the samples before one of the track, and its time."""
        period = frame.sample_rate // math.gcd(frame.sample_rate, self.rate)
        skipped = -round((time - self.begin) * frame.sample_rate) % period
        if not skipped or period > _LONGEST_PERIOD * frame.sample_rate:
            return frame, time
        if skipped >= frame.samples:
            return None, time
        return _without_first(frame, skipped), time + skipped / frame.sample_rate

    def _flush(self) -> None:
        if self._resampler is not None:
            self._store(self._resampler.resample(None))
            self._resampler = None

    def _store(self, frames: list[Any]) -> None:
        for frame in frames:
            # Mono has one plane, whose memory is the frame's and may be longer than its samples.
            piece = np.frombuffer(frame.planes[0], np.int32, frame.samples).copy()
            # Seeking brings along sound from before the beginning, which is dropped.
            until = self._cursor + len(piece)
            if until > 0 and (self.kept is None or any(a < until and self._cursor < b for a, b in self.kept)):
                keep(piece.nbytes)
                self._pieces.append((self._cursor, piece))
                self.nbytes += piece.nbytes
            self._cursor = until


def _without_first(frame: Any, samples: int) -> Any:
    """
    Return an audio frame without its first samples. FFmpeg cuts them: PyAV does not know where the planes of a frame
    end that has eight channels or more, and reading them as arrays ends the process.
    """
    graph = av.filter.Graph()
    form = {"sample_rate": frame.sample_rate, "format": frame.format.name, "layout": frame.layout.name}
    source = graph.add_abuffer(**form, time_base=Fraction(1, frame.sample_rate))
    trim, sink = graph.add("atrim", f"start_sample={samples}"), graph.add("abuffersink")
    source.link_to(trim)
    trim.link_to(sink)
    graph.configure()
    frame.pts = None
    graph.push(frame)
    graph.push(None)
    return graph.pull()
