"""Conversion of event localization's output to labelled segments and intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import CaeAvError
from ...processing.intervals import (
    agreement_of_scores,
    agreement_of_segments,
    agreement_scores,
    check_threshold,
    intervals_of,
    joined_agreement,
    real_frames,
)


@dataclass(frozen=True, eq=False)
class LocalizedSegments:
    """
    Events in the segments of a clip.

    Attributes:
        real: (T,) bool, False for segments to omit; later segments keep their times.
        label_ids: (T,) int64, class of the window that contains the segment, or with head `mlp` of the segment.
        active: (T,) bool, whether the segment has an event of this class rather than background.
        scores: (T,) float32, score of the event, also for background.
        agreement: (T,) float32, or None if the model has none: the probability that sound and picture belong together
            if `is_calibrated`, otherwise their cosine similarity.
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
        """Concatenate the segments of consecutive parts of a clip."""
        return cls(
            np.concatenate([part.real for part in parts]),
            np.concatenate([part.label_ids for part in parts]),
            np.concatenate([part.active for part in parts]),
            np.concatenate([part.scores for part in parts]),
            joined_agreement(parts),
            all(part.is_calibrated for part in parts),
        )

    def events(self, name_of: Callable[[int], str], segment_seconds: float) -> dict[str, Any]:
        """
        Return the events as intervals and as one label per segment.

        Args:
            name_of: Maps a class to its name.
            segment_seconds: Length of a segment in seconds.

        Returns:
            A dict of **intervals** (see [`intervals_of`]), sorted by start; **segments**, a label or `"background"`
            per segment; **scores**, one per segment; **agreement** and **misaligned** (see
            [`agreement_of_segments`]).
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
            **agreement_of_segments(self.agreement, self.is_calibrated, segment_seconds, self.real),
        }


def segment_scores(outputs: Any, frame_mask: torch.Tensor | None = None) -> list[dict[str, np.ndarray]]:
    """
    Return the scores that [`localized_of`] decides by, for the segments of each clip up to its last real one.

    Returns:
        For each clip a dict of **real** (T,) bool; **classes** (T, C), the probability that the segment has an event
        of a class; **events** (T,), the probability that it has any, or with head `mlp` **background** (T,), that it
        has none; and **agreement** or, if the model was trained for it, **calibrated_agreement** (T,).

    Raises:
        CaeAvError: A tensor has a wrong shape.
    """
    event_logits, class_logits = outputs["event_logits"], outputs["class_logits"]
    if event_logits.ndim != 2 or class_logits.ndim != 2 or len(event_logits) != len(class_logits):
        raise CaeAvError(
            "expected `event_logits` (B, T) and `class_logits` (B, C), got shapes "
            f"{tuple(event_logits.shape)} and {tuple(class_logits.shape)}"
        )
    real = real_frames(outputs, frame_mask, event_logits.shape, "event_logits").bool().cpu()
    scores = {"real": real}
    frame_log_probs = outputs.get("frame_log_probs")
    if frame_log_probs is None:
        events = event_logits.detach().float().sigmoid().cpu()
        scores |= {
            "events": events,
            "classes": events[..., None] * class_logits.detach().float().softmax(-1).cpu()[:, None],
        }
    else:
        expected = (*event_logits.shape, class_logits.shape[1] + 1)
        if frame_log_probs.shape != expected:
            raise CaeAvError(f"expected `frame_log_probs` {expected}, got shape {tuple(frame_log_probs.shape)}")
        # In single precision, the share of an event just above one half could be rounded to it.
        probabilities = frame_log_probs.detach().cpu().double().exp()
        scores |= {"classes": probabilities[..., :-1], "background": probabilities[..., -1]}
    scores |= agreement_scores(outputs)
    # Remove padding at the end, so that the segments of a clip's next window can be appended.
    lengths = [int(mask.nonzero().max()) + 1 if mask.any() else 0 for mask in real]
    return [
        {name: values[clip, :length].numpy() for name, values in scores.items()} for clip, length in enumerate(lengths)
    ]


def localized_of(scores: Mapping[str, np.ndarray], threshold: float = 0.5) -> LocalizedSegments:
    """
    Decide which segments have an event.

    Args:
        scores: Those of [`segment_scores`], or their means over several windows.
        threshold: From 0 to 1.
    """
    check_threshold("threshold", threshold)
    best = scores["classes"].max(-1, initial=0)
    events = best / (best + scores["background"]) if "background" in scores else scores["events"]
    agreement, is_calibrated = agreement_of_scores(scores)
    return LocalizedSegments(
        real=scores.get("real", np.ones(len(best), bool)),
        label_ids=scores["classes"].argmax(-1),
        active=events > threshold,
        scores=best.astype(np.float32),
        agreement=agreement,
        is_calibrated=is_calibrated,
    )


def localized_segments(
    outputs: Any, threshold: float = 0.5, frame_mask: torch.Tensor | None = None
) -> list[LocalizedSegments]:
    """Return the segments of each clip, see [`CaeAvProcessor.localized_segments`]."""
    check_threshold("threshold", threshold)
    return [localized_of(scores, threshold) for scores in segment_scores(outputs, frame_mask)]


def events_of(processor: Any, segments: LocalizedSegments, segment_seconds: float | None = None) -> dict[str, Any]:
    """Return the events of one clip, see [`CaeAvProcessor.post_process_event_localization`]."""
    seconds = processor.segment_seconds if segment_seconds is None else segment_seconds
    return segments.events(processor.label_name, seconds)


def post_process(
    processor: Any,
    outputs: Any,
    threshold: float = 0.5,
    segment_seconds: float | None = None,
    frame_mask: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return the events of each clip, see [`CaeAvProcessor.post_process_event_localization`]."""
    segments = localized_segments(outputs, threshold, frame_mask)
    return [events_of(processor, clip, segment_seconds) for clip in segments]
