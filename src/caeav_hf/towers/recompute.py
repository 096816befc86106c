"""Recomputation in the backward pass, which saves memory for little work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .linear import hidden_layer


# Channels up to which hidden states are recomputed. A multiply-accumulate saves the more memory, the fewer there are.
NARROW = 192

_IS_CHECKPOINTED = ContextVar("_IS_CHECKPOINTED", default=False)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """
    Return `function(*tensors)`; training stores only `tensors` and recomputes intermediate results.

    For results that are large but cheap: elementwise operations and narrow matrices. `function` must not draw random
    numbers. `torch.compile` makes its own choice of what to recompute.
    """
    if torch.compiler.is_compiling():
        return function(*tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return function(*tensors)


def hidden_states(layer: nn.Module, activation: nn.Module, tokens: Tensor) -> Tensor:
    """
    Return the hidden states (..., D) of a feed-forward branch, `activation(layer(tokens))`, from tokens (..., C).

    If the layer is frozen and the tokens narrow, the backward pass recomputes them.
    """
    run = partial(hidden_layer, layer, activation)
    is_frozen = not any(parameter.requires_grad for parameter in layer.parameters())
    return recomputed(run, tokens) if is_frozen and tokens.shape[-1] <= NARROW else run(tokens)


@contextmanager
def checkpointed_unit() -> Iterator[None]:
    """Context of a unit that gradient checkpointing recomputes, in both passes: there memory comes before time."""
    token = _IS_CHECKPOINTED.set(True)
    try:
        yield
    finally:
        _IS_CHECKPOINTED.reset(token)


def is_checkpointed() -> bool:
    """Return whether this is called in a [`checkpointed_unit`]."""
    return _IS_CHECKPOINTED.get()


def is_recomputing() -> bool:
    """
    Return whether the backward pass is running, so that a forward computation repeats an earlier one. `torch.compile`
    traces its graphs in the forward pass.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
