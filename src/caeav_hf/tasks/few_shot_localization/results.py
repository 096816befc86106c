"""Conversion of the scores of class names to probabilities of clips and of their segments."""

from typing import Any

import torch

from ...errors import CaeAvError
from ...processing.intervals import real_frames
from .head import clip_mean


def post_process(
    processor: Any, outputs: Any, labels: list[str], frame_mask: torch.Tensor | None = None
) -> list[list[dict[str, Any]]]:
    """Return the labels of each clip, see [`CaeAvProcessor.post_process_zero_shot_classification`]."""
    logits = outputs["logits"]
    if logits.ndim != 3 or logits.shape[2] != len(labels):
        raise CaeAvError(f"expected `logits` (B, T, {len(labels)}), got shape {tuple(logits.shape)}")
    real = real_frames(outputs, frame_mask, logits.shape[:2], "logits").bool().to(logits.device)
    return [ranked(scores[mask].float().cpu(), labels) for scores, mask in zip(logits, real, strict=True)]


def ranked(scores: torch.Tensor, labels: list[str]) -> list[dict[str, Any]]:
    """
    Return the probabilities of labels, the most likely first.

    Args:
        scores: (T, K) scores of the segments.
        labels: The K labels.

    Returns:
        For each label `score`, the softmax of the mean scores, `label`, and `segments`, the softmax in each segment.
    """
    clip = clip_mean(scores[None], None)[0].softmax(-1).tolist()
    segments = scores.softmax(-1).T.tolist()
    results = [
        {"score": score, "label": label, "segments": parts}
        for score, label, parts in zip(clip, labels, segments, strict=True)
    ]
    return sorted(results, key=lambda result: -result["score"])
