"""The paper formulation against the equations of `equations`, to 1e-9 in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav_hf import CaeAvConfig
from caeav_hf.modeling.captions import Captions
from caeav_hf.modeling.case import CASE
from caeav_hf.modeling.caste import CASTE
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.interaction import interaction_class
from caeav_hf.towers.base import FrozenBlock
from tests.modeling import equations
from tests.modeling.helpers import as_double, pair_position, toy_batch, toy_model


MASK = torch.tensor([[True, True, True, False], [True, True, True, True], [True, False, False, False]])


def config_of(task: str = "ave", **overrides) -> CaeAvConfig:
    config = CaeAvConfig.from_preset(task, size="toy", adapter_batch_norm=False, **overrides)
    config._attn_implementation = "sdpa"
    return config


def opened(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in float64 and evaluation mode with random parameters, so that no gate is shut."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                # Spread that keeps products of several maps in range, and saliencies of tokens comparable.
                spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
                if name.endswith("temperature"):
                    parameter.copy_(3.0 + torch.rand((), generator=generator))
    return module.double().eval()


def stored(module: nn.Module) -> equations.Weights:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clips_of(frames: Tensor, mask: Tensor) -> list[np.ndarray]:
    """Return the real frames (N, ...), clip by clip."""
    return [part.detach().numpy() for part in frames.split(mask.sum(1).tolist())]


def assert_same(actual: Tensor, expected: np.ndarray | float) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_caste() -> None:
    """Eq. 1 to 9."""
    config = config_of()
    module = opened(CASTE(config, 16, 32))
    count = int(MASK.sum())
    visual, audio = random(count, 7, 16), random(count, 5, 32, seed=2)
    added, weights, projections = module(visual, audio, FrameLayout(*MASK.shape, MASK))
    agreement = torch.cosine_similarity(*projections, dim=-1)
    assert 0 < (added != 0).any(-1).sum() < count * 7
    expected = [
        equations.caste(v, a, stored(module), config.topk_ratio)
        for v, a in zip(clips_of(visual, MASK), clips_of(audio, MASK), strict=True)
    ]
    for value, parts in zip((added, weights, agreement), zip(*expected, strict=True), strict=True):
        assert_same(value, np.concatenate(parts))


@torch.no_grad()
@pytest.mark.parametrize(
    ("task", "stages"),
    [("ave", (1,)), ("ave", (2,)), ("avvp", (1,))],
    ids=["with adapters", "without adapters", "video parsing"],
)
def test_pair(task: str, stages: tuple[int, ...]) -> None:
    """Eq. 10 to 13 around any AVMoE and frozen blocks; the same in video parsing."""
    config = config_of(task, adapter_stages=stages)
    layer = opened(interaction_class(config)(config, pair_position((7, 16), (5, 32))))
    count = int(MASK.sum())
    visual, audio = random(count, 7, 16), random(count, 5, 32, seed=2)
    branches = [(lambda x: 0.5 * np.sin(x), lambda x: 0.3 * np.cos(x)), (lambda x: np.tanh(x), lambda x: 0.2 * x**2)]
    blocks = [
        FrozenBlock(*(lambda x, f=branch: torch.from_numpy(f(x.numpy())) for branch in both)) for both in branches
    ]
    output = layer(visual, audio, *blocks, FrameLayout(*MASK.shape, MASK))

    def enrich(module: CASTE) -> Callable:
        return lambda x, y: equations.caste(x, y, stored(module), config.topk_ratio)[0]

    def adapter(module: nn.Module) -> Callable:
        def call(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return module(torch.from_numpy(x), torch.from_numpy(y), FrameLayout(1, len(x)))[0].numpy()

        return call

    adapters = None
    if layer.has_adapters:
        adapters = (
            adapter(layer.visual_attention_adapter),
            adapter(layer.audio_attention_adapter),
            adapter(layer.visual_feed_forward_adapter),
            adapter(layer.audio_feed_forward_adapter),
        )
    expected = [
        equations.pair(v, a, tuple(branches), (enrich(layer.visual_caste), enrich(layer.audio_caste)), adapters)
        for v, a in zip(clips_of(visual, MASK), clips_of(audio, MASK), strict=True)
    ]
    assert_same(output.visual, np.concatenate([v for v, _ in expected]))
    assert_same(output.audio, np.concatenate([a for _, a in expected]))


@torch.no_grad()
@pytest.mark.parametrize("all_captions", [True, False], ids=["captions", "a clip without captions"])
def test_captions_case_and_losses(all_captions: bool) -> None:
    """Eq. 15 to 25 in a whole model: three clips with padded frames, captions with padded tokens."""
    model = toy_model(topk_ratio=0.35)
    base = model.model
    for part in (base.caption_mapper, base.case, base.projections):
        opened(part)
    model = model.double()
    batch = as_double(toy_batch(model.config, batch_size=3))
    if not all_captions:
        batch["visual_caption_mask"][1] = 0
    seen: dict[str, tuple] = {}
    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args, output)}))
        for name, module in (("mapper", base.caption_mapper), ("case", base.case))
    ]
    output = model(**batch, frame_mask=MASK)
    for hook in hooks:
        hook.remove()

    config = model.config
    (features,), _ = seen["mapper"]
    (visual, audio, *_), _ = seen["case"]
    mapper_weights, weights = stored(base.caption_mapper), stored(base.case)
    losses: dict[str, list] = {
        name: []
        for name in ("v", "a", "clip", "v_cap", "a_cap", "v_saliency", "a_saliency", "with", "visual", "audio")
    }
    projections = stored(base.projections)
    for clip, (v, a) in enumerate(zip(clips_of(visual, MASK), clips_of(audio, MASK), strict=True)):
        captions = {}
        for modality in ("visual", "audio"):
            mask = batch[f"{modality}_caption_mask"][clip].bool()
            tokens = getattr(features, modality)[clip][mask].numpy()
            if len(tokens):
                heads = config.caption_mapper_heads
                captions[modality] = equations.mapped_caption(tokens, mapper_weights, modality, heads)
        present = len(captions) == 2
        result = {"visual": v, "audio": a}
        if present:
            ratio, heads = config.topk_ratio, config.case_num_heads
            result = equations.case(v, a, captions["visual"], captions["audio"], weights, heads, ratio)
            real = MASK[clip]
            assert_same(output.caption_agreement[clip, real], result["visual_agreement"])
            assert_same(output.audio_caption_agreement[clip, real], result["audio_agreement"])
            losses["v_saliency"] += list(result["visual_saliency"])
            losses["a_saliency"] += list(result["audio_saliency"])
            changed = (result["visual"] != v).any(-1).sum(-1)
            assert (changed == np.ceil(config.topk_ratio * v.shape[1])).all()
        losses["v_cap"].append(
            equations.projected(captions["visual"].mean(0), projections, "visual_caption") if present else None
        )
        losses["a_cap"].append(
            equations.projected(captions["audio"].mean(0), projections, "audio_caption") if present else None
        )
        for short, name in (("v", "visual"), ("a", "audio")):
            losses[short] += [equations.projected(tokens.mean(0), projections, name) for tokens in result[name]]
            losses[name].append(result[name])
        losses["clip"] += [clip] * len(v)
        losses["with"] += [present] * len(v)
        assert_same(output.visual_hidden_state[clip, : len(v)], result["visual"])
        assert_same(output.audio_hidden_state[clip, : len(a)], result["audio"])
        assert not output.visual_hidden_state[clip, len(v) :].any()

    temperature = float(base.projections.temperature)
    chosen = [index for index, present in enumerate(losses["with"]) if present]
    clips = [losses["clip"][index] for index in chosen]
    caption = sum(
        equations.contrastive_loss([losses[x][i] for i in chosen], losses[f"{x}_cap"], clips, temperature)
        for x in ("v", "a")
    )
    alignment = equations.alignment_loss(losses["v"], losses["a"])
    saliencies = [losses["v_saliency"], losses["a_saliency"]]
    entropy = equations.entropy_loss(saliencies, float(base.case.selection_temperature))
    assert_same(output.loss_dict["caption"], caption)
    assert_same(output.loss_dict["alignment"], alignment)
    assert_same(output.loss_dict["entropy"], entropy)
    assert entropy < -1e-3
    alpha_beta_gamma = {"alpha": 0.10, "beta": 0.05, "gamma": 0.003}
    task = float(output.loss_dict["task"])
    assert_same(output.loss, equations.total_loss(task, caption, alignment, entropy, alpha_beta_gamma))


@torch.no_grad()
def test_selection_survives_rounding() -> None:
    """
    In the paper formulation the saliencies of tokens differ by more than bfloat16 rounds, so Top-K chooses the same.
    With a norm after the temporal convolution, as in the official formulation, it does not.
    """
    shares = {}
    for formulation in ("paper", "official"):
        config = config_of(formulation=formulation)
        torch.manual_seed(0)
        module = CASE(config).eval()
        generator = torch.Generator().manual_seed(1)

        def tokens(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, 128, generator=generator)

        visual, audio, captions = tokens(20, 36), tokens(20, 16), (tokens(2, 9), tokens(2, 7))
        frames = FrameLayout(2, 10)
        chosen = []
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [value.to(dtype) for value in (visual, audio, *captions)]
            output = module.to(dtype)(*inputs[:2], Captions(*inputs[2:]), frames, frames)
            picked = torch.zeros(20, 36).scatter(1, output.visual_selected, 1.0)
            chosen.append(picked.bool())
        shares[formulation] = float((chosen[0] & chosen[1]).sum() / chosen[0].sum())
    assert shares["paper"] > 0.9
    assert shares["official"] < 0.6
