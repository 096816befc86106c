"""What it means to be frozen: no gradient, evaluation mode, and results that are computed once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def freeze(module: nn.Module) -> None:
    """No gradient into the parameters, evaluation mode; whoever holds the module keeps it in that mode."""
    module.requires_grad_(False)
    module.eval()


def is_adapted(module: nn.Module) -> bool:
    """
    Whether peft has put layers into a module. What these compute changes without a parameter being written to: they
    can be switched off, and merged behind PyTorch's back.
    """
    return any(hasattr(child, "base_layer") for child in module.modules())


def fingerprint(parameters: Iterable[Tensor]) -> tuple:
    """A value that changes when one of the parameters is written to, moved or replaced."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parameters)


def trained_names(model: nn.Module) -> set[str]:
    """
    Names in the state dict of `model` that training changes: parameters with gradients, and the buffers (batch-norm
    statistics) outside frozen towers. A frozen tower is a module that has parameters and trains none of them.
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
    """A tensor computed from frozen parameters, kept until one of them changes."""

    key: tuple = ()
    value: Tensor = field(default_factory=lambda: torch.empty(0))

    def get(
        self, parameters: list[Tensor], dtype: torch.dtype, compute: Callable[[], Tensor], is_constant: bool = True
    ) -> Tensor:
        """The value in `dtype`; parameters that somebody has unfrozen or adapted are read anew each time."""
        if torch.compiler.is_compiling():
            # Whether a weight was written to cannot be asked in a graph, where weights of a tower do not change.
            is_known = is_constant and self.key and self.value.dtype == dtype
            return self.value if is_known else compute().to(dtype)
        if not is_constant or any(parameter.requires_grad for parameter in parameters):
            self.key = ()
            return compute().to(dtype)
        key = (dtype, fingerprint(parameters))
        if key != self.key:
            # A tensor made in inference mode could not be used in a training step later.
            device_type = parameters[0].device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
                self.key, self.value = key, compute().to(dtype).contiguous()
        return self.value
