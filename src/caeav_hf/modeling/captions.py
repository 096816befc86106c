"""
Captions on their way into the model: the frozen CLIP text tower, its feature cache, and the mapper (Eq. 15, 16).
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig, CaeAvTextConfig
from .attention import MultiHeadAttention
from .frozen import fingerprint, is_adapted


class ClipTextTower(TextTransformer):
    """
    The text tower of CLIP as open_clip builds it, without the projection: the last hidden layer after the final norm.

    A caption is encoded once: the features of the `cache_size` captions read last are kept, so that an epoch over a
    data set that fits, and every frozen use after the first, costs a look-up.
    """

    cache_size = 4096

    def __init__(self, config: CaeAvTextConfig):
        super().__init__(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            mlp_ratio=config.mlp_ratio,
            output_dim=None,
            pool_type="none",
            proj_type="none",
            act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
            norm_layer=LayerNorm,
        )
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_weights: tuple = ()

    def init_non_persistent_buffers(self) -> None:
        """The causal mask is not in a checkpoint; it is made anew after loading on the meta device."""
        self.attn_mask.copy_(self.build_causal_mask())

    def encode(self, ids: Tensor) -> Tensor:
        """Token features (B, N, D) of token ids (B, N), N at most the context length."""
        states, _ = self._embeds(ids)
        # As the part of the tower's own mask for so few tokens, but of any number in a graph.
        mask = states.new_full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        return self.ln_final(self.transformer(states, attn_mask=mask))

    def forget(self) -> None:
        """Drop the features that are kept."""
        self._cache.clear()

    def forward(self, ids: Tensor) -> Tensor:
        """
        As `encode`, through the cache; rows that occur twice are encoded once. Each row goes through the tower alone:
        in company its last bits would be others, on which the choice between tokens that are alike may hang, and
        training with stored features would not be training without them.

        A tower that is trained, by LoRA or as it is, encodes everything anew. So does a graph, all rows at once: it
        cannot look into a cache.
        """
        if torch.compiler.is_compiling():
            return self.encode(ids)
        if is_adapted(self) or any(parameter.requires_grad for parameter in self.parameters()):
            self.forget()
            return torch.cat([self.encode(row) for row in ids.split(1)])
        return self._encode_once(ids)

    @torch.no_grad()
    def _encode_once(self, ids: Tensor) -> Tensor:
        weights = fingerprint(self.parameters())
        if weights != self._cached_weights:
            self._cache.clear()
            self._cached_weights = weights
        rows = [row.tobytes() for row in ids.cpu().numpy()]
        missing = {row: index for index, row in enumerate(rows) if row not in self._cache}
        fresh = {row: self.encode(ids[index : index + 1])[0] for row, index in missing.items()}
        features = torch.stack([fresh[row] if row in fresh else self._cache[row] for row in rows])
        for row in rows:
            self._cache[row] = fresh[row] if row in fresh else self._cache[row]
            self._cache.move_to_end(row)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return features


@dataclass
class Captions:
    """
    The two captions of each clip, ready for CASE.

    Attributes:
        visual: (B, N, C_v) features of the visual caption.
        audio: (B, N', C_a) features of the audio caption.
        visual_mask, audio_mask: (B, N) and (B, N') bool, true for real tokens; `None` when every position counts.
        present: (B,) bool, false for clips without captions; `None` when all have them.
    """

    visual: Tensor
    audio: Tensor
    visual_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    present: Tensor | None = None


class UpProjection(nn.Linear):
    """A linear map whose weights begin at N(0, `std`), its bias at zero."""

    def __init__(self, in_features: int, out_features: int, std: float):
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)


class Bottleneck(nn.Sequential):
    """
    Linear down, GELU, linear up. In the official formulation the up projection starts at zero. In the paper's it
    cannot: a caption of zeros has no direction that frames could be compared with (Eq. 19).
    """

    def __init__(self, config: CaeAvConfig, out_features: int):
        super().__init__()
        self.down = nn.Linear(config.text_config.hidden_size, config.caption_bottleneck_dim)
        self.activation = nn.GELU()
        self.up = UpProjection(config.caption_bottleneck_dim, out_features, std=0.0 if config.is_official else 0.02)


class CaptionMapper(nn.Module):
    """Self-attention shared by both captions, then a bottleneck to the width of each modality (Eq. 15, 16)."""

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.attention = MultiHeadAttention(config, width, config.caption_mapper_heads)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.branch_dropout)
        self.visual_bottleneck = Bottleneck(config, config.visual_hidden_size)
        self.audio_bottleneck = Bottleneck(config, config.audio_hidden_size)

    def shared(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """LN(s + MHA(s)) of caption features (B, N, D)."""
        key_mask = None if mask is None else mask[:, None, None, :]
        return self.norm(features + self.dropout(self.attention(features, features, key_mask)))

    def forward(self, captions: Captions) -> Captions:
        """Text features (B, N, D) in, features of each modality's width out; masks are passed on."""
        return Captions(
            visual=self.visual_bottleneck(self.shared(captions.visual, captions.visual_mask)),
            audio=self.audio_bottleneck(self.shared(captions.audio, captions.audio_mask)),
            visual_mask=captions.visual_mask,
            audio_mask=captions.audio_mask,
            present=captions.present,
        )
