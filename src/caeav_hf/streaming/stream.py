"""Run a model on a stream: the stages, and the updates that come out of them."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError
from ..media.clip import Clip, check_missing_audio
from ..media.containers import source_name
from ..media.segment_stream import Feed, Gap, Segment, is_live, read_segments
from ..media.sound import spread_sound
from ..pipelines.base import CaeAvPipeline
from ..pipelines.captions import CAPTIONS, split_captions
from ..task import get_task
from .runs import Runs, StreamUpdate, by_list
from .stages import Channel, Failure, Stages, TimedOut
from .windows import ScoreJoiner, Window, WindowCutter


# Seconds without data from a running source after which what it gave is processed, and after which the stream ends.
TIMEOUT, PATIENCE = 10.0, 60.0
_TOO_SLOW = "left out, since the source was faster than the model"
# Windows that wait for the model, and batches of scores that wait for the consumer.
_WAITING_WINDOWS, _WAITING_SCORES = 2, 4


def stream(
    model: Any,
    source: Any,
    *,
    stride: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    batch_size: int = 1,
    live: bool | None = None,
    timeout: float | None = None,
    patience: float | None = None,
    name: str | None = None,
    **parameters: Any,
) -> Iterator[StreamUpdate]:
    """
    Run a model on a video of any length, and yield what it finds while the video runs.

    Decoding, features, the model and the joining of results run side by side, with bounded queues between them, so
    that memory does not grow with the length of the video. The model processes overlapping windows of its `num_frames`
    segments, whose scores are averaged (see `streaming.windows`). A segment's results come once no later window
    contains it, at most `num_frames` segments after it was read; intervals come when they end.

    Args:
        model: A pipeline of this package, a model, or the folder or Hub id of one.
        source: A file (as for the pipelines), a pipe, an address that FFmpeg reads (`https://`, `rtsp://`, ...), or a
            [`Feed`] of frames and sound.
        stride: Segments from the beginning of a window to that of the next one, from 1 to `num_frames`; half of
            these by default. A segment is processed `num_frames / stride` times, so smaller strides are slower and
            smoother.
        start, end: Part to process, in seconds after time zero; all times in the results are after time zero too.
        batch_size: Maximum number of windows per forward pass.
        live: Whether the source runs on by itself, so that segments are left out, those of a window at a time and the
            oldest first, if the model is too slow, and are reported as a gap. By default that of the feed, and true
            for `rtsp://` and similar addresses; other sources are read only as fast as they are processed.
        timeout: Seconds without data after which everything that was read is processed and the gap is reported; by
            default 10 for live sources and none for others. The stream continues when data arrive again.
        patience: Seconds without data after which the stream ends; by default 60 if there is a `timeout`.
        name: Name of the source in results and errors.
        parameters: Arguments of the pipeline's call: captions, `threshold`, `question`, `candidate_labels`,
            `on_missing_audio`, `visual_3d_features` (one row per segment from time zero on) and so on.

    Yields:
        [`StreamUpdate`], in the order of time.

    Raises:
        MediaError: The source cannot be opened, has no video, or none of it can be decoded. What goes wrong later is a
            gap.
        CaeAvError: An argument is wrong, or the pipeline of the task does not process streams.
    """
    pipe = _pipeline_of(model)
    settings = _Settings.of(pipe, parameters)
    size = pipe.processor.num_frames
    stride = max(1, size // 2) if stride is None else stride
    cutter = WindowCutter(size, stride)
    if batch_size < 1:
        raise CaeAvError(f"`batch_size` must be at least 1, got {batch_size}")
    live = is_live(source) if live is None else live
    if timeout is None and live:
        timeout = TIMEOUT
    if patience is None and timeout is not None:
        patience = max(PATIENCE, timeout)
    name = name or (source.name if isinstance(source, Feed) else source_name(source))
    segments = read_segments(
        source,
        segment_seconds=pipe.processor.segment_seconds,
        sampling_rate=pipe.processor.sampling_rate,
        start=start,
        end=end,
        name=name,
        on_missing_audio=settings.on_missing_audio,
        timeout=timeout,
    )
    return _updates(_Stream(pipe, settings, cutter, batch_size, live, timeout, patience, name), segments)


def _pipeline_of(model: Any) -> CaeAvPipeline:
    if isinstance(model, CaeAvPipeline):
        return model
    if isinstance(model, str | os.PathLike):
        from transformers import AutoConfig, pipeline

        from ..pipelines import register

        register()
        found = get_task(AutoConfig.from_pretrained(model).task)
        _check_pipeline(found.pipeline_name, found.name)
        return pipeline(found.pipeline_name, model=os.fspath(model))
    task = getattr(getattr(model, "config", None), "task", None)
    if task is None:
        raise CaeAvError(f"`model` must be a pipeline or a model of this package, got a {type(model).__name__}")
    found = get_task(task)
    _check_pipeline(found.pipeline_class, found.name)
    return found.pipeline_class(model)


def _check_pipeline(pipeline: Any, task: str) -> None:
    if pipeline is None:
        raise CaeAvError(f"there is no pipeline for the task {task!r}; expected a model of a task that has one")


@dataclass(frozen=True)
class _Settings:
    """The arguments of a call of the pipeline, as it sorts them itself."""

    captions: dict[str, str | None]
    given: dict[str, Any]
    forward: dict[str, Any]
    describing: dict[str, Any]
    on_missing_audio: str

    @classmethod
    def of(cls, pipe: CaeAvPipeline, parameters: dict[str, Any]) -> "_Settings":
        parameters = dict(parameters)
        if parameters.pop("captioner", None) is not None:
            raise CaeAvError("`captioner` needs the whole clip, which a stream does not hold; expected captions")
        if parameters.pop("windows", "all") != "all":
            raise CaeAvError("`windows` must be 'all' for a stream; for its beginning, give `end`")
        split_captions(None, parameters, pipe._caption_sides)
        preparing, forward, describing = pipe._sanitize_parameters(**parameters)
        preparing = {**pipe._preprocess_params, **preparing}
        forward, describing = {**pipe._forward_params, **forward}, {**pipe._postprocess_params, **describing}
        captions = {side: preparing.pop(side, None) for side in CAPTIONS}
        on_missing_audio = preparing.pop("on_missing_audio", "silence")
        check_missing_audio(on_missing_audio)
        for unused in ("on_error", "windows", "captioner"):
            preparing.pop(unused, None)
        describing.pop("return_arrays", None)
        return cls(captions, preparing, forward, {**preparing, **describing}, on_missing_audio)


@dataclass(frozen=True)
class _Inputs:
    """A window as inputs of the model."""

    start: int
    first: int
    rows: list[dict[str, torch.Tensor]]
    times: list[float]
    size: tuple[int, int]
    has_audio: bool


@dataclass(frozen=True)
class _Scores:
    """A window as scores."""

    start: int
    first: int
    scores: dict[str, Any]
    size: tuple[int, int]
    has_audio: bool


class _RunEnd:
    """All segments so far are in windows that were sent before."""


class _End:
    """The stream is over."""


@dataclass
class _Stream:
    """The stages of a stream."""

    pipe: CaeAvPipeline
    settings: _Settings
    cutter: WindowCutter
    batch_size: int
    live: bool
    timeout: float | None
    patience: float | None
    name: str
    # Index of the first segment that was read.
    first: int | None = None

    def read(self, segments: Iterator[Segment | Gap], read: Channel) -> None:
        """Stage 1: decode."""
        with closing(segments):  # type: ignore[type-var]
            for item in segments:
                if self.first is None and isinstance(item, Segment):
                    self.first = item.index
                if self.live:
                    read.put_at_once(item, lambda waiting: isinstance(waiting, Segment), self.cutter.size)
                else:
                    read.put(item)
        read.put(_End())

    def prepare(self, read: Channel, prepared: Channel) -> None:
        """Stage 2: cut windows, and compute the model's inputs."""
        expected: int | None = None  # index of the next segment
        quiet = 0.0
        stalled: Gap | None = None
        seconds = self.pipe.processor.segment_seconds
        while True:
            try:
                item = read.get(self.timeout)
            except TimedOut:
                assert self.timeout is not None
                quiet += self.timeout
                if stalled is None and expected is not None:
                    self._end_run(prepared)
                    stalled = Gap(expected * seconds, None, f"no data for {self.timeout:g} s")
                    prepared.put(stalled)
                if self.patience is not None and quiet >= self.patience:
                    if expected is None:
                        raise CaeAvError(f"{self.name}: gave no data for {quiet:g} s") from None
                    prepared.put(_End())
                    return
                continue
            quiet = 0.0
            expected = self.first if expected is None else expected
            if isinstance(item, Segment):
                if stalled is not None:
                    prepared.put(Gap(stalled.start, item.index * seconds, stalled.reason))
                elif expected is not None and item.index != expected:
                    self._end_run(prepared)
                    prepared.put(Gap(expected * seconds, item.index * seconds, _TOO_SLOW))
                stalled, expected = None, item.index + 1
                if (window := self.cutter.push(item)) is not None:
                    prepared.put(self._inputs(window))
                continue
            self._end_run(prepared)
            if isinstance(item, Gap):
                if expected is not None and round(item.start / seconds) > expected and stalled is None:
                    prepared.put(Gap(expected * seconds, item.start, _TOO_SLOW))
                if stalled is not None:
                    item = Gap(stalled.start, item.end, item.reason)
                expected = None if item.end is None else round(item.end / seconds)
                stalled = None
            prepared.put(item)
            if isinstance(item, _End | Failure):
                return

    def compute(self, prepared: Channel, scored: Channel) -> None:
        """Stage 3: run the model."""
        while True:
            item = prepared.get()
            if not isinstance(item, _Inputs):
                scored.put(item)
                if isinstance(item, _End | Failure):
                    return
                continue
            batch = [item, *prepared.get_waiting(self.batch_size - 1, lambda waiting: isinstance(waiting, _Inputs))]
            found = self.pipe.window_scores(
                [window.rows for window in batch], self.settings.given, **self.settings.forward
            )
            for window, scores in zip(batch, found, strict=True):
                scores = {**scores, "timestamps": window.times}
                scored.put(_Scores(window.start, window.first, scores, window.size, window.has_audio))

    def _end_run(self, prepared: Channel) -> None:
        if (window := self.cutter.close()) is not None:
            prepared.put(self._inputs(window))
        prepared.put(_RunEnd())

    def _inputs(self, window: Window) -> _Inputs:
        processor, segments = self.pipe.processor, window.segments
        sound = np.concatenate([segment.sound for segment in segments])
        seconds = len(segments) * processor.segment_seconds
        if processor.frame_sampling == "spread_to_ends":
            # The window is the clip that its segments are spread over.
            sound = spread_sound(
                sound,
                num_segments=len(segments),
                segment_seconds=processor.segment_seconds,
                sampling_rate=processor.sampling_rate,
                seconds=seconds,
                frame_sampling=processor.frame_sampling,
            )
        image = segments[0].image
        clip = Clip(
            frames=np.stack([segment.image for segment in segments]),
            waveform=sound,
            frame_times=np.array([segment.time for segment in segments]),
            duration=seconds,
            frame_rate=0.0,
            size=(image.shape[0], image.shape[1]),
            name=self.name,
            sampling_rate=processor.sampling_rate,
            has_audio=segments[0].has_audio,
        )
        given = dict(self.settings.given)
        if given.get("visual_3d_features") is not None:
            given["visual_3d_features"] = given["visual_3d_features"][window.first : window.first + len(segments)]
        rows = self.pipe._model_inputs(clip, self.settings.captions, **given)
        return _Inputs(window.start, window.first, rows, clip.frame_times.tolist(), clip.size, clip.has_audio)


