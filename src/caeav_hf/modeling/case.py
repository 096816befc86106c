"""
CASE: caption-aligned saliency enrichment of the last stage (Section III-D, Eq. 17 to 21).

The tokens of a clip's frames attend to its captions, and the result is injected into the most salient tokens, the more
the better frame and caption agree.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_cae_av import CaeAvConfig
from .attention import MultiHeadAttention
from .captions import Captions
from .caste import TemporalConv, keep_only, num_kept, top_tokens
from .collectives import at_least_float32
from .frames import FrameLayout


class AttentionLayer(GradientCheckpointingLayer):
    """LN(q + dropout(MHA(q, k)))."""

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__()
        self.attention = MultiHeadAttention(config, hidden_size, config.case_num_heads, config.attention_dropout)
        self.dropout = nn.Dropout(config.branch_dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        key_mask = None if mask is None else mask[:, None, None, :]
        return self.norm(queries + self.dropout(self.attention(queries, keys, key_mask)))


class FeedForwardLayer(GradientCheckpointingLayer):
    """LN(x + dropout(FFN(x))), hidden width 2 C, ReLU."""

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(2 * hidden_size, hidden_size)
        self.inner_dropout = nn.Dropout(config.attention_dropout)
        self.dropout = nn.Dropout(config.branch_dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        hidden = self.inner_dropout(F.relu(self.hidden(states)))
        return self.norm(states + self.dropout(self.output(hidden)))


@dataclass
class CASEOutput:
    """
    Output of [`CASE`].

    Attributes:
        visual, audio: (N, L, C) enriched tokens.
        visual_caption, audio_caption: (B, M, C) captions that the frames were compared with (Eq. 19): the mapper's
            output, in the official formulation after their own layers.
        visual_agreement, audio_agreement: (N,) cosine between frame and caption (Eq. 19).
        visual_selected, audio_selected: (N, K) indices of the tokens that were enriched.
        visual_saliency, audio_saliency: (N, L) log-probabilities of the selection distribution.
    """

    visual: Tensor
    audio: Tensor
    visual_caption: Tensor
    audio_caption: Tensor
    visual_agreement: Tensor
    audio_agreement: Tensor
    visual_selected: Tensor
    audio_selected: Tensor
    visual_saliency: Tensor
    audio_saliency: Tensor


def masked_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (B, C) over the tokens of (B, N, C) where `mask` (B, N) is true."""
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)


