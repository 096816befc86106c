"""The equations one by one: interaction order, CASTE, CASE, AVMoE options, losses."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvForSegmentation
from caeav_hf.modeling.avmoe import AVMoE, CrossModalMap
from caeav_hf.modeling.captions import Captions
from caeav_hf.modeling.case import CASE
from caeav_hf.modeling.caste import CASTE, keep_only, num_kept, top_tokens
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.interaction import (
    InteractionLayer,
    InteractionOutput,
    interaction_class,
    register_interaction,
)
from caeav_hf.modeling.losses import caption_contrastive_loss, modality_alignment_loss, selection_entropy_loss
from caeav_hf.tasks.segmentation.head import TPAVI
from caeav_hf.towers.base import FrozenBlock
from tests.memory_use import MemoryUse
from tests.modeling.helpers import pair_position, randomise, toy_batch, toy_model
from tests.same import assert_close


VISUAL, AUDIO = (6, 16), (8, 32)


def config_of(formulation: str = "paper", **overrides) -> CaeAvConfig:
    config = CaeAvConfig.from_preset(
        overrides.pop("task", "ave"), size="toy", formulation=formulation, adapter_batch_norm=False, **overrides
    )
    config._attn_implementation = "sdpa"
    return config


def pair(config: CaeAvConfig, stage: int = 1, is_first: bool = True) -> InteractionLayer:
    torch.manual_seed(0)
    return randomise(interaction_class(config)(config, pair_position(VISUAL, AUDIO, stage, is_first))).eval().double()


def streams() -> tuple[Tensor, Tensor, FrozenBlock, FrozenBlock, FrameLayout]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(4, *VISUAL, generator=generator, dtype=torch.float64)
    audio = torch.randn(4, *AUDIO, generator=generator, dtype=torch.float64)
    blocks = [FrozenBlock(attention=lambda x: x.sin() * 0.5, feed_forward=lambda x: x.cos() * 0.3) for _ in range(2)]
    return visual, audio, *blocks, FrameLayout(2, 2)


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_paired_block_follows_the_equations(formulation: str) -> None:
    """Eq. 10 to 13, written out; the official audio stream runs its whole block first."""
    config = config_of(formulation)
    layer = pair(config)
    visual, audio, visual_block, audio_block, frames = streams()
    output = layer(visual, audio, visual_block, audio_block, frames)

    v = visual + layer.visual_caste(visual, audio, frames)[0]
    a = audio + layer.audio_caste(audio, visual, frames)[0]
    dv = layer.visual_attention_adapter(v, a, frames)[0]
    da = layer.audio_attention_adapter(a, v, frames)[0]
    v = visual + visual_block.attention(visual) + dv
    a = (audio_block(audio) if formulation == "official" else audio + audio_block.attention(audio)) + da
    dv = layer.visual_feed_forward_adapter(v, a, frames)[0]
    da = layer.audio_feed_forward_adapter(a, v, frames)[0]
    torch.testing.assert_close(output.visual, v + visual_block.feed_forward(v) + dv)
    ffn = 0 if formulation == "official" else audio_block.feed_forward(a)
    torch.testing.assert_close(output.audio, a + da + ffn)
    assert output.explained["enrichment_weights"].shape == (4, 2)
    assert output.explained["audio_enrichment_weights"].shape == (4, 2)
    # Their dot product is the mean cosine of both directions' gates (Eq. 1).
    cosines = [
        F.cosine_similarity(*caste(*tokens, frames)[2], dim=-1)
        for caste, tokens in ((layer.visual_caste, (visual, audio)), (layer.audio_caste, (audio, visual)))
    ]
    torch.testing.assert_close(output.explained["embeddings"].prod(1).sum(-1), sum(cosines) / 2)
    assert output.explained["router_probs"].shape == (4, 4, config.num_experts)


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_stage_without_adapters(formulation: str) -> None:
    config = config_of(formulation, adapter_stages=(2,))
    first, later = pair(config), pair(config, is_first=False)
    visual, audio, visual_block, audio_block, frames = streams()
    output = first(visual, audio, visual_block, audio_block, frames)
    v = visual + visual_block.attention(visual) + first.visual_caste(visual, audio, frames)[0]
    torch.testing.assert_close(output.visual, v + visual_block.feed_forward(v))
    added = first.audio_caste(audio, visual, frames)[0]
    if formulation == "official":
        a = audio_block(audio) + added
    else:
        a = audio + audio_block.attention(audio) + added
        a = a + audio_block.feed_forward(a)
    torch.testing.assert_close(output.audio, a)
    output = later(visual, audio, visual_block, audio_block, frames)
    torch.testing.assert_close((output.visual, output.audio), (visual_block(visual), audio_block(audio)))
    assert output.explained == {}


def test_official_video_parsing_skips_the_audio_blocks() -> None:
    config = config_of("official", task="avvp")
    layer = pair(config)
    visual, audio, visual_block, _, frames = streams()

    def never(_: Tensor) -> Tensor:
        raise AssertionError("the audio block ran")

    layer(visual, audio, visual_block, FrozenBlock(never, never), frames)


def test_interactions_can_be_added() -> None:
    @register_interaction("double_the_picture")
    class Doubling(InteractionLayer):
        def forward(self, visual, audio, visual_block, audio_block, frames):
            return InteractionOutput(2 * visual_block(visual), audio_block(audio))

    model = toy_model(interaction="double_the_picture")
    outputs = model(**toy_batch(model.config))
    assert torch.isfinite(outputs.loss)
    assert outputs.agreement is None
    assert outputs.router_probs is None


def test_plain_avmoe_has_no_enrichment() -> None:
    model = toy_model(interaction="avmoe", use_case=False)
    outputs = model(**toy_batch(model.config))
    assert outputs.enrichment_weights is None
    assert outputs.caption_agreement is None
    assert set(outputs.loss_dict) == {"task"}
    assert not any("caste" in name or "case." in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("ratio", "tokens", "paper", "official"), [(0.3, 10, 3, 3), (0.3, 12, 4, 3), (0.1, 4, 1, 1)])
def test_number_of_kept_tokens(ratio: float, tokens: int, paper: int, official: int) -> None:
    assert num_kept(config_of("paper", topk_ratio=ratio), tokens) == paper
    assert num_kept(config_of("official", topk_ratio=ratio), tokens) == official


def test_caste_of_the_paper_written_out() -> None:
    """Eq. 1 to 9 token by token."""
    config = config_of("paper")
    torch.manual_seed(0)
    module = randomise(CASTE(config, 16, 32)).double().eval()
    states, other = torch.randn(3, 6, 16, dtype=torch.float64), torch.randn(3, 8, 32, dtype=torch.float64)
    added, weights, projections = module(states, other, FrameLayout(1, 3))
    gate, spatial, temporal = module.agreement_gate, module.spatial, module.temporal
    kept = math.ceil(config.topk_ratio * 6)
    for t in range(3):
        v, a = gate.stream_projection(states[t].mean(0)), gate.other_projection(other[t].mean(0))
        g = v @ a / (v.norm() * a.norm())
        logits = gate.logits(gate.hidden(torch.cat([v, a, v - a, v * a])).relu()) + torch.stack([g, -g])
        w = logits.softmax(0)
        torch.testing.assert_close((weights[t], projections[0, t], projections[1, t]), (w, v, a))
        i = spatial.gate_projection(states[t]).sigmoid()
        context = (i * spatial.key_projection(states[t])).sum(0)
        enriched = spatial.output_projection(spatial.value_projection(states[t]) * context)
        x_spatial = spatial.norm(states[t] + spatial.gamma * enriched)
        window = [states[t + d] if 0 <= t + d < 3 else torch.zeros_like(states[t]) for d in (-1, 0, 1)]
        kernel = temporal.conv.depthwise.weight[:, 0]
        mixed = sum(w_ * kernel[:, d] for d, w_ in enumerate(window)) + temporal.conv.depthwise.bias
        x_temporal = temporal.norm(states[t] + temporal.gamma * temporal.conv.pointwise(mixed))
        hat = w[0] * x_spatial + w[1] * x_temporal
        salient = hat.square().sum(-1).argsort(descending=True)[:kept]
        expected = torch.zeros_like(hat)
        expected[salient] = module.gamma * hat[salient]
        torch.testing.assert_close(added[t], expected)


def test_training_stores_only_the_enrichment_of_selected_tokens() -> None:
    """The gradients are those of the enrichment of all tokens."""
    config = config_of("paper")
    torch.manual_seed(0)
    module = randomise(CASTE(config, 16, 32)).double()
    states = torch.randn(4, 100, 16, dtype=torch.float64, requires_grad=True)
    other, frames = torch.randn(4, 10, 32, dtype=torch.float64), FrameLayout(1, 4)
    with MemoryUse() as use:
        added, *_ = module(states, other, frames)
        # The tokens added, and eight times the selected ones; with all enriched and mixed ones stored it was 7.4.
        assert use.now() < 3.5 * states.nbytes

    weights, _ = module.agreement_gate(states, other)
    enriched = module.enrich(states, module.spatial.context(states), module.temporal.conv.mix(states, frames), weights)
    expected = module.gamma * keep_only(enriched, top_tokens(enriched, num_kept(config, 100)))
    torch.testing.assert_close(added, expected)
    inputs, towards = [states, *module.parameters()], torch.randn_like(states)
    found = torch.autograd.grad(added, inputs, towards, allow_unused=True)
    for gradient, other_gradient in zip(found, torch.autograd.grad(expected, inputs, towards), strict=True):
        torch.testing.assert_close(gradient, other_gradient)


def test_the_mean_of_a_cross_modal_map_copies_no_tokens() -> None:
    module, other = CrossModalMap(6, 100, 16, 16), torch.randn(4, 100, 16, requires_grad=True)
    with MemoryUse() as use:
        mean = module.mean(other)
        assert use.now() < other.nbytes / 2
    assert_close(mean, module(other).mean(1))


def test_attention_through_a_map_stores_no_copy_of_its_weight() -> None:
    module, other = CrossModalMap(512, 512, 16, 16), torch.randn(1, 512, 16, requires_grad=True)
    with MemoryUse() as use, torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        gathered, _ = module.attend_and_mean(torch.randn(2, 16), other)
        assert use.now() < module.tokens.weight.nbytes / 4
    (gradient,) = torch.autograd.grad(gathered.sum(), module.tokens.weight)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_checkpointing_recomputes_one_layer_of_case_at_a_time(formulation: str) -> None:
    model = toy_model(formulation=formulation).train()
    model.gradient_checkpointing_enable()
    case, layout = model.model.case, FrameLayout(2, 4)
    visual, audio = (torch.randn(8, 40, 128, requires_grad=True) for _ in range(2))
    captions = Captions(torch.randn(2, 8, 128), torch.randn(2, 8, 128))
    output = case(visual, audio, captions, layout, caption_layout=layout)
    with MemoryUse() as use:
        (output.visual.sum() + output.audio.sum()).backward()
    gradients = sum(parameter.nbytes for parameter in case.parameters() if parameter.grad is not None)
    # With CASE recomputed as a whole it was 84 to 89 times the tokens.
    assert use.peak - gradients < 20 * visual.nbytes


def test_new_enrichment_adds_nothing() -> None:
    """gamma starts at 0, for CASTE and for the paper's CASE; AVMoE's gates start at 0."""
    torch.manual_seed(0)
    config = config_of("paper")
    caste = CASTE(config, 16, 32)
    states, other = torch.randn(2, 6, 16), torch.randn(2, 8, 32)
    assert not caste(states, other, FrameLayout(1, 2))[0].any()
    adapter = AVMoE(config, 6, 16, 8, 32)
    assert not adapter(states, other, FrameLayout(1, 2))[0].any()
    case = CASE(config).eval()
    visual, audio = torch.randn(2, 4, 128), torch.randn(2, 4, 128)
    output = case(visual, audio, Captions(torch.randn(1, 5, 128), torch.randn(1, 5, 128)), *[FrameLayout(1, 2)] * 2)
    assert torch.equal(output.visual, visual)
    assert torch.equal(output.audio, audio)


def test_start_of_the_scales_of_case() -> None:
    """`case_scale_init` opens CASE from the first step on; the official formulation has no scales to set."""
    case = CASE(config_of("paper", case_scale_init=0.5))
    assert case.visual_stream.gamma.item() == case.audio_stream.gamma.item() == 0.5
    official = CASE(config_of("official", case_scale_init=0.5))
    assert official.visual_stream.gamma is official.audio_stream.gamma is None


def test_gradient_through_the_caption_agreement_only_in_the_paper() -> None:
    for formulation, flows in (("paper", True), ("official", False)):
        config = config_of(formulation)
        torch.manual_seed(0)
        stream = randomise(CASE(config)).visual_stream
        agreement = torch.tensor([0.2, 0.4], requires_grad=True)
        tokens, bar = torch.randn(2, 4, 128), torch.randn(2, 4, 128)
        stream.inject(tokens, bar, agreement, torch.ones(()))[0].square().sum().backward()
        assert (agreement.grad is not None) is flows


def test_official_selection_is_drawn_while_training() -> None:
    config = config_of("official", topk_ratio=0.5)
    torch.manual_seed(0)
    stream = randomise(CASE(config)).visual_stream
    tokens, bar = torch.zeros(1, 8, 128), 0.01 * torch.randn(1, 8, 128)
    arguments = (tokens, bar, torch.zeros(1), torch.ones(()))
    stream.eval()
    assert torch.equal(stream.inject(*arguments)[1], stream.inject(*arguments)[1])
    stream.train()
    drawn = {tuple(sorted(stream.inject(*arguments)[1][0].tolist())) for _ in range(20)}
    assert len(drawn) > 1
    temperature = nn.Parameter(torch.ones(()))
    stream.inject(tokens, bar, torch.zeros(1), temperature)[0].square().sum().backward()
    assert temperature.grad is not None


@pytest.mark.parametrize("sizes", [(6, 16, 8, 32), (6, 32, 8, 16), (9, 8, 3, 8)])
@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_cross_modal_map_factors(sizes: tuple[int, ...], num_queries: int) -> None:
    """In both orders of computation, y is mapped to the stream's tokens and channels."""
    torch.manual_seed(0)
    tokens, width, other_tokens, other_width = sizes
    module = CrossModalMap(tokens, other_tokens, width, other_width).double()
    other = torch.randn(2, other_tokens, other_width, dtype=torch.float64)
    mapped = module.channels(module.tokens(other.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(module(other), mapped)
    torch.testing.assert_close(module.mean(other), mapped.mean(1))
    queries = torch.randn(num_queries, width, dtype=torch.float64)
    leaves = [queries.requires_grad_(), other.requires_grad_(), *module.parameters()]
    expected_leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    def by_definition(queries: Tensor, other: Tensor, a: Tensor, a_bias: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        mapped = F.linear(F.linear(other.transpose(1, 2), a, a_bias).transpose(1, 2), w, b)
        return [(queries @ mapped.transpose(1, 2)).softmax(-1) @ mapped, mapped.mean(1)]

    actual = module.attend_and_mean(queries, other)
    expected = by_definition(*expected_leaves)
    cotangents = [torch.randn_like(value) for value in expected]
    for outputs in (actual, expected):
        torch.autograd.backward(outputs, cotangents)
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference)
    for leaf, reference in zip(leaves, expected_leaves, strict=True):
        torch.testing.assert_close(leaf.grad, reference.grad)


def brute_force_infonce(frames: Tensor, captions: Tensor, clip: Tensor, temperature: float, both_ways: bool) -> Tensor:
    """Compare every frame with every frame's caption."""
    scores = F.normalize(frames, dim=-1) @ F.normalize(captions, dim=-1)[clip].T / temperature
    losses = []
    for matrix in (scores, scores.T) if both_ways else (scores,):
        for i in range(len(clip)):
            negatives = matrix[i][clip != clip[i]]
            losses.append(torch.logsumexp(torch.cat([matrix[i, i : i + 1], negatives]), 0) - matrix[i, i])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("both_ways", [False, True])
def test_caption_contrastive_loss(both_ways: bool) -> None:
    torch.manual_seed(0)
    clip = torch.tensor([0, 0, 0, 1, 2, 2])
    frames, captions = torch.randn(6, 8), torch.randn(4, 8)  # the last clip has no frame
    actual = caption_contrastive_loss(frames, captions, clip, torch.tensor(0.2), both_ways)
    torch.testing.assert_close(actual, brute_force_infonce(frames, captions, clip, 0.2, both_ways))
    alone = caption_contrastive_loss(frames[:3], captions[:1], clip[:3], torch.tensor(0.2), both_ways)
    torch.testing.assert_close(alone, torch.zeros(()))
    assert caption_contrastive_loss(frames[:0], captions, clip[:0], torch.tensor(0.2), both_ways) == 0


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _one_of_two_processes(rank: int, port: int, results: dict) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    _contrast_shares(rank, results)
    _step_with_or_without_captions(rank, results)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes() -> dict:
    """Return what the functions below have stored on two processes."""
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_one_of_two_processes, (free_port(), results), nprocs=2)
        return dict(results)


def _contrast_shares(rank: int, results: dict) -> None:
    torch.manual_seed(0)
    frames, captions = torch.randn(6, 8), torch.randn(3, 8)
    parts = [(slice(0, 3), slice(0, 1), torch.tensor([0, 0, 0])), (slice(3, 6), slice(1, 3), torch.tensor([0, 1, 1]))]
    of_frames, of_captions, clip = parts[rank]
    for both_ways in (False, True):
        inputs = [frames.clone().requires_grad_(), captions.clone().requires_grad_()]
        loss = caption_contrastive_loss(
            inputs[0][of_frames], inputs[1][of_captions], clip, torch.tensor(0.2), both_ways
        )
        loss.backward()
        for tensor in inputs:
            dist.all_reduce(tensor.grad)
        results[rank, both_ways] = (loss.item(), [tensor.grad / 2 for tensor in inputs])


@pytest.mark.slow
def test_negatives_are_gathered_across_processes(of_two_processes: dict) -> None:
    """
    Two processes, three frames each: mean loss and averaged gradients are those of one process with all six, with
    frames against captions alone and both ways.
    """
    for both_ways in (False, True):
        torch.manual_seed(0)
        inputs = [torch.randn(6, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)]
        loss = caption_contrastive_loss(*inputs, torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor(0.2), both_ways)
        loss.backward()
        for rank in (0, 1):
            value, gradients = of_two_processes[rank, both_ways]
            torch.testing.assert_close(value, loss.item())
            torch.testing.assert_close(gradients, [tensor.grad for tensor in inputs])


def test_alignment_and_entropy() -> None:
    same = torch.randn(4, 8)
    torch.testing.assert_close(modality_alignment_loss(same, 3 * same), torch.zeros(()), atol=1e-6, rtol=0)
    torch.testing.assert_close(modality_alignment_loss(same, -same), torch.tensor(2.0))
    flat = torch.full((2, 8), -math.log(8))
    sharp = torch.tensor([[0.0] + [-1e4] * 7])
    torch.testing.assert_close(selection_entropy_loss(flat, flat, "as_printed"), torch.tensor(-2 * math.log(8)))
    torch.testing.assert_close(selection_entropy_loss(flat, flat, "sharpen"), torch.tensor(2 * math.log(8)))
    torch.testing.assert_close(selection_entropy_loss(sharp, sharp, "sharpen"), torch.zeros(()))


def test_loss_is_the_weighted_sum() -> None:
    model = toy_model(task="avs_ms3")
    batch = toy_batch(model.config)
    batch["labels"] = batch["labels"].clamp(max=model.config.num_labels)
    outputs = model(**batch)
    assert set(outputs.loss_dict) == {"task", "caption", "alignment", "entropy", "load_balancing"}
    weights = {"task": 1.0, "caption": 0.1, "alignment": 0.05, "entropy": 0.005, "load_balancing": 0.01}
    expected = sum(weights[name] * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, expected)
    model.loss_weights["entropy"] = 0.0
    expected = expected - 0.005 * outputs.loss_dict["entropy"]
    torch.testing.assert_close(model(**batch).loss, expected)


def _step_with_or_without_captions(rank: int, results: dict) -> None:
    model = toy_model().train()
    batch = toy_batch(model.config)
    if rank == 1:
        batch = {name: value for name, value in batch.items() if "caption" not in name}
    loss = model(**batch).loss
    loss.backward()
    results[rank] = float(loss)


@pytest.mark.slow
def test_a_process_without_captions_does_not_hold_up_the_others(of_two_processes: dict) -> None:
    assert all(math.isfinite(of_two_processes[rank]) for rank in (0, 1))


@pytest.mark.parametrize("task", ["ave", "avs_ms3"])
@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_what_a_new_model_adds_begins_at_zero(task: str, formulation: str) -> None:
    model_class = {"ave": CaeAvForEventLocalization, "avs_ms3": CaeAvForSegmentation}[task]
    model = model_class(CaeAvConfig.from_preset(task, size="toy", formulation=formulation))
    scales = {name: value for name, value in model.named_parameters() if name.split(".")[-1] in {"gamma", "gate"}}
    for stream in ("visual", "audio"):
        up = getattr(model.model.caption_mapper, f"{stream}_bottleneck").up
        scales[f"{stream} bias"] = up.bias
        if formulation == "official":
            scales[f"{stream} weight"] = up.weight
        else:
            # Eq. 19 compares frames with captions, which must not be zero.
            torch.testing.assert_close(up.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0)
    for name, module in model.named_modules():
        if isinstance(module, TPAVI):
            scales[name] = module.batch_norm.weight
    assert len(scales) > 8
    assert not {name for name, value in scales.items() if value.any()}
