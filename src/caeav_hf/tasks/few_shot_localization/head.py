"""
Matching of frames and sounds with class names, and its losses.

Duan et al., "Cross-modal Prompts: Adapting Large Pre-trained Models for Audio-Visual Downstream Tasks" (NeurIPS 2023,
DG-SCT), by its public code, with the learned context of Zhou et al., "Learning to Prompt for Vision-Language Models"
(CoOp), and the feature adapters of Gao et al., "CLIP-Adapter".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...modeling.collectives import at_least_float32, batch_mean, contributes, gather_rows


# Number of token ids of a class name's two prompts, that of CLIP and of CLAP's tokenizer.
PROMPT_LENGTH = 77

# Weights of the classification in the first epochs and later, and of the contrast of sounds against frames and of
# frames against sounds.
_FIRST_EPOCHS, _FIRST_WEIGHT = 10, 500.0
_WEIGHTS = (5.0, 2.0, 1.5)


class FeatureAdapter(nn.Module):
    """A bottleneck without biases on embeddings x: r A(x) + (1 - r) x."""

    def __init__(self, size: int, reduction: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(size, size // reduction, bias=False)
        self.up = nn.Linear(size // reduction, size, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map vectors (..., P) to (..., P)."""
        adapted = F.relu(self.up(F.relu(self.down(embeddings))))
        return self.ratio * adapted + (1 - self.ratio) * embeddings


def fuse(visual_logits: Tensor, audio_logits: Tensor, fusion: str) -> Tensor:
    """
    Return the scores of both modalities' logits y_v and y_a, of any shape.

    Args:
        visual_logits, audio_logits: The logits.
        fusion: `"sum"` for 2 y_v + 2 y_a, `"contraharmonic"` for (y_v^2 + y_a^2) / (y_v + y_a). The latter has a pole
            where the logits cancel out.
    """
    if fusion == "sum":
        return 2 * visual_logits + 2 * audio_logits
    return (visual_logits.square() + audio_logits.square()) / (visual_logits + audio_logits)


def clip_mean(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Return the mean over real frames, (B, T, ...) -> (B, ...)."""
    if frame_mask is None:
        return values.mean(1)
    is_real = frame_mask.view(*frame_mask.shape, *[1] * (values.ndim - 2))
    total = torch.where(is_real, values, torch.zeros_like(values)).sum(1)
    return total / is_real.sum(1)


class MatchingHead(nn.Module):
    """
    Learned parts of the matching, and the prompts of the classes.

    Args:
        config: The configuration.
        num_prompts: Number of classes that have a prompt.
    """

    visual_prompt_ids: Tensor
    sound_prompt_ids: Tensor

    def __init__(self, config: CaeAvConfig, num_prompts: int):
        super().__init__()
        size = config.text_config.projection_dim
        sizes = (size, config.feature_adapter_reduction, config.feature_adapter_ratio)
        self.fusion = config.score_fusion
        self.context = nn.Parameter(torch.empty(config.num_context_tokens, config.text_config.hidden_size))
        self.visual_adapter = FeatureAdapter(*sizes)
        self.text_adapter = FeatureAdapter(*sizes)
        self.contrast = nn.Linear(size, size)
        for name in ("visual_prompt_ids", "sound_prompt_ids"):
            self.register_buffer(name, torch.zeros(num_prompts, PROMPT_LENGTH, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # CoOp's initial value, independent of any words.
        nn.init.normal_(self.context, std=0.02)

    def forward(
        self, visual: Tensor, audio: Tensor, texts: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            visual, audio: (..., P) embeddings of frames and sounds.
            texts: (K, P) embeddings of the classes by CLIP and by CLAP.
            scales: `logit_scale` of CLIP, whose exponential counts, and of CLAP, which the authors' code uses as it
                is stored.

        Returns:
            (..., K) logits of both, and the adapted visual embeddings (..., P).
        """
        visual = self.visual_adapter(visual)
        seen, heard = self.text_adapter(texts[0]), texts[1]
        visual_logits = scales[0].exp() * _cosines(visual, seen)
        audio_logits = scales[1] * _cosines(audio, heard)
        return visual_logits, audio_logits, visual

    def contrast_losses(
        self, visual: Tensor, audio: Tensor, frame_mask: Tensor | None, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Return the contrast of each clip's sound against the pictures of all clips of the batch, over all processes,
        and of each clip's picture against the sounds.

        Args:
            visual, audio: (B, T, P) adapted visual embeddings, and embeddings of the sound.
            frame_mask: (B, T), true for real frames.
            scale: CLIP's `logit_scale`.
        """
        own = [clip_mean(values, frame_mask) for values in (visual, self.contrast(audio))]
        own = [F.normalize(at_least_float32(values), dim=-1) for values in own]
        gathered = [gather_rows(values) for values in own]
        if not contributes():
            own = [values[:0] for values in own]
        parts, place = gathered[0]
        target = sum(len(part) for part in parts[:place]) + torch.arange(len(own[0]), device=visual.device)
        losses = []
        for values, (others, _) in zip(reversed(own), gathered, strict=True):
            logits = scale.exp() * values @ torch.cat(others).T
            losses.append(_mean_cross_entropy(logits, target))
        return losses[0], losses[1]


def classification_loss(scores: Tensor, labels: Tensor, frame_mask: Tensor | None) -> Tensor:
    """
    Return the cross-entropy of each frame, or of each clip's mean scores.

    Args:
        scores: (B, T, K).
        labels: (B, T), -100 for frames that do not count, or (B,).
        frame_mask: (B, T), true for real frames.
    """
    if labels.ndim == 1:
        return _mean_cross_entropy(clip_mean(scores, frame_mask), labels)
    if frame_mask is not None:
        labels = labels.masked_fill(~frame_mask, IGNORED_LABEL)
    return _mean_cross_entropy(scores.flatten(0, 1), labels.flatten())


def loss_weights(losses: Tensor, epoch: int, kind: str) -> Tensor:
    """
    Return the weights of the classification and the two contrast losses.

    Args:
        losses: (3,) the losses.
        epoch: Number of the epoch, from 1.
        kind: `"fixed"`, or `"adaptive"`: L_k / (epoch + sum of L) + 1 / epoch, through which gradients flow.
    """
    if kind == "adaptive":
        return losses / (epoch + losses.sum()) + 1 / epoch
    first = _FIRST_WEIGHT if epoch <= _FIRST_EPOCHS else _WEIGHTS[0]
    return losses.new_tensor([first, *_WEIGHTS[1:]])


def _cosines(features: Tensor, texts: Tensor) -> Tensor:
    return F.normalize(features, dim=-1) @ F.normalize(texts.to(features.dtype), dim=-1).T


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return batch_mean(total, (labels != IGNORED_LABEL).sum())
