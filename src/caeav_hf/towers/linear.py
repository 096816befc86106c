"""Linear maps whose float32 products run in oneDNN on x86 processors."""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# PyTorch computes float32 products with MKL, which leaves half of the speed of AMD's processors unused. It builds
# oneDNN's products in as well, for its compiler.
_HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# Multiply-accumulates of a product below which starting oneDNN takes as long as it saves.
_WORTHWHILE = 2**22


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        # By `linear` again, so that the results are differentiable too.
        return (
            linear(gradient, weight.T) if of_rows else None,
            linear(gradient.T, rows.T) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _takes(*tensors: Tensor) -> bool:
    """Return whether oneDNN's products take these tensors; subclasses, such as quantized weights, have their own."""
    return (
        _HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and all(
            type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            for tensor in tensors
        )
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def product_dtype(states: Tensor) -> torch.dtype:
    """Return the dtype in which products of `states` are computed: autocast's, or their own without autocast."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    Return `F.linear(states, weight, bias)` up to rounding: (..., C), (D, C), (D,) -> (..., D).

    In float32 on an x86 processor, larger products run in oneDNN, unless `torch.backends.mkldnn` is switched off.
    """
    # Within a graph, sizes may be symbols, which must not be compared.
    if torch.compiler.is_compiling() or states.numel() * weight.shape[0] < _WORTHWHILE or not _takes(states, weight):
        return F.linear(states, weight, bias)
    tensors = (states, weight) if bias is None else (states, weight, bias)
    # As rows: of more dimensions, the result would be a view, which PyTorch does not allow to be changed in place.
    rows = states.reshape(-1, states.shape[-1])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result = _OneDnnLinear.apply(rows, weight, bias)
    else:
        result = _product(rows, weight, bias)
    return result.view(*states.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """PyTorch's linear layer with the products of [`linear`]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def speed_up_linear_layers(module: nn.Module) -> None:
    """Make the linear layers in `module` use [`linear`], also those that other libraries have built."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
