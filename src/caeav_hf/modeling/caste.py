"""
CASTE: cross-modal agreement steers spatial against temporal enrichment (Section III-B, Eq. 1 to 9).

Where sound and picture of a frame agree, its own tokens are a good context; where they disagree, its neighbours in
time are a better one. A gate weighs the two, and only the most salient tokens are enriched.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from ..towers.linear import linear
from ..towers.recompute import recomputed
from .frames import FrameLayout


def num_kept(config: CaeAvConfig, num_tokens: int) -> int:
    """Return K, the number of tokens per frame that are enriched (Eq. 9)."""
    if config.is_official:
        return max(1, math.floor(config.topk_ratio * num_tokens))
    return math.ceil(config.topk_ratio * num_tokens)


def top_tokens(states: Tensor, kept: int) -> Tensor:
    """Return the indices (N, K) of the K tokens of (N, L, C) with the largest squared L2 norm."""
    return states.detach().square().sum(-1).topk(kept, dim=-1).indices


def tokens_at(states: Tensor, selected: Tensor) -> Tensor:
    """Return the tokens (N, K, C) of (N, L, C) at `selected` (N, K)."""
    rows = selected + states.shape[1] * torch.arange(states.shape[0], device=states.device)[:, None]
    # Unlike `gather`, this does not store all tokens for the backward pass.
    return states.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, selected.shape)


def keep_only(states: Tensor, selected: Tensor) -> Tensor:
    """Set every token of (N, L, C) to 0 except those at `selected` (N, K)."""
    mask = states.new_zeros(states.shape[:2]).scatter(1, selected, 1.0)
    return states * mask[..., None]


class TemporalConv(nn.Module):
    """Depthwise convolution (kernel 3, zero padding) along time at each token position, then pointwise (Eq. 7)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.depthwise = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, padding=1, groups=hidden_size)
        self.pointwise = nn.Linear(hidden_size, hidden_size)

    def mix(self, states: Tensor, frames: FrameLayout) -> Tensor:
        """Apply the depthwise part, (N, L, C) to (N, L, C)."""
        # Three scaled copies, shifted by a frame: the layout stays (frames, tokens, channels) throughout.
        past, present, future = self.depthwise.weight.squeeze(1).unbind(-1)
        grid = frames.to_grid(states)
        assert self.depthwise.bias is not None
        mixed = torch.addcmul(self.depthwise.bias, grid, present)
        if torch.compiler.is_exporting():
            # Slices of a padded grid export for any number of frames; `grid[:, :-1]` would specialize on length 1.
            padded = F.pad(grid, (0, 0, 0, 0, 1, 1))
            mixed = mixed + padded[:, :-2] * past + padded[:, 2:] * future
        elif frames.num_frames > 1:
            before = F.pad(grid[:, :-1] * past, (0, 0, 0, 0, 1, 0))
            after = F.pad(grid[:, 1:] * future, (0, 0, 0, 0, 0, 1))
            mixed = mixed + before + after
        return frames.to_list(mixed)

    def forward(self, states: Tensor, frames: FrameLayout) -> Tensor:
        return self.pointwise(self.mix(states, frames))


