"""timm's Swin Transformer (version 1), a tower that reads frames, or filter banks as images."""

from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvSwinConfig
from .base import register_tower
from .shifted_windows import ShiftedWindowTower, sizes_of


@register_tower(CaeAvSwinConfig)
class SwinTower(ShiftedWindowTower, SwinTransformer):
    """
    timm's Swin Transformer with timm's parameter names; tokens are in row-major order, (N, H * W, C). Unlike version
    2 it norms before each branch, and its windows' biases are learned tables.
    """

    config: CaeAvSwinConfig

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        return (sizes_of(model), model.state_dict()) if isinstance(model, SwinTransformer) else None

    def __init__(self, config: CaeAvSwinConfig):
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
            drop_path_rate=0.0,
        )
        self.config = config
        self._biases = {}

    def bias_table(self, attention: Any) -> Tensor:
        return attention.relative_position_bias_table

    def bias_source(self, attention: Any) -> tuple[list[Tensor], bool]:
        return [attention.relative_position_bias_table], True

    def qkv(self, attention: Any, tokens: Tensor) -> Tensor:
        return attention.qkv(tokens)

    def scale(self, attention: Any) -> float:
        return attention.scale

    def attend(self, block: Any, attention: Any, tokens: Tensor) -> Tensor:
        return attention(block.norm1(tokens))

    def feed(self, block: Any, tokens: Tensor) -> Tensor:
        return self.mlp(block, block.norm2(tokens))