class CASEStream(nn.Module):
    """
    Layers of one modality: self-attention, attention to the caption and to the other modality, feed-forward, temporal
    convolution, injection.

    The authors' code passes the caption through a feed-forward layer before comparing frames with it, and has a norm
    after the temporal convolution. With that norm all tokens have nearly the same saliency, so that rounding would
    decide the paper's Top-K: the paper formulation has neither layer.
    """

    def __init__(self, config: CaeAvConfig, hidden_size: int, other_size: int):
        super().__init__()
        self.config = config
        self.self_attention = AttentionLayer(config, hidden_size)
        self.caption_self_attention = AttentionLayer(config, hidden_size)
        self.caption_cross_attention = AttentionLayer(config, hidden_size)
        self.from_other = nn.Linear(other_size, hidden_size)
        self.other_cross_attention = AttentionLayer(config, hidden_size)
        self.feed_forward = FeedForwardLayer(config, hidden_size)
        self.caption_feed_forward = FeedForwardLayer(config, hidden_size) if config.is_official else None
        self.temporal_conv = TemporalConv(hidden_size)
        self.temporal_norm = nn.LayerNorm(hidden_size) if config.is_official else None
        self.norm = nn.LayerNorm(hidden_size)
        # The paper scales the injection (Eq. 20, 21); the authors' code has no such parameter.
        self.gamma = None if config.is_official else nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gamma is not None:
            nn.init.constant_(self.gamma, self.config.case_scale_init)

    def read_caption(self, states: Tensor, caption: Tensor, mask: Tensor | None, layout: FrameLayout) -> Tensor:
        """Let frame tokens (N, L, C) attend to their clip's caption (B, M, C); its keys are computed once per clip."""
        num_tokens = states.shape[1]
        grid = layout.to_grid(self.self_attention(states, states)).flatten(1, 2)
        read = self.caption_cross_attention(grid, caption, mask)
        return layout.to_list(read.unflatten(1, (layout.num_frames, num_tokens)))

    def along_time(self, states: Tensor, frames: FrameLayout) -> Tensor:
        """Compute v-bar (N, L, C) from tokens (N, L, C) that have attended to the caption and the other modality."""
        enriched = self.temporal_conv(self.feed_forward(states), frames)
        return enriched if self.temporal_norm is None else self.temporal_norm(enriched)

    def inject(
        self, states: Tensor, enriched: Tensor, agreement: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Add the enrichment to the most salient tokens.

        Args:
            states: (N, L, C), the tokens before CASE.
            enriched: (N, L, C), v-bar.
            agreement: (N,), cosine of frame and caption.
            temperature: Temperature of the selection distribution.

        Returns:
            Tokens (N, L, C), indices of the selected ones (N, K), and log-probabilities (N, L) of the selection.
        """
        saliency = at_least_float32(enriched.square().sum(-1))
        log_probs = (saliency / temperature).log_softmax(-1)
        kept = num_kept(self.config, states.shape[1])
        if self.gamma is not None:
            gate = agreement.sigmoid()[:, None, None]
            selected = top_tokens(enriched, kept)
            return states + self.gamma * keep_only(gate * self.norm(enriched), selected), selected, log_probs
        gate = agreement.detach().sigmoid()[:, None, None]
        if self.training:
            noise = -torch.empty_like(log_probs).exponential_().clamp_min(1e-9).log()
            probs = ((saliency + noise) / temperature).softmax(-1)
            weights, selected = probs.topk(kept, dim=-1)
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
        else:
            selected = top_tokens(enriched, kept)
            weights = torch.full(selected.shape, 1.0 / kept, device=states.device)
        weights = weights.to(states.dtype)
        share = states.new_zeros(states.shape[:2]).scatter(1, selected, weights)[..., None]
        return self.norm(states + gate * enriched * share + (1 - gate) * enriched), selected, log_probs


class CASE(nn.Module):
    """Both streams; each attends to the other's tokens from before that step (Eq. 17, 18)."""

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        self.visual_stream = CASEStream(config, config.visual_hidden_size, config.audio_hidden_size)
        self.audio_stream = CASEStream(config, config.audio_hidden_size, config.visual_hidden_size)
        self.selection_temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.selection_temperature)

    def forward(
        self, visual: Tensor, audio: Tensor, captions: Captions, frames: FrameLayout, caption_layout: FrameLayout
    ) -> CASEOutput:
        """
        Args:
            visual: (N, L_v, C_v) tokens of the last stage.
            audio: (N, L_a, C_a) tokens of the last stage.
            captions: Mapped captions, one row per clip.
            frames: Which clips the N frames belong to.
            caption_layout: Which captions the N frames belong to; `frames` itself if every clip has one.
        """
        v, a = self.visual_stream, self.audio_stream
        visual_mask, audio_mask = captions.visual_mask, captions.audio_mask
        visual_caption = v.caption_self_attention(captions.visual, captions.visual, visual_mask)
        audio_caption = a.caption_self_attention(captions.audio, captions.audio, audio_mask)
        visual_bar = v.read_caption(visual, visual_caption, visual_mask, caption_layout)
        audio_bar = a.read_caption(audio, audio_caption, audio_mask, caption_layout)
        visual_bar, audio_bar = (
            v.other_cross_attention(visual_bar, v.from_other(audio_bar)),
            a.other_cross_attention(audio_bar, a.from_other(visual_bar)),
        )
        visual_bar, audio_bar = v.along_time(visual_bar, frames), a.along_time(audio_bar, frames)
        if v.caption_feed_forward is None or a.caption_feed_forward is None:
            visual_caption, audio_caption = captions.visual, captions.audio
        else:
            visual_caption = v.caption_feed_forward(visual_caption)
            audio_caption = a.caption_feed_forward(audio_caption)

        def agreement(bar: Tensor, caption: Tensor, mask: Tensor | None) -> Tensor:
            clip = caption_layout.clip_of_frame(bar.device)
            return F.cosine_similarity(bar.mean(1), masked_mean(caption, mask)[clip], dim=-1)

        visual_agreement = agreement(visual_bar, visual_caption, visual_mask)
        audio_agreement = agreement(audio_bar, audio_caption, audio_mask)
        temperature = self.selection_temperature.clamp_min(0.01)
        new_visual, visual_selected, visual_saliency = v.inject(visual, visual_bar, visual_agreement, temperature)
        new_audio, audio_selected, audio_saliency = a.inject(audio, audio_bar, audio_agreement, temperature)
        if captions.present is not None:
            present = captions.present[caption_layout.clip_of_frame(visual.device)][:, None, None]
            new_visual = torch.where(present, new_visual, visual)
            new_audio = torch.where(present, new_audio, audio)
        return CASEOutput(
            visual=new_visual,
            audio=new_audio,
            visual_caption=visual_caption,
            audio_caption=audio_caption,
            visual_agreement=visual_agreement,
            audio_agreement=audio_agreement,
            visual_selected=visual_selected,
            audio_selected=audio_selected,
            visual_saliency=visual_saliency,
            audio_saliency=audio_saliency,
        )
