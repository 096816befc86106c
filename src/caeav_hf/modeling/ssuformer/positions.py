"""Position embeddings of maps and of moments."""

import torch
from torch import Tensor, nn


def sine_positions(maps: Tensor, size: int) -> Tensor:
    """
    Return DETR's 2-D sine embedding of the positions of maps (..., H, W) in row-major order, (H * W, size): half of
    the channels for the row, half for the column, both scaled to the circle [fig].
    """
    height, width, quarter = maps.shape[-2], maps.shape[-1], size // 4
    frequencies = 10_000 ** (-torch.arange(quarter, device=maps.device, dtype=torch.float32) / quarter)

    def axis(length: int) -> Tensor:
        places = 2 * torch.pi * torch.arange(1, length + 1, device=maps.device) / length
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows, columns = axis(height)[:, None].expand(-1, width, -1), axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(maps.dtype)


class NormalEmbedding(nn.Embedding):
    """An embedding whose weights are drawn from N(0, `std`^2)."""

    def __init__(self, num_embeddings: int, size: int, std: float):
        self.std = std
        super().__init__(num_embeddings, size)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class TimeEmbedding(NormalEmbedding):
    """
    Learned embedding of a frame's position in its clip. Positions beyond the last one have its embedding [ours], so
    that clips of any length work.
    """

    def forward(self, moments: Tensor) -> Tensor:
        """(N,) positions -> (N, D)."""
        return super().forward(moments.clamp(max=self.num_embeddings - 1))
