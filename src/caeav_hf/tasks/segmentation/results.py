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
    if target_sizes is not None and len(target_sizes) != len(outputs["logits"]):
        raise CaeAvError(
            f"`target_sizes` must have one size per clip ({len(outputs['logits'])}), got {len(target_sizes)}"
        )
    sizes: Sequence[tuple[int, int] | None] = [None] * len(outputs["logits"]) if target_sizes is None else target_sizes
    logits = segment_logits(outputs, frame_mask)
    return [maps_of(maps, size, threshold) for maps, size in zip(logits, sizes, strict=True)]


def segment_logits(outputs: Any, frame_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """
    Return the logits (T, S, S) of the real frames of each clip.

    Raises:
        CaeAvError: A tensor has a wrong shape.
    """
    logits = outputs["logits"]
    if logits.ndim != 5 or logits.shape[2] != 1:
        raise CaeAvError(f"expected `logits` (B, T, 1, S, S), got shape {tuple(logits.shape)}")
    frame_mask = real_frames(outputs, frame_mask, logits.shape[:2], "logits")
    return [maps[frame_mask[clip].bool().to(maps.device)][:, 0] for clip, maps in enumerate(logits.detach().float())]


def maps_of(logits: torch.Tensor, size: tuple[int, int] | None, threshold: float = 0.5) -> dict[str, np.ndarray]:
    """
    Return the probabilities and masks of frames.

    Args:
        logits: (T, S, S), of the model or their means over several windows.
        size: Height and width of the maps; by default S and S.
        threshold: From 0 to 1.
    """
    check_threshold("threshold", threshold)
    if size is not None:
        # Interpolate logits rather than probabilities, which keeps the edge of a mask in place.
        height, width = int(size[0]), int(size[1])
        logits = torch.nn.functional.interpolate(
            logits[:, None], size=(height, width), mode="bilinear", align_corners=False
        )[:, 0]
    probabilities = logits.sigmoid().cpu().numpy()
    return {"probabilities": probabilities, "masks": probabilities > threshold}
