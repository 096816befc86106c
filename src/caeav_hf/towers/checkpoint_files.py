"""Checkpoint files: read without running anything that is in them."""

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
    The tensors of a checkpoint.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote. Of the latter only tensors and plain containers
            are read; classes that are named in it, as trainers name their callbacks, are never looked up. Tensors stay
            in the file until they are used, where its format allows it.

    Raises:
        CaeAvError: The file cannot be read, or holds no tensors.
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
    """The same tensors without a prefix that all their keys have."""
    if not state or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


class _Inert:
    """Stands for a class that a checkpoint names and that is not to be looked up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Whatever it would be made of is not used."""


def _load_torch(path: Path) -> Any:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format from before zip archives, which cannot be listed or mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    with torch.serialization.safe_globals([(_Inert, name) for name in named]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
