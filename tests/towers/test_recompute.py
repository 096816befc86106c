"""What frozen blocks store for the backward pass."""

import pytest
import torch
from torch import nn

from caeav_hf.towers import linear
from caeav_hf.towers.recompute import checkpointed_unit, hidden_states
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


def test_merged_patches_of_the_audio_tower_are_not_stored() -> None:
    tower = toy_model().model.audio_tower
    tokens = torch.randn(2, 256, 16, requires_grad=True)
    with MemoryUse() as use:
        merged = tower.enter_stage(1, tokens)
        assert use.now() == merged.nbytes


def test_windows_without_a_shift_share_a_bias() -> None:
    tower = toy_model().model.vision_tower
    tower.keep_constants(torch.float32)
    shapes = {key[:2]: tuple(constant.value.shape) for key, constant in tower._biases.items()}
    (stage, heads), tokens = (0, tower.layers[0].blocks[0].attn.num_heads), 16
    assert shapes[stage, 0] == (heads, tokens, tokens)


@pytest.mark.parametrize(("channels", "is_stored"), [(192, False), (384, True)])
def test_hidden_states_of_narrow_layers_are_not_stored(channels: int, is_stored: bool) -> None:
    """Narrow are the first stage of Swin-V2-L, and the first two of HTS-AT."""
    layer = nn.Linear(channels, 4 * channels).requires_grad_(False)
    tokens = torch.randn(2, 3, channels, requires_grad=True)
    stored = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal stored
        stored += tensor.nbytes if tensor.shape == (2, 3, 4 * channels) else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hidden = hidden_states(layer, nn.GELU(), tokens)
    assert stored == (hidden.nbytes if is_stored else 0)


def test_attention_in_bfloat16_is_stored_except_in_checkpointed_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_EMULATED", set())
    tower = toy_model().model.vision_tower.bfloat16()
    tokens = torch.randn(2, 256, 16, dtype=torch.bfloat16, requires_grad=True)
    tower.keep_constants(torch.bfloat16)

    def stored() -> int:
        with MemoryUse() as use:
            attended = tower.blocks(0)[0].attention(tokens)
            return use.now() - attended.nbytes

    probabilities = 2 * 2 * 256 * 16 * tower.layers[0].blocks[0].attn.num_heads  # windows have 16 tokens
    outside = stored()
    with checkpointed_unit():
        assert stored() + probabilities <= outside
    assert stored() == outside
