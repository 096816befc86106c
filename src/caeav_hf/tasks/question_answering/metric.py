"""
Accuracy of audio-visual question answering, as defined for MUSIC-AVQA: the share of correctly answered questions, over
all questions, each type (Audio, Visual, Audio-Visual) and each subtype of a type.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import datasets
import evaluate
import numpy as np

from caeav_hf.constants import IGNORED_LABEL
from caeav_hf.errors import DataError


_CITATION = """\
@inproceedings{li2022avqa,
  title={Learning to Answer Questions in Dynamic Audio-Visual Scenarios},
  author={Li, Guangyao and Wei, Yake and Tian, Yapeng and Xu, Chenliang and Wen, Ji-Rong and Hu, Di},
  booktitle={CVPR},
  year={2022}
}
"""

_INPUTS = """
Args:
    predictions: index of the predicted answer.
    labels: index of the correct answer, -100 for ignored questions.
    types: type of the question, such as "Audio-Visual"; empty if there is none.
    subtypes: subtype of the question, such as "Counting"; empty if there is none.
Returns:
    accuracy: share of correctly answered questions in [0, 1].
    per_type, per_subtype: the same for each type, and for each "type/subtype", that occurs.
    num_questions: number of questions that are not ignored.
"""


@dataclass(frozen=True)
class AnswerSums:
    """
    Counts from which the accuracies over some questions are computed; add them to combine questions.

    Args:
        right: Number of correctly answered questions by the name of their accuracy: `accuracy`, `accuracy/TYPE` and
            `accuracy/TYPE/SUBTYPE`.
        asked: Number of questions by the same names.
    """

    right: Counter[str]
    asked: Counter[str]

    def __add__(self, other: "AnswerSums") -> "AnswerSums":
        return AnswerSums(self.right + other.right, self.asked + other.asked)

    def scores(self) -> dict[str, float]:
        """
        Return the accuracies in [0, 1].

        Raises:
            DataError: All questions are ignored.
        """
        if not self.asked:
            raise DataError(f"`labels` has no question that counts: all of them are {IGNORED_LABEL}")
        names = sorted(self.asked, key=lambda name: (name.count("/"), name))
        return {name: self.right[name] / self.asked[name] for name in names}


def clip_sums(outputs: Any, inputs: Mapping[str, Any]) -> list[AnswerSums]:
    """
    Return the sums of each question of a batch, from the output of the model and its inputs with `labels`,
    `question_type` and `question_subtype`.
    """
    sums = []
    right = (outputs.logits.argmax(-1) == inputs["labels"]).tolist()
    kinds = zip(inputs["question_type"], inputs["question_subtype"], strict=True)
    for is_right, label, parts in zip(right, inputs["labels"].tolist(), kinds, strict=True):
        # A subtype belongs to a type, so it is not counted without one.
        known = tuple(takewhile(bool, parts))
        names = ["/".join(("accuracy", *known[:depth])) for depth in range(len(known) + 1)]
        asked = Counter(names if label != IGNORED_LABEL else [])
        sums.append(AnswerSums(asked if is_right else Counter(), asked))
    return sums


def question_answering_accuracy(
    predictions: Any, labels: Any, types: Sequence[str] | None = None, subtypes: Sequence[str] | None = None
) -> dict[str, Any]:
    """
    Return the shares of correctly answered questions.

    Args:
        predictions: Array or tensor of logits (B, answers), or of integers (B,), the predicted answers.
        labels: (B,) integers, the correct answers; -100 for ignored questions.
        types: Type of each question, for `per_type`.
        subtypes: Subtype of each question, for `per_subtype`; needs `types`.

    Returns:
        `accuracy` in [0, 1] over all questions; `per_type`, a dict from each type that occurs to the accuracy over
        its questions, and `per_subtype` from each `"type/subtype"` (both sorted, empty without types or subtypes);
        `num_questions`.

    Raises:
        DataError: Shapes or lengths do not match, labels or predictions are not integers or out of range, a logit is
            NaN, or all questions are ignored.
    """
    predicted, expected = _arrays(predictions, labels)
    if subtypes is not None and types is None:
        raise DataError("`subtypes` were given without `types`; expected both, since a subtype belongs to a type")
    for name, values in (("types", types), ("subtypes", subtypes)):
        if values is not None and len(values) != len(expected):
            raise DataError(f"`{name}` must have one value per question ({len(expected)}), got {len(values)}")
    counted = np.flatnonzero(expected != IGNORED_LABEL)
    if not counted.size:
        raise DataError(f"`labels` has no question that counts: all of its {expected.size} are {IGNORED_LABEL}")
    right = predicted == expected
    by_type: dict[str, list[bool]] = {}
    by_subtype: dict[str, list[bool]] = {}
    for question in counted.tolist():
        if types is not None and types[question]:
            by_type.setdefault(types[question], []).append(right[question])
            if subtypes is not None and subtypes[question]:
                by_subtype.setdefault(f"{types[question]}/{subtypes[question]}", []).append(right[question])
    return {
        "accuracy": float(right[counted].mean()),
        "per_type": {name: float(np.mean(by_type[name])) for name in sorted(by_type)},
        "per_subtype": {name: float(np.mean(by_subtype[name])) for name in sorted(by_subtype)},
        "num_questions": int(counted.size),
    }


class QuestionAnsweringAccuracy(evaluate.Metric):
    """
    [`question_answering_accuracy`] as a metric that accumulates over batches and processes.

    ```python
    >>> metric = QuestionAnsweringAccuracy()
    >>> metric.add_batch(predictions=logits, labels=labels, types=types, subtypes=subtypes)  # (B, answers), (B,), B, B
    >>> metric.compute()["per_type"]["Audio"]
    ```

    Only the predicted answers of a batch are stored. With several processes pass `num_process`, `process_id` and a
    common `experiment_id` and `cache_dir`, as for every `evaluate` metric: process 0 gets the scores of all, the
    others None. Arguments are those of `evaluate.Metric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "labels": datasets.Value("int64"),
                    "types": datasets.Value("string"),
                    "subtypes": datasets.Value("string"),
                }
            ),
        )

    def add_batch(
        self,
        *,
        predictions: Any,
        labels: Any,
        types: Sequence[str] | None = None,
        subtypes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a batch of questions; see [`question_answering_accuracy`] for the arguments."""
        predicted, expected = _arrays(predictions, labels)
        columns = {"types": types, "subtypes": subtypes}
        filled = {name: [""] * len(expected) if values is None else list(values) for name, values in columns.items()}
        super().add_batch(predictions=predicted, labels=expected, **filled, **kwargs)

    def add(self, *, predictions: Any, labels: Any, types: str = "", subtypes: str = "", **kwargs: Any) -> None:
        """Add one question: logits (answers,) or the predicted answer, the correct one, its type and subtype."""
        batch = (_to_numpy(values)[None] for values in (predictions, labels))
        self.add_batch(**dict(zip(("predictions", "labels"), batch, strict=True)), types=[types], subtypes=[subtypes])

    def compute(self, *, predictions: Any = None, labels: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Return the scores of all batches so far, including this one if given."""
        batch = {name: kwargs.pop(name) for name in ("types", "subtypes") if name in kwargs}
        if predictions is not None or labels is not None:
            self.add_batch(predictions=predictions, labels=labels, **batch)
        return super().compute(**kwargs)

    def _compute(self, predictions: Any, labels: Any, types: Any, subtypes: Any) -> dict[str, Any]:
        return question_answering_accuracy(np.asarray(predictions), np.asarray(labels), types, subtypes)


def _arrays(predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and expected answers, each (B,) int64."""
    predicted, expected = _to_numpy(predictions), _to_numpy(labels)
    if predicted.ndim not in (1, 2) or expected.ndim != 1 or len(predicted) != len(expected) or not predicted.size:
        raise DataError(
            "expected `predictions` (B, answers) or (B,) and `labels` (B,), "
            f"got shapes {predicted.shape} and {expected.shape}"
        )
    most = np.inf
    counted = expected != IGNORED_LABEL
    if predicted.ndim == 2:
        if np.isnan(predicted[counted]).any():
            raise DataError("`predictions` has values that are not numbers (NaN)")
        most, predicted = predicted.shape[1], predicted.argmax(1)
    for name, values in (("predictions", predicted), ("labels", expected)):
        if not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"`{name}` (B,) must be integers, got {values.dtype}")
        wrong = counted & ((values < 0) | (values >= most))
        if wrong.any():
            raise DataError(f"`{name}` must be indices of answers from 0, below {most}, got {values[wrong][0]}")
    return predicted.astype(np.int64), expected.astype(np.int64)


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)
