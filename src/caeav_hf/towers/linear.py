"""Linear maps whose products are those that suit the processor."""

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation


_IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()
# PyTorch computes float32 products with MKL, which does without AVX-512 on AMD's processors and so leaves half of
# their speed unused. It has oneDNN's products as well, for its compiler. Without AVX-512, they are slower than MKL's.
_HAS_ONEDNN = (
    _IS_X86
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# Precisions of 16 bits in which an x86 processor does not compute. PyTorch's products in them take about ten times as
# long as those in float32.
_EMULATED: set[torch.dtype] = set()
if _IS_X86 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _EMULATED.add(torch.bfloat16)
if _IS_X86 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
    _EMULATED.add(torch.float16)
# PyTorch's bfloat16 products are oneDNN's too, but they write the bias first and then add to it, a pass more.
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.bfloat16 not in _EMULATED
# Multiply-accumulates of a product below which starting oneDNN, or changing the dtype, takes as long as it saves.
_WORTHWHILE, _WORTHWHILE_IN_FLOAT32 = 2**22, 2**16


class _Linear(torch.autograd.Function):
    """A product in the dtype of the rows. The weight is stored as it is and cast again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        weight_dtype, bias_dtype = ctx.dtypes
        # By `linear` again, so that the results are differentiable too.
        return (
            linear(gradient, weight.T.to(gradient.dtype)) if of_rows else None,
            linear(gradient.T, rows.T).to(weight_dtype) if of_weight else None,
            gradient.sum(0, dtype=bias_dtype) if of_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """Return a product in the dtype of `rows`, or its GELU: exact (`"none"`) or approximated (`"tanh"`)."""
    dtype = rows.dtype
    if dtype in _EMULATED:
        # Rounded as where the processor computes in `dtype`.
        wide_weight, wide_bias = weight.to(dtype).float(), None if bias is None else bias.to(dtype).float()
        with torch.autocast("cpu", enabled=False):
            product = F.linear(rows.float(), wide_weight, wide_bias).to(dtype)
        return F.gelu(product, approximate=gelu) if gelu else product
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu" if gelu else "none", [], gelu or "")


def product_dtype(states: Tensor) -> torch.dtype:
    """Return the dtype in which products of `states` are computed: autocast's, or their own without autocast."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def is_emulated(states: Tensor) -> bool:
    """
    Return whether the processor lacks products in the dtype of `states`, so that float32 is faster. Within graphs and
    after `torch.backends.mkldnn.flags(enabled=False)`, products are PyTorch's own all the same.
    """
    is_eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    return (
        states.device.type == "cpu" and states.dtype in _EMULATED and is_eager and bool(torch.backends.mkldnn.enabled)
    )


def _faster_dtype(states: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """Return the dtype of a product if `_product` is faster than PyTorch, else `None`."""
    # Within a graph, sizes may be symbols, which must not be compared.
    if torch.compiler.is_compiling() or states.numel() * weight.shape[0] < _WORTHWHILE_IN_FLOAT32:
        return None
    tensors = [states, weight] if bias is None else [states, weight, bias]
    # Subclasses, such as quantized weights, have their own products.
    if torch.jit.is_tracing() or any(
        type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" for tensor in tensors
    ):
        return None
    dtype = product_dtype(states)
    is_faster = {torch.float32: _HAS_ONEDNN, torch.bfloat16: _HAS_BFLOAT16 and bias is not None}
    is_large = states.numel() * weight.shape[0] >= _WORTHWHILE
    if not (dtype in _EMULATED or (is_large and is_faster.get(dtype, False))) or not torch.backends.mkldnn.enabled:
        return None
    # Autocast casts float32, and no other dtype.
    takes = (dtype, torch.float32) if torch.is_autocast_enabled("cpu") else (dtype,)
    return dtype if all(tensor.dtype in takes for tensor in tensors) else None


def _has_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    Return `F.linear(states, weight, bias)` up to rounding: (..., C), (D, C), (D,) -> (..., D).

    On an x86 processor with AVX-512, larger products in float32, and in bfloat16 with a bias, run in oneDNN. Those in
    a precision of 16 bits in which the processor does not compute run in float32. Neither happens while
    `torch.backends.mkldnn` is switched off.
    """
    dtype = _faster_dtype(states, weight, bias)
    if dtype is None:
        return F.linear(states, weight, bias)
    product = _Linear.apply if _has_gradient(states, weight, bias) else _product
    return _as_rows(product, states, weight, bias, dtype)


def _as_rows(
    product: Callable[..., Tensor], states: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    # As rows: of more dimensions, the result would be a view, which PyTorch does not allow to be changed in place.
    rows = states.reshape(-1, states.shape[-1]).to(dtype)
    return product(rows, weight, bias).view(*states.shape[:-1], weight.shape[0])


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
        dtype = _faster_dtype(states, layer.weight, layer.bias)
        if dtype is not None:
            product = partial(_product, gelu=getattr(activation, "approximate", "none"))
            return _as_rows(product, states, layer.weight, layer.bias, dtype)
    return activation(layer(states))


def speed_up_linear_layers(module: nn.Module) -> None:
    """Make the linear layers in `module` use [`linear`], also those that other libraries have built."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
