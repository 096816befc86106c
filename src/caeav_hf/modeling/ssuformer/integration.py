"""
Tokens of both streams and the multi-modality integration (Eq. 2, 3): attention within frames and along time, then
between picture and sound.
"""

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...configuration_ssuformer import SsuFormerConfig
from ..attention import MultiHeadAttention
from ..frames import FrameLayout
from .positions import NormalEmbedding, TimeEmbedding, sine_positions


class TokenGenerator(nn.Module):
    """
    Tokens of the picture, and queries of the sound ("query token generator") [fig].

    Picture: the coarsest map through a 1x1 convolution, with 2-D sine and learned time embeddings. Sound: learned
    queries, 300 [avsf], plus a linear map of the second's sound and a time embedding [ours].

    Args:
        config: The configuration.
        visual_size, audio_size: Channels of the coarsest map and of the sound.
    """

    def __init__(self, config: SsuFormerConfig, visual_size: int, audio_size: int):
        super().__init__()
        size, std = config.hidden_size, config.initializer_range
        self.visual_projection = nn.Conv2d(visual_size, size, 1)
        self.audio_projection = nn.Linear(audio_size, size)
        self.queries = NormalEmbedding(config.num_queries, size, std)
        self.visual_time = TimeEmbedding(config.num_frames, size, std)
        self.audio_time = TimeEmbedding(config.num_frames, size, std)

    def forward(self, maps: Tensor, sound: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) and (N, C_a) -> tokens v (N, H * W, D) and queries q (N, Q, D)."""
        moments = frames.moment_of_frame(maps.device)
        visual = self.visual_projection(maps).flatten(2).transpose(1, 2)
        visual = visual + sine_positions(maps, visual.shape[-1]).to(visual.dtype)
        visual = visual + self.visual_time(moments)[:, None]
        queries = (self.audio_projection(sound) + self.audio_time(moments))[:, None] + self.queries.weight
        return visual, queries


def attend_along_time(attention: MultiHeadAttention, tokens: Tensor, frames: FrameLayout) -> Tensor:
    """Return self-attention of each token (N, L, C) over the frames of its clip, (N, L, C)."""
    lines = frames.to_grid(tokens).transpose(1, 2).flatten(0, 1)  # (B * L, T, C)
    mask = frames.attention_mask()
    if mask is not None:
        mask = mask.repeat_interleave(tokens.shape[1], dim=0)
    attended = attention(lines, lines, mask)
    return frames.to_list(attended.unflatten(0, (frames.batch_size, tokens.shape[1])).transpose(1, 2))


class StreamAttention(nn.Module):
    """
    Post-norm self-attention of one stream, within the frame and then along time with the same three matrices, which
    are "shared across both spatial and temporal perceptions" [p]; the norms are separate [ours].
    """

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        size = config.hidden_size
        self.attention = MultiHeadAttention(config, size, config.num_attention_heads, config.dropout)
        self.spatial_norm = nn.LayerNorm(size)
        self.temporal_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, frames: FrameLayout) -> Tensor:
        tokens = self.spatial_norm(tokens + self.dropout(self.attention(tokens, tokens)))
        return self.temporal_norm(tokens + self.dropout(attend_along_time(self.attention, tokens, frames)))


class FeedForward(nn.Module):
    """Post-norm feed-forward: LN(x + linear(activation(linear(x)))) [ours]."""

    def __init__(self, config: SsuFormerConfig, activation: nn.Module):
        super().__init__()
        self.hidden = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.output(self.dropout(self.activation(self.hidden(tokens))))
        return self.norm(tokens + self.dropout(hidden))


class IntegrationLayer(GradientCheckpointingLayer):
    """
    A self-attention for each stream, two cross-attentions [fig], both reading the tokens from before, and a
    feed-forward for each stream [ours].
    """

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        size = config.hidden_size
        self.visual_attention = StreamAttention(config)
        self.audio_attention = StreamAttention(config)
        self.visual_cross_attention = MultiHeadAttention(config, size, config.num_attention_heads, config.dropout)
        self.audio_cross_attention = MultiHeadAttention(config, size, config.num_attention_heads, config.dropout)
        self.visual_cross_norm = nn.LayerNorm(size)
        self.audio_cross_norm = nn.LayerNorm(size)
        self.visual_feed_forward = FeedForward(config, nn.GELU())
        self.audio_feed_forward = FeedForward(config, nn.GELU())
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, visual: Tensor, queries: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """Update tokens (N, L, D) and queries (N, Q, D)."""
        visual = self.visual_attention(visual, frames)
        queries = self.audio_attention(queries, frames)
        seen = self.dropout(self.visual_cross_attention(visual, queries))
        heard = self.dropout(self.audio_cross_attention(queries, visual))
        visual = self.visual_feed_forward(self.visual_cross_norm(visual + seen))
        queries = self.audio_feed_forward(self.audio_cross_norm(queries + heard))
        return visual, queries


class Integration(nn.Module):
    """The layers of the integration, 3 [p], and the sum of both streams: F = q + mean of v over tokens [fig, ours]."""

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(IntegrationLayer(config) for _ in range(config.num_integration_layers))

    def forward(self, visual: Tensor, queries: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """v (N, L, D) and q (N, Q, D) -> v and F (N, Q, D)."""
        for layer in self.layers:
            visual, queries = layer(visual, queries, frames)
        return visual, queries + visual.mean(1, keepdim=True)
