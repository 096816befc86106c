"""Transformers' PVT-v2 (`PvtV2Model`), a tower of frames whose attention reads a reduced map."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PvtV2ForImageClassification, PvtV2Model
from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2BlockLayer

from ..configuration_cae_av import CaeAvPvtV2Config
from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower, register_tower


@register_tower(CaeAvPvtV2Config)
class PvtV2Tower(Tower, PvtV2Model):
    """
    `PvtV2Model` with its own parameter names; tokens are in row-major order, (N, H * W, C).

    Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer". Blocks attend within a frame only.
    """

    config: CaeAvPvtV2Config
    encoder: Any
    final_norm_name = "encoder.layers.3.layer_norm"
    lora_targets = r".*\.attention\.(query|key|value|proj)"
    # Its blocks compute attention themselves, whatever the back end of the model around it.
    _supports_sdpa = True

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        model = model.pvt_v2 if isinstance(model, PvtV2ForImageClassification) else model
        if not isinstance(model, PvtV2Model):
            return None
        fields = CaeAvPvtV2Config.__dataclass_fields__
        return {name: value for name, value in model.config.to_dict().items() if name in fields}, model.state_dict()

    def embed(self, inputs: Tensor) -> Tensor:
        if tuple(inputs.shape[-2:]) != self.config.input_size:
            height, width = self.config.input_size
            raise CaeAvError(
                f"`pixel_values_videos` must have frames of {height}x{width} pixels, "
                f"got {inputs.shape[-2]}x{inputs.shape[-1]}"
            )
        return self.encoder.layers[0].patch_embedding(inputs)[0]

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if stage == 0:
            return tokens
        grid = grid or self.config.stages()[stage - 1].grid
        maps = self.stage_norm(stage - 1, tokens).transpose(1, 2).unflatten(2, grid)
        return self.encoder.layers[stage].patch_embedding(maps)[0]

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        size = grid or self.config.stages()[stage].grid
        return [
            FrozenBlock(partial(_attention, block, size), partial(_feed_forward, block, size))
            for block in self.encoder.layers[stage].blocks
        ]

    def stage_norm(self, stage: int, tokens: Tensor) -> Tensor:
        return self.encoder.layers[stage].layer_norm(tokens)

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.encoder.layers[-1].layer_norm(tokens)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.layers[0].patch_embedding.proj


def _attention(block: PvtV2BlockLayer, grid: Grid, tokens: Tensor) -> Tensor:
    return block.drop_path(block.attention(block.layer_norm_1(tokens), *grid)[0])


def _feed_forward(block: PvtV2BlockLayer, grid: Grid, tokens: Tensor) -> Tensor:
    return block.drop_path(block.mlp(block.layer_norm_2(tokens), *grid))
