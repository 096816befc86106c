"""
Accuracy of audio-visual event localization, as defined for AVE: over all segments, background included.

A segment is predicted as background if sigmoid(event logit) <= 0.5, that is, if the logit is not positive, and
otherwise as the class with the clip's highest class logit. The head `mlp` predicts a class per segment: given its
`frame_log_probs`, a segment is predicted as its most probable class, background included, as in the authors' programs
for this head. Background is the label after the last class (28 in AVE).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np

from caeav_hf.constants import IGNORED_LABEL
from caeav_hf.errors import DataError


_CITATION = """\
@inproceedings{tian2018ave,
  title={Audio-Visual Event Localization in Unconstrained Videos},
  author={Tian, Yapeng and Shi, Jing and Li, Bochen and Duan, Zhiyao and Xu, Chenliang},
  booktitle={ECCV},
  year={2018}
}
"""

_INPUTS = """
Args:
    event_logits: list of length T (a clip's segments): logit of "this segment is an audio-visual event".
    class_logits: list of length C: the clip's class logits.
    labels: list of length T: class of each segment, C for background, -100 for ignored segments.
    frame_log_probs: with head `mlp`, list of T lists of length C + 1: log-probabilities, background last.
Returns:
    accuracy, foreground_accuracy, background_accuracy: shares in [0, 1], None if there is no such segment.
    per_class: accuracy over the segments of each class that occurs, by its label, or by its name if `compute` is
        given `id2label`.
    num_segments: number of segments that are not ignored.
"""


@dataclass(frozen=True)
class EventSums:
    """
    Counts from which the accuracy over some clips is computed; add them to combine clips.

    Args:
        right: Number of correctly predicted segments.
        segments: Number of segments that are not ignored.
    """

    right: int
    segments: int

    def __add__(self, other: "EventSums") -> "EventSums":
        return EventSums(self.right + other.right, self.segments + other.segments)

    def scores(self) -> dict[str, float]:
        """
        Return the `accuracy` in [0, 1].

        Raises:
            DataError: All segments are ignored.
        """
        if not self.segments:
            raise DataError(f"`labels` has no segment that counts: all of them are {IGNORED_LABEL}")
        return {"accuracy": self.right / self.segments}


def clip_sums(outputs: Any, inputs: Mapping[str, Any]) -> list[EventSums]:
    """Return the sums of each clip of a batch, from the output of the model and its inputs with `labels`."""
    predicted, expected, _ = _labels(
        outputs.event_logits, outputs.class_logits, inputs["labels"], outputs.frame_log_probs
    )
    counted = expected != IGNORED_LABEL
    right = ((predicted == expected) & counted).sum(1)
    return [EventSums(*pair) for pair in zip(right.tolist(), counted.sum(1).tolist(), strict=True)]


def event_localization_accuracy(
    event_logits: Any, class_logits: Any, labels: Any, frame_log_probs: Any = None
) -> float:
    """
    Return the share of segments whose class, or background, is predicted correctly.

    Args:
        event_logits: (B, T) array or tensor, is-event logits.
        class_logits: (B, C) array or tensor, class logits of the clip.
        labels: (B, T) integers in [0, C], C for background; -100 for ignored segments.
        frame_log_probs: (B, T, C + 1) log-probabilities of each segment's class, background last, from head `mlp`. If
            given, the prediction depends only on them.

    Returns:
        Accuracy in [0, 1] over all segments of all clips.

    Raises:
        DataError: Shapes do not match, a label is out of range, a logit is NaN, or all segments are ignored.
    """
    predicted, expected, _ = _predict(event_logits, class_logits, labels, frame_log_probs)
    return float(np.mean(predicted == expected))


def event_localization_scores(
    event_logits: Any,
    class_logits: Any,
    labels: Any,
    id2label: Mapping[int, str] | None = None,
    frame_log_probs: Any = None,
) -> dict[str, Any]:
    """
    Return the accuracy over all segments and over groups of them.

    Args:
        event_logits, class_logits, labels, frame_log_probs: See [`event_localization_accuracy`].
        id2label: Names of the classes, used as keys of `per_class` instead of labels.

    Returns:
        `accuracy` over all segments; `foreground_accuracy` over the segments that have an event and
        `background_accuracy` over the others (None if there are none); `per_class`, a dict from the name of each class
        that occurs, "background" included, to the accuracy over its segments; `num_segments`. Accuracies lie in
        [0, 1].

    Raises:
        DataError: See [`event_localization_accuracy`].
    """
    return _scores(*_predict(event_logits, class_logits, labels, frame_log_probs), id2label)


def _scores(
    predicted: np.ndarray, expected: np.ndarray, background: int, id2label: Mapping[int, str] | None
) -> dict[str, Any]:
    """Compute the result of [`event_localization_scores`] from labels (n,)."""
    right = predicted == expected
    names: dict[int, Any] = {label: label for label in range(background + 1)}
    if id2label is not None:
        if len(id2label) != background:
            raise DataError(f"`id2label` must name the {background} classes of `class_logits`, got {len(id2label)}")
        names = {**id2label, background: "background"}

    def share(chosen: np.ndarray) -> float | None:
        return float(right[chosen].mean()) if chosen.any() else None

    return {
        "accuracy": float(right.mean()),
        "foreground_accuracy": share(expected != background),
        "background_accuracy": share(expected == background),
        "per_class": {names[int(label)]: float(right[expected == label].mean()) for label in np.unique(expected)},
        "num_segments": int(expected.size),
    }


class EventLocalizationAccuracy(evaluate.Metric):
    """
    [`event_localization_scores`] as a metric that accumulates over batches and processes.

    ```python
    >>> metric = EventLocalizationAccuracy()
    >>> metric.add_batch(event_logits=event_logits, class_logits=class_logits, labels=labels)  # (B, T), (B, C), (B, T)
    >>> metric.compute()["accuracy"]
    ```

    With several processes pass `num_process`, `process_id` and a common `experiment_id` and `cache_dir`, as for every
    `evaluate` metric: process 0 gets the scores of all, the others None. Batches may differ in T. Arguments are those
    of `evaluate.Metric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predicted": datasets.Sequence(datasets.Value("int64")),
                    "expected": datasets.Sequence(datasets.Value("int64")),
                    "num_classes": datasets.Value("int64"),
                }
            ),
        )

    def add_batch(
        self, *, event_logits: Any, class_logits: Any, labels: Any, frame_log_probs: Any = None, **kwargs: Any
    ) -> None:
        """
        Add a batch of clips: (B, T), (B, C), (B, T) and, with head `mlp`, (B, T, C + 1) arrays or tensors of any
        floating or integer type.
        """
        predicted, expected, num_classes = _labels(event_logits, class_logits, labels, frame_log_probs)
        super().add_batch(
            predicted=predicted, expected=expected, num_classes=np.full(len(expected), num_classes), **kwargs
        )

    def add(
        self, *, event_logits: Any, class_logits: Any, labels: Any, frame_log_probs: Any = None, **kwargs: Any
    ) -> None:
        """Add one clip: (T,), (C,), (T,) and, with head `mlp`, (T, C + 1)."""
        frames = None if frame_log_probs is None else _to_numpy(frame_log_probs)[None]
        clip = (_to_numpy(values)[None] for values in (event_logits, class_logits, labels))
        names = ("event_logits", "class_logits", "labels")
        self.add_batch(**dict(zip(names, clip, strict=True)), frame_log_probs=frames, **kwargs)

    def compute(
        self,
        *,
        event_logits: Any = None,
        class_logits: Any = None,
        labels: Any = None,
        frame_log_probs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Return the scores of all batches so far, including this one if given."""
        if not (event_logits is None and class_logits is None and labels is None):
            self.add_batch(
                event_logits=event_logits, class_logits=class_logits, labels=labels, frame_log_probs=frame_log_probs
            )
        return super().compute(**kwargs)

    def _compute(
        self, predicted: Any, expected: Any, num_classes: Any, id2label: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        if len(sizes := set(num_classes)) > 1:
            raise DataError(f"`class_logits` must have one number of classes in all batches, got {sorted(sizes)}")
        answers, truth = (np.concatenate([np.asarray(clip) for clip in clips]) for clips in (predicted, expected))
        return _scores(*_counted(answers, truth), int(num_classes[0]), id2label)


def _predict(
    event_logits: Any, class_logits: Any, labels: Any, frame_log_probs: Any
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return predicted and expected labels (n,) of the segments that are not ignored, and background's label."""
    predicted, expected, background = _labels(event_logits, class_logits, labels, frame_log_probs)
    return *_counted(predicted, expected), background


def _counted(predicted: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the labels of the segments that are not ignored."""
    counted = expected != IGNORED_LABEL
    if not counted.any():
        raise DataError(f"`labels` has no segment that counts: all of its {expected.size} are {IGNORED_LABEL}")
    return predicted[counted], expected[counted]


def _labels(
    event_logits: Any, class_logits: Any, labels: Any, frame_log_probs: Any
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return predicted and expected labels (B, T) of all segments, and background's label."""
    event, classes, expected = (_to_numpy(values) for values in (event_logits, class_logits, labels))
    if event.ndim != 2 or classes.ndim != 2 or event.shape != expected.shape or len(event) != len(classes):
        raise DataError(
            "expected `event_logits` (B, T), `class_logits` (B, C) and `labels` (B, T), "
            f"got {event.shape}, {classes.shape} and {expected.shape}"
        )
    if not np.issubdtype(expected.dtype, np.integer):
        raise DataError(f"`labels` must be integers, got {expected.dtype}")
    background = classes.shape[1]
    event, classes, expected = event.astype(np.float32), classes.astype(np.float32), expected.astype(np.int64)
    counted = expected != IGNORED_LABEL
    wrong = counted & ((expected < 0) | (expected > background))
    if wrong.any():
        raise DataError(
            f"`labels` must be in [0, {background}] (the last one is background) or {IGNORED_LABEL}, "
            f"got {expected[wrong][0]}"
        )
    if np.isnan(event[counted]).any() or np.isnan(classes[counted.any(1)]).any():
        raise DataError("`event_logits` or `class_logits` has values that are not numbers (NaN)")
    if frame_log_probs is None:
        # Compare logits: in probabilities, rounding would make a sigmoid just above one half equal to it.
        return np.where(event <= 0, background, classes.argmax(1)[:, None]), expected, background
    frames = _to_numpy(frame_log_probs).astype(np.float32)
    if frames.shape != (*event.shape, background + 1):
        raise DataError(f"expected `frame_log_probs` {(*event.shape, background + 1)}, got {frames.shape}")
    if np.isnan(frames[counted]).any():
        raise DataError("`frame_log_probs` has values that are not numbers (NaN)")
    # Ties with background count as background, like an event logit of 0.
    best = frames[..., :-1]
    return np.where(best.max(-1) <= frames[..., -1], background, best.argmax(-1)), expected, background


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)
