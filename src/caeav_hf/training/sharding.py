"""
Shard parameters among processes (FSDP), and gather them for evaluation and checkpoints.

Accelerate does the sharding. Which modules to shard is chosen here: the interaction layers call parts of the frozen
blocks themselves, so only few modules are called as a whole, which FSDP requires of the modules that it wraps.
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


# The parts of the towers that are called as whole modules. They hold most of the weights.
_TOWER_PARTS = ("Mlp", "ClapAudioIntermediate", "ClapAudioOutput")


def bare(model: nn.Module, accelerator: Accelerator) -> Any:
    """Return the model without the wrappers of distributed training and `torch.compile`."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether this run shards parameters among processes."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def plan_sharding(accelerator: Accelerator, model: Any, *, shard_towers: bool) -> None:
    """
    Configure which modules of `model` Accelerate shards: each layer that its class does not split (for CAE-AV the
    interaction layers and CASE) on its own, all other trained parameters together, and the frozen towers of video and
    audio if `shard_towers`. Otherwise each process holds whole towers, which saves communication. The text tower may
    not run in a step, so it is never sharded.
    Without FSDP this does nothing.

    Raises:
        CaeAvError: FSDP 1 is configured, which cannot shard trained and frozen weights together, or DeepSpeed.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise CaeAvError("DeepSpeed is not supported; use FSDP to shard weights and optimizer state")
    if not is_sharded(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise CaeAvError(f"FSDP needs `fsdp_version: 2` in the configuration of Accelerate, got {plugin.fsdp_version}")
    frozen = {module for tower in model.base_model.towers() for module in tower.modules()}
    names = {
        type(layer).__name__
        for layer in model.modules()
        if type(layer).__name__ in model.base_model._no_split_modules
        and layer not in frozen
        and any(True for _ in layer.parameters())
    }
    towers = list(model.base_model.towers())
    if shard_towers:
        names |= {type(part).__name__ for tower in towers for part in tower.modules()} & set(_TOWER_PARTS)
        towers = [tower for kind, tower in model.base_model.named_towers().items() if kind == "text"]
    plugin.transformer_cls_names_to_wrap = sorted(names)
    # FSDP cannot shard scalars.
    scalars = [parameter for parameter in model.parameters() if parameter.requires_grad and not parameter.ndim]
    plugin.ignored_modules = [*towers, nn.ParameterList(scalars)]


def share_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Average the gradients that FSDP ignores over processes: those of scalars, and of LoRA in towers that are not
    sharded. All processes must call it.
    """
    if not is_sharded(accelerator):
        return
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= accelerator.num_processes


@contextmanager
def gathered_parameters(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """
    Context in which every process holds all parameters and can run the model without the others, as an evaluation with
    unequal shares of the clips requires. All processes must enter and leave it together.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            # Like Accelerate, keep the root module unsharded between the forward and the backward pass.
            reshard = module is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward)
            module.set_reshard_after_forward(reshard, recurse=False)
            module.reshard()


def full_tensor(tensor: Any) -> Any:
    """Gather a sharded tensor; return other values unchanged. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dicts(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Return the state dicts of a model and of its optimizer, the latter keyed by parameter names, so that it loads on
    any number of processes. Tensors are unsharded and on the CPU of the main process; other processes get empty dicts.
    All processes must call it.
    """
    is_new = not optimizer.state
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=options)
    if is_new:
        # PyTorch took a step with zero gradients to initialize the state; discard it.
        optimizer.state.clear()
        state["state"] = {}
    return weights, state


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """
    Load an optimizer's state dict returned by `full_state_dicts`.

    Raises:
        ValueError: It belongs to other parameters.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if other := sorted(trained.keys() ^ {name for group in saved["param_groups"] for name in group["params"]}):
        raise ValueError(f"optimizer state of other parameters, {len(other)} of them: {', '.join(other[:3])} ...")
    # Parameters without a gradient so far have no saved state, but PyTorch requires an entry for each, and initializes
    # missing moments by a step with zero gradients. Pass empty entries, and delete what that step leaves.
    state = {name: saved["state"].get(name, {}) for name in trained}
    set_optimizer_state_dict(
        model, optimizer, {**saved, "state": state}, options=StateDictOptions(full_state_dict=True)
    )
    for name in trained.keys() - saved["state"].keys():
        del optimizer.state[trained[name]]
