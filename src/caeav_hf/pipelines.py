"""
Pipelines of Transformers for CAE-AV: from media files to JSON-serialisable results.

`CaeAvPipeline` decodes, batches and reports broken clips; a task adds its model class and its post-processing.
`register` makes `transformers.pipeline("audio-visual-event-localization", ...)` know them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .data import CaeAvCollator
from .errors import CaeAvError
from .modeling import CaeAvForEventLocalization
from .processing import CaeAvProcessor


_CAPTIONS = ("visual_caption", "audio_caption")


class CaeAvPipeline(Pipeline):
    """
    What the pipelines of all tasks share.

    A clip is a media file (path, bytes, binary file object, or `{"bytes": ..., "path": ...}` as `datasets` stores it)
    or a decoded [`~processing.Clip`]. Where captions differ from clip to clip, it is a dict with `clip`,
    `visual_caption` and `audio_caption`. A list gives a list of results; a generator or a `Dataset` gives an iterator,
    and is read only as far as the results are taken.

    A task defines `_forward`, which runs the model on a batch of inputs, `describe`, which makes one result a clip of
    what `_forward` returned, and `_describe_parameters`.
    """

    # Without one, it follows from the configuration of the model.
    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    # Names of the arguments of `describe` that a call may give.
    _describe_parameters: tuple[str, ...] = ()

    def __init__(self, model: Any, *args: Any, processor: Any = None, **kwargs: Any) -> None:
        if processor is None:
            processor = CaeAvProcessor.from_config(model.config)
        super().__init__(model, *args, processor=processor, **kwargs)
        self.model.eval()

    def _sanitize_parameters(
        self,
        visual_caption: str | None = None,
        audio_caption: str | None = None,
        on_error: str | None = None,
        **describe_parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if on_error not in (None, "raise", "skip"):
            raise CaeAvError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}")
        if unknown := set(describe_parameters) - set(self._describe_parameters):
            raise CaeAvError(
                f"unknown arguments {', '.join(sorted(unknown))}; expected visual_caption, audio_caption, on_error, "
                f"{', '.join(self._describe_parameters)}"
            )
        given = {"visual_caption": visual_caption, "audio_caption": audio_caption, "on_error": on_error}
        return {name: value for name, value in given.items() if value is not None}, {}, describe_parameters

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Process one clip, a list of clips, or a generator or `Dataset` of clips.

        Args:
            inputs: The clip or clips.
            visual_caption, audio_caption (`str`, *optional*): What is seen and what is heard. Both or neither. For a
                list, one string for all clips or a list with one string, or None, a clip.
            on_error (`str`, defaults to `"raise"`): What a clip that cannot be decoded does: `"raise"` ends the call,
                `"skip"` puts `{"file": ..., "error": ...}` in its place and goes on.
            batch_size (`int`, defaults to 1): Clips that go through the model together.
            num_workers (`int`, defaults to 0): Processes that decode ahead.

        Returns:
            A dict a clip, with `file` (its name) and `duration` (seconds) and what the task finds.

        Raises:
            MediaError: A clip cannot be decoded; the message begins with its name.
            CaeAvError: An argument or the number of captions is wrong.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list):
            inputs = _with_captions(inputs, kwargs)
            if not inputs:
                return []
        elif isinstance(inputs, Iterator) and not hasattr(inputs, "read"):
            # The base class knows generators; other iterators are turned into one.
            inputs = (clip for clip in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(
        self,
        input_: Any,
        visual_caption: str | None = None,
        audio_caption: str | None = None,
        on_error: str = "raise",
    ) -> dict[str, Any]:
        """Decode one clip: its inputs without batch dimension, or None and the error."""
        captions = {"visual_caption": visual_caption, "audio_caption": audio_caption}
        if isinstance(input_, Mapping) and "clip" in input_:
            if unknown := set(input_) - {"clip", *_CAPTIONS}:
                raise CaeAvError(
                    f"a clip given as a dict has `clip`, {', '.join(_CAPTIONS)}; got {', '.join(unknown)}"
                )
            captions.update({name: input_[name] for name in _CAPTIONS if name in input_})
            input_ = input_["clip"]
        name = _name(input_)
        try:
            clip = input_ if hasattr(input_, "waveform") else self.processor.load_clip(input_)
            inputs = self.processor(
                videos=[clip],
                visual_captions=None if captions["visual_caption"] is None else [captions["visual_caption"]],
                audio_captions=None if captions["audio_caption"] is None else [captions["audio_caption"]],
            )
        except CaeAvError as error:
            if on_error == "raise":
                raise
            return {"file": name, "error": str(error), "inputs": None}
        return {
            "file": name,
            "duration": float(clip.duration),
            "inputs": {key: value[0] for key, value in inputs.items()},
        }

    def describe(self, model_outputs: Any, **parameters: Any) -> list[dict[str, Any]]:
        """One result a clip of a batch, from what `_forward` returned, on the CPU."""
        raise NotImplementedError

    def postprocess(self, model_outputs: Any, **describe_parameters: Any) -> list[dict[str, Any]]:
        """Put the results of a batch beside the names of its clips, and the errors in their places."""
        clips, outputs = model_outputs
        results = iter([] if outputs is None else self.describe(outputs, **describe_parameters))
        return [
            {"file": clip["file"], "error": clip["error"]}
            if clip["inputs"] is None
            else {"file": clip["file"], "duration": clip["duration"], **next(results)}
            for clip in clips
        ]

    def forward(self, model_inputs: list[dict[str, Any]], **forward_params: Any) -> Any:
        """Collate the clips that could be decoded and run the model on them."""
        batch = CaeAvCollator()([clip["inputs"] for clip in model_inputs])
        if batch is None:
            return model_inputs, None
        # Captions are needed for all clips of a batch or for none; ids are whole numbers and keep their type.
        batch = {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in batch.items()}
        return model_inputs, super().forward(batch, **forward_params)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Results one by one. Unlike the base class's, batches may hold clips that failed, so clips stay in lists."""
        if hasattr(inputs, "__len__"):
            clips: Any = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            clips = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # every worker would read the whole generator
        loader = DataLoader(clips, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        return self._results(loader, forward_params, postprocess_params)

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
        """The result of one clip."""
        clips = [self.preprocess(inputs, **preprocess_params)]
        return self.postprocess(self.forward(clips, **forward_params), **postprocess_params)[0]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor to a folder that `pipeline(task, model=folder)` loads."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class AudioVisualEventLocalizationPipeline(CaeAvPipeline):
    """
    Which event of a clip can be both seen and heard, and when: `"audio-visual-event-localization"`.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> localize = pipeline("audio-visual-event-localization", model="path/to/model")
    >>> localize("dog.mp4", visual_caption="a dog on a lawn", audio_caption="a dog barks")
    {'file': 'dog.mp4', 'duration': 10.0, 'intervals': [{'label': 'Bark', 'label_id': 2, 'start': 2.0, 'end': 5.0,
     'score': 0.93}], 'segments': [...], 'scores': [...], 'agreement': [...]}
    ```

    The result's keys are those of [`CaeAvProcessor.post_process_event_localization`]; `threshold` (default 0.5) is the
    probability above which a segment is an event.
    """

    _describe_parameters = ("threshold",)

    def _forward(self, input_tensors: dict[str, torch.Tensor], **forward_parameters: Any) -> dict[str, Any]:
        outputs = self.model(**input_tensors)
        # Only what post-processing reads is brought back from the device.
        return {
            name: outputs[name]
            for name in ("event_logits", "class_logits", "agreement", "frame_mask")
            if name in outputs
        }

    def describe(self, model_outputs: Any, threshold: float = 0.5, **parameters: Any) -> list[dict[str, Any]]:
        """Intervals, segments, scores and agreement of each clip."""
        return self.processor.post_process_event_localization(model_outputs, threshold=threshold)


def register() -> None:
    """Make the pipelines known to `transformers.pipeline`. Registering again changes nothing."""
    task = "audio-visual-event-localization"
    if task not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            task,
            pipeline_class=AudioVisualEventLocalizationPipeline,
            pt_model=CaeAvForEventLocalization,
            type="multimodal",
        )


def _with_captions(clips: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The clips of a list with the captions that were given as lists beside them; these are taken out of `kwargs`."""
    for name in _CAPTIONS:
        captions = kwargs.get(name)
        if isinstance(captions, list | tuple):
            if len(captions) != len(clips):
                raise CaeAvError(
                    f"`{name}` has {len(captions)} captions for {len(clips)} clips; expected one for each"
                )
            del kwargs[name]
            clips = [
                {**(clip if isinstance(clip, Mapping) and "clip" in clip else {"clip": clip}), name: caption}
                for clip, caption in zip(clips, captions, strict=True)
            ]
    return clips


def _name(source: Any) -> str:
    """The name of a clip in results: its path, or what the media reader calls it."""
    from .processing.media import source_name

    return str(source.name) if hasattr(source, "waveform") else source_name(source)
