"""
The frozen towers as stages of blocks, a block being two residual branches: attention and feed-forward.

An interaction layer decides when each branch runs and on what, so the towers here hand out their blocks instead of
running them. What depends on frozen weights alone - position biases, attention masks - is computed once and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, window_partition
from torch import Tensor
from transformers import ClapAudioModel
from transformers.models.clap.modeling_clap import ClapAudioLayer

from ..configuration_cae_av import CaeAvAudioConfig, CaeAvVisionConfig
from ..errors import CaeAvError
from .frozen import FrozenConstant, is_adapted
from .recompute import recomputed


@dataclass(frozen=True)
class FrozenBlock:
    """
    One block of a tower. Both branches map tokens (N, L, C) to what is added to them, norms included.

    Attributes:
        attention: The attention branch.
        feed_forward: The feed-forward branch.
    """

    attention: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]

    def __call__(self, tokens: Tensor) -> Tensor:
        """The whole block."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class Tower(Protocol):
    """What the encoder asks of a backbone."""

    def stage_sizes(self) -> list[tuple[int, int]]:
        """Tokens and channels of each stage."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Inputs of N frames to the tokens (N, L, C) that enter the first stage."""

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Tokens as they leave stage `stage` - 1, downsampled for stage `stage`; the first stage changes nothing."""

    def blocks(self, stage: int) -> list[FrozenBlock]:
        """The blocks of a stage."""

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last stage."""


