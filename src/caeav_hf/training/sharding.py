"""
Training with parameters divided among processes (FSDP): what is divided, and how it comes together again.

Accelerate divides; here it is told what, since a model whose frozen blocks are driven by the layers between them has
few modules that are called as a whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import CaeAvError


# Of the towers, the parts that are called as modules: most of their weights.
_TOWER_PARTS = ("Mlp", "ClapAudioIntermediate", "ClapAudioOutput")


def bare(model: nn.Module, accelerator: Accelerator) -> Any:
    """The model without what distributed training and `torch.compile` put around it."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether this run divides parameters among processes."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def plan_sharding(accelerator: Accelerator, model: Any, *, shard_towers: bool) -> None:
    """
    Tell Accelerate what of `model` to divide: every interaction layer and CASE by themselves, what else is trained
    together, and the frozen towers of video and audio if `shard_towers`. Otherwise each process has whole towers, and
    sends nothing of them. The text tower, which need not run in a step, is whole on each process. Without FSDP this
    does nothing.

    Raises:
        CaeAvError: the first version of FSDP is asked for, which cannot divide trained and frozen weights together, or
            DeepSpeed.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise CaeAvError("DeepSpeed is not supported; to divide weights and optimizer state, use FSDP")
    if not is_sharded(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise CaeAvError(f"FSDP needs `fsdp_version: 2` in the configuration of Accelerate, got {plugin.fsdp_version}")
    layers = [*(layer for stage in model.cae_av.interactions for layer in stage), getattr(model.cae_av, "case", None)]
    names = {type(layer).__name__ for layer in layers if layer is not None and any(True for _ in layer.parameters())}
    towers = list(model.cae_av.towers())
    if shard_towers:
        names |= {type(part).__name__ for tower in towers for part in tower.modules()} & set(_TOWER_PARTS)
        towers = [model.cae_av.text_tower]
    plugin.transformer_cls_names_to_wrap = sorted(names)
    # FSDP cannot divide single numbers.
    scalars = [parameter for parameter in model.parameters() if parameter.requires_grad and not parameter.ndim]
    plugin.ignored_modules = [*towers, nn.ParameterList(scalars)]


def share_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Take the mean over processes of the gradients that FSDP leaves alone: of single numbers, and of LoRA in towers that
    are whole. All processes call it.
    """
    if not is_sharded(accelerator):
        return
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= accelerator.num_processes


@contextmanager
def gathered(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """
    Within this context every process has all parameters and can run the model without the others, as in an
    evaluation, where shares of the clips differ. All processes enter and leave it together.
    """
    from torch.distributed.fsdp import FSDPModule

    divided = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in divided:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in divided:
            # As Accelerate has it: the outermost part stays whole between the forward and the backward pass.
            again = module is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward)
            module.set_reshard_after_forward(again, recurse=False)
            module.reshard()


def whole(tensor: Any) -> Any:
    """A tensor that may be divided, whole and on this process; other values as they are. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, all tensors whole. All processes call it, and get it."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """
    The state of an optimizer by names of parameters, all tensors whole, so that it suits any number of processes. All
    processes call it, and get it.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        "state": {
            names[parameter]: {key: whole(value) for key, value in values.items()}
            for parameter, values in optimizer.state.items()
        },
        "param_groups": [
            {**group, "params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ],
    }


def check_names(names: Iterable[str], saved: Iterable[str]) -> None:
    """
    Raises:
        ValueError: an optimizer state that was saved is not that of the parameters of these names.
    """
    if other := sorted(set(names) ^ set(saved)):
        raise ValueError(f"optimizer state of other parameters, {len(other)} of them: {', '.join(other[:3])} ...")


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """
    Load what `whole_optimizer_state` gave.

    Raises:
        ValueError: it is that of other parameters.
    """
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    check_names(order, [name for group in saved["param_groups"] for name in group["params"]])

    def divided(name: str, value: Any) -> Any:
        parameter = parameters[name]
        if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
            value = value.to(parameter.device)
            return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return value

    number = {name: index for index, name in enumerate(order)}
    groups = [
        {**old, **{key: value for key, value in new.items() if key != "params"}}
        for old, new in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    state = {
        number[name]: {key: divided(name, value) for key, value in values.items()}
        for name, values in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})
