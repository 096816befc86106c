"""Build the optimizer, and schedule the learning rate and the weight of the selection entropy."""

import math
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ..errors import CaeAvError
from .recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe, fused: bool = True) -> Adam:
    """
    Return Adam over the trained parameters; frozen towers get no optimizer state. With `head_learning_rate`, those of
    the task head are a second group.

    With `fused`, the step is one pass over each parameter without temporary copies, except with fp16: a fused step
    looks for infinite gradients itself, so that Accelerate could not tell skipped steps. It cannot be used with FSDP,
    which shards some of the parameters. States of either kind can be loaded.

    Raises:
        CaeAvError: `head_learning_rate` is given, but the model has no module `head`.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [list(trained.values())]
    if recipe.head_learning_rate is not None:
        head = [parameter for name, parameter in trained.items() if name.startswith("head.")]
        if not head:
            raise CaeAvError("recipe value 'head_learning_rate' needs a model with a module `head`")
        groups = [[parameter for name, parameter in trained.items() if not name.startswith("head.")], head]
    optimizer = Adam(
        [{"params": group} for group in groups],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.weight_decay,
        fused=True if fused and recipe.mixed_precision != "fp16" else None,
    )
    optimizer.register_load_state_dict_pre_hook(_keep_fused)
    return optimizer


def _keep_fused(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state for an optimizer whose step is or is not fused, whichever it was when saved."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def step_in_backward(optimizer: Optimizer) -> None:
    """
    Make backward passes step the optimizer: each parameter is updated as soon as its gradient is complete, and the
    gradient is freed, so that all gradients are never in memory at once.
    """
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(partial(_step_alone, optimizer, number))


def _step_alone(optimizer: Optimizer, number: int, parameter: Tensor) -> None:
    groups = optimizer.param_groups
    optimizer.param_groups = [{**groups[number], "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
    parameter.grad = None


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """
    Return the learning rate at a time in epochs (from 0).

    With `min_learning_rate` it grows linearly from 0 in `lr_warmup_epochs` and then falls along a cosine. Otherwise it
    is decayed by `lr_decay_factor` every `lr_decay_epochs` epochs, at most `lr_decays` times.
    """
    if recipe.min_learning_rate is not None:
        return _cosine(recipe, recipe.learning_rate, recipe.min_learning_rate, epoch)
    decays = int(epoch) // recipe.lr_decay_epochs
    if recipe.lr_decays is not None:
        decays = min(decays, recipe.lr_decays)
    return recipe.learning_rate * recipe.lr_decay_factor**decays


def _cosine(recipe: Recipe, highest: float, lowest: float, epoch: float) -> float:
    warmup = recipe.lr_warmup_epochs
    if epoch < warmup:
        return highest * epoch / warmup
    done = min(1.0, (epoch - warmup) / max(recipe.epochs - warmup, 1))
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: Optimizer, recipe: Recipe, epoch: float) -> None:
    """Set the learning rate at a time in epochs (from 0) in the parameter groups of [`build_optimizer`]."""
    rate = learning_rate(recipe, epoch)
    rates = [rate]
    if recipe.head_learning_rate is not None:
        head_rate = rate / recipe.learning_rate * recipe.head_learning_rate
        if recipe.min_learning_rate is not None:
            head_rate = _cosine(recipe, recipe.head_learning_rate, recipe.min_learning_rate, epoch)
        rates.append(head_rate)
    for group, value in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = value


def entropy_weight(recipe: Recipe, full_weight: float, epoch: int) -> float:
    """
    Return the weight of the selection entropy (gamma of Eq. 25) in an epoch (from 0): 0 for `entropy_warmup_epochs`,
    then growing in equal steps over `entropy_ramp_epochs`, and `full_weight` in all later epochs.
    """
    ramp = recipe.entropy_ramp_epochs + 1
    return full_weight * min(max(epoch + 1 - recipe.entropy_warmup_epochs, 0), ramp) / ramp
