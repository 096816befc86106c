"""Base class of the pipelines: decoding, windows, batches, captions, and broken clips."""

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from ..data import CaeAvCollator
from ..errors import CaeAvError, MediaError
from ..media.clip import Clip, MissingAudio, check_missing_audio, probe
from ..media.containers import reusable, source_name
from ..media.inputs import is_frames
from ..media.segments import count_segments, is_spread
from ..processing import CaeAvProcessor
from ..task import get_task
from .captions import CAPTIONS, attach_captions, split_captions
from .clips import GivenClip, assemble, read_given
from .segments import SegmentResults


logger = logging.get_logger(__name__)

_WINDOWS = ("first", "all")
# Maximum number of segments in the first attempt to read a whole file.
_FIRST_ATTEMPT = 3600


class CaeAvPipeline(Pipeline):
    """
    Base class of the pipelines of all tasks.

    A clip is a media file (path, URL, bytes, binary file object, or `{"bytes": ..., "path": ...}` as in `datasets`),
    its frames or a decoder, as [`CaeAvProcessor.__call__`] takes them, or a decoded [`~processing.Clip`]. To pass more
    than the clip, use a dict with `clip` or `video`, `audio` and its `sampling_rate`, `visual_caption` and
    `audio_caption`; or a row of a data set built by `caeav_hf.data`, whose part of the file, captions and question are
    used. A list gives a list of results; a generator or a `Dataset` gives an iterator, which reads only as many clips
    as results are consumed, from a `Dataset` one batch more: while the model processes a batch, a thread decodes the
    next one, except from a generator, whose code runs in the caller's thread.

    The model processes a clip in consecutive windows of the configuration's `num_frames` segments. If the
    configuration spreads segments over the clip, there is one window.

    A subclass defines the outputs of the model that it reads (`_output_names`), `describe`, which converts them to one
    result per window, its arguments (`_describe_parameters`), and `join`, which combines the results of a clip's
    windows. Inputs other than clips and captions are named in `_input_parameters` and added to the model's inputs in
    `_model_inputs`.
    """

    # Without a processor, it is built from the model's configuration.
    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    # Key of the clip in a dict that contains more than the clip.
    _clip_key = "clip"
    # Inputs besides captions: keys of that dict, or arguments of a call.
    _input_parameters: tuple[str, ...] = ()
    # Outputs of the model to move back from the device, if present.
    _output_names: tuple[str, ...] = ()
    # Arguments of `describe` that a call may pass.
    _describe_parameters: tuple[str, ...] = ()

    def __init__(self, model: Any, *args: Any, processor: Any = None, **kwargs: Any) -> None:
        if processor is None:
            processor = CaeAvProcessor.from_config(model.config)
        super().__init__(model, *args, processor=processor, **kwargs)
        self.model.eval()

    @property
    def _caption_sides(self) -> tuple[str, ...]:
        """Captions that the models of the task read."""
        return get_task(self.model.config.task, self.model.config.interaction).captions

    def _sanitize_parameters(
        self,
        visual_caption: str | None = None,
        audio_caption: str | None = None,
        captioner: Any = None,
        on_error: str | None = None,
        windows: str | None = None,
        on_missing_audio: MissingAudio | None = None,
        return_arrays: bool | None = None,
        **describe_parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if windows not in (None, *_WINDOWS):
            raise CaeAvError(f"`windows` must be 'first' or 'all', got {windows!r}")
        if windows == "first" and self._is_spread:
            raise CaeAvError(
                "`windows` must be 'all', got 'first': the model's segments are spread over the whole clip"
            )
        if on_error not in (None, "raise", "skip"):
            raise CaeAvError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}")
        if on_missing_audio is not None:
            check_missing_audio(on_missing_audio)
        inputs = {name: describe_parameters.pop(name, None) for name in self._input_parameters}
        if unknown := set(describe_parameters) - set(self._describe_parameters):
            known = [
                *self._input_parameters,
                *CAPTIONS,
                "captions",
                "captioner",
                "on_error",
                "on_missing_audio",
                "return_arrays",
                "windows",
                *self._describe_parameters,
            ]
            raise CaeAvError(f"unknown arguments {', '.join(sorted(unknown))}; expected {', '.join(known)}")
        given = {
            "visual_caption": visual_caption,
            "audio_caption": audio_caption,
            "captioner": captioner,
            "on_error": on_error,
            "windows": windows,
            "on_missing_audio": on_missing_audio,
            **inputs,
        }
        if return_arrays is not None:
            describe_parameters["return_arrays"] = return_arrays
        return {name: value for name, value in given.items() if value is not None}, {}, describe_parameters

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Process one clip, a list of clips, or a generator or `Dataset` (of PyTorch or `datasets`) of clips.

        Args:
            inputs: The clip or clips.
            visual_caption, audio_caption (`str`, *optional*): Captions of what is seen and heard; both or neither. For
                a list of clips, one string for all clips or a list with one string, or None, per clip.
            captions (`dict` or list, *optional*): The same as one argument: `{"visual": ..., "audio": ...}`, or for a
                list of clips a list with one such dict, or None, per clip.
            captioner ([`~processing.captioning.Captioner`], *optional*): Writes captions for clips that have none;
                results contain them as `captions`. Clips without captions are processed without CASE.
            on_error (`str`, defaults to `"raise"`): How to treat a clip that cannot be decoded: `"raise"` ends the
                call, `"skip"` returns `{"file": ..., "error": ...}` in its place and continues.
            windows (`str`, *optional*): `"all"` (default) processes a clip that is longer than the model's
                `num_frames` segments in consecutive windows of that many, `"first"` only its first window. Models
                whose segments are spread over the clip, as for question answering, have only one window.
            on_missing_audio (`str`, defaults to `"silence"`): How to treat a clip without a sound track: `"silence"`
                replaces it by silence, `"error"` treats it like a clip that cannot be decoded.
            return_arrays (`bool`, defaults to `True`): Whether masks, probabilities and grounding are NumPy arrays.
                With `False` they are lists, and results can be written by `json.dumps`.
            batch_size (`int`, defaults to 1): Number of clips, or windows of clips, per forward pass.
            num_workers (`int`, defaults to 0): Number of processes that decode ahead, instead of the thread.

        Returns:
            A dict per clip: `file` (its name), `duration` (seconds), `has_audio` (whether it has a sound track),
            `analyzed` (the part that was read: `start` and `end` in seconds, and the number of `segments`), and the
            results of the task.

        Raises:
            MediaError: A clip cannot be decoded; the message begins with its name.
            CaeAvError: An argument or the number of captions is wrong.
        """
        if _is_dataset(inputs, "DatasetDict", "IterableDatasetDict"):
            if len(inputs) != 1:
                raise CaeAvError(f"`inputs` has the splits {', '.join(map(str, inputs))}; expected one of them")
            (inputs,) = inputs.values()
        if isinstance(inputs, list | tuple) and is_frames(inputs):
            inputs = {self._clip_key: inputs}
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        split_captions(inputs, kwargs, self._caption_sides)
        if isinstance(inputs, list):
            inputs = attach_captions(inputs, kwargs, self._clip_key)
            if not inputs:
                return []
        elif _is_dataset(inputs, "Dataset", "IterableDataset") or (
            isinstance(inputs, Iterator) and not hasattr(inputs, "read")
        ):
            # The base class supports generators and PyTorch's data sets.
            inputs = (clip for clip in inputs) if isinstance(inputs, Iterator) else LazyClips(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(
        self,
        input_: Any,
        visual_caption: str | None = None,
        audio_caption: str | None = None,
        captioner: Any = None,
        on_error: str = "raise",
        windows: str | None = None,
        on_missing_audio: MissingAudio = "silence",
        **given: Any,
    ) -> dict[str, Any]:
        """Decode one clip to the inputs of its windows, without batch dimension, or to an error."""
        captions = {"visual_caption": visual_caption, "audio_caption": audio_caption}
        row = read_given(input_, self._input_parameters, bool(self.model.config.visual_3d_size))
        captions.update({name: row.values.pop(name) for name in CAPTIONS if name in row.values})
        given.update(row.values)
        name = row.name
        try:
            clip = self._load_given(row, windows, on_missing_audio)
            if not len(clip.frames):
                raise CaeAvError(f"{clip.name}: has no frames; expected at least one")
            made = None
            missing = [side for side in self._caption_sides if not captions[f"{side}_caption"]]
            if captioner is not None and missing:
                written = captioner.caption_clip(clip, missing)
                captions |= {f"{side}_caption": written[side] for side in missing}
                made = {side: captions[f"{side}_caption"] for side in self._caption_sides}
            inputs = self._model_inputs(clip, captions, **given)
        except CaeAvError as error:
            if on_error == "raise":
                raise
            return {"file": name, "error": str(error), "windows": []}
        return {
            "file": name,
            "duration": float(clip.duration),
            "has_audio": bool(clip.has_audio),
            "analyzed": self._analyzed(clip),
            "frame_times": clip.frame_times,
            "size": clip.frames.shape[1:3],
            "windows": inputs,
            "given": given,
            "captions": made,
        }

    def _load_given(self, given: GivenClip, windows: str | None, on_missing_audio: MissingAudio) -> Clip:
        how: dict[str, Any] = {"windows": windows, "on_missing_audio": on_missing_audio}
        clip: Clip | None = None
        if given.is_file:
            reading = {} if hasattr(given.source, "waveform") else given.reading
            clip = self.load_clip(given.source, **how, **reading)
            if given.audio is None:
                return clip
        return self.load_clip(assemble(given, clip, self.processor, all_segments=windows != "first"), **how)

    def load_clip(
        self,
        source: Any,
        *,
        windows: str | None = None,
        on_missing_audio: MissingAudio | None = None,
        **reading: Any,
    ) -> Clip:
        """
        Decode the part of a clip that the pipeline processes: its first window, or the whole clip.

        Args:
            source: The clip.
            windows, on_missing_audio: See a call; by default the pipeline's own values.
            reading: Further arguments of [`~media.clip.load_clip`], such as `start` and `end`.

        Raises:
            MediaError: The clip cannot be decoded, or has no sound track and `on_missing_audio` is `"error"`.
        """
        windows = windows or self._preprocess_params.get("windows")
        on_missing_audio = on_missing_audio or self._preprocess_params.get("on_missing_audio", "silence")
        if hasattr(source, "waveform"):
            if on_missing_audio == "error" and not source.has_audio:
                raise MediaError(f"{source.name}: no sound track; expected one, or `on_missing_audio='silence'`")
            return self._cut(source, 0, self.processor.num_frames) if windows == "first" else source
        reading = {**reading, "on_missing_audio": on_missing_audio, "name": reading.get("name") or source_name(source)}
        if get_worker_info() is not None:
            # Worker processes of a data loader decode side by side.
            reading.setdefault("num_threads", 1)
        if windows == "first" or self._is_spread:
            return self.processor.load_clip(source, **reading)
        source = reusable(source)  # It is opened more than once below.
        announced = probe(source, name=reading["name"]).duration
        # Read one segment more than expected, since the header may be wrong about where the clip ends.
        most = _FIRST_ATTEMPT
        if announced is not None:
            most = min(most, 1 + count_segments(announced, self.processor.segment_seconds))
        while True:
            clip = self.processor.load_clip(source, num_segments=most, **reading)
            if len(clip.frames) < most:
                return clip
            most *= 2

    def _analyzed(self, clip: Clip) -> dict[str, Any]:
        """Return the part of a clip that was read: its start and end in seconds, and its number of segments."""
        count, end = len(clip.frames), float(clip.duration)
        if not self._is_spread:
            end = min(end, count * self.processor.segment_seconds)
        return {"start": 0.0, "end": end, "segments": count}

    def _model_inputs(self, clip: Clip, captions: dict[str, str | None]) -> list[dict[str, torch.Tensor]]:
        """
        Return the model's inputs for each window of a clip, without batch dimension. A pipeline with
        `_input_parameters` gets them as further arguments.
        """
        return [self._window_inputs(window, captions) for window in self._windows(clip)]

    @property
    def _is_spread(self) -> bool:
        """Whether a clip's segments are spread over all of it."""
        return is_spread(self.processor.frame_sampling)

    def _windows(self, clip: Clip) -> list[Clip]:
        if self._is_spread:
            return [clip]
        size = self.processor.num_frames
        return [self._cut(clip, start, start + size) for start in range(0, len(clip.frames), size)]

    def _cut(self, clip: Clip, start: int, end: int) -> Clip:
        """Return segments `start` to `end`, exclusive, of a clip."""
        samples = round(self.processor.segment_seconds * clip.sampling_rate)
        return replace(
            clip,
            frames=clip.frames[start:end],
            frame_times=clip.frame_times[start:end],
            waveform=clip.waveform[start * samples : end * samples],
        )

    def _window_inputs(self, window: Clip, captions: dict[str, str | None]) -> dict[str, torch.Tensor]:
        lists = {f"{name}s": None if text is None else [text] for name, text in captions.items()}
        inputs = self.processor(videos=[window], **lists)
        return {key: value[0] for key, value in inputs.items()}

    def _forward(self, input_tensors: dict[str, torch.Tensor], **forward_parameters: Any) -> dict[str, Any]:
        outputs = self.model(**input_tensors)
        return {name: outputs[name] for name in self._output_names if name in outputs}

    def describe(self, model_outputs: Any, sizes: list[tuple[int, int]], **parameters: Any) -> list[Any]:
        """Convert a batch's outputs of `_forward`, on the CPU, to one result per window; `sizes` are their (H, W)."""
        raise NotImplementedError

    def join(self, clip: dict[str, Any], results: list[Any], **parameters: Any) -> dict[str, Any]:
        """Combine the results of a clip's windows; `parameters` are those of `describe`."""
        raise NotImplementedError

    def window_scores(
        self, windows: list[list[dict[str, torch.Tensor]]], given: dict[str, Any], **forward_parameters: Any
    ) -> list[dict[str, Any]]:
        """
        Return the scores of the segments of windows, which [`~streaming.stream`] averages over overlapping windows.

        Args:
            windows: The model's inputs for each window, as `_model_inputs` returns them for a clip of its length.
            given: The pipeline's inputs besides clips and captions.
            forward_parameters: Arguments of `_forward`.

        Returns:
            A dict per window: arrays (T, ...) are averaged; of lists of T items, those of the window are used in which
            the segment is nearest to the middle.
        """
        clips = [{"windows": window, "given": given} for window in windows]
        _, outputs = self.forward(clips, **forward_parameters)
        return [scores for batch, _ in outputs for scores in self.segment_scores(batch, len(windows[0]))]

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Convert a batch's outputs of `_forward` to the scores of each window of `rows` rows."""
        raise CaeAvError(
            f"{type(self).__name__} does not process streams; a pipeline that does defines `segment_scores` and "
            "`segment_results`"
        )

    def segment_results(self, scores: dict[str, Any], size: tuple[int, int], **parameters: Any) -> SegmentResults:
        """
        Convert the scores of consecutive segments, means over windows, to results.

        Args:
            scores: As `segment_scores` returns them, with one item per segment.
            size: (H, W) of the frames.
            parameters: Those of `describe`.
        """
        raise NotImplementedError

    def postprocess(
        self, model_outputs: Any, return_arrays: bool = True, **describe_parameters: Any
    ) -> list[dict[str, Any]]:
        """Return the result, or the error, of each clip of a batch."""
        clips, batches = model_outputs
        if any(clip["windows"] and not clip["has_audio"] for clip in clips):
            # Not where clips are decoded, since every worker process would repeat the warning.
            logger.warning_once(
                "Clips without a sound track are taken as silent; their results say `has_audio: False`. "
                "With `on_missing_audio='error'` they are errors."
            )
        sizes = iter([clip["size"] for clip in clips for _ in clip["windows"]])
        results = iter(
            [
                result
                for outputs, count in batches
                for result in self.describe(outputs, [next(sizes) for _ in range(count)], **describe_parameters)
            ]
        )
        joined = [
            {
                **{name: clip[name] for name in ("file", "duration", "has_audio", "analyzed")},
                **({"captions": clip["captions"]} if clip["captions"] else {}),
                **self.join(clip, [next(results) for _ in clip["windows"]], **describe_parameters),
            }
            if clip["windows"]
            else {"file": clip["file"], "error": clip["error"]}
            for clip in clips
        ]
        return joined if return_arrays else _with_lists(joined)

    def forward(self, model_inputs: list[dict[str, Any]], **forward_params: Any) -> Any:
        """Run the model on the windows of the clips that could be decoded."""
        outputs = []
        for chosen in self._batches(model_inputs):
            batch = CaeAvCollator(targets=get_task(self.model.config.task).targets)(chosen)
            assert batch is not None
            # Ids and masks keep their type.
            batch = {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in batch.items()}
            outputs.append((super().forward(batch, **forward_params), len(chosen)))
        return model_inputs, outputs

    def _batches(self, clips: list[dict[str, Any]]) -> list[list[dict[str, torch.Tensor]]]:
        """Split the windows of all clips into batches of as many windows as there are clips."""
        windows = [window for clip in clips for window in clip["windows"]]
        return [windows[start : start + len(clips)] for start in range(0, len(windows), len(clips))]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Iterate over results. Unlike in the base class, batches are lists: some of their clips may have failed."""
        if hasattr(inputs, "__len__"):
            clips: Any = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            clips = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # Every worker would read the whole generator.
        batches: Iterable[Any] = DataLoader(clips, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        if not num_workers and not isinstance(inputs, Iterator):
            batches = _read_ahead(batches)
        return self._results(batches, forward_params, postprocess_params)

    def _results(
        self,
        batches: Iterable[list[dict[str, Any]]],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the result of one clip."""
        clips = [self.preprocess(inputs, **preprocess_params)]
        return self.postprocess(self.forward(clips, **forward_params), **postprocess_params)[0]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor to a folder that `pipeline(task, model=folder)` loads."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class LazyClips(IterableDataset):
    """Clips of an iterable, which unlike those of a generator may be read in another thread."""

    def __init__(self, clips: Iterable[Any]) -> None:
        self.clips = clips

    def __iter__(self) -> Iterator[Any]:
        return iter(self.clips)


def _read_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield items; a thread reads the next one while the caller processes the last one."""
    # Decoders and the operations of tensors release the interpreter's lock, so a process is not needed.
    iterator, end = iter(batches), object()
    with ThreadPoolExecutor(1, thread_name_prefix="decoding") as thread:
        following = thread.submit(next, iterator, end)
        # An error in the next item is raised once the results of the last one were consumed.
        while (batch := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield batch


def _with_lists(value: Any) -> Any:
    """Convert arrays to lists, at any depth."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list) else value


def _is_dataset(inputs: Any, *kinds: str) -> bool:
    """Return whether `inputs` is of these classes of `datasets`, without importing that slow library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(inputs, tuple(getattr(library, kind) for kind in kinds))
