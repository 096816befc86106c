"""Intervals of time, agreement, and checks of a model's outputs, shared by the results of several tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError


def intervals_of(
    segments: Sequence[int], scores: np.ndarray, label: str, label_id: int, segment_seconds: float
) -> list[dict[str, Any]]:
    """
    Return runs of segments with the same label as intervals.

    Args:
        segments: Indices of the segments with the label, in ascending order.
        scores: (T,) scores of all segments.
        label, label_id: Name and index of the class.
        segment_seconds: Length of a segment in seconds.

    Returns:
        For each run a dict of `label`, `label_id`, `start` and `end` (seconds from the start of the first segment) and
        `score`, the mean over the segments.
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


def joined_agreement(parts: Sequence[Any]) -> np.ndarray | None:
    """Concatenate the `agreement` of consecutive parts of a clip to (T,), or return `None` if any has none."""
    agreement = [part.agreement for part in parts if part.agreement is not None]
    return np.concatenate(agreement) if len(agreement) == len(parts) else None


def agreement_of_segments(
    agreement: np.ndarray | None, is_calibrated: bool, segment_seconds: float, real: np.ndarray | None = None
) -> dict[str, Any]:
    """
    Return the entries of a result about the agreement of sound and picture.

    Args:
        agreement: (T,), or None if the model has none.
        is_calibrated: Whether it is the probability that both belong together, given that half of all pairs do. The
            cosine similarity of an uncalibrated model says nothing about misalignment.
        segment_seconds: Length of a segment in seconds.
        real: (T,) bool, False for segments to omit; by default none.

    Returns:
        A dict of **agreement**, one value per segment, or None; and **misaligned**, runs of segments with a
        probability below 0.5, dicts of `start` and `end` (seconds from the start of the first segment) and
        `agreement`, the mean over the segments, or None if the agreement is not calibrated.
    """
    if agreement is None:
        return {"agreement": None, "misaligned": None}
    if real is None:
        real = np.ones(len(agreement), bool)
    misaligned = [
        {
            "start": run[0] * segment_seconds,
            "end": (run[-1] + 1) * segment_seconds,
            "agreement": float(agreement[run].mean()),
        }
        for run in _runs(((agreement < 0.5) & real).nonzero()[0].tolist())
    ]
    return {"agreement": agreement[real].tolist(), "misaligned": misaligned if is_calibrated else None}


def real_frames(outputs: Any, frame_mask: torch.Tensor | None, shape: torch.Size, name: str) -> torch.Tensor:
    """Return which frames of the outputs are real, (B, T): `frame_mask`, or else the model's, or else all."""
    if frame_mask is None:
        frame_mask = outputs.get("frame_mask")
    if frame_mask is None:
        frame_mask = torch.ones(shape, dtype=torch.bool)
    if frame_mask.shape != shape:
        raise CaeAvError(
            f"`frame_mask` has shape {tuple(frame_mask.shape)}; expected that of `{name}`, {tuple(shape)}"
        )
    return frame_mask


def check_threshold(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise CaeAvError(f"`{name}` must lie in [0, 1], got {value}")


def last_agreement(outputs: Any) -> torch.Tensor | None:
    """Return the agreement (B, T) at the last stage, calibrated if the model is, or `None` if it has none."""
    # One tensor per stage; an exported graph stacks them in one tensor.
    found = [outputs.get(name) for name in ("agreement_probs", "agreement")]
    stages = next((value for value in found if value is not None and len(value)), None)
    return None if stages is None else stages[-1].detach().float().cpu()


def agreement_scores(outputs: Any) -> dict[str, torch.Tensor]:
    """Return the agreement (B, T) at the last stage by `"calibrated_agreement"` or `"agreement"`; `{}` without one."""
    agreement = last_agreement(outputs)
    if agreement is None:
        return {}
    return {"agreement" if outputs.get("agreement_probs") is None else "calibrated_agreement": agreement}


def agreement_of_scores(scores: Mapping[str, Any]) -> tuple[np.ndarray | None, bool]:
    """Return the agreement (T,) among the scores of a clip's segments, or `None`, and whether it is calibrated."""
    is_calibrated = "calibrated_agreement" in scores
    return scores.get("calibrated_agreement" if is_calibrated else "agreement"), is_calibrated


def _runs(segments: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers into runs of consecutive ones."""
    runs: list[list[int]] = []
    for segment in segments:
        if runs and segment == runs[-1][-1] + 1:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs
