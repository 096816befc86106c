"""Pipeline of sound source understanding."""

from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError
from ..media.clip import Clip
from ..tasks.segmentation.results import maps_of, segment_logits
from ..tasks.sound_source_understanding.results import description_intervals
from .base import CaeAvPipeline
from .segments import Found, SegmentResults


_LENGTHS = ("max_length", "max_new_tokens")


class SoundSourceUnderstandingPipeline(CaeAvPipeline):
    """
    Pipeline `"sound-source-understanding"`: segments all that sounds in each second of a clip, and describes it in a
    sentence.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> understand = pipeline("sound-source-understanding", model="path/to/model")
    >>> result = understand("bells.mp4")
    >>> result["masks"].shape, result["timestamps"]
    ((5, 360, 640), [0.48, 1.48, 2.48, 3.48, 4.48])
    >>> result["intervals"]
    [{'description': 'the golden bell on the left is ringing', 'start': 0.0, 'end': 3.0}, ...]
    ```

    Besides the common keys, a result has

    - **masks**, **probabilities** (T, H, W) and **timestamps**: See [`AudioVisualSegmentationPipeline`];
    - **descriptions**: a sentence on each of these T frames, `""` where nothing sounds;
    - **intervals**: runs of segments with one sentence, each with `description`, `start` and `end` in seconds from the
      start of the part that was analyzed; what is not described is left out.

    A model with `outputs="masks"` gives no sentences, one with `outputs="descriptions"` no masks. Further arguments:

    - **threshold** (`float`, defaults to 0.5): probability above which a pixel is in a mask.
    - **max_new_tokens** (`int`, *optional*): most ids of a sentence, including its end.
    - **max_length** (`int`, *optional*): most ids including its start too, by default the configuration's
      `max_description_length`. Give one of the two.

    The model reads `visual_caption` alone, the text of a video-language model on the clip (MoHE), so that it may be
    given without `audio_caption`. Longer clips are processed in windows as in segmentation.
    """

    _describe_parameters = ("threshold",)
    _output_names = ("logits", "description_ids", "frame_mask")

    def _sanitize_parameters(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        lengths = {name: value for name in _LENGTHS if (value := kwargs.pop(name, None)) is not None}
        if len(lengths) > 1:
            raise CaeAvError("give either `max_length` or `max_new_tokens`, not both")
        for name, value in lengths.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise CaeAvError(f"`{name}` must be a whole number, got {value!r}")
            if not self.model.config.has_descriptions:
                raise CaeAvError(f"`{name}` is the length of a description, but the model predicts masks alone")
        preprocessing, _, describing = super()._sanitize_parameters(*args, **kwargs)
        # A length of a call replaces either one of the pipeline.
        return preprocessing, {**dict.fromkeys(_LENGTHS), **lengths} if lengths else {}, describing

    def _window_inputs(self, window: Clip, captions: dict[str, str | None]) -> dict[str, torch.Tensor]:
        visual = captions["visual_caption"] if self.model.config.reads_captions else None
        # The processor expects captions of both kinds, the model reads this one alone.
        inputs = super()._window_inputs(window, {"visual_caption": visual, "audio_caption": visual})
        return {name: value for name, value in inputs.items() if not name.startswith("audio_caption")}

    def _forward(self, input_tensors: dict[str, torch.Tensor], **forward_parameters: Any) -> dict[str, Any]:
        return super()._forward({**input_tensors, **forward_parameters})

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], threshold: float = 0.5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Return masks, probabilities and sentences of each window."""
        return self.processor.post_process_sound_source_understanding(model_outputs, sizes, threshold=threshold)

    def join(self, clip: dict[str, Any], results: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        """Concatenate the maps and the sentences of all windows."""
        joined: dict[str, Any] = {"timestamps": clip["frame_times"].tolist()}
        for name in ("masks", "probabilities"):
            if name in results[0]:
                joined[name] = np.concatenate([result[name] for result in results])
        if "descriptions" in results[0]:
            joined["descriptions"] = [text for result in results for text in result["descriptions"]]
            joined["intervals"] = description_intervals(joined["descriptions"], self.processor.segment_seconds)
        return joined

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the logits, at the model's own resolution, and the sentences of each window."""
        windows = [
            {"descriptions": window["descriptions"]} if "descriptions" in window else {}
            for window in self.processor.post_process_sound_source_understanding(model_outputs)
        ]
        if model_outputs.get("logits") is None:
            return windows
        logits = segment_logits(model_outputs)
        return [{**window, "logits": maps.cpu().numpy()} for window, maps in zip(windows, logits, strict=True)]

    def segment_results(
        self, scores: dict[str, Any], size: tuple[int, int], threshold: float = 0.5, **parameters: Any
    ) -> SegmentResults:
        """Return the mask, the probabilities and the sentence of each segment."""
        values: dict[str, Any] = {}
        if "logits" in scores:
            values |= maps_of(torch.as_tensor(scores["logits"], dtype=torch.float32), size, threshold)
        if "descriptions" not in scores:
            return SegmentResults(values, [{} for _ in values["masks"]], ())
        values["descriptions"] = scores["descriptions"]
        said = [
            Found("intervals", (("description", text),), None) if text else None for text in scores["descriptions"]
        ]
        return SegmentResults(values, [{} if one is None else {one: None} for one in said])
