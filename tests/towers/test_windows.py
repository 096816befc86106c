"""Attention within windows."""

import pytest
import torch
import torch.nn.functional as F

from caeav_hf.towers.windows import biased_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_attention_is_that_of_pytorch(dtype, has_bias):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    bias = torch.randn(3, 9, 9, generator=generator).to(dtype)[None] if has_bias else None
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    result = biased_attention(query, key, value, bias, 0.5)
    expected = F.scaled_dot_product_attention(*exact, None if bias is None else bias.double(), scale=0.5)
    cotangent = torch.randn(expected.shape, generator=generator).to(dtype)
    result.backward(cotangent)
    expected.backward(cotangent.double())
    # bfloat16 has eight bits.
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 8 * 2.0**-8}
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, **tolerance)
    for tensor, reference in zip((query, key, value), exact, strict=True):
        torch.testing.assert_close(tensor.grad.double(), reference.grad, **tolerance)
