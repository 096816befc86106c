"""Checkpoint files, read without executing any code in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CaeAvError, reading, shown
from .pickles import check_saved


SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """
    Load the tensors of a checkpoint.

    Args:
        path: A `.safetensors` file or one written by `torch.save`. From the latter only tensors and plain containers
            are read; classes named in it, such as a trainer's callbacks, are never imported. Tensors are memory-mapped
            where the format allows it.

    Raises:
        CaeAvError: The file cannot be read, or contains something other than tensors.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CaeAvError(f"{path}: expected a checkpoint, a file ending in {', '.join(SUFFIXES)}")
    with reading(path, "a checkpoint"):
        content = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CaeAvError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content) or not tensors:
        other = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
        raise CaeAvError(
            f"{path}: expected tensors by name, got {'nothing' if other is None else shown(other)} beside"
        )
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if problem := _problem(tensor, size):
            raise CaeAvError(f"{path}: {shown(name)} {problem}; expected tensors whose values are in the file")
    return tensors


def _problem(tensor: Tensor, size: int) -> str | None:
    """Return what keeps a tensor from being one whose values are stored in a file of `size` bytes, or `None`."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"is {tensor.layout}, {tensor.dtype}, on {tensor.device}"
    stored = tensor.untyped_storage().nbytes()
    if stored > size or tensor.numel() * tensor.element_size() > stored:
        return f"has the shape {tuple(tensor.shape)}, and {stored:,} bytes in a file of {size:,}"
    return None


def load_saved(path: Path) -> Any:
    """
    Load what `torch.save` wrote: tensors, numbers and texts in plain containers, on the CPU. No code in it is run.

    Raises:
        CaeAvError: See `pickles.check_saved`; what PyTorch raises on broken files comes on top.
    """
    check_saved(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def without_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> Mapping[str, Tensor]:
    """Remove a prefix from all keys if all of them have it."""
    if not state or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


class _Inert:
    """Placeholder for a class named in a checkpoint, which is not imported. It keeps nothing of what it is given."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore all arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state, which could otherwise set any attribute."""


def _load_torch(path: Path) -> Any:
    check_saved(path)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # The format before zip archives cannot be inspected or memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True)
    with torch.serialization.safe_globals([(_Inert, name) for name in named]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
