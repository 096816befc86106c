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

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.towers import linear as linear_maps
from caeav_hf.towers.linear import Linear, linear, speed_up_linear_layers


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


needs_onednn = pytest.mark.skipif(not linear_maps._HAS_ONEDNN, reason="PyTorch has no products of oneDNN here")


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
def test_onednn_computes_large_products_in_float32_and_nothing_else(monkeypatch):
    layer, states = Linear(4, 4), torch.randn(2, 4)
    assert uses_onednn(lambda: layer(states))
    assert uses_onednn(lambda: layer(states).sum().backward())
    with torch.inference_mode():
        assert uses_onednn(lambda: layer(states))
    # bfloat16 is oneDNN's in PyTorch already.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not uses_onednn(lambda: layer(states))
        assert layer(states).dtype == torch.bfloat16
    assert not uses_onednn(lambda: layer.double()(states.double()))
    layer.float()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not uses_onednn(lambda: layer(states))
    monkeypatch.setattr(linear_maps, "_WORTHWHILE", 33)
    assert not uses_onednn(lambda: layer(states))


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
