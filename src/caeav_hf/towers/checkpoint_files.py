"""Checkpoint files, read without executing any code in them."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CaeAvError


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
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise CaeAvError(f"{path}: cannot be read as a checkpoint: {str(error).strip().splitlines()[0]}") from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CaeAvError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content) or not tensors:
        other = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
        raise CaeAvError(f"{path}: expected tensors by name, got {'nothing' if other is None else repr(other)} beside")
    return tensors


def without_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> Mapping[str, Tensor]:
    """Remove a prefix from all keys if all of them have it."""
    if not state or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


class _Inert:
    """Placeholder for a class named in a checkpoint, which is not imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore all arguments."""


def _load_torch(path: Path) -> Any:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # The format before zip archives cannot be inspected or memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True)
    with torch.serialization.safe_globals([(_Inert, name) for name in named]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
