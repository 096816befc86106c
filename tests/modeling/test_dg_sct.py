"""DG-SCT: the authors' modules to 1e-5, both formulations token by token, and the duties of any method."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvForSegmentation, CaeAvModel
from caeav_hf.assets import toy_towers
from caeav_hf.configuration_cae_av import CaeAvAudioConfig, CaeAvVisionConfig, CaeAvVitConfig
from caeav_hf.conversion import key_map
from caeav_hf.modeling.dg_sct import DGSCTAdapter, DGSCTInteraction, DGSCTOptions
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.interaction import BlockPosition, InteractionOutput, PairPosition, pair_positions
from caeav_hf.towers import renaming
from caeav_hf.towers.base import FrozenBlock, TowerReader
from caeav_hf.towers.htsat import HtsatTower
from caeav_hf.towers.swin_v2 import SwinV2Tower
from caeav_hf.towers.vit import VitTower
from tests.golden import GoldenCase, assert_equal, numbers_in, part
from tests.lanes import slow_after
from tests.modeling.helpers import (
    assert_task_trains,
    block,
    opened,
    randomise,
    toy_batch,
    toy_model,
    toy_segmentation_model,
)
from tests.same import assert_close


TOY = {"reduction": 4, "num_latent_tokens": 4}
MASK = torch.tensor([[True, True, True, True], [True, False, True, False]])


def options_of(case: GoldenCase) -> DGSCTOptions:
    options = case.options
    flags = {name: options[name] == "True" for name in ("norm_before", "batch_norm", "gate_before_norm")}
    numbers = {name: float(options[name]) for name in ("alpha", "beta", "gamma") if name in options}
    return DGSCTOptions(
        **flags,
        **numbers,
        temporal_gate="gamma" in options,
        resize=options.get("resize", "linear"),
        reduction=int(options["reduction"]),
        groups=int(options["groups"]),
        num_latent_tokens=int(options["latent_tokens"]),
    )


@pytest.mark.parametrize("name", ["ave", "avqa", "avs_s4", "avs_ms3", "few_shot"])
def test_adapter_is_that_of_the_authors(name: str) -> None:
    case = GoldenCase(f"dg_sct_{name}")
    states, other = case.inputs["x"], case.inputs["other"]
    adapter = DGSCTAdapter(options_of(case), block(states), block(other), has_gate=case.options["gate"] == "True")
    case.load_into(adapter.eval(), key_map.DG_SCT, key_map.DG_SCT_IGNORED)
    added, attention, gate = adapter(states, other, FrameLayout(1, len(states)))
    assert_equal(added, case.outputs["residual"])
    assert_equal(attention, case.outputs["attention"])
    if name == "few_shot":
        assert_equal(gate.T, case.outputs["temporal_gate"])
    else:
        assert gate is None


@torch.no_grad()
def test_stages_and_pooling_are_those_of_the_authors() -> None:
    case = GoldenCase("dg_sct_stages")
    vision, audio = numbers_in(case.options["vision"]), numbers_in(case.options["audio"])
    depths, heads = vision["depths"], vision["num_heads"]
    vision_config = CaeAvVisionConfig(
        image_size=vision["img_size"],
        embed_dim=vision["embed_dim"],
        depths=depths,
        num_heads=heads,
        window_size=vision["window_size"],
        pretrained_window_sizes=[0] * len(depths),
    )
    audio_config = CaeAvAudioConfig(
        spec_size=audio["spec_size"],
        num_mel_bins=16,
        window_size=audio["window_size"],
        patch_embeds_hidden_size=audio["embed_dim"],
        hidden_size=audio["embed_dim"] * 2 ** (len(depths) - 1),
        depths=audio["depths"],
        num_attention_heads=audio["num_heads"],
    )
    towers = SwinV2Tower(vision_config).eval(), HtsatTower(audio_config).eval()
    rules = (key_map.SWIN_V2_OLD, key_map.SWIN_V2_IGNORED), (key_map.HTSAT, key_map.HTSAT_IGNORED)
    for tower, prefix, (new_names, ignored) in zip(towers, ("swin.", "htsat."), rules, strict=True):
        given = part(case, prefix)
        embedding = {k: v for k, v in tower.state_dict().items() if "layers." not in k and k != "norm.weight"}
        index = {k: v for k, v in tower.state_dict().items() if k.endswith("relative_position_index")}
        own = {k.removeprefix("audio_encoder."): v for k, v in {**embedding, **index}.items() if k != "norm.bias"}
        renamed_from = {k: v for k, v in own.items() if k not in given.state}
        given.state = {**given.state, **renamed_from}
        given.load_into(tower, new_names, {k: v for k, v in ignored.items() if "relative_position_index" not in k})

    readers = [TowerReader(tower) for tower in towers]
    stages = [reader.stages for reader in readers]
    options = {
        **{name: int(case.options[long]) for name, long in (("reduction", "reduction"), ("groups", "groups"))},
        "num_latent_tokens": int(case.options["latent_tokens"]),
        "alpha": float(case.options["alpha"]),
        "beta": float(case.options["beta"]),
    }
    config = CaeAvConfig.from_preset("ave", size="toy", method="dg_sct", interaction_options=options)
    layers = [DGSCTInteraction(config, place).eval() for stage in pair_positions(*stages) for place in stage]
    names = {("vis", "visual"), ("audio", "audio")}, {("p1", "attention"), ("p2", "feed_forward")}
    for number, layer in enumerate(layers):
        for (short, modality), (place, branch) in itertools.product(*names):
            adapter = getattr(layer, f"{modality}_{branch}_adapter")
            given = part(case, f"{short}_adapter_blocks_{place}.{number}.")
            given.load_into(adapter, key_map.DG_SCT, key_map.DG_SCT_IGNORED)

    walks = [reader.walk(case.inputs[name]) for reader, name in zip(readers, ("visual", "audio"), strict=True)]
    frames = FrameLayout(1, len(case.inputs["visual"]))
    for layer in layers:
        blocks = [
            walk.reach(place.index)
            for walk, place in zip(walks, (layer.position.visual, layer.position.audio), strict=True)
        ]
        output = layer(walks[0].tokens, walks[1].tokens, *blocks, frames)
        walks[0].tokens, walks[1].tokens = output.visual, output.audio
        assert (output.visual_pooling is None) == (not layer.position.is_last)
    tokens = [walk.finish() for walk in walks]
    for walk, name in zip(walks, ("visual", "audio"), strict=True):
        for stage, end in enumerate(walk.ends):
            assert_equal(end, case.outputs[f"{name}_stage{stage}"])
    for weights, read, name in (
        (output.visual_pooling, readers[0].final_norm(tokens[0]), "visual"),
        (output.audio_pooling, tokens[1], "audio"),
    ):
        assert_equal(weights, case.outputs[f"{name}_attention"])
        assert_equal((weights[..., None] * read).sum(1), case.outputs[f"{name}_pooled"])


@torch.no_grad()
def test_the_few_shot_order_is_that_of_the_authors() -> None:
    """A CLIP vision transformer of one stage with HTS-AT of two."""
    case = GoldenCase("dg_sct_few_shot_stages")
    audio = numbers_in(case.options["audio"])
    visual_tower = VitTower(
        CaeAvVitConfig(
            image_size=24,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=12,
        )
    ).eval()
    audio_tower = HtsatTower(
        CaeAvAudioConfig(
            spec_size=audio["spec_size"],
            num_mel_bins=16,
            window_size=audio["window_size"],
            patch_embeds_hidden_size=audio["embed_dim"],
            hidden_size=2 * audio["embed_dim"],
            depths=audio["depths"],
            num_attention_heads=audio["num_heads"],
            use_projection=True,
            projection_dim=12,
        )
    ).eval()
    for tower, prefix, rules in ((visual_tower, "ViT.", renaming.CLIP_VIT), (audio_tower, "htsat.", key_map.HTSAT)):
        given = part(case, prefix)
        known = tower.state_dict()
        kept = {
            new: value.view(known[new].shape)
            for old, stacked in given.state.items()
            for new, value in renaming.split(renaming.rename(old, rules), stacked)
            if new in known
        }
        missing = tower.load_state_dict(kept, strict=False).missing_keys
        # Layers before the first block, constants, and the audio projection, which the case stores separately.
        before = r"embed|cls_token|norm_pre|batch_norm|relative_position_index|audio_projection"
        assert not [name for name in missing if not re.search(before, name)]
    visual_tower.norm_pre = nn.Identity()  # the case's tokens are those that enter the first block
    projection = part(case, "audio_projection.").state
    assert len(projection) == 4
    for name, new in (("0", "linear1"), ("2", "linear2")):
        layer = getattr(audio_tower.audio_projection, new)
        layer.load_state_dict({kind: projection[f"{name}.{kind}"] for kind in ("weight", "bias")})

    readers = TowerReader(visual_tower), TowerReader(audio_tower)
    layers = make_layers(case, "ave_few_shot", [reader.stages for reader in readers])
    walks = run_pairs(layers, readers, case)
    # The case splits the vision transformer's blocks by the stages of HTS-AT, of which the first has one.
    first = run_pairs(layers[:1], readers, case, finish=False)
    assert_equal(first[0].tokens, case.outputs["visual_stage0"])
    assert_equal(first[1].tokens, case.outputs["audio_stage0"])
    assert_equal(walks[1].ends[0], case.outputs["audio_stage0"])
    assert_equal(walks[1].ends[1], case.outputs["audio_stage1"])
    assert_equal(walks[0].ends[0], case.outputs["visual_stage1"])
    pooled = [reader.pool(reader.final_norm(walk.tokens)) for reader, walk in zip(readers, walks, strict=True)]
    assert_equal(pooled[1], case.outputs["audio_pooled"])
    assert_equal(visual_tower.project(pooled[0]), case.outputs["visual_embedding"])
    assert_equal(audio_tower.project(pooled[1]), case.outputs["audio_embedding"])


def make_layers(case: GoldenCase, task: str, stages: list) -> list[DGSCTInteraction]:
    options = {
        **{name: int(case.options[name]) for name in ("reduction", "groups")},
        "num_latent_tokens": int(case.options["latent_tokens"]),
        **{name: float(case.options[name]) for name in ("alpha", "beta", "gamma") if name in case.options},
    }
    config = CaeAvConfig.from_preset(task, size="toy", method="dg_sct", interaction_options=options)
    layers = [DGSCTInteraction(config, place).eval() for stage in pair_positions(*stages) for place in stage]
    names = {("vis", "visual"), ("audio", "audio")}, {("p1", "attention"), ("p2", "feed_forward")}
    for number, layer in enumerate(layers):
        for (short, modality), (place, branch) in itertools.product(*names):
            adapter = getattr(layer, f"{modality}_{branch}_adapter")
            given = part(case, f"{short}_adapter_blocks_{place}.{number}.")
            given.load_into(adapter, key_map.DG_SCT, key_map.DG_SCT_IGNORED)
    return layers


def run_pairs(
    layers: list[DGSCTInteraction], readers: tuple[TowerReader, TowerReader], case: GoldenCase, finish: bool = True
) -> list:
    walks = [reader.walk(case.inputs[name]) for reader, name in zip(readers, ("visual", "audio"), strict=True)]
    frames = FrameLayout(1, len(case.inputs["visual"]))
    for layer in layers:
        blocks = [
            walk.reach(place.index)
            for walk, place in zip(walks, (layer.position.visual, layer.position.audio), strict=True)
        ]
        output = layer(walks[0].tokens, walks[1].tokens, *blocks, frames)
        walks[0].tokens, walks[1].tokens = output.visual, output.audio
        assert output.visual_pooling is None
    for walk in walks if finish else ():
        walk.finish()
    return walks


# The definitions, one frame and one token after the other.


def naive_adapter(adapter: DGSCTAdapter, x: Tensor, y: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the addition to tokens x (L, C) of a frame that read y (L', C'), and the attention map (L,)."""
    options, official = adapter.options, adapter.options.formulation == "official"
    mapped = adapter.cross_modal_map
    if options.resize == "linear":
        weights = mapped.tokens.weight
        rows = [sum(weights[i, j] * y[j] for j in range(len(y))) + mapped.tokens.bias[i] for i in range(len(x))]
        y = torch.stack([mapped.channels(row) for row in rows])
    else:
        image = mapped.channels(y).reshape(*mapped.other_grid, -1).permute(2, 0, 1)[None]
        image = F.interpolate(image, size=mapped.grid, mode="bicubic", align_corners=False)[0]
        y = torch.stack([image[:, i // mapped.grid[1], i % mapped.grid[1]] for i in range(len(x))])
    rectify = F.relu if official else (lambda values: values)
    if official:
        latents = [
            z + sum(p * t for p, t in zip((y @ z).softmax(0), y, strict=True)) for z in adapter.exchange.latents
        ]
        latents = torch.stack(latents)
        x = torch.stack([t + adapter.exchange.gate * ((latents @ t).softmax(0) @ latents) for t in x])
    prompt = sum(y) / len(y)
    guided = [rectify(adapter.channel_prompt(prompt)) * rectify(adapter.channel_states(t)) for t in x]
    channels = adapter.channel_map(adapter.channel_bottleneck(sum(guided) / len(x)).relu()).sigmoid()
    scores = []
    for index, token in enumerate(x):
        guide = adapter.spatial_prompt(prompt if official else y[index])
        scores.append(adapter.spatial_map(rectify(adapter.spatial_states(token * (channels + 1))) * rectify(guide)))
    scores = torch.cat(scores)
    spatial = 1 / (1 + (-scores).exp())
    rest = 1 - options.alpha if official else 1
    scaled = [t * (options.alpha * channels + options.beta * s + rest) for t, s in zip(x, spatial, strict=True)]
    if official:
        if gate is not None:
            scaled = [t + options.gamma * gate * own for t, own in zip(scaled, x, strict=True)]
        hidden = [adapter.norm_before(t) for t in scaled]
        for weight in (adapter.down.weight, adapter.up.weight):
            halves = [part.chunk(options.groups) for part in hidden]
            out = [
                torch.cat([w @ h for w, h in zip(weight.chunk(options.groups), half, strict=True)]) for half in halves
            ]
            norm = adapter.batch_norm_down if weight is adapter.down.weight else adapter.batch_norm_up
            hidden = [norm(t[None])[0] for t in out]
            hidden = [t.relu() for t in hidden] if weight is adapter.down.weight else hidden
        last = 1.0 if adapter.gate is None else adapter.gate
        if options.gate_before_norm:
            added = [adapter.norm_after(last * t) for t in hidden]
        else:
            added = [last * adapter.norm_after(t) for t in hidden]
    else:
        added = [adapter.gate * (options.gamma * gate + 1) * t for t in scaled]
    attention = torch.tensor([torch.tanh(s).exp() for s in scores], dtype=x.dtype)
    return torch.stack(added), attention / attention.sum()


def naive_gates(adapter: DGSCTAdapter, others: list[Tensor]) -> list[Tensor | None]:
    """Return the temporal gate of each frame of a clip, given the other stream's tokens."""
    if adapter.temporal_gate is None:
        return [None] * len(others)
    prompts = torch.stack([adapter.cross_modal_map(other[None])[0].mean(0) for other in others])
    if adapter.options.formulation == "official":
        return list(adapter.temporal_gate(prompts).sigmoid())
    states, _ = adapter.temporal_gate.rnn(prompts[None])
    return list(adapter.temporal_gate.output(states[0]).sigmoid())


FORMS = {
    "a": {},
    "b": {"batch_norm": False, "gated_streams": "visual", "zero_latents": True},
    "c": {"resize": "bicubic", "batch_norm": False, "norm_before": False, "gate_before_norm": True},
    "d": {"batch_norm": False, "norm_before": False, "gate_before_norm": True, "gated_streams": "visual"},
    "e": {"temporal_gate": True, "gamma": 0.4},
    "paper": {"formulation": "paper", "gamma": 0.4},
    "paper, bicubic": {"formulation": "paper", "resize": "bicubic", "alpha": 0.6},
}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_pair_follows_the_definitions(form: str) -> None:
    def place(side: int, size: int) -> BlockPosition:
        return BlockPosition(0, 0, depth=1, num_tokens=side**2, hidden_size=size, grid=(side, side), num_heads=1)

    position = PairPosition(1, True, True, place(3, 8), place(2, 12))
    options = {"reduction": 2, "groups": 2, "num_latent_tokens": 3, **FORMS[form]}
    config = CaeAvConfig.from_preset("ave", size="toy", method="dg_sct", interaction_options=options)
    layer = opened(DGSCTInteraction(config, position))
    generator = torch.Generator().manual_seed(1)
    frames = FrameLayout(2, 4, MASK)
    count = int(MASK.sum())
    v, a = (torch.randn(count, *shape, generator=generator).double() for shape in ((9, 8), (4, 12)))
    v_block, a_block = (FrozenBlock(attention=torch.sin, feed_forward=lambda tokens: 0.5 * tokens.cos()) for _ in "va")
    output = layer(v, a, v_block, a_block, frames)

    clip = [0] * 4 + [1] * 2
    official = layer.options.is_official

    def run(adapter: DGSCTAdapter, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        gates = [g for c in (0, 1) for g in naive_gates(adapter, [y[n] for n in range(count) if clip[n] == c])]
        frames = [naive_adapter(adapter, x[n], y[n], gates[n]) for n in range(count)]
        return tuple(torch.stack(values) for values in zip(*frames, strict=True))

    a_added, v_added = run(layer.audio_attention_adapter, a, v)[0], run(layer.visual_attention_adapter, v, a)[0]
    a_half = a + a.sin()
    new_audio = a_half + 0.5 * a_half.cos() if official else a_half
    v, a = v + v.sin() + v_added, new_audio + a_added
    (a_added, a_map), (v_added, v_map) = (
        run(layer.audio_feed_forward_adapter, a, v),
        run(layer.visual_feed_forward_adapter, v, a),
    )
    v, a = v + 0.5 * v.cos() + v_added, a + a_added + (0 if official else 0.5 * a.cos())
    for found, expected in (
        (output.visual, v),
        (output.audio, a),
        (output.visual_pooling, v_map),
        (output.audio_pooling, a_map),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    has_gate = form == "e" or not official
    assert ("temporal_gate" in output.explained) == has_gate
    if has_gate:
        assert output.explained["temporal_gate"].shape == (count, 4)


def model_of(**options) -> nn.Module:
    """Build a toy model whose gates are all open."""
    model = toy_model(method="dg_sct", interaction_options={**TOY, **options})
    return randomise(model).eval()


@torch.no_grad()
@pytest.mark.parametrize("formulation", ["official", "paper"])
def test_it_begins_as_its_frozen_towers(formulation: str) -> None:
    torch.manual_seed(0)
    options = {**TOY, "formulation": formulation}
    config = CaeAvConfig.from_preset("ave", size="toy", method="dg_sct", interaction_options=options)
    model = CaeAvModel(config).eval()
    batch = toy_batch(config)
    found = model(batch["pixel_values_videos"], batch["input_features"])
    visual_reader, audio_reader = model.readers()
    for reader, name, inputs in (
        (visual_reader, "visual", "pixel_values_videos"),
        (audio_reader, "audio", "input_features"),
    ):
        alone = reader.walk(reader.embed(batch[inputs].flatten(0, 1))).finish()
        assert_close(found[f"{name}_hidden_state"].flatten(0, 1), alone)


@torch.no_grad()
def test_heads_read_the_pooling_of_the_method() -> None:
    model = model_of()
    batch = toy_batch(model.config)
    last = model.model.interactions[-1][-1]
    given = []

    def replace(module: nn.Module, inputs: tuple, output: InteractionOutput) -> None:
        given.extend([output.visual_pooling, output.audio_pooling])
        # Those of a toy model are nearly flat.
        output.visual_pooling, output.audio_pooling = (F.one_hot(w.argmax(-1), w.shape[1]).float() for w in given)

    last.register_forward_hook(replace)
    found = model(batch["pixel_values_videos"], batch["input_features"])
    visual = model.model.vision_tower.final_norm(found.visual_hidden_state).flatten(0, 1)
    audio = found.audio_hidden_state.flatten(0, 1)
    for weights, name, tokens in zip(given, ("visual", "audio"), (visual, audio), strict=True):
        assert_close(weights.sum(-1), torch.ones(len(weights)))
        assert (weights.amax(-1) > weights.amin(-1)).all()
        chosen = tokens[torch.arange(len(tokens)), weights.argmax(-1)]
        assert_close(found[f"{name}_pooler_output"].flatten(0, 1), chosen)
        assert (chosen - tokens.mean(1)).abs().max() > 1e-3
    logits = model.head(found.visual_pooler_output, found.audio_pooler_output, FrameLayout(2, 4))
    assert_close(found.event_logits, logits.event)


@torch.no_grad()
@pytest.mark.parametrize("options", slow_after(1, [{}, {"formulation": "paper"}, {"temporal_gate": True}]), ids=str)
def test_padding_changes_nothing(options: dict) -> None:
    model = model_of(**options)
    batch = toy_batch(model.config)
    inputs = {name: batch[name] for name in ("pixel_values_videos", "input_features")}
    padded = model(**inputs, frame_mask=MASK)
    for clip, mask in enumerate(MASK):
        alone = model(**{name: value[clip : clip + 1, mask] for name, value in inputs.items()})
        for name in ("visual_pooler_output", "audio_pooler_output", "event_logits"):
            assert_close(padded[name][clip, mask], alone[name][0])
        assert_close(padded.class_logits[clip], alone.class_logits[0])
    assert not padded.visual_pooler_output[~MASK].any()


@torch.no_grad()
def test_any_number_of_frames() -> None:
    model = model_of()
    for num_frames in (1, 7):
        batch = toy_batch(model.config, batch_size=1, num_frames=num_frames)
        assert model(**batch).event_logits.shape == (1, num_frames)


@pytest.mark.parametrize("options", slow_after(1, [{}, {"formulation": "paper"}]), ids=["official", "paper"])
def test_a_step_trains_every_layer_with_and_without_checkpointing(options: dict) -> None:
    plain = model_of(**options).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    batch = toy_batch(plain.config)
    for model in (plain, checkpointed):
        torch.manual_seed(0)  # the head has dropout
        model(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert all(
        gradient is not None and gradient.any() for name, gradient in gradients.items() if "interactions" in name
    )
    for name, parameter in checkpointed.named_parameters():
        if name in gradients:
            assert_close(parameter.grad, gradients[name])
    for (name, first), (_, second) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        if "running" in name:
            assert_close(first, second)


@torch.no_grad()
def test_half_precision() -> None:
    model = model_of()
    batch = toy_batch(model.config)
    expected = model(**batch)
    found = model.to(torch.bfloat16)(**batch)
    assert found.event_logits.isfinite().all()
    assert (found.visual_pooler_output.float() - expected.visual_pooler_output).abs().max() < 0.3


def test_initial_values() -> None:
    for zero, expected in ((True, (0.0, 0.0)), (False, (0.0, 1.0))):
        config = CaeAvConfig.from_preset(
            "ave", size="toy", method="dg_sct", interaction_options={**TOY, "zero_latents": zero}
        )
        for layer in CaeAvModel(config).modules():
            if isinstance(layer, DGSCTAdapter):
                assert layer.gate == 0
                assert layer.exchange.gate == 0
                assert layer.exchange.latents.min() >= expected[0]
                assert layer.exchange.latents.max() <= expected[1]
                assert bool(layer.exchange.latents.any()) != zero


def test_gates_of_the_streams() -> None:
    for streams, has_audio_gate in (("both", True), ("visual", False)):
        layer = model_of(gated_streams=streams).model.interactions[0][0]
        assert isinstance(layer, DGSCTInteraction)
        for branch in ("attention", "feed_forward"):
            assert getattr(layer, f"visual_{branch}_adapter").gate is not None
            assert (getattr(layer, f"audio_{branch}_adapter").gate is not None) == has_audio_gate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formulation": "code"}, "`formulation` must be one of 'official', 'paper', got 'code'"),
        ({"gated_streams": "audio"}, "`gated_streams` must be one of 'both', 'visual'"),
        ({"alpha": -0.1}, "`alpha` must be a number that is not negative, got -0.1"),
        ({"groups": 0}, "`groups` must be a whole number of at least 1, got 0"),
        ({"batch_norm": 1}, "`batch_norm` must be a bool, got 1"),
        ({"delta": 1}, "unknown option 'delta'"),
        (
            {"reduction": 3},
            r"`reduction` \(3\) and `groups` \(2\) of `interaction_options` must divide the channels of every stage",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    config = CaeAvConfig.from_preset("ave", size="toy", method="dg_sct", interaction_options=options)
    with pytest.raises(CaeAvError, match=message):
        CaeAvModel(config)


def test_presets_hold_the_options_of_the_scripts() -> None:
    def of(task: str, size: str = "full") -> DGSCTOptions:
        return DGSCTInteraction.read_options(CaeAvConfig.from_preset(task, size, method="dg_sct"))

    assert of("ave") == DGSCTOptions()
    assert of("avvp") == DGSCTOptions(gamma=0.05)
    unlike_ave = {"zero_latents": True, "batch_norm": False, "gated_streams": "visual"}
    segmentation = {**unlike_ave, "norm_before": False, "gate_before_norm": True}
    assert of("avs_s4") == DGSCTOptions(gamma=0.05, resize="bicubic", **segmentation)
    assert of("avs_ms3") == DGSCTOptions(alpha=0.2, beta=0.1, reduction=2, **segmentation)
    assert of("avqa") == DGSCTOptions(groups=4, num_latent_tokens=2, **unlike_ave)
    assert of("avqa", "toy") == DGSCTOptions(reduction=4, groups=2, num_latent_tokens=4, **unlike_ave)
    # Each second is repeated to five there.
    segmentation = CaeAvConfig.from_preset("avs_s4", method="dg_sct")
    assert (segmentation.audio_config.tile_seconds, segmentation.input_size) == (5, (224, 224))
    assert CaeAvConfig.from_preset("ave", method="dg_sct").audio_config.tile_seconds == 10


def test_what_is_given_goes_over_the_preset_of_the_method() -> None:
    config = CaeAvConfig.from_preset(
        "avs_s4", method="dg_sct", interaction_options={"alpha": 0.5}, audio_config={"hop_length": 640}
    )
    assert config.interaction == "dg_sct"
    assert config.interaction_options["alpha"] == 0.5
    assert config.interaction_options["resize"] == "bicubic"
    assert (config.audio_config.tile_seconds, config.audio_config.hop_length) == (5, 640)
    assert not config.use_case
    assert CaeAvConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    avmoe, cae_av = (CaeAvConfig.from_preset("ave", method=method) for method in ("avmoe", "cae_av"))
    assert (avmoe.interaction, avmoe.use_case, avmoe.use_text_tower) == ("avmoe", False, False)
    assert cae_av.to_dict() == CaeAvConfig.from_preset("ave").to_dict()
    with pytest.raises(CaeAvError, match="`method` must be one of avmoe, cae_av, dg_sct"):
        CaeAvConfig.from_preset("ave", method="dgsct")


@pytest.mark.parametrize("task", slow_after(1, ["avvp", "avs_s4", "avs_ms3", "avqa"]))
def test_every_task_trains(task: str) -> None:
    assert assert_task_trains("dg_sct", task) > 80


def test_third_loss_of_event_localization() -> None:
    with_it, without = model_of(), model_of()
    without.head.gate_loss_weight = 0.0
    without.load_state_dict(with_it.state_dict())
    assert with_it.head.gate_loss_weight == 1.0
    batch = toy_batch(with_it.config)
    with torch.no_grad():
        outputs = without(**batch)
        gate = without.head.relation(
            outputs.visual_pooler_output, outputs.audio_pooler_output, FrameLayout(*batch["labels"].shape)
        )[2]
        is_event = (batch["labels"] != with_it.config.num_labels).float()
        expected = -(is_event * gate.sigmoid().log() + (1 - is_event) * (-gate).sigmoid().log()).mean()
        assert_close(with_it(**batch).loss - outputs.loss, expected)
    with pytest.raises(StrictDataclassClassValidationError, match="`event_gate_loss_weight` of CaeAvConfig needs"):
        CaeAvConfig.from_preset("ave", size="toy", method="dg_sct", event_head="mlp")


@torch.no_grad()
def test_how_far_the_gates_of_segmentation_scale() -> None:
    logits = []
    for scale in (0.0, 0.05, 0.1):
        model = toy_segmentation_model(method="dg_sct", head_gate_scale=scale)
        logits.append(model(**toy_batch(model.config, num_frames=2) | {"labels": None}).logits)
    assert (logits[1] - logits[0]).abs().max() > 1e-5
    assert (logits[2] - logits[1]).abs().max() > 1e-5
    scales = {task: CaeAvConfig.from_preset(task, method="dg_sct").head_gate_scale for task in ("avs_s4", "avs_ms3")}
    assert scales == {"avs_s4": 0.05, "avs_ms3": 0.1}
    assert CaeAvConfig.from_preset("avs_ms3").head_gate_scale == 0.05


@pytest.mark.slow
def test_a_model_on_towers_needs_no_text_tower(tmp_path: Path) -> None:
    towers = toy_towers()
    towers = {name: towers[name] for name in ("vision", "audio")}
    model = CaeAvForEventLocalization.from_backbones(**towers, text=None, size="toy", method="dg_sct")
    assert model.model.text_tower is None
    full = CaeAvForSegmentation.from_backbones(
        **towers, text=None, task="avs_s4", method="dg_sct", head_hidden_size=32
    )
    assert full.config.audio_config.tile_seconds == 5  # of the method
    assert model.config.audio_config.tile_seconds == 1  # of the tower
    randomise(model).save_pretrained(tmp_path, adapter_only=True)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path)
    batch = toy_batch(model.config)
    with torch.no_grad():
        assert_close(loaded.eval()(**batch).event_logits, model.eval()(**batch).event_logits)
