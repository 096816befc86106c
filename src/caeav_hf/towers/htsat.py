"""HTS-AT (Transformers' `ClapAudioModel`), the tower that reads log-mel spectrograms."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ClapAudioModel, ClapModel
from transformers.models.clap.modeling_clap import ClapAudioIntermediate, ClapAudioLayer, ClapProjectionLayer

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower, register_tower
from .frozen import FrozenConstant
from .recompute import hidden_states, recomputed
from .windows import group_attention, relative_entries, window_bias, windowed_attention


@register_tower(CaeAvAudioConfig)
class HtsatTower(Tower, ClapAudioModel):
    """
    `ClapAudioModel` with its own parameter names, and with `use_projection` CLAP's `audio_projection`; tokens are in
    row-major order, (N, H * W, C).
    """

    config: CaeAvAudioConfig
    final_norm_name = "audio_encoder.norm"
    audio_encoder: Any
    lora_targets = r".*\.attention\.(self\.(query|key|value)|output\.dense)"
    # Blocks run `windowed_attention` instead of Transformers' eager attention.
    _supports_sdpa = True

    def __init__(self, config: CaeAvAudioConfig):
        super().__init__(config)
        self.audio_projection = ClapProjectionLayer(config) if config.use_projection else None
        self._biases: dict[tuple[int, int], FrozenConstant] = {}

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        model = model.audio_model if isinstance(model, ClapModel) else model
        if not isinstance(model, ClapAudioModel):
            return None
        fields = CaeAvAudioConfig.__dataclass_fields__
        return {name: value for name, value in model.config.to_dict().items() if name in fields}, model.state_dict()

    def forget(self) -> None:
        """Drop cached values computed from the weights."""
        self._biases.clear()

    def embed(self, inputs: Tensor) -> Tensor:
        encoder = self.audio_encoder
        max_frames = encoder.spec_size * encoder.freq_ratio
        if inputs.shape[1] != 1 or inputs.shape[2] > max_frames or inputs.shape[3] != self.config.num_mel_bins:
            raise CaeAvError(
                f"`input_features` must end in (1, at most {max_frames} frames, {self.config.num_mel_bins} mel bins), "
                f"got {tuple(inputs.shape[1:])}"
            )
        normalised = encoder.batch_norm(inputs.transpose(1, 3)).transpose(1, 3)
        return encoder.patch_embed(encoder.reshape_mel2img(normalised))

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if stage == 0:
            return tokens
        encoder = self.audio_encoder
        merge, grid = encoder.layers[stage - 1].downsample, encoder.input_resolutions[stage - 1]
        # The backward pass through its norm would store a rearranged copy of the tokens.
        return recomputed(lambda tokens: merge(tokens, grid), tokens)

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        def make(index: int, block: ClapAudioLayer) -> FrozenBlock:
            return FrozenBlock(
                attention=lambda tokens: self._attention(stage, index, block, tokens),
                feed_forward=lambda tokens: self._feed_forward(block, tokens),
                group_attention=lambda groups, bias=None: self._group_attention(block, groups, bias),
                position_bias=lambda positions: self._position_bias(block, positions),
            )

        return [make(index, block) for index, block in enumerate(self.audio_encoder.layers[stage].blocks)]

    @staticmethod
    def _feed_forward(block: ClapAudioLayer, tokens: Tensor) -> Tensor:
        tokens, hidden = block.layernorm_after(tokens), block.intermediate
        if type(hidden) is not ClapAudioIntermediate:  # divided among processes, which its parts do not gather
            return block.output(hidden(tokens))
        return block.output(hidden_states(hidden.dense, hidden.intermediate_act_fn, tokens))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.audio_encoder.norm(tokens)

    def project(self, pooled: Tensor) -> Tensor:
        return super().project(pooled) if self.audio_projection is None else self.audio_projection(pooled)

    def get_input_embeddings(self) -> nn.Module:
        return self.audio_encoder.patch_embed.proj

    def keep_constants(self, dtype: torch.dtype, grids: Sequence[Grid] | None = None) -> None:
        for stage, layer in enumerate(self.audio_encoder.layers):
            for index, block in enumerate(layer.blocks):
                self._bias(stage, index, block, dtype)

    def _windows(self, stage: int, block: ClapAudioLayer) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return the grid of a stage, and the window size and shift of one of its blocks."""
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

    @staticmethod
    def _position_bias(block: ClapAudioLayer, positions: Tensor) -> Tensor:
        attention = block.attention.self
        return attention.relative_position_bias_table[relative_entries(positions, attention.window_size)].permute(
            2, 0, 1
        )

    @staticmethod
    def _project(block: ClapAudioLayer, tokens: Tensor) -> Tensor:
        attention = block.attention.self
        projections = (attention.query, attention.key, attention.value)
        return torch.cat([projection(tokens) for projection in projections], dim=-1)

    def _attention(self, stage: int, index: int, block: ClapAudioLayer, tokens: Tensor) -> Tensor:
        attention = block.attention.self
        attended = windowed_attention(
            block.layernorm_before(tokens),
            *self._windows(stage, block),
            project=partial(self._project, block),
            num_heads=attention.num_attention_heads,
            bias=lambda dtype: self._bias(stage, index, block, dtype),
            prepare=lambda query, key: (query, key),
            scale=attention.attention_head_size**-0.5,
            roll_first=False,
        )
        return block.attention.output.dense(attended)

    def _group_attention(self, block: ClapAudioLayer, groups: Tensor, bias: Tensor | None) -> Tensor:
        attention = block.attention.self
        attended = group_attention(
            block.layernorm_before(groups),
            project=partial(self._project, block),
            num_heads=attention.num_attention_heads,
            bias=bias,
            prepare=lambda query, key: (query, key),
            scale=attention.attention_head_size**-0.5,
        )
        return block.attention.output.dense(attended)
