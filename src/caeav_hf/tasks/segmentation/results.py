"""Conversion of segmentation's output to masks at each clip's own resolution."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import CaeAvError
from ...processing.intervals import check_threshold, real_frames


def post_process(
    processor: Any,
    outputs: Any,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    threshold: float = 0.5,
    frame_mask: torch.Tensor | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return the maps of each clip, see [`CaeAvProcessor.post_process_segmentation`]."""
    check_threshold("threshold", threshold)
    logits = outputs["logits"]
    if logits.ndim != 5 or logits.shape[2] != 1:
        raise CaeAvError(f"expected `logits` (B, T, 1, S, S), got shape {tuple(logits.shape)}")
    if target_sizes is not None and len(target_sizes) != len(logits):
        raise CaeAvError(f"`target_sizes` must have one size per clip ({len(logits)}), got {len(target_sizes)}")
    frame_mask = real_frames(outputs, frame_mask, logits.shape[:2], "logits")
    results = []
    for clip, maps in enumerate(logits.detach().float()):
        maps = maps[frame_mask[clip].bool().to(maps.device)]
        if target_sizes is not None:
            # Interpolate logits rather than probabilities, which keeps the edge of a mask in place.
            size = (int(target_sizes[clip][0]), int(target_sizes[clip][1]))
            maps = torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        probabilities = maps[:, 0].sigmoid().cpu().numpy()
        results.append({"probabilities": probabilities, "masks": probabilities > threshold})
    return results