def _updates(stages: _Stream, segments: Iterator[Segment | Gap]) -> Iterator[StreamUpdate]:
    size, stride = stages.cutter.size, stages.cutter.stride
    seconds = stages.pipe.processor.segment_seconds
    joiner, runs = ScoreJoiner(size), Runs(seconds)
    names: tuple[str, ...] = ()
    frame_size, has_audio, position = (0, 0), False, 0.0
    with Stages() as threads:
        # Room for the windows that a live source fills while the model works on one.
        read = threads.channel(2 * size if stages.live else stride)
        prepared, scored = threads.channel(max(_WAITING_WINDOWS, stages.batch_size)), threads.channel(_WAITING_SCORES)
        threads.run(lambda: stages.read(segments, read), read, "read")
        threads.run(lambda: stages.prepare(read, prepared), scored, "prepare")
        threads.run(lambda: stages.compute(prepared, scored), scored, "compute")
        while True:
            item = scored.get()
            if isinstance(item, Failure):
                raise item.error
            ended: list[tuple[str, dict[str, Any]]] = []
            gaps: list[dict[str, Any]] = []
            values: dict[str, Any] = {}
            begin = finish = position
            count = 0
            joined = None
            if isinstance(item, _Scores):
                joiner.add(item.start, item.first, item.scores)
                frame_size, has_audio = item.size, item.has_audio
                joined = joiner.take(item.start + stride)
            elif isinstance(item, _RunEnd):
                joined = joiner.take(2**62)
            if joined is not None:
                first, scores = joined
                results = stages.pipe.segment_results(scores, frame_size, **stages.settings.describing)
                names, count = tuple(results.names), len(results.found)
                values = dict(results.values)
                if any(isinstance(value, np.ndarray) for value in values.values()) or "descriptions" in values:
                    values["timestamps"] = scores["timestamps"]
                for index, found in enumerate(results.found, start=first):
                    ended += runs.add(index, found)
                begin, finish = first * seconds, (first + count) * seconds
                position = finish
            if isinstance(item, _RunEnd):
                ended += runs.close()
            if isinstance(item, Gap):
                gaps.append({"start": item.start, "end": item.end, "reason": item.reason})
                begin = finish = item.start
            if count or ended or gaps:
                yield StreamUpdate(
                    file=stages.name,
                    start=begin,
                    end=finish,
                    num_segments=count,
                    has_audio=has_audio,
                    values=values,
                    ended=by_list(ended, names),
                    ongoing=by_list(runs.ongoing(), names),
                    gaps=gaps,
                )
            if isinstance(item, _End):
                return