def _shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """
    Additive mask (windows, tokens, tokens) that keeps what a cyclic shift brought together from attending: -100
    between tokens of different regions, as both towers were trained with.
    """

    def regions(length: int, size: int, offset: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        return (position >= length - size).int() + (position >= length - offset).int()

    region = 3 * regions(height, window[0], shift[0])[:, None] + regions(width, window[1], shift[1])
    windows = window_partition(region[None, :, :, None], window).flatten(1)
    return like.new_zeros(()).masked_fill(windows[:, :, None] != windows[:, None, :], -100.0)


def _window_bias(
    table: Tensor, index: Tensor, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """
    What is added to the attention scores of each window and head, (windows * heads, M, M), from a table (entries,
    heads) of relative positions and the entry (M, M) of each pair of tokens.
    """
    bias = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)[None]
    height, width = (length + -length % size for length, size in zip(grid, window, strict=True))
    if any(shift):
        bias = bias + _shift_mask(height, width, window, shift, like=bias)[:, None]
    else:
        bias = bias.expand((height // window[0]) * (width // window[1]), -1, -1, -1)
    return bias.flatten(0, 1)


def _windowed_attention(
    tokens: Tensor,
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    project: Callable[[Tensor], Tensor],
    num_heads: int,
    bias: Callable[[torch.dtype], Tensor],
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
    roll_first: bool,
) -> Tensor:
    """
    Attention within (shifted) windows, before the output projection.

    Windows and heads share one axis, so that a bias a window and head needs no copy a frame.

    Args:
        tokens: (N, L, C).
        grid: Height and width of the tokens; multiples of the window once padded.
        window, shift: Size of a window and of the cyclic shift.
        project: (N, H, W, C) -> (N, H, W, 3 C), queries, keys and values.
        num_heads: Heads.
        bias: For a dtype, what is added to the scores: (windows * heads, M, M).
        prepare: Changes queries and keys before their product.
        scale: Factor on the product.
        roll_first: Whether the cyclic shift comes before the padding; the towers differ.
    """
    height, width = grid
    num_frames, _, channels = tokens.shape
    image = tokens.view(num_frames, height, width, channels)
    pad_bottom, pad_right = -height % window[0], -width % window[1]
    if any(shift) and roll_first:
        image = image.roll((-shift[0], -shift[1]), dims=(1, 2))
    if pad_bottom or pad_right:
        image = F.pad(image, (0, 0, 0, pad_right, 0, pad_bottom))
    if any(shift) and not roll_first:
        image = image.roll((-shift[0], -shift[1]), dims=(1, 2))
    rows, columns = image.shape[1] // window[0], image.shape[2] // window[1]
    # (N, rows, M_h, columns, M_w, 3, heads, d) -> three of (N, rows * columns * heads, M_h * M_w, d)
    qkv = project(image).view(num_frames, rows, window[0], columns, window[1], 3, num_heads, -1)
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, num_frames, rows * columns * num_heads, -1, qkv.shape[-1])

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(0)
        query, key = prepare(query, key)
        mask = bias(query.dtype)[None]
        return F.scaled_dot_product_attention(query, key, value.to(query.dtype), mask, scale=scale)

    # Of what gradients need to pass a frozen attention, its input alone is half.
    attended = recomputed(attend, qkv)
    attended = attended.view(num_frames, rows, columns, num_heads, window[0], window[1], -1)
    image = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(num_frames, rows * window[0], columns * window[1], channels)
    if any(shift) and not roll_first:
        image = image.roll(shift, dims=(1, 2))
    if pad_bottom or pad_right:
        image = image[:, :height, :width]
    if any(shift) and roll_first:
        image = image.roll(shift, dims=(1, 2))
    return image.reshape(num_frames, -1, channels)


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
        grids = [layer.output_resolution for layer in self.layers]
        return [(h * w, self.embed_dim * 2**stage) for stage, (h, w) in enumerate(grids)]

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
            return _window_bias(16 * table.sigmoid(), entries, grid, block.window_size, block.shift_size)

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

        attended = _windowed_attention(
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


class HtsatTower(ClapAudioModel):
    """Transformers' HTS-AT (`ClapAudioModel`) under its own parameter names; tokens are row-major, (N, H * W, C)."""

    config: CaeAvAudioConfig
    # Its blocks run through `_windowed_attention`, not through Transformers' eager attention.
    _supports_sdpa = True

    def __init__(self, config: CaeAvAudioConfig):
        super().__init__(config)
        self._biases: dict[tuple[int, int], FrozenConstant] = {}

    def forget(self) -> None:
        """Drop what was computed from the weights and kept."""
        self._biases.clear()

    def stage_sizes(self) -> list[tuple[int, int]]:
        resolutions = self.audio_encoder.input_resolutions
        width = self.config.patch_embeds_hidden_size
        return [(h * w, width * 2**stage) for stage, (h, w) in enumerate(resolutions)]

    def embed(self, inputs: Tensor) -> Tensor:
        """(N, 1, frames, mel bins) log-mel -> (N, L, C)."""
        encoder = self.audio_encoder
        room = encoder.spec_size * encoder.freq_ratio
        if inputs.shape[1] != 1 or inputs.shape[2] > room or inputs.shape[3] != self.config.num_mel_bins:
            raise CaeAvError(
                f"`input_features` must end in (1, at most {room} frames, {self.config.num_mel_bins} mel bins), got "
                f"{tuple(inputs.shape[1:])}"
            )
        normalised = encoder.batch_norm(inputs.transpose(1, 3)).transpose(1, 3)
        return encoder.patch_embed(encoder.reshape_mel2img(normalised))

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        if stage == 0:
            return tokens
        encoder = self.audio_encoder
        return encoder.layers[stage - 1].downsample(tokens, encoder.input_resolutions[stage - 1])

    def blocks(self, stage: int) -> list[FrozenBlock]:
        def make(index: int, block: ClapAudioLayer) -> FrozenBlock:
            return FrozenBlock(
                attention=lambda tokens: self._attention(stage, index, block, tokens),
                feed_forward=lambda tokens: block.output(block.intermediate(block.layernorm_after(tokens))),
            )

        return [make(index, block) for index, block in enumerate(self.audio_encoder.layers[stage].blocks)]

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.audio_encoder.norm(tokens)

    def keep_constants(self, dtype: torch.dtype) -> None:
        """Compute what attention in `dtype` adds to its scores, which needs nothing but weights."""
        for stage, layer in enumerate(self.audio_encoder.layers):
            for index, block in enumerate(layer.blocks):
                self._bias(stage, index, block, dtype)

    def _windows(self, stage: int, block: ClapAudioLayer) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """The grid of a stage, and the windows and the shift of one of its blocks."""
        grid = self.audio_encoder.input_resolutions[stage]
        block.set_shift_and_window_size(grid)
        window, shift = int(block.window_size), int(block.shift_size)
        return grid, (window, window), (shift, shift)

    def _bias(self, stage: int, index: int, block: ClapAudioLayer, dtype: torch.dtype) -> Tensor:
        attention = block.attention.self
        table = attention.relative_position_bias_table

        def compute() -> Tensor:
            return _window_bias(table, attention.relative_position_index, *self._windows(stage, block))

        constant = self._biases.setdefault((stage, index), FrozenConstant())
        return constant.get([table], dtype, compute)

    def _attention(self, stage: int, index: int, block: ClapAudioLayer, tokens: Tensor) -> Tensor:
        attention = block.attention.self
        grid, window, shift = self._windows(stage, block)
        projections = (attention.query, attention.key, attention.value)
        attended = _windowed_attention(
            block.layernorm_before(tokens),
            grid,
            window,
            shift,
            project=lambda image: torch.cat([projection(image) for projection in projections], dim=-1),
            num_heads=attention.num_attention_heads,
            bias=lambda dtype: self._bias(stage, index, block, dtype),
            prepare=lambda query, key: (query, key),
            scale=attention.attention_head_size**-0.5,
            roll_first=False,
        )
        return block.attention.output.dense(attended)


@dataclass(frozen=True)
class SpectrogramReader:
    """A visual tower that reads filter banks as images of three equal channels (Table II, "shared")."""

    tower: SwinV2Tower

    def stage_sizes(self) -> list[tuple[int, int]]:
        return self.tower.stage_sizes()

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
