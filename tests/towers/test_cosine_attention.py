"""Cosine attention of Swin-V2."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from caeav_hf.towers.swin_v2 import SwinV2Tower


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_queries_have_the_length_of_the_scale_and_zeros_stay_zeros(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 6, 5, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    query[0, 0, 0] = key[0, 0, 0] = 0.0
    query.requires_grad_(), key.requires_grad_()
    attention = SimpleNamespace(
        num_heads=3, logit_scale=torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)[:, None, None]
    )
    # Two windows of three heads; timm clamps scales at 100.
    scale = torch.tensor([1.0, 2.0, 4.605170185988092], dtype=torch.float64).exp().repeat(2)[:, None, None]
    new_query, new_key = SwinV2Tower.prepare(None, attention, query, key)
    new_query.sum().backward()
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(new_query.double(), scale * F.normalize(query.detach().double(), dim=-1), **tolerance)
    torch.testing.assert_close(new_key.double(), F.normalize(key.detach().double(), dim=-1), **tolerance)
    assert new_query.dtype == new_key.dtype == dtype
    assert bool(query.grad.isfinite().all())


def test_gradients():
    torch.manual_seed(0)
    query, key = (torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    logit_scale = torch.tensor([0.5, -1.0], dtype=torch.float64)[:, None, None].requires_grad_()

    def prepare(query, key, logit_scale):
        return SwinV2Tower.prepare(None, SimpleNamespace(num_heads=2, logit_scale=logit_scale), query, key)

    torch.autograd.gradcheck(prepare, (query, key, logit_scale))
