"""Linear maps by oneDNN are those of PyTorch."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import GELUActivation

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.towers import linear as linear_maps
from caeav_hf.towers.linear import Linear, hidden_layer, linear, speed_up_linear_layers
from caeav_hf.towers.windows import biased_attention
from tests.memory_use import MemoryUse


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def uses_onednn(function: Any) -> bool:
    with Operators() as operators:
        function()
    return any("mkldnn" in name for name in operators.names)


@pytest.fixture(autouse=True)
def small_products_are_worthwhile(monkeypatch):
    monkeypatch.setattr(linear_maps, "_WORTHWHILE", 0)
    monkeypatch.setattr(linear_maps, "_WORTHWHILE_IN_FLOAT32", 0)


needs_onednn = pytest.mark.skipif(not linear_maps._HAS_ONEDNN, reason="PyTorch has no products of oneDNN here")
needs_bfloat16 = pytest.mark.skipif(not linear_maps._HAS_BFLOAT16, reason="oneDNN has no products in bfloat16 here")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    has_bias=st.booleans(),
    trained=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_results_and_gradients_are_those_of_pytorch(shape, sizes, has_bias, trained, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    (wide, narrow), leaves = sizes, []
    for index, size in enumerate([(*shape, wide), (narrow, wide), (narrow,)]):
        leaf = torch.randn(size, generator=generator)
        if index == 1 and transposed:
            leaf = leaf.T.contiguous().T
        leaves.append(leaf.requires_grad_(trained[index]))
    expected_leaves = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    last = 3 if has_bias else 2
    result, expected = linear(*leaves[:last]), F.linear(*expected_leaves[:last])
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert result.requires_grad == expected.requires_grad
    if expected.requires_grad:
        gradient = torch.randn(result.shape, generator=generator)
        result.backward(gradient)
        expected.backward(gradient.double())
    for leaf, reference in zip(leaves, expected_leaves, strict=True):
        assert (leaf.grad is None) == (reference.grad is None)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-5, atol=1e-5)


def test_gradients_are_differentiable():
    torch.manual_seed(0)
    states, weight = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)

    def penalty(function: Any) -> tuple[torch.Tensor, ...]:
        (gradient,) = torch.autograd.grad(function(states, weight).pow(2).sum(), states, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), (states, weight))

    for result, expected in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_the_result_may_be_changed_in_place():
    states = torch.randn(2, 3, 4, requires_grad=True)
    F.relu(linear(states, torch.eye(4)), inplace=True).sum().backward()
    torch.testing.assert_close(states.grad, (states > 0).float())


def test_empty_batches():
    assert linear(torch.zeros(0, 3, 4), torch.zeros(2, 4)).shape == (0, 3, 2)


@needs_onednn
def test_onednn_computes_large_products_in_float32(monkeypatch):
    layer, states = Linear(4, 4), torch.randn(2, 4)
    assert uses_onednn(lambda: layer(states))
    assert uses_onednn(lambda: layer(states).sum().backward())
    with torch.inference_mode():
        assert uses_onednn(lambda: layer(states))
    assert not uses_onednn(lambda: layer.double()(states.double()))
    layer.float()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not uses_onednn(lambda: layer(states))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not uses_onednn(lambda: layer(states))
    monkeypatch.setattr(linear_maps, "_WORTHWHILE", 33)
    assert not uses_onednn(lambda: layer(states))


@needs_bfloat16
def test_onednn_computes_products_in_bfloat16_with_a_bias():
    layer, without_bias, states = Linear(4, 4), Linear(4, 4, bias=False), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uses_onednn(lambda: layer(states))
        assert uses_onednn(lambda: layer(states.bfloat16()))
        # These are oneDNN's in PyTorch already.
        assert not uses_onednn(lambda: without_bias(states))
        # Autocast leaves doubles to PyTorch, which refuses them.
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(states.double())
    assert uses_onednn(lambda: layer.bfloat16()(states.bfloat16()))
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(states)


def product_dtypes(function: Any) -> set[torch.dtype]:
    """Return the dtypes of the matrix products and fused attention that `function` runs."""
    found = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(name in str(func) for name in ("mm", "mv", "_linear_pointwise", "attention")):
                found.update(value.dtype for value in args if isinstance(value, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with Products():
        function()
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precisions_that_the_processor_lacks_are_computed_in_float32(monkeypatch, dtype):
    monkeypatch.setattr(linear_maps, "_EMULATED", {dtype})
    layer, states = Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        assert product_dtypes(lambda: layer(states)) == {torch.float32}
        assert layer(states).dtype == dtype
    layer, states = layer.to(dtype), states.detach().to(dtype).requires_grad_()
    assert product_dtypes(lambda: layer(states).sum().backward()) == {torch.float32}
    windows = torch.randn(3, 2, 4, 8).to(dtype)
    assert product_dtypes(lambda: biased_attention(*windows, None, 1.0)) == {torch.float32}
    assert biased_attention(*windows, None, 1.0).dtype == dtype
    with torch.backends.mkldnn.flags(enabled=False):
        assert product_dtypes(lambda: layer(states)) == {dtype}
    monkeypatch.setattr(linear_maps, "_EMULATED", set())
    assert product_dtypes(lambda: layer(states)) == {dtype}
    # PyTorch 2.13 itself computes attention in float16 in float32.
    if dtype == torch.bfloat16 or torch.__version__ >= (2, 15):
        assert product_dtypes(lambda: biased_attention(*windows, None, 1.0)) == {dtype}


@pytest.mark.parametrize("emulated", [(), (torch.bfloat16,)])
def test_bfloat16_is_that_of_pytorch(monkeypatch, emulated):
    monkeypatch.setattr(linear_maps, "_EMULATED", set(emulated))
    torch.manual_seed(0)
    layer, states = Linear(24, 16), torch.randn(3, 5, 24, requires_grad=True)
    cotangent, found = torch.randn(3, 5, 16), []
    for module in (layer, copy.deepcopy(layer)):
        module.__class__ = Linear if module is layer else nn.Linear
        states.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = module(states)
        assert result.dtype == torch.bfloat16
        result.backward(cotangent.bfloat16())
        found.append([result.float(), states.grad, module.weight.grad, module.bias.grad])
        assert all(gradient.dtype == torch.float32 for gradient in found[-1][1:])
    torch.testing.assert_close(*found, rtol=2.0**-7, atol=2.0**-6)


def test_no_cast_weights_are_stored(monkeypatch):
    monkeypatch.setattr(linear_maps, "_EMULATED", {torch.bfloat16})
    layer, states = Linear(64, 64), torch.randn(2, 64, requires_grad=True)
    with MemoryUse() as use, torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        result = layer(states)
        assert use.now() < layer.weight.numel()
    assert result.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("emulated", [(), (torch.bfloat16,)])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), GELUActivation(), nn.ReLU()])
def test_activations_within_a_product_are_the_same(monkeypatch, dtype, emulated, activation):
    monkeypatch.setattr(linear_maps, "_EMULATED", set(emulated))
    torch.manual_seed(0)
    layer, states = Linear(24, 16).to(dtype).requires_grad_(False), torch.randn(3, 5, 24).to(dtype)
    expected = activation(F.linear(states.double(), layer.weight.double(), layer.bias.double()))
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 2.0**-6}
    for tokens in (states, states.clone().requires_grad_()):
        hidden = hidden_layer(layer, activation, tokens)
        assert hidden.dtype == dtype
        assert hidden.requires_grad == tokens.requires_grad
        torch.testing.assert_close(hidden.double(), expected, **tolerance)


def test_layers_of_other_libraries_are_sped_up_and_otherwise_the_same():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2, bias=False)), nn.Bilinear(2, 2, 2))
    before = copy.deepcopy(model)
    speed_up_linear_layers(model)
    assert [type(layer) for layer in model.modules()].count(Linear) == 2
    assert type(model[2]) is nn.Bilinear
    assert list(model.state_dict()) == list(before.state_dict())
    states = torch.randn(5, 4)
    torch.testing.assert_close(model[:2](states), before[:2](states))
    torch.testing.assert_close(copy.deepcopy(model)[:2](states), before[:2](states))


@pytest.mark.parametrize("method", [None, "stg_cma"])
def test_all_layers_of_a_model_are_sped_up(method):
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", "toy", method=method))
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # PyTorch's attention reads the weights of its own output layer without calling it.
    others = [layer for layer in layers if not isinstance(layer, Linear | NonDynamicallyQuantizableLinear)]
    assert layers
    assert not others
