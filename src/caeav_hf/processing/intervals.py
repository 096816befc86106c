"""Segments that carry a label as intervals of time, and what a task finds in each segment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def has_class(
    frame_probs: torch.Tensor, clip_probs: torch.Tensor, threshold: float = 0.5, video_threshold: float = 0.5
) -> torch.Tensor:
    """
    The rule of video parsing: a segment has a class in a modality where both its own probability reaches `threshold`
    and that of the whole clip reaches `video_threshold`.

    Args:
        frame_probs: (B, T, C), probabilities in the modality's segments.
        clip_probs: (B, C), probabilities in the modality of the whole clip.
        threshold, video_threshold: From 0 to 1.

    Returns:
        (B, T, C) bool.
    """
    return (frame_probs >= threshold) & (clip_probs >= video_threshold)[:, None]


def intervals_of(
    segments: Sequence[int], scores: np.ndarray, label: str, label_id: int, segment_seconds: float
) -> list[dict[str, Any]]:
    """
    Runs of segments with the same label as intervals.

    Args:
        segments: Ascending numbers of the segments that carry the label.
        scores: (T,), of all segments.
        label, label_id: Name and number of the class.
        segment_seconds: Seconds of a segment.

    Returns:
        For each run a dict of `label`, `label_id`, `start` and `end` (seconds after the first segment began) and
        `score`, the mean of the segments'.
    """
    return [
        {
            "label": label,
            "label_id": label_id,
            "start": run[0] * segment_seconds,
            "end": (run[-1] + 1) * segment_seconds,
            "score": float(scores[run].mean()),
        }
        for run in _runs(segments)
    ]


def misaligned_intervals(agreement: np.ndarray, real: np.ndarray, segment_seconds: float) -> list[dict[str, float]]:
    """
    Runs of segments whose sound and picture probably do not belong together.

    Args:
        agreement: (T,), probability that they do, where as many pairs do as do not.
        real: (T,) bool, False for segments that are left out.
        segment_seconds: Seconds of a segment.

    Returns:
        For each run of segments below 0.5 a dict of `start` and `end` (seconds after the first segment began) and
        `agreement`, the mean of the segments'.
    """
    return [
        {
            "start": run[0] * segment_seconds,
            "end": (run[-1] + 1) * segment_seconds,
            "agreement": float(agreement[run].mean()),
        }
        for run in _runs(((agreement < 0.5) & real).nonzero()[0].tolist())
    ]


@dataclass(frozen=True, eq=False)
class LocalizedSegments:
    """
    The events in the segments of a clip.

    Attributes:
        real: (T,) bool, False for segments that are left out; those after them keep their times.
        label_ids: (T,) int64, the class of the window in which the segment lies, or with head `mlp` the segment's own.
        active: (T,) bool, whether the segment has an event of this class; if not, it is background.
        scores: (T,) float32, of the event, also where the segment is background.
        agreement: (T,) float32, or None where the model gave none: the probability that sound and picture belong
            together if `is_calibrated`, else the cosine of the modalities.
        is_calibrated: Whether the model was trained with the agreement loss.
    """

    real: np.ndarray
    label_ids: np.ndarray
    active: np.ndarray
    scores: np.ndarray
    agreement: np.ndarray | None
    is_calibrated: bool = False

    @classmethod
    def joined(cls, parts: Sequence["LocalizedSegments"]) -> "LocalizedSegments":
        """The segments of consecutive parts of a clip."""
        return cls(
            np.concatenate([part.real for part in parts]),
            np.concatenate([part.label_ids for part in parts]),
            np.concatenate([part.active for part in parts]),
            np.concatenate([part.scores for part in parts]),
            _joined_agreement(parts),
            all(part.is_calibrated for part in parts),
        )

    def events(self, name_of: Callable[[int], str], segment_seconds: float) -> dict[str, Any]:
        """
        The events as intervals and as one label a segment.

        Args:
            name_of: Gives the name of a class.
            segment_seconds: Seconds of a segment.

        Returns:
            A dict of **intervals** (see [`intervals_of`]) by start, **segments**, labels or `"background"`, **scores**
            and **agreement**, each one a segment, and **misaligned** (see [`misaligned_intervals`]); `agreement` may
            be None, and `misaligned` is where it is not calibrated.
        """
        active = self.active & self.real
        found = [
            interval
            for label_id in np.unique(self.label_ids[active]).tolist()
            for interval in intervals_of(
                (active & (self.label_ids == label_id)).nonzero()[0].tolist(),
                self.scores,
                name_of(label_id),
                label_id,
                segment_seconds,
            )
        ]
        pairs = zip(self.label_ids[self.real].tolist(), self.active[self.real].tolist(), strict=True)
        return {
            "intervals": sorted(found, key=lambda interval: interval["start"]),
            "segments": [name_of(label_id) if is_event else "background" for label_id, is_event in pairs],
            "scores": self.scores[self.real].tolist(),
            "agreement": None if self.agreement is None else self.agreement[self.real].tolist(),
            "misaligned": misaligned_intervals(self.agreement, self.real, segment_seconds)
            if self.agreement is not None and self.is_calibrated
            else None,
        }


@dataclass(frozen=True, eq=False)
class ParsedSegments:
    """
    What is heard and what is seen in the segments of a clip.

    Attributes:
        audible, visible: (T, C) bool, whether a segment has a class.
        audible_scores, visible_scores: (T, C) float32, probabilities.
        agreement: (T,) float32, or None where the model gave none: the probability that sound and picture belong
            together if `is_calibrated`, else the cosine of the modalities.
        is_calibrated: Whether the model was trained with the agreement loss.
    """

    audible: np.ndarray
    visible: np.ndarray
    audible_scores: np.ndarray
    visible_scores: np.ndarray
    agreement: np.ndarray | None
    is_calibrated: bool = False

    @classmethod
    def joined(cls, parts: Sequence["ParsedSegments"]) -> "ParsedSegments":
        """The segments of consecutive parts of a clip."""
        return cls(
            np.concatenate([part.audible for part in parts]),
            np.concatenate([part.visible for part in parts]),
            np.concatenate([part.audible_scores for part in parts]),
            np.concatenate([part.visible_scores for part in parts]),
            _joined_agreement(parts),
            all(part.is_calibrated for part in parts),
        )

    def tracks(self, name_of: Callable[[int], str], segment_seconds: float) -> dict[str, Any]:
        """
        The segments as tracks of intervals.

        Args:
            name_of: Gives the name of a class.
            segment_seconds: Seconds of a segment.

        Returns:
            A dict of **audible**, **visible** and **both**, lists of intervals (see [`intervals_of`]) by start, and
            **agreement**, one a segment, or None, and **misaligned** (see [`misaligned_intervals`]), None where the
            agreement is not calibrated.
        """

        def track(active: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
            found = [
                interval
                for label_id in active.any(0).nonzero()[0].tolist()
                for interval in intervals_of(
                    active[:, label_id].nonzero()[0].tolist(),
                    scores[:, label_id],
                    name_of(label_id),
                    label_id,
                    segment_seconds,
                )
            ]
            return sorted(found, key=lambda interval: interval["start"])

        return {
            "audible": track(self.audible, self.audible_scores),
            "visible": track(self.visible, self.visible_scores),
            "both": track(self.audible & self.visible, self.audible_scores * self.visible_scores),
            "agreement": None if self.agreement is None else self.agreement.tolist(),
            "misaligned": misaligned_intervals(self.agreement, np.ones(len(self.agreement), bool), segment_seconds)
            if self.agreement is not None and self.is_calibrated
            else None,
        }


def _joined_agreement(parts: Sequence[LocalizedSegments] | Sequence[ParsedSegments]) -> np.ndarray | None:
    """The agreement of consecutive parts of a clip, (T,), if all of them have one."""
    agreement = [part.agreement for part in parts if part.agreement is not None]
    return np.concatenate(agreement) if len(agreement) == len(parts) else None


def _runs(segments: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, split where one is left out."""
    runs: list[list[int]] = []
    for segment in segments:
        if runs and segment == runs[-1][-1] + 1:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs
