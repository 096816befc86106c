"""From the output of event localization to labelled segments and intervals."""

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
            joined_agreement(parts),
            all(part.is_calibrated for part in parts),
        )

    def events(self, name_of: Callable[[int], str], segment_seconds: float) -> dict[str, Any]:
        """
        The events as intervals and as one label a segment.

        Args:
            name_of: Gives the name of a class.
            segment_seconds: Seconds of a segment.

        Returns:
            A dict of **intervals** (see [`intervals_of`]) by start, **segments**, labels or `"background"`, and
            **scores**, each one a segment, and **agreement** and **misaligned** (see [`agreement_of_segments`]).
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
    """What an output says of each segment, see [`CaeAvProcessor.localized_segments`]."""
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
        # In double precision, in which a sigmoid just above one half does not become equal to it.
        best, labels = frame_log_probs[..., :-1].detach().cpu().double().max(-1)
        events = (best - frame_log_probs[..., -1].detach().cpu().double()).sigmoid()
        scores = best.exp().float()
    # Padding stands at the end; without it, segments of a clip's next window can follow.
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
    """The events of one clip, see [`CaeAvProcessor.post_process_event_localization`]."""
    seconds = processor.segment_seconds if segment_seconds is None else segment_seconds
    return segments.events(processor.label_name, seconds)


def post_process(
    processor: Any,
    outputs: Any,
    threshold: float = 0.5,
    segment_seconds: float | None = None,
    frame_mask: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """The events of each clip, see [`CaeAvProcessor.post_process_event_localization`]."""
    segments = localized_segments(outputs, threshold, frame_mask)
    return [events_of(processor, clip, segment_seconds) for clip in segments]
