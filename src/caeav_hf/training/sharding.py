"""
Training with parameters divided among processes (FSDP): what is divided, and how it comes together again.

Accelerate divides; here it is told what, since a model whose frozen blocks are driven by the layers between them has
few modules that are called as a whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

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
        towers = [tower for kind, tower in model.cae_av.named_towers().items() if kind == "text"]
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


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Return the state dict of a model and that of its optimizer, the latter by names of parameters, so that it suits any
    number of processes. All tensors are whole and on the CPU of the main process; other processes get empty dicts. All
    processes call it.
    """
    is_new = not optimizer.state
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=options)
    if is_new:
        # PyTorch has taken a step of zero gradients, to have a state to return.
        optimizer.state.clear()
        state["state"] = {}
    return weights, state


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """
    Load the optimizer's part of what `whole_state` returned.

    Raises:
        ValueError: it is that of other parameters.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if other := sorted(trained.keys() ^ {name for group in saved["param_groups"] for name in group["params"]}):
        raise ValueError(f"optimizer state of other parameters, {len(other)} of them: {', '.join(other[:3])} ...")
    # A parameter that has had no gradient yet has no state. PyTorch wants one of each, and would leave the moments of
    # the step that it takes to initialize them.
    state = {name: saved["state"].get(name, {}) for name in trained}
    set_optimizer_state_dict(
        model, optimizer, {**saved, "state": state}, options=StateDictOptions(full_state_dict=True)
    )
    for name in trained.keys() - saved["state"].keys():
        del optimizer.state[trained[name]]