class AgreementGate(nn.Module):
    """
    Weighs spatial against temporal enrichment by how much the modalities agree (Eq. 1 to 4).

    Means over tokens are projected to `gate_dim`; their cosine g pushes the logits of an MLP apart: + g for spatial,
    - g for temporal.
    """

    def __init__(self, config: CaeAvConfig, hidden_size: int, other_size: int):
        super().__init__()
        self.stream_projection = nn.Linear(hidden_size, config.gate_dim)
        self.other_projection = nn.Linear(other_size, config.gate_dim)
        self.hidden = nn.Linear(4 * config.gate_dim, config.gate_dim // 2)
        self.logits = nn.Linear(config.gate_dim // 2, 2)

    def forward(self, states: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """
        (N, L, C), (N, L', C') -> weights (N, 2), spatial first, and the projections (2, N, D) of both modalities,
        stream first, whose cosine is the agreement (Eq. 1).
        """
        stream_mean = self.stream_projection(states.mean(1))
        other_mean = self.other_projection(other.mean(1))
        agreement = F.cosine_similarity(stream_mean, other_mean, dim=-1)
        features = torch.cat([stream_mean, other_mean, stream_mean - other_mean, stream_mean * other_mean], dim=-1)
        logits = self.logits(F.relu(self.hidden(features)))
        logits = logits + torch.stack([agreement, -agreement], dim=-1)
        return logits.softmax(-1), torch.stack([stream_mean, other_mean])


class Enrichment(nn.Module):
    """Base class of both enrichments: adds an enrichment to the tokens (Eq. 6, 8)."""

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__()
        self.is_official = config.is_official
        self.norm = nn.LayerNorm(hidden_size)
        self.gamma = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)

    def forward(self, states: Tensor, enrichment: Tensor) -> Tensor:
        """Add their enrichment (N, K, C) to tokens (N, K, C)."""
        if self.is_official:
            return states + self.gamma * self.norm(enrichment)
        return self.norm(states + self.gamma * enrichment)


class SpatialEnrichment(Enrichment):
    """
    Separable attention within a frame (Eq. 5, 6): gated keys are summed to one context, which scales every value.

    The key projection is linear, so the tokens are summed first and projected once per frame, not once per token.
    """

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        self.gate_projection = nn.Linear(hidden_size, 1)
        self.key_projection = nn.Linear(hidden_size, hidden_size)
        self.value_projection = nn.Linear(hidden_size, hidden_size)
        self.output_projection = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.gate_projection.weight, std=0.001)
        nn.init.zeros_(self.gate_projection.bias)
        if not self.is_official:
            # In LN(x + gamma f(x)) nothing normalizes f(x), so these keep the default initialization of linear maps.
            return
        for module in (self.key_projection, self.value_projection, self.output_projection):
            nn.init.normal_(module.weight, std=0.001)
            nn.init.zeros_(module.bias)

    def context(self, states: Tensor) -> Tensor:
        """Sum the gated keys of all tokens to the context (N, 1, C) of each frame."""
        scores = self.gate_projection(states)
        gate = scores.softmax(1) if self.is_official else scores.sigmoid()
        summed = gate.transpose(1, 2) @ states
        return linear(summed, self.key_projection.weight) + gate.sum(1, keepdim=True) * self.key_projection.bias

    def enrichment(self, states: Tensor, context: Tensor) -> Tensor:
        """Return the enrichment of tokens (N, K, C) by their frame's context (N, 1, C)."""
        return self.output_projection(self.value_projection(states) * context)


class TemporalEnrichment(Enrichment):
    """Convolution along time at each token position (Eq. 7, 8)."""

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__(config, hidden_size)
        self.conv = TemporalConv(hidden_size)
        self.reset_parameters()

    def enrichment(self, mixed: Tensor) -> Tensor:
        """Return the enrichment (N, K, C) of tokens from their depthwise mix along time (N, K, C)."""
        return self.conv.pointwise(mixed)


class CASTE(nn.Module):
    """
    Enrichment of one stream; the visual and the audio stream have a module each.

    Args:
        config: Formulation, gate width and share of enriched tokens.
        hidden_size: Channels C of the stream.
        other_size: Channels C' of the other modality.
    """

    def __init__(self, config: CaeAvConfig, hidden_size: int, other_size: int):
        super().__init__()
        self.config = config
        self.agreement_gate = AgreementGate(config, hidden_size, other_size)
        self.spatial = SpatialEnrichment(config, hidden_size)
        self.temporal = TemporalEnrichment(config, hidden_size)
        self.gamma = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)

    def forward(self, states: Tensor, other: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            states: (N, L, C), the stream.
            other: (N, L', C'), the other modality.
            frames: Which clips the N frames belong to.

        Returns:
            The term to add to the stream (N, L, C), the weights (N, 2) of spatial and temporal enrichment, and the
            gate's projections (2, N, D) of the stream and of the other modality.
        """
        weights, projections = self.agreement_gate(states, other)
        context = self.spatial.context(states)
        mixed = self.temporal.conv.mix(states, frames)
        kept = num_kept(self.config, states.shape[1])
        if self.config.is_official:
            selected = top_tokens(states, kept)
        else:
            enriched = self.enrich(states, context, mixed, weights)
            selected = top_tokens(enriched, kept)
            if not torch.is_grad_enabled() or torch.compiler.is_exporting():
                return self.gamma * keep_only(enriched, selected), weights, projections
            # Other tokens have no gradient: only the selected ones are enriched with what the backward pass needs.
            del enriched
        enriched = self.enrich(tokens_at(states, selected), context, tokens_at(mixed, selected), weights)
        enriched = self.gamma * enriched
        index = selected[..., None].expand(-1, -1, states.shape[2])
        added = enriched.new_zeros(states.shape).scatter(1, index, enriched)
        return added, weights, projections

    def enrich(self, states: Tensor, context: Tensor, mixed: Tensor, weights: Tensor) -> Tensor:
        """Add both enrichments of tokens (N, K, C), weighed per frame by (N, 2) (Eq. 9)."""

        def weigh(states: Tensor, spatial: Tensor, temporal: Tensor, weights: Tensor) -> Tensor:
            spatial_weight, temporal_weight = weights[:, None, :1], weights[:, None, 1:]
            return spatial_weight * self.spatial(states, spatial) + temporal_weight * self.temporal(states, temporal)

        spatial = self.spatial.enrichment(states, context)
        return recomputed(weigh, states, spatial, self.temporal.enrichment(mixed), weights)
