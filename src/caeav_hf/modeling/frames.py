"""Frames of a batch of clips: which are real, and conversion between a list of frames and a grid of clips."""

import torch
from torch import Tensor

from ..errors import CaeAvError


class FrameLayout:
    """
    Maps each frame of a batch to its clip.

    Layers that see one frame at a time work on a list of the real frames, (N, ...), so that padding costs nothing and
    enters no statistic. Layers along time work on the grid of clips, (B, T, ...), in which padded frames are zero.

    The number of real frames depends on values, which a traced graph does not know. There the list holds all frames:
    padded ones cost as much as real ones and are zero again in every grid.

    Args:
        batch_size, num_frames: Size of the grid, B and T.
        mask: (B, T) bool, true for real frames; `None` when all are.
        keeps_padding: Whether the list holds padded frames too. Always true under `torch.export`.

    Raises:
        CaeAvError: The mask has another shape, or a clip without a real frame.
    """

    def __init__(self, batch_size: int, num_frames: int, mask: Tensor | None = None, keeps_padding: bool = False):
        self.batch_size = batch_size
        self.num_frames = num_frames
        self.keeps_padding = keeps_padding or torch.compiler.is_exporting()
        self.mask: Tensor | None = None
        if mask is None:
            return
        mask = mask.bool()
        if mask.shape != (batch_size, num_frames):
            raise CaeAvError(
                f"`frame_mask` must have one value per frame, ({batch_size}, {num_frames}), got {tuple(mask.shape)}"
            )
        if self.keeps_padding:
            self.mask = mask
        elif not bool(mask.all()):
            if not bool(mask.any(dim=1).all()):
                raise CaeAvError("`frame_mask` must leave at least one real frame in every clip")
            self.mask = mask

    def check_target(self, name: str, target: Tensor, *sizes: int) -> None:
        """
        Raises:
            CaeAvError: The target is not (B, T, *sizes).
        """
        expected = (self.batch_size, self.num_frames, *sizes)
        if target.shape != expected:
            raise CaeAvError(f"`{name}` must be {expected}, got {tuple(target.shape)}")

    def to_list(self, grid: Tensor) -> Tensor:
        """Select the real frames of (B, T, ...) in order, (N, ...)."""
        if self.mask is None or self.keeps_padding:
            return grid.flatten(0, 1)
        return grid[self.mask]

    def to_grid(self, frames: Tensor) -> Tensor:
        """Place frames (N, ...) in (B, T, ...), zero where a frame is padded."""
        if self.mask is None:
            return frames.unflatten(0, (self.batch_size, self.num_frames))
        if self.keeps_padding:
            grid = frames.unflatten(0, (self.batch_size, self.num_frames))
            is_real = self.mask.view(self.batch_size, self.num_frames, *[1] * (frames.ndim - 1))
            return torch.where(is_real, grid, torch.zeros_like(grid))
        grid = frames.new_zeros(self.batch_size, self.num_frames, *frames.shape[1:])
        grid[self.mask] = frames
        return grid

    def clip_of_frame(self, device: torch.device) -> Tensor:
        """Return the index of each real frame's clip, (N,)."""
        index = torch.arange(self.batch_size, device=device)[:, None].expand(-1, self.num_frames)
        return self.to_list(index)

    def moment_of_frame(self, device: torch.device) -> Tensor:
        """Return the position of each real frame in its clip, (N,)."""
        return self.to_list(torch.arange(self.num_frames, device=device).expand(self.batch_size, -1))

    def lengths(self, device: torch.device) -> Tensor:
        """Return the number of real frames of each clip, (B,)."""
        if self.mask is None:
            return torch.full((self.batch_size,), self.num_frames, device=device)
        return self.mask.sum(1)

    def attention_mask(self) -> Tensor | None:
        """Return a mask (B, 1, 1, T), bool, for attention along time, or `None` if every frame is real."""
        return None if self.mask is None else self.mask[:, None, None, :]
