"""Frozen attention on groups of tokens of the caller's choice: a plain computation, and the tower's own windows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav_hf import CaeAvError
from caeav_hf.configuration_cae_av import CaeAvAudioConfig, CaeAvSwinConfig, CaeAvVisionConfig
from caeav_hf.towers.base import FrozenBlock, Tower, build_tower


def make(kind: str, window: int = 4) -> Tower:
    """Build a tower whose first stage has 8x8 tokens and two blocks, in double precision."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2), "window_size": window}
    configs = {
        "vision": lambda: CaeAvVisionConfig(**sizes, pretrained_window_sizes=(0, 0)),
        "swin": lambda: CaeAvSwinConfig(**sizes),
        "audio": lambda: CaeAvAudioConfig(
            spec_size=32,
            num_mel_bins=32,
            patch_embeds_hidden_size=16,
            hidden_size=32,
            depths=(2, 1),
            num_attention_heads=(2, 2),
            window_size=window,
        ),
    }
    tower = build_tower(configs[kind]()).double().eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


def naive(tower: Tower, groups: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention explicitly, one group and head after the other."""
    if hasattr(tower, "audio_encoder"):
        block = tower.audio_encoder.layers[0].blocks[0]
        attention = block.attention.self
        states = block.layernorm_before(groups)
        query, key, value = (layer(states) for layer in (attention.query, attention.key, attention.value))
        after, norm, factors = block.attention.output.dense, nn.Identity(), [8**-0.5] * 2
    elif isinstance(tower.config, CaeAvSwinConfig):
        block = tower.layers[0].blocks[0]
        query, key, value = block.attn.qkv(block.norm1(groups)).chunk(3, -1)
        after, norm, factors = block.attn.proj, nn.Identity(), [8**-0.5] * 2
    else:
        block = tower.layers[0].blocks[0]
        attention = block.attn
        query, key, value = F.linear(groups, attention.qkv.weight).chunk(3, -1)
        query, value = query + attention.q_bias, value + attention.v_bias
        after, norm = attention.proj, block.norm1
        factors = attention.logit_scale.clamp(max=4.605170185988092).exp().flatten().tolist()
    result = torch.empty_like(groups)
    for group in range(len(groups)):
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            q, k, v = query[group, :, part], key[group, :, part], value[group, :, part]
            if isinstance(tower.config, CaeAvVisionConfig):
                q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            scores = factors[head] * q @ k.T
            if bias is not None:
                scores = scores + bias.expand(len(groups), 2, *scores.shape)[group, head]
            result[group, :, part] = scores.softmax(-1) @ v
    return norm(after(result))


@pytest.mark.parametrize("kind", ["vision", "swin", "audio"])
@pytest.mark.parametrize("bias", [None, (2, 5, 5), (6, 1, 5, 5)], ids=["none", "a head", "a group"])
@torch.no_grad()
def test_groups_equal_a_plain_computation(kind: str, bias: tuple[int, ...] | None) -> None:
    tower = make(kind)
    block = tower.blocks(0)[0]
    groups = torch.randn(6, 5, 16, dtype=torch.double)
    added = None if bias is None else torch.randn(bias, dtype=torch.double)
    torch.testing.assert_close(block.group_attention(groups, added), naive(tower, groups, added))


@pytest.mark.parametrize("kind", ["vision", "swin", "audio"])
@torch.no_grad()
def test_windows_as_groups_with_the_towers_bias_are_its_own_attention(kind: str) -> None:
    block = make(kind).blocks(0)[0]
    tokens = torch.randn(3, 64, 16, dtype=torch.double)
    # The first block of a stage has windows without a shift.
    windows = tokens.view(3, 2, 4, 2, 4, 16).transpose(2, 3).reshape(12, 16, 16)
    positions = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    found = block.group_attention(windows, block.position_bias(positions))
    found = found.view(3, 2, 2, 4, 4, 16).transpose(2, 3).reshape(3, 64, 16)
    torch.testing.assert_close(found, block.attention(tokens))
    with pytest.raises(CaeAvError, match="4x4 tokens"):
        block.position_bias(torch.tensor([[0, 0], [0, 4]]))


def test_along_time_gradients_reach_the_tokens_and_not_the_tower() -> None:
    tower = make("vision").requires_grad_(False)
    block = tower.blocks(0)[0]
    clips = torch.randn(2, 3, 64, 16, dtype=torch.double, requires_grad=True)
    along_time = clips.transpose(1, 2).flatten(0, 1)
    mixed = block.group_attention(along_time).view(2, 64, 3, 16).transpose(1, 2)
    mixed[0, 0, 7].square().sum().backward()
    touched = clips.grad.abs().sum(-1) > 0
    expected = torch.zeros(2, 3, 64, dtype=torch.bool)
    expected[0, :, 7] = True
    assert torch.equal(touched, expected)


def test_a_tower_without_groups_says_so() -> None:
    block = FrozenBlock(attention=lambda tokens: tokens, feed_forward=lambda tokens: tokens)
    with pytest.raises(CaeAvError, match="within a frame only"):
        block.group_attention(torch.zeros(1, 1, 1))
