"""Conversion of question answering's output to answers, attention and grounding."""

import math
from typing import Any

import torch

from ...errors import CaeAvError
from ...processing.intervals import real_frames


def post_process(
    processor: Any, outputs: Any, top_k: int = 5, frame_mask: torch.Tensor | None = None
) -> list[dict[str, Any]]:
    """Return the answers to each question, see [`CaeAvProcessor.post_process_question_answering`]."""
    if top_k < 1:
        raise CaeAvError(f"`top_k` must be at least 1, got {top_k}")
    logits = outputs["logits"]
    if logits.ndim != 2:
        raise CaeAvError(f"expected `logits` (B, answers), got shape {tuple(logits.shape)}")
    scores, label_ids = logits.detach().float().softmax(-1).cpu().sort(-1, descending=True)
    attention = {
        name: outputs[name].detach().float().cpu()
        for name in ("visual_attention", "audio_attention", "grounding")
        if outputs.get(name) is not None
    }
    results = []
    for question in range(len(logits)):
        ranked = zip(scores[question, :top_k].tolist(), label_ids[question, :top_k].tolist(), strict=True)
        result: dict[str, Any] = {
            "answers": [
                {"answer": processor.label_name(label_id), "label_id": label_id, "score": score}
                for score, label_id in ranked
            ],
            **dict.fromkeys(("visual_attention", "audio_attention", "grounding")),
        }
        for name, weights in attention.items():
            real = real_frames(outputs, frame_mask, weights.shape[:2], name)[question].bool().cpu()
            kept = weights[question, real]
            result[name] = _square(kept, name).numpy() if name == "grounding" else kept.tolist()
        results.append(result)
    return results


def _square(weights: torch.Tensor, name: str) -> torch.Tensor:
    """Reshape (T, tokens) in row-major order to (T, rows, columns)."""
    side = math.isqrt(weights.shape[-1])
    if weights.ndim != 2 or side * side != weights.shape[-1]:
        raise CaeAvError(f"expected `{name}` (B, T, tokens of a square grid), got {tuple(weights.shape)} for a clip")
    return weights.unflatten(-1, (side, side))
