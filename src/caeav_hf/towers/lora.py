"""
LoRA on the frozen towers, by peft, trained together with the adapters.

`peft.get_peft_model` also works on any CAE-AV model, but freezes everything except LoRA. Here LoRA becomes part of a
model that trains its own adapters, of its configuration and of its checkpoints.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvAudioConfig, CaeAvVisionConfig
from ..errors import CaeAvError
from .base import tower_class


if TYPE_CHECKING:
    from peft import LoraConfig


_KINDS = ("vision", "audio", "text")

_ADAPTER = "default"


def tower_lora_config(
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    towers: Sequence[str] = ("vision", "audio"),
    model: Any = None,
) -> "LoraConfig":
    """
    Return a configuration of LoRA on the layers that towers name as their `lora_targets`, the attention, or the
    feed-forward of the text tower, for [`CaeAvModel.add_lora`] or `peft.get_peft_model`.

    Args:
        rank: Rank of the matrices.
        alpha: Their product is scaled by alpha / rank.
        dropout: Dropout before them.
        towers: Some of `vision`, `audio` and `text`; those that `model` does not have are ignored.
        model: A `CaeAv...` model, whose towers are asked; by default they are Swin-V2, HTS-AT and CLIP.

    Raises:
        CaeAvError: `towers` is empty or names an unknown tower, or one that names no `lora_targets`.
    """
    from peft import LoraConfig

    if not towers or not set(towers) <= set(_KINDS):
        raise CaeAvError(f"`towers` must be some of {', '.join(_KINDS)}, got {', '.join(towers) or 'none'}")
    classes = _default_classes() if model is None else {k: type(t) for k, t in model.base_model.named_towers().items()}
    targets = []
    for kind in towers:
        if kind in classes:
            names = cast(Any, classes[kind]).lora_targets
            if names is None:
                raise CaeAvError(
                    f"the {kind} tower, a {classes[kind].__name__}, names no `lora_targets`; pass the names of its "
                    "layers as `target_modules` of a `peft.LoraConfig`"
                )
            targets.append(rf"{kind}_tower\.({names})")
    target = "|".join(targets)
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=rf"(.*\.)?({target})")


def _default_classes() -> dict[str, type[nn.Module]]:
    # Imported here, since the library behind it takes seconds to load.
    from .clip_text import ClipTextTower

    types = {"vision": CaeAvVisionConfig.model_type, "audio": CaeAvAudioConfig.model_type}
    return {**{kind: tower_class(model_type) for kind, model_type in types.items()}, "text": ClipTextTower}


def to_values(config: "LoraConfig") -> dict[str, Any]:
    """Return the fields of a LoRA configuration that differ from peft's defaults, as JSON types."""
    from peft import LoraConfig

    default, values = LoraConfig(), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name) and not dataclasses.is_dataclass(value):
            values[field.name] = sorted(value) if isinstance(value, set) else value
    return values


def inject(model: nn.Module, towers: Iterable[str], values: dict[str, Any]) -> None:
    """
    Add LoRA to the towers of a model without changing which of its other parameters are trained.

    Args:
        model: Model with each tower as attribute `KIND_tower`.
        towers: Kinds of its towers.
        values: Arguments of `peft.LoraConfig`.

    Raises:
        CaeAvError: The arguments are invalid, or `target_modules` match modules outside the towers, none at all, or
            layers that LoRA does not support.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        config = LoraConfig(**values)
        prefixes = tuple(f"{kind}_tower." for kind in towers)
        targets = [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]
        if outside := [name for name in targets if not name.startswith(prefixes)]:
            raise CaeAvError(f"LoRA is for the towers, but its `target_modules` also match {outside[0]!r}")
        trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
        inject_adapter_in_model(config, model, _ADAPTER)
    except (TypeError, ValueError) as error:
        raise CaeAvError(f"cannot add LoRA with {values}: {error}") from error
    for parameter, requires_grad in trained.items():
        parameter.requires_grad_(requires_grad)
    for _, layer in _layers(model):
        for second in layer.lora_B.values():
            # A later initialisation of the model must keep B zero, so that LoRA starts without effect.
            second.reset_parameters = partial(nn.init.zeros_, second.weight)


def remove(model: nn.Module, *, merge: bool) -> None:
    """Remove LoRA from the towers, with or without merging it into their weights."""
    for name, layer in list(_layers(model)):
        parent, _, child = name.rpartition(".")
        unload = getattr(layer, "unload_and_optionally_merge_module", None)
        if unload is not None:
            base = unload(merge=merge, safe_merge=True, adapter_names=None)
        else:
            if merge:
                layer.merge(safe_merge=True)
            base = layer.get_base_layer()
        setattr(model.get_submodule(parent), child, base)
    del model.peft_config


def save(model: nn.Module, folder: str | os.PathLike, prefix: str) -> None:
    """Save only LoRA, in peft's format for a model whose parameter names start with `prefix`."""
    from peft import get_peft_model_state_dict

    path = Path(folder)
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"base_model.model.{prefix}{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
        cast(Any, model).peft_config[_ADAPTER].save_pretrained(path)
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error


def activate(module: nn.Module) -> None:
    """Enable gradients of LoRA in a frozen tower."""
    for _, layer in _layers(module):
        layer.set_adapter(layer.active_adapters)


def set_training(module: nn.Module, mode: bool) -> None:
    """Set the training mode of LoRA's dropout, and of nothing else in a tower."""
    for _, layer in _layers(module):
        for name, child in layer.named_children():
            if name != "base_layer":
                child.train(mode)


def base_name(name: str) -> str | None:
    """Return the name that a tower's tensor has without LoRA, or `None` for LoRA's own tensors."""
    return None if "lora_" in name else name.replace(".base_layer.", ".")


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the outermost layers that peft has added, with their names."""
    found: list[str] = []
    for name, child in module.named_modules():
        if hasattr(child, "base_layer") and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
            yield name, child


def without_lora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop LoRA's tensors and give the others the names that they have without LoRA."""
    return {base: tensor for name, tensor in tensors.items() if (base := base_name(name)) is not None}
