"""What of the frozen towers is in memory while a model is trained: no more than a step reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..towers.frozen import is_adapted


@contextmanager
def spared(model: Any, frozen_file: Path, *, dtype: torch.dtype | None, reads_text: bool) -> Iterator[None]:
    """
    Within this context the frozen towers of `model` take less memory and compute the same.

    The maps of the visual and the audio tower are held in the precision to which autocast would bring them in every
    step. A text tower whose features are known is left in `frozen_file`, on the CPU, for what may still ask for it.

    Args:
        model: A `CaeAvFor...` model.
        frozen_file: Its frozen weights, by their names in its state dict.
        dtype: What autocast computes in; `None` without it.
        reads_text: Whether steps run the text tower.
    """
    towers = model.cae_av.named_towers()
    text = towers.pop("text", None)
    device = model.device
    changed = []
    if text is not None and not reads_text and not is_adapted(text):
        _load(model, text.to("cpu"), frozen_file)
        changed.append(text)
    if dtype is not None:
        for tower in towers.values():
            hold_maps_in(dtype, tower)
            changed.append(tower)
    try:
        yield
    finally:
        for tower in changed:
            _load(model, tower, frozen_file)
            tower.to(device)


def hold_maps_in(dtype: torch.dtype, tower: nn.Module) -> None:
    """Hold what autocast casts in every step, the frozen linear maps of a tower, in `dtype` from the start."""
    for name, module in tower.named_modules():
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        # The biases of attention are computed once, without autocast.
        if isinstance(module, nn.Linear) and is_frozen and "cpb_mlp" not in name:
            module.to(dtype)


def _load(model: nn.Module, tower: nn.Module, file: Path) -> None:
    """Give a tower the weights in a file, which are read where they are used."""
    prefix = next(name for name, module in model.named_modules() if module is tower) + "."
    weights = {name.removeprefix(prefix): w for name, w in load_file(file).items() if name.startswith(prefix)}
    tower.load_state_dict(weights, strict=False, assign=True)
    tower.forget()  # type: ignore[operator]
