"""Reduce the memory of frozen towers during training to what a step reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..towers.frozen import is_adapted


@contextmanager
def compact_frozen_towers(
    model: Any, frozen_file: Path, *, dtype: torch.dtype | None, reads_text: bool
) -> Iterator[None]:
    """
    Context in which the frozen towers of `model` take less memory and compute the same.

    The linear layers of the visual and the audio tower are stored in the dtype that autocast would cast them to in
    every step. If steps do not run the text tower, it is moved to the CPU and memory-mapped from `frozen_file`, still
    usable for captions without precomputed features.

    Args:
        model: A `CaeAvFor...` model.
        frozen_file: Safetensors file of its frozen weights, by their names in its state dict.
        dtype: The dtype of autocast; `None` without it.
        reads_text: Whether steps run the text tower.
    """
    towers = model.base_model.named_towers()
    text = towers.pop("text", None)
    towers.pop("audio_text", None)  # It embeds the class names once, without autocast.
    device = model.device
    changed = []
    if text is not None and not reads_text and not is_adapted(text):
        _load(model, text.to("cpu"), frozen_file)
        changed.append(text)
    if dtype is not None:
        for tower in towers.values():
            cast_linear_layers(dtype, tower)
            changed.append(tower)
    try:
        yield
    finally:
        for tower in changed:
            _load(model, tower, frozen_file)
            tower.to(device)


def cast_linear_layers(dtype: torch.dtype, tower: nn.Module) -> None:
    """Cast the frozen linear layers of a tower to `dtype`, which saves autocast from casting them in every step."""
    kept = set(getattr(tower, "full_precision_modules", ()))
    for name, module in tower.named_modules():
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, nn.Linear) and is_frozen and kept.isdisjoint(name.split(".")):
            module.to(dtype)


def _load(model: nn.Module, tower: nn.Module, file: Path) -> None:
    """Load the weights of a tower from a memory-mapped file, which is read only when they are used."""
    prefix = next(name for name, module in model.named_modules() if module is tower) + "."
    # One by one, since each tensor that is mapped takes some pages.
    with safe_open(file, framework="pt") as stored:
        names = stored.keys()
        weights = {name.removeprefix(prefix): stored.get_tensor(name) for name in names if name.startswith(prefix)}
    tower.load_state_dict(weights, strict=False, assign=True)
    tower.forget()  # type: ignore[operator]
