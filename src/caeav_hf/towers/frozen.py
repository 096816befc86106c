"""Freezing of modules, and caching of what frozen parameters determine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn


def freeze(module: nn.Module) -> None:
    """Turn off gradients and set evaluation mode, which the parent's `train` must preserve."""
    module.requires_grad_(False)
    module.eval()


def tower_norms(tower: nn.Module, final_norm: str, which: Literal["none", "final", "all"]) -> dict[str, nn.LayerNorm]:
    """Return layer norms of a tower by name: all, only the one named `final_norm`, or none."""
    return {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, nn.LayerNorm) and (which == "all" or (which == "final" and name == final_norm))
    }


def is_adapted(module: nn.Module) -> bool:
    """
    Return whether peft has added layers to a module. Their output can change without a visible write to a parameter:
    adapters can be switched off, and merging bypasses version counters.
    """
    return any(hasattr(child, "base_layer") for child in module.modules())


def fingerprint(parameters: Iterable[Tensor]) -> tuple:
    """Return a value that changes when one of the parameters is written to, moved or replaced."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parameters)


def trained_names(model: nn.Module) -> set[str]:
    """
    Return the names in the state dict of `model` that training changes: parameters with gradients, and buffers
    (batch-norm statistics) outside frozen modules, which are those with parameters but no trained one.
    """
    frozen_modules: set[nn.Module] = set()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen_modules.update(module.modules())
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for module_name, module in model.named_modules():
        if module not in frozen_modules:
            prefix = f"{module_name}." if module_name else ""
            names.update(prefix + name for name, _ in module.named_buffers(recurse=False))
    return names & set(model.state_dict())


@dataclass
class FrozenConstant:
    """Cache of a tensor computed from frozen parameters, valid until one of them changes."""

    key: tuple = ()
    value: Tensor = field(default_factory=lambda: torch.empty(0))

    def get(
        self, parameters: list[Tensor], dtype: torch.dtype, compute: Callable[[], Tensor], is_constant: bool = True
    ) -> Tensor:
        """
        Return the tensor in `dtype`.

        Args:
            parameters: The parameters that it is computed from. If one of them is trained, nothing is cached.
            dtype: Data type of the result.
            compute: Computes the tensor.
            is_constant: Whether it may be cached; false if the parameters are adapted.
        """
        if torch.compiler.is_compiling():
            # A graph cannot read version counters; the weights of a tower do not change in it.
            is_known = is_constant and self.key and self.value.dtype == dtype
            return self.value if is_known else compute().to(dtype)
        if not is_constant or any(parameter.requires_grad for parameter in parameters):
            self.key = ()
            return compute().to(dtype)
        key = (dtype, fingerprint(parameters))
        if key != self.key:
            # A tensor created in inference mode cannot be used in a later training step.
            device_type = parameters[0].device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
                self.key, self.value = key, compute().to(dtype).contiguous()
        return self.value
