"""What the results of several tasks share: intervals of time, agreement, checks of a model's outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError


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


def joined_agreement(parts: Sequence[Any]) -> np.ndarray | None:
    """The `agreement` of consecutive parts of a clip, (T,), if all of them have one."""
    agreement = [part.agreement for part in parts if part.agreement is not None]
    return np.concatenate(agreement) if len(agreement) == len(parts) else None


def agreement_of_segments(
    agreement: np.ndarray | None, is_calibrated: bool, segment_seconds: float, real: np.ndarray | None = None
) -> dict[str, Any]:
    """
    What results say about the agreement of sound and picture.

    Args:
        agreement: (T,), or None where the model gave none.
        is_calibrated: Whether it is the probability that both belong together, where as many pairs do as do not. The
            cosine of an uncalibrated model tells nothing about misalignment.
        segment_seconds: Seconds of a segment.
        real: (T,) bool, False for segments that are left out; by default none is.

    Returns:
        A dict of **agreement**, one a segment, None where there is none, and **misaligned**, runs of segments with a
        probability below 0.5: dicts of `start` and `end` (seconds after the first segment began) and `agreement`, the
        mean of the segments'; None where it is not calibrated.
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
    """Which frames of the outputs are real, (B, T): as given, as the model says, or all."""
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
    """Agreement (B, T) at the last stage, if the model gave any: calibrated if it can be, else the cosine."""
    # One tensor a stage, or a graph's one tensor with the stages first.
    found = [outputs.get(name) for name in ("agreement_probs", "agreement")]
    stages = next((value for value in found if value is not None and len(value)), None)
    return None if stages is None else stages[-1].detach().float().cpu()


def _runs(segments: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, split where one is left out."""
    runs: list[list[int]] = []
    for segment in segments:
        if runs and segment == runs[-1][-1] + 1:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs
