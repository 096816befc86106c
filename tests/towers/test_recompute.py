"""What frozen blocks store for the backward pass."""

import pytest
import torch

from tests.memory_use import MemoryUse
from tests.modeling.helpers import toy_model
from tests.same import assert_close


@pytest.mark.parametrize("tower", ["vision_tower", "audio_tower"])
def test_frozen_blocks_of_narrow_stages_store_no_hidden_states(tower: str) -> None:
    block = getattr(toy_model().model, tower).blocks(0)[0]
    tokens = torch.randn(2, 64, 16, requires_grad=True)
    with MemoryUse() as use:
        output = block.feed_forward(tokens)
        # The result, the input of its norm if that comes last, and statistics; with hidden states at least 5.
        assert use.now() < 3 * tokens.nbytes
    towards = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, tokens, towards)
    with torch.autograd.forward_ad.dual_level():
        direction = torch.randn_like(tokens)
        dual = block.feed_forward(torch.autograd.forward_ad.make_dual(tokens.detach(), direction))
        slope = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert_close((gradient * direction).sum(), (slope * towards).sum())
