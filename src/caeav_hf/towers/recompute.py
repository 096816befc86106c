"""Trading a little work in the backward pass for memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """
    `function(*tensors)`, of which a training step keeps the tensors only and makes everything between again.

    For what is large and cheap: element by element, or through narrow matrices. It must draw no random numbers.
    `torch.compile` decides by itself what to make again.
    """
    if torch.compiler.is_compiling():
        return function(*tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return function(*tensors)


def is_recomputing() -> bool:
    """
    Whether the backward pass is running, so that whatever is computed has been computed before. A graph of
    `torch.compile` is traced in the forward pass.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
