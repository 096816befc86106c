"""What timm's Swin transformers, version 1 and 2, share as towers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower
from .frozen import FrozenConstant
from .recompute import hidden_states
from .windows import Windows, group_attention, relative_entries, window_bias, windowed_attention


def sizes_of(model: Any) -> dict[str, Any]:
    """
    Return the sizes of one of timm's Swin transformers as values of a tower's configuration.

    Raises:
        CaeAvError: Its images or patches are not square.
    """
    (height, width), (patch_height, patch_width) = model.patch_embed.img_size, model.patch_embed.patch_size
    if height != width or patch_height != patch_width:
        raise CaeAvError(f"reads {height}x{width} pixels, expected a square")
    attention = [stage.blocks[0].attn for stage in model.layers]
    return {
        "image_size": height,
        "patch_size": patch_height,
        "num_channels": model.in_chans,
        "embed_dim": model.embed_dim,
        "depths": [len(stage.blocks) for stage in model.layers],
        "num_heads": [module.num_heads for module in attention],
        # timm shrinks the windows of late stages to their grid; the first stage has the nominal size.
        "window_size": attention[0].window_size[0],
        "mlp_ratio": model.layers[0].blocks[0].mlp_ratio,
    }


class ShiftedWindowTower(Tower):
    """
    Base class of a tower that also inherits from one of timm's Swin transformers. Tokens are in row-major order,
    (N, H * W, C). A subclass implements the attention that differs: `bias_table`, `bias_source`, `qkv` and
    `prepare`, and the order of norm and branch, `attend` and `feed`.
    """

    layers: Any
    patch_embed: Any
    norm: Any
    _biases: dict[tuple[int, int, Grid], FrozenConstant]
    lora_targets = r".*\.attn\.(qkv|proj)"

    def bias_table(self, attention: Any) -> Tensor:
        """Return the bias of all relative positions in a window, (entries, heads)."""
        raise NotImplementedError

    def bias_source(self, attention: Any) -> tuple[list[Tensor], bool]:
        """Return the parameters that `bias_table` depends on, and whether they determine it."""
        raise NotImplementedError

    def qkv(self, attention: Any, tokens: Tensor) -> Tensor:
        """Return queries, keys and values (..., 3 C) of tokens (..., C)."""
        raise NotImplementedError

    def prepare(self, attention: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Change queries and keys, whose axis 1 is (windows *) heads, before their product."""
        return query, key

    def scale(self, attention: Any) -> float:
        """Return the factor on the product of queries and keys."""
        return 1.0

    def attend(self, block: Any, attention: Any, tokens: Tensor) -> Tensor:
        """Return the attention branch, including its norm; `attention` maps tokens to tokens."""
        raise NotImplementedError

    def feed(self, block: Any, tokens: Tensor) -> Tensor:
        """Return the feed-forward branch, including its norm."""
        raise NotImplementedError

    @staticmethod
    def mlp(block: Any, tokens: Tensor) -> Tensor:
        """Return the feed-forward branch without its norm."""
        mlp = block.mlp
        if type(mlp) is not Mlp:  # divided among processes, which its parts do not gather
            return mlp(tokens)
        return mlp.fc2(hidden_states(mlp.fc1, mlp.act, tokens))

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

        def make(index: int, block: Any) -> FrozenBlock:
            windows = partial(self._attention, stage, index, block, stage_grid)

            def groups_of(groups: Tensor, bias: Tensor | None = None) -> Tensor:
                return self.attend(block, partial(self._group_attention, block.attn, bias), groups)

            return FrozenBlock(
                attention=lambda tokens: self.attend(block, windows, tokens),
                feed_forward=lambda tokens: self.feed(block, tokens),
                group_attention=groups_of,
                position_bias=lambda positions: self._position_bias(block, positions),
                windows=Windows(stage_grid, block.window_size, self._shift(stage, block, stage_grid)),
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

    def _shift(self, stage: int, block: Any, grid: Grid) -> Grid:
        """Return the cyclic shift of a block, which is 0 along a side that one window covers."""
        if grid == self.layers[stage].output_resolution or not any(block.target_shift_size):
            return block.shift_size
        height, width = (0 if g <= w else w // 2 for g, w in zip(grid, block.window_size, strict=True))
        return height, width

    def _bias(self, stage: int, index: int, block: Any, grid: Grid, dtype: torch.dtype) -> Tensor:
        attention = block.attn

        def compute() -> Tensor:
            shift = self._shift(stage, block, grid)
            return window_bias(
                self.bias_table(attention), attention.relative_position_index, grid, block.window_size, shift
            )

        constant = self._biases.setdefault((stage, index, grid), FrozenConstant())
        parameters, is_constant = self.bias_source(attention)
        return constant.get(parameters, dtype, compute, is_constant)

    def _position_bias(self, block: Any, positions: Tensor) -> Tensor:
        entries = relative_entries(positions, block.window_size)
        return self.bias_table(block.attn)[entries].permute(2, 0, 1)

    def _attention(self, stage: int, index: int, block: Any, grid: Grid, tokens: Tensor) -> Tensor:
        attention = block.attn
        attended = windowed_attention(
            tokens,
            grid,
            block.window_size,
            self._shift(stage, block, grid),
            project=partial(self.qkv, attention),
            num_heads=attention.num_heads,
            bias=lambda dtype: self._bias(stage, index, block, grid, dtype),
            prepare=partial(self.prepare, attention),
            scale=self.scale(attention),
            roll_first=True,
        )
        return attention.proj(attended)

    def _group_attention(self, attention: Any, bias: Tensor | None, groups: Tensor) -> Tensor:
        attended = group_attention(
            groups,
            project=partial(self.qkv, attention),
            num_heads=attention.num_heads,
            bias=bias,
            prepare=partial(self.prepare, attention),
            scale=self.scale(attention),
        )
        return attention.proj(attended)
