"""HTS-AT, by Transformers' `ClapAudioModel`: the tower that reads log-mel spectrograms."""

import torch
from torch import Tensor
from transformers import ClapAudioModel
from transformers.models.clap.modeling_clap import ClapAudioLayer

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError
from .base import FrozenBlock
from .frozen import FrozenConstant
from .windows import window_bias, windowed_attention


class HtsatTower(ClapAudioModel):
    """Transformers' HTS-AT (`ClapAudioModel`) under its own parameter names; tokens are row-major, (N, H * W, C)."""

    config: CaeAvAudioConfig
    # Its blocks run through `windowed_attention`, not through Transformers' eager attention.
    _supports_sdpa = True

    def __init__(self, config: CaeAvAudioConfig):
        super().__init__(config)
        self._biases: dict[tuple[int, int], FrozenConstant] = {}

    def forget(self) -> None:
        """Drop what was computed from the weights and kept."""
        self._biases.clear()

    def stage_sizes(self) -> list[tuple[int, int]]:
        width = self.config.patch_embeds_hidden_size
        return [(h * w, width * 2**stage) for stage, (h, w) in enumerate(self.stage_grids())]

    def stage_grids(self) -> list[tuple[int, int]]:
        return [(int(height), int(width)) for height, width in self.audio_encoder.input_resolutions]

    def stage_heads(self) -> list[int]:
        return list(self.config.num_attention_heads)

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
            return window_bias(table, attention.relative_position_index, *self._windows(stage, block))

        constant = self._biases.setdefault((stage, index), FrozenConstant())
        return constant.get([table], dtype, compute)

    def _attention(self, stage: int, index: int, block: ClapAudioLayer, tokens: Tensor) -> Tensor:
        attention = block.attention.self
        grid, window, shift = self._windows(stage, block)
        projections = (attention.query, attention.key, attention.value)
        attended = windowed_attention(
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
