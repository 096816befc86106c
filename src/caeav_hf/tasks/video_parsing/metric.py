"""
Scores of audio-visual video parsing, as defined for LLP: F-scores of what is heard, what is seen, and what is both.

A clip's prediction and target say for each class and each segment whether it is heard (audio), whether it is seen
(visual), and, as the product of the two, whether it is both (audio-visual). From the numbers of true positives, false
positives and false negatives of a class its F1 is 2 TP / (2 TP + FP + FN). A clip's score is the mean over the classes
that are in its prediction or its target; if there is none, it is 1. The score of a data set is the mean over clips.

- `audio`, `visual` and `audio_visual` are these scores, `type` is the mean of the three, and `event` is the score
  whose numbers are the sums of those of audio and visual.
- At the level of segments, segments are counted.
- At the level of events, runs of consecutive positive segments are: a predicted run is a true positive if its
  intersection over union with some run of its class in the target is at least one half, and a false positive
  otherwise; a run of the target that no predicted run overlaps so is a false negative.

All are sums over clips, so they are accumulated as [`VideoParsingSums`], ten numbers however many clips there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np

from caeav_hf.constants import IGNORED_LABEL
from caeav_hf.errors import DataError

from .results import has_class


LEVELS = ("segment", "event")
KINDS = ("audio", "visual", "audio_visual", "type", "event")

_CITATION = """\
@inproceedings{tian2020avvp,
  title={Unified Multisensory Perception: Weakly-Supervised Audio-Visual Video Parsing},
  author={Tian, Yapeng and Li, Dingzeyu and Xu, Chenliang},
  booktitle={ECCV},
  year={2020}
}
"""

_INPUTS = """
Args:
    pred_audio, pred_visual: (N, C, T): 1 where a class is predicted to be heard, or seen, in a segment, 0 elsewhere.
    target_audio, target_visual: (N, C, T): 1 where it is, 0 elsewhere, -100 in segments that do not count.
Returns:
    segment, event: the scores at each level, in percent: audio, visual, audio_visual, type and event.
    num_clips: clips that count.
