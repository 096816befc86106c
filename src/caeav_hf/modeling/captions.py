"""Captions on their way into the model: the features of both, and the mapper (Eq. 15, 16)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from .attention import MultiHeadAttention


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
