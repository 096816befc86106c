"""
The mask decoder, "MaskFormer-based" [p]: queries of the sound read the tower's maps, are multiplied with a pixel
embedding, and an MLP for each pixel makes one mask of the products [p, fig].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...configuration_ssuformer import SsuFormerConfig
from ...constants import IGNORED_LABEL
from ..attention import MultiHeadAttention
from ..collectives import at_least_float32, batch_mean
from .integration import FeedForward
from .positions import NormalEmbedding, sine_positions


class PixelDecoder(nn.Module):
    """
    A pyramid from coarse to fine, "reshaped and upsampled" [p]: 1x1 laterals with group norm, to which the enlarged
    coarser map is added before a 3x3 convolution, group norm and ReLU [ours]. The integrated tokens are the coarsest
    map.
    """

    def __init__(self, config: SsuFormerConfig, map_sizes: list[int]):
        super().__init__()
        size, groups = config.hidden_size, config.mask_norm_groups
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, size, 1, bias=False), nn.GroupNorm(groups, size))
            for channels in map_sizes
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(size, size, 3, padding=1, bias=False), nn.GroupNorm(groups, size), nn.ReLU())
            for _ in map_sizes
        )

    def forward(self, maps: list[Tensor], coarsest: Tensor) -> tuple[Tensor, list[Tensor]]:
        """
        Maps of strides 4, 8 and 16 (N, C, H, W) and the coarsest (N, D, H, W) -> pixel embedding P (N, D, H_4, W_4),
        and the laterals of the maps (N, D, H, W).
        """
        laterals = [lateral(one) for lateral, one in zip(self.laterals, maps, strict=True)]
        pixels = coarsest
        for lateral, output in zip(reversed(laterals), reversed(list(self.outputs)), strict=True):
            enlarged = F.interpolate(pixels, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            pixels = output(lateral + enlarged)
        return pixels, laterals


class MaskLayer(GradientCheckpointingLayer):
    """Post-norm layer of the queries: self-attention, cross-attention to the maps, feed-forward [ours]."""

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        size = config.hidden_size
        self.attention = MultiHeadAttention(config, size, config.num_attention_heads, config.dropout)
        self.attention_norm = nn.LayerNorm(size)
        self.cross_attention = MultiHeadAttention(config, size, config.num_attention_heads, config.dropout)
        self.cross_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(config, nn.ReLU())
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries (N, Q, D) and memory (N, K, D) -> (N, Q, D)."""
        queries = self.attention_norm(queries + self.dropout(self.attention(queries, queries)))
        queries = self.cross_norm(queries + self.dropout(self.cross_attention(queries, memory)))
        return self.feed_forward(queries)


class MaskDecoder(nn.Module):
    """
    Predicts one mask of all that is heard and seen in a frame.

    Six layers [avsf] in which the queries F attend to the laterals of strides 8 and 16 and to the integrated tokens,
    each with sine positions and a level embedding [ours]; a three-layer MLP E of them; the products E P / sqrt(D) of
    queries and pixels; and a 1x1 MLP from Q products to one logit [ours]. As a frame has one mask, no predictions are
    assigned to targets, and attention is not deformable, which is slow on CPUs [ours].

    Args:
        config: The configuration.
    """

    # Width of the two hidden layers of the MLP for each pixel [ours].
    product_size = 256

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        size = config.hidden_size
        self.mask_size = config.mask_size
        self.pixel_decoder = PixelDecoder(config, [stage.hidden_size for stage in config.visual_stages[:3]])
        self.level_embedding = NormalEmbedding(3, size, config.initializer_range)
        self.layers = nn.ModuleList(MaskLayer(config) for _ in range(config.num_mask_layers))
        self.embedding = nn.Sequential(
            *(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        )
        self.mask_head = nn.Sequential(
            *(nn.Conv2d(config.num_queries, self.product_size, 1), nn.ReLU()),
            *(nn.Conv2d(self.product_size, self.product_size, 1), nn.ReLU()),
            nn.Conv2d(self.product_size, 1, 1),
        )

    def forward(self, queries: Tensor, visual: Tensor, maps: list[Tensor]) -> Tensor:
        """
        F (N, Q, D), the integrated tokens v (N, L, D), and the tower's maps (N, C, H, W) of strides 4, 8, 16 and 32 ->
        logits (N, 1, S, S).
        """
        *maps, replaced = maps
        coarsest = visual.transpose(1, 2).unflatten(2, replaced.shape[-2:])
        pixels, laterals = self.pixel_decoder(maps, coarsest)
        levels = []
        for level, one in enumerate((*laterals[1:], coarsest)):
            tokens = one.flatten(2).transpose(1, 2)
            positions = sine_positions(one, tokens.shape[-1])
            levels.append(tokens + positions + self.level_embedding.weight[level])
        memory = torch.cat(levels, dim=1)
        for layer in self.layers:
            queries = layer(queries, memory)
        embedding = self.embedding(queries)
        products = torch.einsum("nqd,ndhw->nqhw", embedding, pixels) * embedding.shape[-1] ** -0.5
        logits = self.mask_head(products)
        return F.interpolate(logits, size=(self.mask_size, self.mask_size), mode="bilinear", align_corners=False)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Return the Dice loss of masks [p], mean over the annotated frames: 1 - (2 sum pm + 1) / (sum p^2 + sum m^2 + 1).

    With 1 in both sums [ours] it has a gradient on empty masks too, on which the usual form is constant.

    Args:
        logits: (N, 1, S, S).
        labels: (N, S, S), 1 for what sounds, 0 elsewhere, -100 in frames without annotation.
    """
    probabilities = at_least_float32(logits[:, 0]).sigmoid().flatten(1)
    targets = labels.flatten(1)
    annotated = targets[:, 0] != IGNORED_LABEL
    targets = targets.clamp_min(0).to(probabilities.dtype)
    overlap = (probabilities * targets).sum(1)
    areas = probabilities.square().sum(1) + targets.square().sum(1)
    losses = 1 - (2 * overlap + 1) / (areas + 1)
    return batch_mean((losses * annotated).sum(), annotated.sum())
