"""timm's Swin Transformer V2, the tower that reads frames, or filter banks as images."""

from typing import Any, cast

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..configuration_cae_av import CaeAvVisionConfig
from .base import register_tower
from .frozen import is_adapted
from .linear import Linear, linear
from .shifted_windows import ShiftedWindowTower, sizes_of


class _Rescaled(torch.autograd.Function):
    """
    Vectors (..., d) with a new length, broadcastable to (..., 1); zeros stay zeros. Both passes read the vectors as
    seldom as they can: derivatives of a norm, a quotient and a product would take twice the time.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, length: Tensor) -> Tensor:
        wide = torch.promote_types(vectors.dtype, torch.float32)
        norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide).clamp_min(1e-12)
        # Finite in float16 too, where the factor of a zero would not be.
        factor = (length / norms).clamp_max(torch.finfo(vectors.dtype).max).to(vectors.dtype)
        result = vectors * factor
        ctx.save_for_backward(result, factor, length)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        result, factor, length = ctx.saved_tensors
        wide = torch.promote_types(result.dtype, length.dtype)
        along = (gradient * result).sum(-1, keepdim=True, dtype=wide) / length
        of_vectors = torch.addcmul(gradient, result, (along / length).to(result.dtype), value=-1) * factor
        return of_vectors, along.sum_to_size(length.shape).to(length.dtype) if ctx.needs_input_grad[1] else None


@register_tower(CaeAvVisionConfig)
class SwinV2Tower(ShiftedWindowTower, SwinTransformerV2):
    """timm's Swin Transformer V2 with timm's parameter names; tokens are in row-major order, (N, H * W, C)."""

    config: CaeAvVisionConfig
    full_precision_modules = ("cpb_mlp",)  # position biases are computed once, without autocast

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if not isinstance(model, SwinTransformerV2):
            return None
        windows = [stage.blocks[0].attn.pretrained_window_size[0] for stage in cast(Any, model.layers)]
        return {**sizes_of(model), "pretrained_window_sizes": windows}, model.state_dict()

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
        self._biases = {}

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise the weights, unless they have no storage yet: drawing those takes as long as loading them."""
        if not self.patch_embed.proj.weight.is_meta:
            super().init_weights(needs_reset)

    def bias_table(self, attention: Any) -> Tensor:
        table = attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads)
        return 16 * table.sigmoid()

    def bias_source(self, attention: Any) -> tuple[list[Tensor], bool]:
        return list(attention.cpb_mlp.parameters()), not is_adapted(attention.cpb_mlp)

    def qkv(self, attention: Any, tokens: Tensor) -> Tensor:
        qkv_bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        if type(attention.qkv) is Linear:
            return linear(tokens, attention.qkv.weight, qkv_bias)
        # Wrapped by LoRA.
        projected = attention.qkv(tokens)
        return projected + qkv_bias.to(projected.dtype)

    def prepare(self, attention: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        # Cosine attention: the scale is on the normalised queries.
        scale = attention.logit_scale.clamp(max=4.605170185988092).exp()  # log(100), as timm clamps it
        scale = scale.repeat(query.shape[1] // attention.num_heads, 1, 1)
        return _Rescaled.apply(query, scale), _Rescaled.apply(key, torch.ones_like(scale))

    def attend(self, block: Any, attention: Any, tokens: Tensor) -> Tensor:
        return block.norm1(attention(tokens))

    def feed(self, block: Any, tokens: Tensor) -> Tensor:
        return block.norm2(self.mlp(block, tokens))
