"""Caption features and the mapper that brings them to the widths of the modalities (Eq. 15, 16)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from ..towers.linear import Linear
from .attention import MultiHeadAttention


@dataclass
class Captions:
    """
    Features of the two captions of each clip.

    Attributes:
        visual: (B, N, C_v) features of the visual caption.
        audio: (B, N', C_a) features of the audio caption.
        visual_mask, audio_mask: (B, N) and (B, N') bool, true for real tokens; `None` when all are.
        present: (B,) bool, false for clips without captions; `None` when all have them.
    """

    visual: Tensor
    audio: Tensor
    visual_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    present: Tensor | None = None


class UpProjection(Linear):
    """A linear map initialized with weights from N(0, `std`^2) and zero bias."""

    def __init__(self, in_features: int, out_features: int, std: float):
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)


class Bottleneck(nn.Sequential):
    """
    Linear down, GELU, linear up. In the official formulation the up projection starts at zero. In the paper's it
    cannot: a caption of zeros has no direction to compare frames with (Eq. 19).
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
        """Return LN(s + MHA(s)) of caption features (B, N, D)."""
        key_mask = None if mask is None else mask[:, None, None, :]
        return self.norm(features + self.dropout(self.attention(features, features, key_mask)))

    def forward(self, captions: Captions) -> Captions:
        """Map text features (B, N, D) to the widths of the modalities; masks are kept."""
        return Captions(
            visual=self.visual_bottleneck(self.shared(captions.visual, captions.visual_mask)),
            audio=self.audio_bottleneck(self.shared(captions.audio, captions.audio_mask)),
            visual_mask=captions.visual_mask,
            audio_mask=captions.audio_mask,
            present=captions.present,
        )
