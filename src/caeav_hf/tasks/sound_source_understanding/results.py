"""Conversion of SSUFormer's output to masks and sentences."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from ...errors import CaeAvError
from ...processing.intervals import real_frames
from ..segmentation.results import post_process as post_process_masks


def post_process(
    processor: Any,
    outputs: Any,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    threshold: float = 0.5,
    frame_mask: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return masks and sentences, see [`CaeAvProcessor.post_process_sound_source_understanding`]."""
    given = [name for name in ("logits", "description_ids") if outputs.get(name) is not None]
    if not given:
        raise CaeAvError("expected `logits` or `description_ids` in the outputs, got neither")
    results: list[dict[str, Any]] = [{} for _ in outputs[given[0]]]
    if "logits" in given:
        masks = post_process_masks(processor, outputs, target_sizes, threshold, frame_mask)
        results = [{**result, **maps} for result, maps in zip(results, masks, strict=True)]
    if "description_ids" in given:
        ids = outputs["description_ids"]
        if ids.ndim != 3:
            raise CaeAvError(f"expected `description_ids` (B, T, L), got shape {tuple(ids.shape)}")
        is_real = real_frames(outputs, frame_mask, ids.shape[:2], "description_ids")
        for result, clip, real in zip(results, ids.detach().cpu(), is_real.bool().cpu(), strict=True):
            result["descriptions"] = processor.batch_decode(clip[real], skip_special_tokens=True)
    return results


def description_intervals(descriptions: Sequence[str], segment_seconds: float) -> list[dict[str, Any]]:
    """
    Return runs of segments with the same description.

    Args:
        descriptions: One text per segment; empty ones are left out.
        segment_seconds: Length of a segment in seconds.

    Returns:
        For each run a dict of `description`, `start` and `end` (seconds from the start of the first segment).
    """
    intervals, start = [], 0
    for text, run in groupby(descriptions):
        end = start + len(list(run))
        if text:
            intervals.append({"description": text, "start": start * segment_seconds, "end": end * segment_seconds})
        start = end
    return intervals
