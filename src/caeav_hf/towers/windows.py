"""Attention within (shifted) windows, shared by the Swin transformers and HTS-AT."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CaeAvError
from .linear import is_emulated
from .recompute import is_checkpointed, recomputed


@dataclass(frozen=True)
class Windows:
    """
    The windows of a block whose attention stays within them.

    Attributes:
        grid: Height and width of the token grid.
        size: Height and width of a window.
        shift: Height and width of the cyclic shift before the grid is cut into windows.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]

    @property
    def _padding(self) -> tuple[int, int]:
        return -self.grid[0] % self.size[0], -self.grid[1] % self.size[1]

    def split(self, tokens: Tensor) -> Tensor:
        """(N, H * W, C) -> (N * windows, M, C); a grid that windows do not divide is padded with zeros."""
        image = tokens.unflatten(1, self.grid)
        if any(self.shift):
            image = image.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        if any(self._padding):
            image = F.pad(image, (0, 0, 0, self._padding[1], 0, self._padding[0]))
        image = image.unflatten(2, (-1, self.size[1])).unflatten(1, (-1, self.size[0]))
        return image.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """(N * windows, M, C) -> (N, H * W, C), the inverse of `split`."""
        height, width = self.grid
        rows, columns = (
            (side + pad) // size for side, pad, size in zip(self.grid, self._padding, self.size, strict=True)
        )
        image = windows.unflatten(1, self.size).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        image = image.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        if any(self.shift):
            image = image.roll(self.shift, dims=(1, 2))
        return image.flatten(1, 2)

    def is_token(self, like: Tensor) -> Tensor | None:
        """Return which of the split tokens are real, (windows, M) bool on the device of `like`; `None` if all are."""
        if not any(self._padding):
            return None
        return self.split(like.new_ones(1, self.grid[0] * self.grid[1], 1)).squeeze(-1) > 0


def _shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """
    Return the additive mask (windows, tokens, tokens) that separates tokens that are adjacent only through the cyclic
    shift: -100 between different regions, the value that both towers were trained with.
    """

    def regions(length: int, size: int, offset: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        return (position >= length - size).int() + (position >= length - offset).int()

    region = 3 * regions(height, window[0], shift[0])[:, None] + regions(width, window[1], shift[1])
    rows, columns = height // window[0], width // window[1]
    windows = region.view(rows, window[0], columns, window[1]).transpose(1, 2).reshape(rows * columns, -1)
    return like.new_zeros(()).masked_fill(windows[:, :, None] != windows[:, None, :], -100.0)


def window_bias(
    table: Tensor, index: Tensor, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """
    Return the bias on the attention scores of each window and head, (windows * heads, M, M), from a table (entries,
    heads) of relative positions and the entry (M, M) of each pair of tokens; without a shift, in which windows do not
    differ, that of one window.
    """
    bias = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)[None]
    height, width = (length + -length % size for length, size in zip(grid, window, strict=True))
    if any(shift):
        bias = bias + _shift_mask(height, width, window, shift, like=bias)[:, None]
    return bias.flatten(0, 1)


def _takes_products(tensor: Tensor) -> bool:
    """Return whether attention is computed by products of batches instead of PyTorch's fused kernel."""
    # The fused kernel is slow in bfloat16 on a CPU, above all its backward pass.
    is_slow = tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    return is_slow and not is_emulated(tensor)


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """
    Return scaled dot-product attention, (..., M, d), with a bias on the scores that is broadcastable to (..., M, M).
    """
    if is_emulated(query):
        with torch.autocast("cpu", enabled=False):
            mask = None if bias is None else bias.float()
            attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask, scale=scale)
        return attended.to(query.dtype)
    if not _takes_products(query):
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    scores = (query if scale == 1 else query * scale) @ key.transpose(-1, -2)
    if bias is not None:
        scores += bias
    return scores.softmax(-1) @ value


def _stored_or_recomputed(attend: Callable[[Tensor], Tensor], qkv: Tensor) -> Tensor:
    """
    Return `attend(qkv)`. The backward pass through frozen attention recomputes it from `qkv`, which halves the memory,
    except where that memory is small and the recomputation slow.
    """
    is_stored = _takes_products(qkv) and not is_checkpointed()
    return attend(qkv) if is_stored else recomputed(attend, qkv)


