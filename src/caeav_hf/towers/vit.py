"""CLIP's vision transformer of timm's blocks, a tower of one stage that reads frames, or filter banks as images."""

import re
from functools import partial
from typing import Any, cast

import torch
from timm.layers import LayerNorm, PatchEmbed, QuickGELU, get_act_layer, resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvVitConfig
from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower, register_tower
from .windows import group_attention


@register_tower(CaeAvVitConfig)
class VitTower(Tower):
    """
    CLIP's vision transformer under timm's parameter names, but `layers` for its `blocks`. Tokens are the class
    token, then the patches in row-major order, (N, 1 + H * W, C).
    """

    config: CaeAvVitConfig
    lora_targets = r"layers\.\d+\.attn\.(qkv|proj)"

    def __init__(self, config: CaeAvVitConfig):
        super().__init__()
        self.config = config
        size, grid = config.hidden_size, config.stages()[0].grid
        norm = partial(LayerNorm, eps=config.layer_norm_eps)
        self.patch_embed = PatchEmbed(
            config.image_size, config.patch_size, config.num_channels, size, bias=False, strict_img_size=False
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], size))
        self.norm_pre = norm(size)
        self.layers = nn.ModuleList(
            Block(
                size,
                config.num_attention_heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=True,
                norm_layer=norm,
                act_layer=get_act_layer(config.hidden_act),
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = norm(size)
        self.projection: nn.Parameter | None = None
        if config.projection_dim is not None:
            self.projection = nn.Parameter(torch.empty(size, config.projection_dim))
        self.reset_parameters()

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        # Only CLIP's have a norm before the first block.
        if not isinstance(model, VisionTransformer) or not isinstance(model.norm_pre, nn.LayerNorm):
            return None
        if not model.has_class_token or model.num_reg_tokens:
            return None
        (height, width), (patch_height, patch_width) = model.patch_embed.img_size, model.patch_embed.patch_size
        if height != width or patch_height != patch_width:
            raise CaeAvError(f"reads {height}x{width} pixels, expected a square")
        block = cast(Any, model.blocks[0])
        config = {
            "image_size": height,
            "patch_size": patch_height,
            "num_channels": model.in_chans,
            "hidden_size": model.embed_dim,
            "num_hidden_layers": len(model.blocks),
            "num_attention_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
            "hidden_act": "quick_gelu" if isinstance(block.mlp.act, QuickGELU) else "gelu",
            "layer_norm_eps": block.norm1.eps,
            "projection_dim": model.num_classes or None,
        }
        state = {re.sub(r"^blocks\.", "layers.", key): value for key, value in model.state_dict().items()}
        weight, bias = state.pop("head.weight", None), state.pop("head.bias", None)
        if weight is not None:
            if bias is not None and bool(bias.any()):
                raise CaeAvError("its head has a bias, so it is not CLIP's projection")
            state["projection"] = weight.T.contiguous()
        return config, state

    def reset_parameters(self) -> None:
        for parameter in (self.cls_token, self.pos_embed, self.projection):
            if parameter is not None:
                nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)

    def embed(self, inputs: Tensor) -> Tensor:
        if inputs.shape[-2:] != self.config.input_size:
            height, width = self.config.input_size
            raise CaeAvError(
                f"`pixel_values_videos` must have frames of {height}x{width} pixels, "
                f"got {inputs.shape[-2]}x{inputs.shape[-1]}"
            )
        return self._embed(inputs)

    def embed_spectrogram(self, inputs: Tensor) -> Tensor:
        return self._embed(inputs.expand(-1, self.config.num_channels, -1, -1))

    def _embed(self, images: Tensor) -> Tensor:
        """Embed images (N, channels, H, W), with position embeddings resized to any grid but the configured one."""
        positions, own = self.pos_embed, self.config.stages()[0].grid
        height, width = self.config.stages((images.shape[-2], images.shape[-1]))[0].grid
        images = images[..., : height * self.config.patch_size, : width * self.config.patch_size]
        if (height, width) != own:
            positions = resample_abs_pos_embed(positions, [height, width], list(own), num_prefix_tokens=1)
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        return self.norm_pre(tokens)

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        def make(layer: Block) -> FrozenBlock:
            attention = partial(self._attention, layer)
            return FrozenBlock(
                attention=attention,
                feed_forward=lambda tokens: layer.mlp(layer.norm2(tokens)),
                group_attention=attention,
            )

        return [make(layer) for layer in self.layers]

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def project(self, pooled: Tensor) -> Tensor:
        return super().project(pooled) if self.projection is None else pooled @ self.projection

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed.proj

    @staticmethod
    def _attention(layer: Block, groups: Tensor, bias: Tensor | None = None) -> Tensor:
        attended = group_attention(
            layer.norm1(groups),
            project=layer.attn.qkv,
            num_heads=layer.attn.num_heads,
            bias=bias,
            prepare=lambda query, key: (query, key),
            scale=layer.attn.scale,
        )
        return layer.attn.proj(attended)
