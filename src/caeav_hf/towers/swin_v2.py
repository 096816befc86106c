"""Swin Transformer V2, by timm: the tower that reads frames, and filter banks as images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor

from ..configuration_cae_av import CaeAvVisionConfig
from ..errors import CaeAvError
from .base import FrozenBlock
from .frozen import FrozenConstant, is_adapted
from .windows import window_bias, windowed_attention


class SwinV2Tower(SwinTransformerV2):
    """timm's Swin Transformer V2 under timm's own parameter names; tokens are row-major, (N, H * W, C)."""

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
        self._biases: dict[tuple[int, int], FrozenConstant] = {}

    def forget(self) -> None:
        """Drop what was computed from the weights and kept."""
        self._biases.clear()

    def stage_sizes(self) -> list[tuple[int, int]]:
        return [(h * w, self.embed_dim * 2**stage) for stage, (h, w) in enumerate(self.stage_grids())]

    def stage_grids(self) -> list[tuple[int, int]]:
        return [layer.output_resolution for layer in self.layers]

    def stage_heads(self) -> list[int]:
        return [layer.blocks[0].attn.num_heads for layer in self.layers]

    def embed(self, inputs: Tensor) -> Tensor:
        """(N, 3, H, W) pixels -> (N, L, C)."""
        size = self.patch_embed.img_size
        if inputs.shape[-2:] != size:
            raise CaeAvError(
                f"`pixel_values_videos` must have frames of {size[0]}x{size[1]} pixels, "
                f"got {inputs.shape[-2]}x{inputs.shape[-1]}"
            )
        return self.patch_embed(inputs).flatten(1, 2)

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        if stage == 0:
            return tokens
        height, width = self.layers[stage - 1].output_resolution
        return self.layers[stage].downsample(tokens.unflatten(1, (height, width))).flatten(1, 2)

    def blocks(self, stage: int) -> list[FrozenBlock]:
        def make(index: int, block: SwinTransformerV2Block) -> FrozenBlock:
            return FrozenBlock(
                attention=lambda tokens: block.norm1(self._attention(stage, index, block, tokens)),
                feed_forward=lambda tokens: block.norm2(block.mlp(tokens)),
            )

        return [make(index, block) for index, block in enumerate(self.layers[stage].blocks)]

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def keep_constants(self, dtype: torch.dtype) -> None:
        """Compute what attention in `dtype` adds to its scores, which needs nothing but weights."""
        for stage, layer in enumerate(self.layers):
            for index, block in enumerate(layer.blocks):
                self._bias(stage, index, block, dtype)

    def _bias(self, stage: int, index: int, block: SwinTransformerV2Block, dtype: torch.dtype) -> Tensor:
        attention = block.attn

        def compute() -> Tensor:
            table = attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads)
            grid = self.layers[stage].output_resolution
            entries = attention.relative_position_index
            return window_bias(16 * table.sigmoid(), entries, grid, block.window_size, block.shift_size)

        constant = self._biases.setdefault((stage, index), FrozenConstant())
        is_constant = not is_adapted(attention.cpb_mlp)
        return constant.get(list(attention.cpb_mlp.parameters()), dtype, compute, is_constant)

    def _attention(self, stage: int, index: int, block: SwinTransformerV2Block, tokens: Tensor) -> Tensor:
        attention = block.attn
        zeros = torch.zeros_like(attention.q_bias)
        qkv_bias = torch.cat([attention.q_bias, zeros, attention.v_bias])

        def project(image: Tensor) -> Tensor:
            # Through the module, which may be more than its weight.
            projected = attention.qkv(image)
            return projected + qkv_bias.to(projected.dtype)

        def prepare(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            scale = attention.logit_scale.clamp(max=4.605170185988092).exp()  # log(100), as timm clamps it
            scale = scale.repeat(query.shape[1] // attention.num_heads, 1, 1).to(query.dtype)
            return F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)

        attended = windowed_attention(
            tokens,
            self.layers[stage].output_resolution,
            block.window_size,
            block.shift_size,
            project=project,
            num_heads=attention.num_heads,
            bias=lambda dtype: self._bias(stage, index, block, dtype),
            prepare=prepare,
            scale=1.0,
            roll_first=True,
        )
        return attention.proj(attended)


@dataclass(frozen=True)
class SpectrogramReader:
    """A visual tower that reads filter banks as images of three equal channels (Table II, "shared")."""

    tower: SwinV2Tower

    def stage_sizes(self) -> list[tuple[int, int]]:
        return self.tower.stage_sizes()

    def stage_grids(self) -> list[tuple[int, int]]:
        return self.tower.stage_grids()

    def stage_heads(self) -> list[int]:
        return self.tower.stage_heads()

    def embed(self, inputs: Tensor) -> Tensor:
        """(N, 1, frames, mel bins) -> (N, L, C)."""
        size = self.tower.patch_embed.img_size
        if inputs.shape[1:] != (1, *size):
            raise CaeAvError(f"`input_features` must end in {(1, *size)}, got {tuple(inputs.shape[1:])}")
        return self.tower.embed(inputs.expand(-1, 3, -1, -1))

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        return self.tower.enter_stage(stage, tokens)

    def blocks(self, stage: int) -> list[FrozenBlock]:
        return self.tower.blocks(stage)

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.tower.final_norm(tokens)
