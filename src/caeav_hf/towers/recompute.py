"""Recomputation in the backward pass, which saves memory for little work."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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


def is_recomputing() -> bool:
    """
    Return whether the backward pass is running, so that a forward computation repeats an earlier one. `torch.compile`
    traces its graphs in the forward pass.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
