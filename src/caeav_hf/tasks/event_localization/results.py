"""Conversion of event localization's output to labelled segments and intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import CaeAvError
from ...processing.intervals import (
    agreement_of_segments,
    check_threshold,
    intervals_of,
    joined_agreement,
    last_agreement,
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


def localized_segments(
    outputs: Any, threshold: float = 0.5, frame_mask: torch.Tensor | None = None
) -> list[LocalizedSegments]:
    """Return the segments of each clip, see [`CaeAvProcessor.localized_segments`]."""
    check_threshold("threshold", threshold)
    event_logits, class_logits = outputs["event_logits"], outputs["class_logits"]
    if event_logits.ndim != 2 or class_logits.ndim != 2 or len(event_logits) != len(class_logits):
        raise CaeAvError(
            "expected `event_logits` (B, T) and `class_logits` (B, C), got shapes "
            f"{tuple(event_logits.shape)} and {tuple(class_logits.shape)}"
        )
    real = real_frames(outputs, frame_mask, event_logits.shape, "event_logits").bool().cpu()
    agreement = last_agreement(outputs)
    frame_log_probs = outputs.get("frame_log_probs")
    if frame_log_probs is None:
        events = event_logits.detach().float().sigmoid().cpu()
        chances, labels = class_logits.detach().float().softmax(-1).max(-1)
        scores = events * chances.cpu()[:, None]
        labels = labels.cpu()[:, None].expand_as(events)
    else:
        expected = (*event_logits.shape, class_logits.shape[1] + 1)
        if frame_log_probs.shape != expected:
            raise CaeAvError(f"expected `frame_log_probs` {expected}, got shape {tuple(frame_log_probs.shape)}")
        # In single precision, a sigmoid just above one half could be rounded to it.
        best, labels = frame_log_probs[..., :-1].detach().cpu().double().max(-1)
        events = (best - frame_log_probs[..., -1].detach().cpu().double()).sigmoid()
        scores = best.exp().float()
    # Remove padding at the end, so that the segments of a clip's next window can be appended.
    lengths = [int(mask.nonzero().max()) + 1 if mask.any() else 0 for mask in real]
    return [
        LocalizedSegments(
            real=real[clip, :length].numpy(),
            label_ids=labels[clip, :length].numpy(),
            active=(events[clip, :length] > threshold).numpy(),
            scores=scores[clip, :length].numpy(),
            agreement=None if agreement is None else agreement[clip, :length].numpy(),
            is_calibrated=outputs.get("agreement_probs") is not None,
        )
        for clip, length in enumerate(lengths)
    ]


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