"""


@dataclass(frozen=True)
class VideoParsingSums:
    """
    Sums from which the scores over some clips are computed; add them to combine clips.

    Args:
        f: (2, 5) float64, sum over clips of their F1: rows as `LEVELS`, columns as `KINDS`.
        clips: Number of clips.
    """

    f: np.ndarray
    clips: int

    def __add__(self, other: "VideoParsingSums") -> "VideoParsingSums":
        return VideoParsingSums(self.f + other.f, self.clips + other.clips)

    def scores(self) -> dict[str, dict[str, float]]:
        """
        Return the scores as [`video_parsing_scores`] gives them.

        Raises:
            DataError: There is no clip.
        """
        if not self.clips:
            raise DataError(f"the targets have no segment that counts: all of them are {IGNORED_LABEL}")
        means = 100 * self.f / self.clips
        return {level: dict(zip(KINDS, row.tolist(), strict=True)) for level, row in zip(LEVELS, means, strict=True)}


def clip_sums(outputs: Any, inputs: Mapping[str, Any]) -> list[VideoParsingSums]:
    """
    Return the sums of each clip of a batch, from the output of the model and its inputs with `audio_labels` and
    `visual_labels`, at the usual thresholds.
    """
    found, expected = [], []
    for modality in ("audio", "visual"):
        positive = has_class(outputs[f"{modality}_frame_probs"], outputs[f"{modality}_probs"])
        found.append(positive.transpose(1, 2))
        expected.append(inputs[f"{modality}_labels"].transpose(1, 2))
    clips = zip(*found, *expected, strict=True)
    return [video_parsing_sums(*(part[None] for part in clip)) for clip in clips]


def video_parsing_scores(
    pred_audio: Any, pred_visual: Any, target_audio: Any, target_visual: Any
) -> dict[str, dict[str, float]]:
    """
    Return the scores over all clips.

    Args:
        pred_audio, pred_visual: (N, C, T) arrays or tensors: 1 or True where a class is predicted to be heard, or
            seen, in a segment, 0 or False elsewhere.
        target_audio, target_visual: (N, C, T): likewise what is. Segments that are -100 in all classes of either do
            not count, nor do clips that have no other ones.

    Returns:
        `segment` and `event`, the two levels, each a dict of `audio`, `visual`, `audio_visual`, `type` and `event`, in
        percent, as defined above.

    Raises:
        DataError: Shapes do not fit, there is another value, or no segment counts.
    """
    return video_parsing_sums(pred_audio, pred_visual, target_audio, target_visual).scores()


def video_parsing_sums(pred_audio: Any, pred_visual: Any, target_audio: Any, target_visual: Any) -> VideoParsingSums:
    """
    Return the sums over clips from which the scores are computed, to be added over batches.

    Args:
        pred_audio, pred_visual, target_audio, target_visual: As for [`video_parsing_scores`]; here no segment need
            count.

    Raises:
        DataError: As for [`video_parsing_scores`].
    """
    predicted, target = _pairs(pred_audio, pred_visual, target_audio, target_visual)
    f = np.zeros((len(LEVELS), len(KINDS)))
    for level, count in enumerate((_count_segments, _count_events)):
        counts = [count(p, t) for p, t in zip(predicted, target, strict=True)]
        scores = [float(_clip_f1(*numbers).sum()) for numbers in counts]
        audio, visual = counts[0], counts[1]
        both = [a + v for a, v in zip(audio, visual, strict=True)]
        f[level] = [*scores, sum(scores) / len(scores), float(_clip_f1(*both).sum())]
    return VideoParsingSums(f, len(predicted[0]))


class VideoParsingScores(evaluate.Metric):
    """
    [`video_parsing_scores`] as a metric that accumulates over batches and processes.

    ```python
    >>> metric = VideoParsingScores()
    >>> metric.add_batch(
    ...     pred_audio=heard, pred_visual=seen, target_audio=audio_labels, target_visual=visual_labels
    ... )  # (B, C, T) each
    >>> metric.compute()["segment"]["type"]
    ```

    A batch is kept as its sums, so batches may differ in T. With several processes pass `num_process`, `process_id`
    and a common `experiment_id` and `cache_dir`, as for every `evaluate` metric: process 0 gets the scores of all, the
    others None. Arguments are those of `evaluate.Metric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "f": datasets.Sequence(datasets.Value("float64")),
                    "clips": datasets.Value("int64"),
                }
            ),
        )

    def add_batch(
        self, *, pred_audio: Any, pred_visual: Any, target_audio: Any, target_visual: Any, **kwargs: Any
    ) -> None:
        """Add a batch of clips, (B, C, T) each."""
        sums = video_parsing_sums(pred_audio, pred_visual, target_audio, target_visual)
        super().add_batch(f=[sums.f.flatten().tolist()], clips=[sums.clips], **kwargs)

    def add(self, *, pred_audio: Any, pred_visual: Any, target_audio: Any, target_visual: Any, **kwargs: Any) -> None:
        """Add one clip, (C, T) each."""
        clip = (_to_numpy(values)[None] for values in (pred_audio, pred_visual, target_audio, target_visual))
        names = ("pred_audio", "pred_visual", "target_audio", "target_visual")
        self.add_batch(**dict(zip(names, clip, strict=True)), **kwargs)

    def compute(
        self,
        *,
        pred_audio: Any = None,
        pred_visual: Any = None,
        target_audio: Any = None,
        target_visual: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Return the scores of all batches so far, including this one if given."""
        batch = {
            "pred_audio": pred_audio,
            "pred_visual": pred_visual,
            "target_audio": target_audio,
            "target_visual": target_visual,
        }
        if any(values is not None for values in batch.values()):
            if missing := [name for name, values in batch.items() if values is None]:
                raise DataError(f"a batch needs all of {', '.join(batch)}; there is no {', '.join(missing)}")
            self.add_batch(**batch)
        return super().compute(**kwargs)

    def _compute(self, f: Any, clips: Any) -> dict[str, Any]:
        total = np.sum(np.asarray(f), axis=0).reshape(len(LEVELS), len(KINDS))
        sums = VideoParsingSums(total, int(sum(clips)))
        return {**sums.scores(), "num_clips": sums.clips}


_Counts = tuple[np.ndarray, np.ndarray, np.ndarray]


def _clip_f1(hits: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray) -> np.ndarray:
    """Return the score of each clip (N,) from counts per class (N, C)."""
    total = 2 * hits + false_positives + false_negatives
    present = total > 0
    f = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=present)
    num_present = present.sum(1)
    return np.where(num_present > 0, f.sum(1) / np.maximum(num_present, 1), 1.0)


def _count_segments(predicted: np.ndarray, target: np.ndarray) -> _Counts:
    """Count true positives, false positives and false negatives, (N, C) each, of (N, C, T) bool."""
    return (predicted & target).sum(-1), (predicted & ~target).sum(-1), (~predicted & target).sum(-1)


def _count_events(predicted: np.ndarray, target: np.ndarray) -> _Counts:
    """Count the same for runs of consecutive segments."""
    shape = predicted.shape[:2]
    num_rows, length = shape[0] * shape[1], predicted.shape[2]
    predicted, target = predicted.reshape(num_rows, length), target.reshape(num_rows, length)
    predicted_ids, predicted_rows = _runs(predicted)
    target_ids, target_rows = _runs(target)
    predicted_seconds = np.bincount(predicted_ids[predicted], minlength=len(predicted_rows))
    target_seconds = np.bincount(target_ids[target], minlength=len(target_rows))
    # Two runs that meet in some segments are one pair of numbers, as often as there are such segments.
    both = predicted & target
    pairs, intersection = np.unique(
        predicted_ids[both] * (len(target_rows) + 1) + target_ids[both], return_counts=True
    )
    first, second = np.divmod(pairs, len(target_rows) + 1)
    union = predicted_seconds[first] + target_seconds[second] - intersection
    matched = 2 * intersection >= union
    hit = np.zeros(len(predicted_rows), bool)
    hit[first[matched]] = True
    found = np.zeros(len(target_rows), bool)
    found[second[matched]] = True
    rows = (predicted_rows[hit], predicted_rows[~hit], target_rows[~found])
    hits, false_positives, false_negatives = (np.bincount(r, minlength=num_rows).reshape(shape) for r in rows)
    return hits, false_positives, false_negatives


def _runs(positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Number the runs of consecutive True in each row of (rows, T) bool, from 0 over all rows.

    Returns:
        (rows, T) the number of the run that a True belongs to (of no meaning elsewhere), and (runs,) the row of each.
    """
    begins = positive.copy()
    begins[:, 1:] &= ~positive[:, :-1]
    return begins.cumsum().reshape(positive.shape) - 1, begins.nonzero()[0]


def _pairs(
    pred_audio: Any, pred_visual: Any, target_audio: Any, target_visual: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return predictions and targets of audio, visual and both, (N, C, T) bool each, of what counts only."""
    given = {
        "pred_audio": pred_audio,
        "pred_visual": pred_visual,
        "target_audio": target_audio,
        "target_visual": target_visual,
    }
    arrays = {name: _to_numpy(values) for name, values in given.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 3 for shape in shapes):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"expected predictions and targets of one shape (N, C, T), got {found}")
    counted = np.ones((arrays["target_audio"].shape[0], 1, arrays["target_audio"].shape[2]), bool)
    for name in ("target_audio", "target_visual"):
        counted &= (arrays[name] != IGNORED_LABEL).any(1, keepdims=True)
    for name, array in arrays.items():
        wrong = np.broadcast_to(counted, array.shape) & (array != 0) & (array != 1)
        if wrong.any():
            raise DataError(
                f"`{name}` must be 0 and 1, or, in a target, {IGNORED_LABEL} in all classes of a segment, "
                f"got {array[wrong][0]}"
            )
    kept = counted.any((1, 2))
    heard, seen, heard_target, seen_target = (((array == 1) & counted)[kept] for array in arrays.values())
    return [heard, seen, heard & seen], [heard_target, seen_target, heard_target & seen_target]


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)
