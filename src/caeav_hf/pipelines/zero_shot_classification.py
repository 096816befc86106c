"""Pipeline of zero-shot classification."""

from typing import Any

import torch

from ..errors import CaeAvError
from ..tasks.few_shot_localization.results import ranked
from .base import CaeAvPipeline
from .segments import Found, SegmentResults, label_entries


# Description of a sound in the authors' code.
SOUND_TEMPLATE = "The sounds of {}"


class AudioVisualZeroShotClassificationPipeline(CaeAvPipeline):
    """
    Pipeline `"audio-visual-zero-shot-classification"`: scores labels of the caller's choice for what is seen and heard
    in a clip.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> classify = pipeline("audio-visual-zero-shot-classification", model="path/to/model")
    >>> classify("dog.mp4", candidate_labels=["a dog", "a violin", "an engine"])
    [{'score': 0.97, 'label': 'a dog'}, {'score': 0.02, 'label': 'a violin'}, {'score': 0.01, 'label': 'an engine'}]
    ```

    The result is that of Transformers' zero-shot pipelines: the labels with their probabilities, which sum to 1, the
    most likely first; a list of clips gives a list of such lists. A clip's scores are means over its segments. Further
    arguments:

    - **candidate_labels** (`list[str]`, or a string in which commas separate them): the labels; by default the classes
      that the model was trained on.
    - **hypothesis_template** (`str`, defaults to `"The sounds of {}"`): turns a label into a description of the sound.
      That of the picture is the label after the learned context.
    - **top_k** (`int`, *optional*): how many labels to return.
    - **return_segments** (`bool`, defaults to `False`): whether each label also has `segments`, its probability in
      each segment.
    """

    _describe_parameters = ("candidate_labels", "hypothesis_template", "top_k", "return_segments")
    _output_names = ("logits", "frame_mask")

    def _sanitize_parameters(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocessing, forward, describing = super()._sanitize_parameters(*args, **kwargs)
        if "candidate_labels" in describing:
            describing["candidate_labels"] = _labels(describing["candidate_labels"])
        template = describing.pop("hypothesis_template", None)
        if template is not None:
            if not isinstance(template, str) or "{}" not in template:
                raise CaeAvError(f"`hypothesis_template` must contain '{{}}' for the label, got {template!r}")
            forward["hypothesis_template"] = template
        if (count := describing.get("top_k")) is not None and (not isinstance(count, int) or count < 1):
            raise CaeAvError(f"`top_k` must be a whole number of at least 1, got {count!r}")
        if "candidate_labels" in describing:
            forward["candidate_labels"] = describing["candidate_labels"]
        return preprocessing, forward, describing

    def _forward(
        self,
        input_tensors: dict[str, torch.Tensor],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = SOUND_TEMPLATE,
        **parameters: Any,
    ) -> dict[str, Any]:
        prompts = self.processor.class_prompts(
            self._own_labels if candidate_labels is None else candidate_labels,
            hypothesis_template,
            self.model.config.num_context_tokens,
        )
        prompts = {name: ids.to(self.model.device) for name, ids in prompts.items()}
        return super()._forward({**input_tensors, **prompts}, **parameters)

    @property
    def _own_labels(self) -> list[str]:
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    def describe(self, model_outputs: Any, sizes: list[tuple[int, int]], **parameters: Any) -> list[torch.Tensor]:
        """Return the scores (segments, labels) of each window."""
        masks = model_outputs["frame_mask"].bool()
        return [scores[mask].float() for scores, mask in zip(model_outputs["logits"], masks, strict=True)]

    def join(
        self,
        clip: dict[str, Any],
        results: list[torch.Tensor],
        candidate_labels: list[str] | None = None,
        top_k: int | None = None,
        return_segments: bool = False,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Return the labels of all windows."""
        labels = ranked(torch.cat(results), self._own_labels if candidate_labels is None else candidate_labels)
        kept = ("score", "label", *(["segments"] if return_segments else []))
        return {"labels": [{name: label[name] for name in kept} for label in labels[:top_k]]}

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the scores of the labels in the segments of each window."""
        return [{"logits": scores.cpu().numpy()} for scores in self.describe(model_outputs, [])]

    def segment_results(
        self,
        scores: dict[str, Any],
        size: tuple[int, int],
        candidate_labels: list[str] | None = None,
        **parameters: Any,
    ) -> SegmentResults:
        """Return the most likely label of each segment."""
        labels = self._own_labels if candidate_labels is None else candidate_labels
        chances = torch.as_tensor(scores["logits"]).softmax(-1)
        values, best = (part.tolist() for part in chances.max(-1))
        found: list[dict[Found, float | None]] = [
            {Found("intervals", label_entries(labels[index], index)): score}
            for index, score in zip(best, values, strict=True)
        ]
        named = [labels[index] for index in best]
        return SegmentResults({"segments": named, "scores": values, "logits": scores["logits"].tolist()}, found)

    def postprocess(self, model_outputs: Any, return_arrays: bool = True, **describe_parameters: Any) -> list[Any]:
        """Return the labels, or the error, of each clip of a batch."""
        results = super().postprocess(model_outputs, return_arrays, **describe_parameters)
        return [result if "error" in result else result["labels"] for result in results]


def _labels(given: Any) -> list[str]:
    labels = [label.strip() for label in given.split(",")] if isinstance(given, str) else list(given)
    if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise CaeAvError(f"`candidate_labels` must be labels that are not empty, at least one, got {given!r}")
    if len(set(labels)) < len(labels):
        raise CaeAvError(f"`candidate_labels` must differ from each other, got {given!r}")
    return labels
