"""Linear maps whose products run in oneDNN on x86 processors."""

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation


# PyTorch computes float32 products with MKL, which leaves half of the speed of AMD's processors unused. It builds
# oneDNN's products in as well, for its compiler.
_HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# PyTorch's bfloat16 products are oneDNN's too, but they write the bias first and then add to it, a pass more.
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
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


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """Return a product, or its GELU: exact (`"none"`) or approximated (`"tanh"`)."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu" if gelu else "none", [], gelu or "")


def product_dtype(states: Tensor) -> torch.dtype:
    """Return the dtype in which products of `states` are computed: autocast's, or their own without autocast."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _onednn_dtype(states: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """Return the dtype of a product if oneDNN's are faster for it than PyTorch's, else `None`."""
    # Within a graph, sizes may be symbols, which must not be compared.
    if torch.compiler.is_compiling() or states.numel() * weight.shape[0] < _WORTHWHILE:
        return None
    tensors = [states, weight] if bias is None else [states, weight, bias]
    # Subclasses, such as quantized weights, have their own products.
    if torch.jit.is_tracing() or any(
        type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" for tensor in tensors
    ):
        return None
    dtype = product_dtype(states)
    is_faster = {torch.float32: _HAS_ONEDNN, torch.bfloat16: _HAS_BFLOAT16 and bias is not None}
    if not is_faster.get(dtype, False) or not torch.backends.mkldnn.enabled:
        return None
    # Autocast casts float32, and no other dtype.
    takes = (dtype, torch.float32) if torch.is_autocast_enabled("cpu") else (dtype,)
    return dtype if all(tensor.dtype in takes for tensor in tensors) else None


def _has_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    Return `F.linear(states, weight, bias)` up to rounding: (..., C), (D, C), (D,) -> (..., D).

    On an x86 processor, larger products in float32, and in bfloat16 with a bias, run in oneDNN, unless
    `torch.backends.mkldnn` is switched off.
    """
    dtype = _onednn_dtype(states, weight, bias)
    if dtype is None:
        return F.linear(states, weight, bias)
    product = _OneDnnLinear.apply if _has_gradient(states, weight, bias) else _product
    return _as_rows(product, states, weight, bias, dtype)


def _as_rows(
    product: Callable[..., Tensor], states: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    # As rows: of more dimensions, the result would be a view, which PyTorch does not allow to be changed in place.
    rows = states.reshape(-1, states.shape[-1]).to(dtype)
    result = product(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
    return result.view(*states.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """PyTorch's linear layer with the products of [`linear`]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def hidden_layer(layer: nn.Module, activation: nn.Module, states: Tensor) -> Tensor:
    """Return `activation(layer(states))`, (..., C) -> (..., D); without a gradient, GELU is part of the product."""
    if (
        type(layer) is Linear
        and type(activation) in (nn.GELU, GELUActivation)
        and not _has_gradient(states, layer.weight, layer.bias)
    ):
        dtype = _onednn_dtype(states, layer.weight, layer.bias)
        if dtype is not None:
            product = partial(_product, gelu=getattr(activation, "approximate", "none"))
            return _as_rows(product, states, layer.weight, layer.bias, dtype)
    return activation(layer(states))


def speed_up_linear_layers(module: nn.Module) -> None:
    """Make the linear layers in `module` use [`linear`], also those that other libraries have built."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
