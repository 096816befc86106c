"""
Checkpoints of the trained weights, with references to the frozen towers.

The towers are three quarters of a checkpoint and the same in all of them. An adapter-only checkpoint leaves them out
and references them in its configuration, `tower_sources`: by name, revision and the hash of their tensors.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CaeAvError
from ..towers import lora
from ..towers.loading import FRONT_END, PretrainedTower, hash_tensors, load_tower


# Matches names of tower tensors in the state dict of any model.
TOWER_NAMES = r"(^|\.)(vision|audio|region|text|audio_text)_tower\."


class TowerModel(Protocol):
    """Interface of models with towers; all models of the package have it."""

    config: Any

    @property
    def base_model(self) -> Any:
        """The model without head, a [`~modeling.pretrained.FrozenTowersMixin`]."""

    def state_dict(self) -> dict[str, Any]:
        """Return its tensors by name."""

    def named_modules(self) -> Iterable[tuple[str, nn.Module]]:
        """Return its modules by name."""


def adapter_names(model: TowerModel) -> set[str]:
    """
    Return the state-dict names of an adapter-only checkpoint: all except the towers, but with what is trained inside
    them, LoRA and layer norms.
    """
    prefixes = tuple(_prefixes(model).values())
    trained = {prefix + name for kind, prefix in _prefixes(model).items() for name in _trained_norms(model, kind)}
    return {
        name
        for name in model.state_dict()
        if not name.startswith(prefixes) or lora.base_name(name) is None or name in trained
    }


def _trained_norms(model: TowerModel, kind: str) -> set[str]:
    """Return the names in a tower's state dict of the layer norms that are trained with the adapters."""
    prefix = f"{kind}_tower."
    norms = model.base_model.trained_tower_norms()
    return {
        f"{name.removeprefix(prefix)}.{parameter}"
        for name, norm in norms.items()
        if name.startswith(prefix)
        for parameter, _ in norm.named_parameters()
    }


def find_sources(
    model: TowerModel, weights: Mapping[str, Tensor], towers: Mapping[str, str | os.PathLike]
) -> dict[str, dict[str, str | None]]:
    """
    Find the sources of a model's towers and check that the weights are theirs.

    Args:
        model: The model.
        weights: State dict of the model.
        towers: Names that replace or complete those in the model's configuration.

    Returns:
        `name`, `revision` and `sha256` of each tower.

    Raises:
        CaeAvError: The source of a tower is unknown, its weights differ from the source's, or `towers` names one that
            the model does not have.
    """
    kinds = _kinds(model, towers)
    known = {kind: source for kind, source in (model.config.tower_sources or {}).items() if kind not in towers}
    if missing := [kind for kind in kinds if kind not in known and kind not in towers]:
        raise CaeAvError(
            f"an adapter-only checkpoint references its towers, and the source of this model's "
            f"{', '.join(missing)} tower is unknown: pass `towers={{{missing[0]!r}: name, ...}}`, as to "
            "`from_backbones`, or save the whole model"
        )
    sources = {}
    for kind, prefix in _prefixes(model).items():
        tensors = lora.without_lora(
            {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        )
        source, found = known.get(kind), hash_tensors(tensors)
        trained = _trained_norms(model, kind)
        if source is None or (found != source["sha256"] and (trained or _is_rounded(tensors))):
            # Trained weights and those rounded to half precision have another hash, so compare the values of the rest.
            name, revision = (towers[kind], None) if source is None else (source["name"] or "", source["revision"])
            tower = _fetch(model, kind, name, revision)
            is_same, source = _is_from(tensors, tower.state, trained), tower.source
        else:
            is_same = found == source["sha256"]
        if not is_same:
            raise CaeAvError(
                f"the {kind} tower of this model is not, or no longer, {source['name']!r}: expected tensors of "
                f"SHA-256 {source['sha256']}, found {found}; save the whole model"
            )
        sources[kind] = source
    return sources


def attach_towers(model: TowerModel, towers: Mapping[str, str | os.PathLike]) -> None:
    """
    Load the towers of a model that was loaded from an adapter-only checkpoint.

    Args:
        model: The model.
        towers: Names of towers that override those in the configuration.

    Raises:
        CaeAvError: A tower cannot be loaded, or is not the one that the checkpoint was trained with.
    """
    sources = dict(model.config.tower_sources or {})
    _kinds(model, towers)
    for kind, module in model.base_model.frozen_towers().items():
        expected = sources[kind]
        name, revision = (towers[kind], None) if kind in towers else (expected["name"] or "", expected["revision"])
        try:
            tower = _fetch(model, kind, name, revision)
        except CaeAvError as error:
            raise CaeAvError(
                f"this checkpoint has no towers, and its {kind} tower {expected['name']!r} cannot be loaded; pass its "
                f"location as `towers={{{kind!r}: name}}`: {error}"
            ) from error
        if tower.source["sha256"] != expected["sha256"]:
            raise CaeAvError(
                f"the {kind} tower {str(name)!r} is not the one that this checkpoint was trained with, "
                f"{expected['name']!r}: expected tensors of SHA-256 {expected['sha256']}, "
                f"found {tower.source['sha256']}"
            )
        if any(parameter.is_meta for parameter in module.parameters()):
            raise CaeAvError(
                f"the device map offloads the {kind} tower, which works only for whole checkpoints: load this one "
                "without a device map and save it whole"
            )
        # LoRA renames the tower's own weights; LoRA's weights, and trained norms, are already loaded.
        names = {lora.base_name(name): name for name in module.state_dict()}
        trained = _trained_norms(model, kind)
        module.load_state_dict(
            {names[name]: tensor for name, tensor in tower.state.items() if name not in trained},
            strict=not (model.config.lora or trained),
        )
        sources[kind] = tower.source
    model.config.tower_sources = sources


def _fetch(model: TowerModel, kind: str, name: str | os.PathLike, revision: str | None = None) -> PretrainedTower:
    config = getattr(model.config, f"{kind}_config")
    overrides = {} if kind in ("text", "audio_text") else {"model_type": config.model_type}
    if kind == "audio":
        overrides |= {field: getattr(config, field) for field in FRONT_END}
    # Every HTS-AT has a width of a projection; whether it has the projection is a field of its own.
    projects = getattr(config, "use_projection", getattr(config, "projection_dim", None) is not None)
    return load_tower(kind, name, revision, overrides, projects=projects)


def _is_rounded(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_floating_point() and tensor.element_size() < 4 for tensor in tensors.values())


def _is_from(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], trained: set[str]) -> bool:
    """Return whether tensors equal those of a tower, after rounding to their precision, except the trained ones."""
    return tensors.keys() == state.keys() and all(
        torch.equal(tensor.cpu(), state[name].to(device="cpu", dtype=tensor.dtype))
        for name, tensor in tensors.items()
        if name not in trained
    )


def _prefixes(model: TowerModel) -> dict[str, str]:
    """Return the prefix of each tower's names in the state dict."""
    names = {module: name for name, module in model.named_modules()}
    return {kind: f"{names[tower]}." for kind, tower in model.base_model.frozen_towers().items()}


def _kinds(model: TowerModel, towers: Mapping[str, str | os.PathLike]) -> list[str]:
    """Return the kinds of a model's towers, and check that `towers` names no others."""
    kinds = list(model.base_model.frozen_towers())
    if unknown := sorted(set(towers) - set(kinds)):
        raise CaeAvError(f"`towers` may name {', '.join(kinds)}, got {', '.join(unknown)}")
    return kinds