def windowed_attention(
    tokens: Tensor,
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    project: Callable[[Tensor], Tensor],
    num_heads: int,
    bias: Callable[[torch.dtype], Tensor],
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
    roll_first: bool,
) -> Tensor:
    """
    Compute attention within (shifted) windows, before the output projection.

    Windows and heads share one axis, so that the bias of each window and head is broadcast over frames without a copy,
    or that of each head over frames and windows.

    Args:
        tokens: (N, L, C).
        grid: Height and width of the token grid, which is padded to multiples of the window.
        window, shift: Height and width of a window and of the cyclic shift.
        project: (N, H, W, C) -> (N, H, W, 3 C), queries, keys and values.
        num_heads: Number of heads.
        bias: Maps a dtype to the bias on the scores, (windows * heads, M, M) or (heads, M, M).
        prepare: Changes queries and keys before their product.
        scale: Factor on the product.
        roll_first: Whether the cyclic shift comes before the padding, which differs between the towers.

    Returns:
        (N, L, C).
    """
    height, width = grid
    num_frames, _, channels = tokens.shape
    image = tokens.view(num_frames, height, width, channels)
    pad_bottom, pad_right = -height % window[0], -width % window[1]
    if any(shift) and roll_first:
        image = image.roll((-shift[0], -shift[1]), dims=(1, 2))
    if pad_bottom or pad_right:
        image = F.pad(image, (0, 0, 0, pad_right, 0, pad_bottom))
    if any(shift) and not roll_first:
        image = image.roll((-shift[0], -shift[1]), dims=(1, 2))
    rows, columns = image.shape[1] // window[0], image.shape[2] // window[1]
    # (N, rows, M_h, columns, M_w, 3, heads, d) -> three of (N, rows * columns * heads, M_h * M_w, d), without a shift
    # of (N * rows * columns, heads, M_h * M_w, d)
    biases = rows * columns * num_heads if any(shift) else num_heads
    qkv = project(image).view(num_frames, rows, window[0], columns, window[1], 3, num_heads, -1)
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, biases, window[0] * window[1], qkv.shape[-1])

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(0)
        query, key = prepare(query, key)
        return biased_attention(query, key, value.to(query.dtype), bias(query.dtype)[None], scale)

    attended = _stored_or_recomputed(attend, qkv).view(num_frames, rows, columns, num_heads, window[0], window[1], -1)
    image = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(num_frames, rows * window[0], columns * window[1], channels)
    if any(shift) and not roll_first:
        image = image.roll(shift, dims=(1, 2))
    if pad_bottom or pad_right:
        image = image[:, :height, :width]
    if any(shift) and roll_first:
        image = image.roll(shift, dims=(1, 2))
    return image.reshape(num_frames, -1, channels)


def group_attention(
    groups: Tensor,
    project: Callable[[Tensor], Tensor],
    num_heads: int,
    bias: Tensor | None,
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
) -> Tensor:
    """
    Compute attention within groups of tokens, before the output projection.

    Args:
        groups: (G, M, C).
        project: (G, M, C) -> (G, M, 3 C), queries, keys and values.
        num_heads: Number of heads.
        bias: Bias on the scores, broadcastable to (G, heads, M, M), or `None`.
        prepare: Changes queries and keys (G, heads, M, d) before their product.
        scale: Factor on the product.

    Returns:
        (G, M, C).
    """
    # (G, M, 3, heads, d) -> three of (G, heads, M, d)
    qkv = project(groups).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(0)
        query, key = prepare(query, key)
        mask = None if bias is None else bias.to(query.dtype)
        return biased_attention(query, key, value.to(query.dtype), mask, scale)

    attended = _stored_or_recomputed(attend, qkv)
    if torch.compiler.is_compiling():
        # How an attention's result lies in memory depends on its kernel, of which a graph may have another.
        attended = attended.contiguous()
    return attended.transpose(1, 2).flatten(2)


def relative_entries(positions: Tensor, window: tuple[int, int]) -> Tensor:
    """
    Return the entries (M, M) in a window's table of relative positions for tokens at rows and columns `positions`,
    (M, 2).

    Raises:
        CaeAvError: Two tokens are further apart than tokens of a window can be.
    """
    offset = positions[:, None] - positions
    reach = torch.tensor(window, device=positions.device) - 1
    if bool((offset.abs() > reach).any()):
        raise CaeAvError(
            f"the tower has a bias for positions within {window[0]}x{window[1]} tokens, got some further apart"
        )
    shifted = offset + reach
    return shifted[..., 0] * (2 * window[1] - 1) + shifted[..., 1]
