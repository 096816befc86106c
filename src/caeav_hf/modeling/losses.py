"""Auxiliary losses that align modalities and captions (Section III-E, Eq. 22 to 25)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from .collectives import at_least_float32, batch_mean, contributes, gather_rows


class AlignmentProjections(nn.Module):
    """Projects each modality and each caption into one space (layer norm, linear); holds InfoNCE's temperature."""

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


def caption_contrastive_loss(
    frames: Tensor, captions: Tensor, clip: Tensor, temperature: Tensor, both_ways: bool = False
) -> Tensor:
    """
    Return InfoNCE of frames against captions (Eq. 22): a frame's caption is its positive, the captions of the frames
    of other clips, on all processes, are the negatives.

    Args:
        frames: (N, D) projections of the frames.
        captions: (B, D) projections of the captions.
        clip: (N,) index of each frame's caption.
        temperature: Scalar.
        both_ways: Average with the loss of captions against frames, as the authors' code does. Its negatives are the
            frames of other clips; other frames of the same clip are left out.

    Returns:
        Mean over the frames of all processes; 0 without another clip or without frames.
    """
    if not contributes():
        frames, captions, clip = frames[:0], captions[:0], clip[:0]
    frames = F.normalize(at_least_float32(frames), dim=-1)
    captions = F.normalize(at_least_float32(captions), dim=-1)
    caption_parts, place = gather_rows(captions)
    first = sum(len(part) for part in caption_parts[:place])
    all_captions = torch.cat(caption_parts)
    # Gathered only where used: every gather is also a collective in the backward pass.
    all_frames = torch.cat(gather_rows(frames)[0]) if both_ways else frames
    all_clips = torch.cat(gather_rows(clip + first)[0])
    temperature = at_least_float32(temperature).clamp_min(0.01)
    if not len(frames):
        # Still depends on every input, so that this process takes part in the collectives of the backward pass.
        return batch_mean(0.0 * (all_frames.sum() + all_captions.sum() + temperature), 0)
    positive = (frames * captions[clip]).sum(-1) / temperature

    # Every frame comes with its clip's caption, so another clip's caption counts once per frame of that clip: adding
    # log(count) to its logit is the same as repeating it.
    frames_per_clip = F.one_hot(all_clips, len(all_captions)).sum(0)
    to_captions = frames @ all_captions.T / temperature + frames_per_clip.clamp_min(1).to(frames.dtype).log()
    no_negative = (frames_per_clip == 0) | F.one_hot(clip + first, len(all_captions)).bool()
    to_captions = to_captions.masked_fill(no_negative, -torch.inf)
    directions = [to_captions]
    if both_ways:
        to_frames = captions @ all_frames.T / temperature
        same_clip = all_clips == first + torch.arange(len(captions), device=clip.device)[:, None]
        directions.append(to_frames.masked_fill(same_clip, -torch.inf)[clip])
    losses = [
        torch.logsumexp(torch.cat([positive[:, None], negatives], dim=1), dim=1) - positive for negatives in directions
    ]
    return batch_mean(torch.stack(losses).mean(0).sum(), len(frames))


def modality_alignment_loss(visual: Tensor, audio: Tensor) -> Tensor:
    """Return 1 - mean cosine of the visual and audio projections (N, D) of the same frames (Eq. 23)."""
    distance = 1 - F.cosine_similarity(at_least_float32(visual), at_least_float32(audio), dim=-1)
    return batch_mean(distance.sum(), len(distance))


def selection_entropy_loss(visual_log_probs: Tensor, audio_log_probs: Tensor, sign: str) -> Tensor:
    """
    Return the entropy of the selection distributions, mean over frames, summed over the modalities (Eq. 24).

    Args:
        visual_log_probs, audio_log_probs: (N, L) log-probabilities over a frame's tokens.
        sign: `"as_printed"` gives minus the entropy, `"sharpen"` the entropy.
    """
    total = torch.stack([-(log_p.exp() * log_p).sum() for log_p in (visual_log_probs, audio_log_probs)]).sum()
    entropy = batch_mean(total, len(visual_log_probs))
    return -entropy if sign == "as_printed" else entropy
