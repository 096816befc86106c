"""The light losses that keep modalities and captions aligned (Section III-E, Eq. 22 to 25)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ..configuration_cae_av import CaeAvConfig


class AlignmentProjections(nn.Module):
    """Layer norm and linear map of each modality and each caption into one space, and InfoNCE's temperature."""

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        self.initial_temperature = config.contrastive_temperature

        def projection(width: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.projection_dim))

        self.visual = projection(config.visual_hidden_size)
        self.audio = projection(config.audio_hidden_size)
        self.visual_caption = projection(config.visual_hidden_size)
        self.audio_caption = projection(config.audio_hidden_size)
        self.temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.temperature, self.initial_temperature)


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_rows(rows: Tensor) -> list[Tensor]:
    """
    The rows (n, ...) of every process, this one's first; their number may differ. Gradients flow to all of them.
    """
    if not is_distributed():
        return [rows]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    longest = max(int(n) for n in counts)
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, longest - len(rows)))
    parts = [part[: int(n)] for part, n in zip(all_gather(padded), counts, strict=True)]
    return [parts.pop(torch.distributed.get_rank()), *parts]


def caption_contrastive_loss(frames: Tensor, captions: Tensor, clip: Tensor, temperature: Tensor) -> Tensor:
    """
    InfoNCE between frames and captions, both ways (Eq. 22): a frame's caption is its positive, captions and frames of
    other clips, on all processes, are the negatives, and other frames of the same clip are neither.

    Args:
        frames: (N, D) projections of the frames.
        captions: (B, D) projections of the captions.
        clip: (N,) the caption of each frame.
        temperature: Scalar.

    Returns:
        Mean over the N frames; 0 where there is no other clip, or no frame.
    """
    frames = F.normalize(frames.float(), dim=-1)
    captions = F.normalize(captions.float(), dim=-1)
    caption_parts = gather_rows(captions)
    all_captions = torch.cat(caption_parts)
    all_frames = torch.cat(gather_rows(frames))
    firsts = itertools.accumulate((len(part) for part in caption_parts), initial=0)
    all_clips = torch.cat([part + first for part, first in zip(gather_rows(clip), firsts, strict=False)])
    if not len(frames):
        # Still a function of every input, so that all processes take part in the backward pass.
        return 0.0 * (all_frames.sum() + all_captions.sum() + temperature)
    temperature = temperature.float().clamp_min(0.01)
    positive = (frames * captions[clip]).sum(-1) / temperature

    # Every frame carries its clip's caption, so another clip's caption counts once for each of its frames.
    frames_per_clip = all_clips.bincount(minlength=len(all_captions))
    to_captions = frames @ all_captions.T / temperature + frames_per_clip.clamp_min(1).log()
    no_negative = (frames_per_clip == 0) | F.one_hot(clip, len(all_captions)).bool()
    to_captions = to_captions.masked_fill(no_negative, -torch.inf)
    to_frames = captions @ all_frames.T / temperature
    same_clip = all_clips == torch.arange(len(captions), device=clip.device)[:, None]
    to_frames = to_frames.masked_fill(same_clip, -torch.inf)[clip]
    losses = [
        torch.logsumexp(torch.cat([positive[:, None], negatives], dim=1), dim=1) - positive
        for negatives in (to_captions, to_frames)
    ]
    return torch.stack(losses).mean()


def modality_alignment_loss(visual: Tensor, audio: Tensor) -> Tensor:
    """1 - mean cosine of the visual and audio projections (N, D) of the same frames (Eq. 23)."""
    return 1 - F.cosine_similarity(visual.float(), audio.float(), dim=-1).mean()


def selection_entropy_loss(visual_log_probs: Tensor, audio_log_probs: Tensor, sign: str) -> Tensor:
    """
    Entropy of the selection distributions, mean over frames, summed over the modalities (Eq. 24).

    Args:
        visual_log_probs, audio_log_probs: (N, L) log-probabilities over a frame's tokens.
        sign: `"as_printed"` gives minus the entropy, `"sharpen"` the entropy.
    """
    terms = [-(log_p.exp() * log_p).sum() / max(1, len(log_p)) for log_p in (visual_log_probs, audio_log_probs)]
    entropy = torch.stack(terms).sum()
    return -entropy if sign == "as_printed" else entropy
