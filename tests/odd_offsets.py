"""Models whose tensors start at odd addresses, as may happen when loading on any machine."""

from itertools import count
from typing import TypeVar

import torch
from torch import Tensor, nn


Module = TypeVar("Module", bound=nn.Module)

# PyTorch allocates tensors at multiples of it; tensors in a mapped file are at multiples of 8.
ALIGNMENT = 64

_turns = count()


def at_odd_offsets(module: Module) -> Module:
    """
    Move each parameter and buffer on the CPU to an odd multiple of its element size behind a 64-byte boundary.

    Matrix products take other paths there, which round differently, so that two models of equal weights differ by
    rounding. Each call begins at another offset.

    Returns:
        `module`, whose values, names, dtypes and ties stay.
    """
    turn = next(_turns)
    for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
        # Not those of other classes, such as quantized weights, which hold several tensors.
        if tensor.device.type == "cpu" and type(tensor.data) is Tensor:
            tensor.data = _moved(tensor.data, 2 * (turn + number) + 1)
    return module


def _moved(tensor: Tensor, offset: int) -> Tensor:
    """Return a copy that starts `offset` elements, modulo 64 bytes, after a 64-byte boundary."""
    elements = max(ALIGNMENT // tensor.element_size(), 1)
    room = torch.empty(tensor.numel() + 2 * elements, dtype=tensor.dtype)
    start = -(room.data_ptr() // tensor.element_size()) % elements + offset % elements
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
