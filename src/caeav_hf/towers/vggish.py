"""
VGGish, a tower that embeds a second of sound as one vector.

Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017). Parameter names are those of
the public PyTorch ports of the AudioSet weights, without their PCA and quantization.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..configuration_cae_av import CaeAvVggishConfig
from ..errors import CaeAvError
from .base import FrozenBlock, Grid, Tower, register_tower


# Tensors of the public network: six convolutions, the last of each group followed by a pool, and three linear layers.
_PUBLIC_NAMES = {
    f"{layer}.{parameter}"
    for layer in (
        *(f"features.{index}" for index in (0, 3, 6, 8, 11, 13)),
        *(f"embeddings.{index}" for index in (0, 2, 4)),
    )
    for parameter in ("weight", "bias")
}


@register_tower(CaeAvVggishConfig)
class VggishTower(Tower):
    """
    Groups of 3x3 convolutions with ReLU, a 2x2 max pool after each; then three linear layers, ReLU after each too.
    The map is flattened as (time, band, channel). The embedding is the only token, (N, 1, C); there are no blocks.
    """

    config: CaeAvVggishConfig
    lora_targets = r"embeddings\.\d+"

    def __init__(self, config: CaeAvVggishConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 1
        for size, depth in zip(config.hidden_sizes, config.depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
                channels = size
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        height, width = config.map_size
        hidden = config.intermediate_size
        self.embeddings = nn.Sequential(
            nn.Linear(height * width * channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.hidden_size),
            nn.ReLU(),
        )

    @classmethod
    def from_public(cls, state: Mapping[str, Tensor]) -> tuple[CaeAvVggishConfig, dict[str, Tensor]] | None:
        """
        Return the configuration and the tensors of a public checkpoint, or `None` if it is of another network.

        Layers after the embedding, PCA among them, are left out.
        """
        state = {name: tensor for name, tensor in state.items() if name.startswith(("features.", "embeddings."))}
        if state.keys() != _PUBLIC_NAMES:
            return None
        sizes: dict[str, Any] = {
            "hidden_sizes": [state[f"features.{last}.weight"].shape[0] for last in (0, 3, 8, 13)],
            "intermediate_size": state["embeddings.0.weight"].shape[0],
            "hidden_size": state["embeddings.4.weight"].shape[0],
        }
        return CaeAvVggishConfig(**sizes), state

    def embed(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != (1, *self.config.input_size):
            raise CaeAvError(
                f"`input_features` must end in {(1, *self.config.input_size)}, got {tuple(inputs.shape[1:])}"
            )
        maps = self.features(inputs)
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))[:, None]

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        return []

    def final_norm(self, tokens: Tensor) -> Tensor:
        return tokens

    def get_input_embeddings(self) -> nn.Module:
        return self.features[0]
