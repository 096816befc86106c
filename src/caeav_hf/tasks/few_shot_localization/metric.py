"""Accuracy of few-shot learning: over the frames, background included, or over the clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...constants import IGNORED_LABEL
from ...errors import DataError
from .head import clip_mean


@dataclass(frozen=True)
class AccuracySums:
    """Counts from which the accuracy over some clips is computed; add them to combine clips."""

    right: int
    counted: int

    def __add__(self, other: "AccuracySums") -> "AccuracySums":
        return AccuracySums(self.right + other.right, self.counted + other.counted)

    def scores(self) -> dict[str, float]:
        """
        Return the `accuracy` in [0, 1].

        Raises:
            DataError: No label counts.
        """
        if not self.counted:
            raise DataError(f"`labels` has nothing that counts: all of them are {IGNORED_LABEL}")
        return {"accuracy": self.right / self.counted}


def clip_sums(outputs: Any, inputs: Mapping[str, Any]) -> list[AccuracySums]:
    """
    Return the sums of each clip of a batch, from the output of the model and its inputs with `labels`: (B, T) for
    frames, (B,) for clips, which count by the mean scores of their frames.
    """
    labels, scores = inputs["labels"], outputs.logits
    if labels.ndim == 1:
        scores, labels = clip_mean(scores, outputs.frame_mask)[:, None], labels[:, None]
    counted = labels != IGNORED_LABEL
    right = (scores.argmax(-1) == labels) & counted
    return [AccuracySums(*pair) for pair in zip(right.sum(1).tolist(), counted.sum(1).tolist(), strict=True)]
