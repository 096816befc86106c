"""timm's Swin Transformer V2, the tower that reads frames, or filter banks as images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvVisionConfig
from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower, register_tower
from .frozen import FrozenConstant, is_adapted
from .windows import group_attention, relative_entries, window_bias, windowed_attention


@register_tower(CaeAvVisionConfig)
class SwinV2Tower(Tower, SwinTransformerV2):
    """timm's Swin Transformer V2 with timm's parameter names; tokens are in row-major order, (N, H * W, C)."""

    config: CaeAvVisionConfig
    layers: Any
    patch_embed: Any
    norm: Any

    def __init__(self, config: CaeAvVisionConfig):
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            num_classes=0,
            embed_dim=config.embed_dim,
            depths=tuple(config.depths),
            num_heads=tuple(config.num_heads),
            window_size=config.window_size,
            mlp_ratio=config.mlp_ratio,
            pretrained_window_sizes=tuple(config.pretrained_window_sizes),
            drop_path_rate=0.0,
        )
        self.config = config
        self._biases: dict[tuple[int, int, Grid], FrozenConstant] = {}

    def forget(self) -> None:
        """Drop cached values computed from the weights."""
        self._biases.clear()

    def embed(self, inputs: Tensor) -> Tensor:
        size = self.patch_embed.img_size
        if inputs.shape[-2:] != size:
            raise CaeAvError(
                f"`pixel_values_videos` must have frames of {size[0]}x{size[1]} pixels, "
                f"got {inputs.shape[-2]}x{inputs.shape[-1]}"
            )
        return self.patch_embed(inputs).flatten(1, 2)

    def embed_spectrogram(self, inputs: Tensor) -> Tensor:
        images = inputs.expand(-1, self.config.num_channels, -1, -1)
        if images.shape[-2:] == self.patch_embed.img_size:
            return self.embed(images)
        # Bypass timm's check of the image size; the embedding itself works at any size.
        return self.patch_embed.norm(self.patch_embed.proj(images).flatten(2).transpose(1, 2))

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if stage == 0:
            return tokens
        grid = grid or self.layers[stage - 1].output_resolution
        return self.layers[stage].downsample(tokens.unflatten(1, grid)).flatten(1, 2)

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        stage_grid = grid or self.layers[stage].output_resolution

        def make(index: int, block: SwinTransformerV2Block) -> FrozenBlock:
            return FrozenBlock(
                attention=lambda tokens: block.norm1(self._attention(stage, index, block, tokens, stage_grid)),
                feed_forward=lambda tokens: block.norm2(block.mlp(tokens)),
                group_attention=lambda groups, bias=None: block.norm1(self._group_attention(block, groups, bias)),
                position_bias=lambda positions: self._position_bias(block, positions),
            )

        return [make(index, block) for index, block in enumerate(self.layers[stage].blocks)]

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed.proj

    def keep_constants(self, dtype: torch.dtype, grids: Sequence[Grid] | None = None) -> None:
        for stage, layer in enumerate(self.layers):
            for index, block in enumerate(layer.blocks):
                self._bias(stage, index, block, grids[stage] if grids else layer.output_resolution, dtype)

    def _shift(self, stage: int, block: SwinTransformerV2Block, grid: Grid) -> Grid:
        """Return the cyclic shift of a block, which is 0 along a side that one window covers."""
        if grid == self.layers[stage].output_resolution or not any(block.target_shift_size):
            return block.shift_size
        height, width = (0 if g <= w else w // 2 for g, w in zip(grid, block.window_size, strict=True))
        return height, width

    def _bias(self, stage: int, index: int, block: SwinTransformerV2Block, grid: Grid, dtype: torch.dtype) -> Tensor:
        attention = block.attn

        def compute() -> Tensor:
            shift = self._shift(stage, block, grid)
            return window_bias(
                self._bias_table(block), attention.relative_position_index, grid, block.window_size, shift
            )

        constant = self._biases.setdefault((stage, index, grid), FrozenConstant())
        is_constant = not is_adapted(attention.cpb_mlp)
        return constant.get(list(attention.cpb_mlp.parameters()), dtype, compute, is_constant)

    def _bias_table(self, block: SwinTransformerV2Block) -> Tensor:
        """Return the bias of all relative positions in a window, (entries, heads)."""
        attention = block.attn
        table = attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads)
        return 16 * table.sigmoid()

    def _position_bias(self, block: SwinTransformerV2Block, positions: Tensor) -> Tensor:
        entries = relative_entries(positions, block.window_size)
        return self._bias_table(block)[entries].permute(2, 0, 1)

    @staticmethod
    def _project(block: SwinTransformerV2Block, tokens: Tensor) -> Tensor:
        attention = block.attn
        qkv_bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        # Calls the module rather than `F.linear`, since LoRA may wrap it.
        projected = attention.qkv(tokens)
        return projected + qkv_bias.to(projected.dtype)

    @staticmethod
    def _normalise(block: SwinTransformerV2Block, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise queries and keys for cosine attention and scale the queries; axis 1 is (windows *) heads."""
        attention = block.attn
        scale = attention.logit_scale.clamp(max=4.605170185988092).exp()  # log(100), as timm clamps it
        scale = scale.repeat(query.shape[1] // attention.num_heads, 1, 1).to(query.dtype)
        return F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)

    def _attention(self, stage: int, index: int, block: SwinTransformerV2Block, tokens: Tensor, grid: Grid) -> Tensor:
        attended = windowed_attention(
            tokens,
            grid,
            block.window_size,
            self._shift(stage, block, grid),
            project=partial(self._project, block),
            num_heads=block.attn.num_heads,
            bias=lambda dtype: self._bias(stage, index, block, grid, dtype),
            prepare=partial(self._normalise, block),
            scale=1.0,
            roll_first=True,
        )
        return block.attn.proj(attended)

    def _group_attention(self, block: SwinTransformerV2Block, groups: Tensor, bias: Tensor | None) -> Tensor:
        attended = group_attention(
            groups,
            project=partial(self._project, block),
            num_heads=block.attn.num_heads,
            bias=bias,
            prepare=partial(self._normalise, block),
            scale=1.0,
        )
        return block.attn.proj(attended)
