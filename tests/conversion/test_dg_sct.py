"""Checkpoints of DG-SCT load and agree with its equations on the tensors under the authors' names."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav_hf import CaeAvConfig, CaeAvError
from caeav_hf.conversion import from_official, key_map
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.modeling.dg_sct import DGSCTInteraction
from caeav_hf.modeling.frames import FrameLayout
from tests.conversion.official_state import (
    AUDIO,
    UNTOLD,
    VISION,
    in_their_names,
    official_state,
    prefixed,
    small_config,
    small_model,
    without,
)
from tests.conversion.test_official import AUDIO as THEIR_AUDIO
from tests.conversion.test_official import VISION as THEIR_VISION
from tests.conversion.test_official import in_double, inputs
from tests.golden import GoldenCase, assert_equal
from tests.lanes import slow_after


OPTIONS = {
    "ave": {"num_tokens": 3, "is_bn": 1, "is_gate": 1, "Adapter_downsample": 4, "alpha": 1, "gamma": 1, "decay": 0.35},
    "avvp": {"num_tokens": 3, "is_bn": 1, "is_gate": 1, "dim": 16, "depth_vis": 3, "unimodal_assign": "soft"},
    "avs_s4": {"num_tokens": 3, "is_bn": 0, "is_gate": 0, "num_conv_group": 2, "tpavi_stages": [0, 1, 2, 3]},
    "avs_ms3": {"num_tokens": 3, "gamma": 0.2, "is_before_layernorm": 1, "masked_av_flag": True},
    "avqa": {"num_tokens": 3, "is_multimodal": 1, "is_gate": 0, "coff_av": 0.5},
}
# Tensors that the authors' adapters store but never use.
UNUSED = {
    "ave": {"gate_tk": (1,)},
    "avvp": {"gate_tk": (1,), "fc_caption.weight": (24, 16), "temporal_gated.0.weight": (1, 4)},
    "avs_s4": {"temporal_gated.0.bias": (1,), "ln_before.weight": (7,)},
    "avs_ms3": {"temporal_gated.0.weight": (1, 4), "ln_before.bias": (7,)},
    "avqa": {},
}
UNUSED_OF_MODEL = {
    "ave": (
        *("adapter_token_downsampler.0.weight", "CMBS.AVInter.video_multihead.in_proj_weight"),
        *("CMBS.VAInter.norm1.bias", "CMBS.video_norm.weight", "CMBS.audio_norm.bias"),
    ),
    "avvp": (
        *("adapter_token_downsampler.1.weight", "temporal_attn.video_encoder.affine_matrix.weight"),
        *("temporal_attn.video_gated.0.bias", "temporal_attn.audio_visual_rnn_layer.visual_rnn.weight_hh_l0_reverse"),
    ),
}
# The form of each program's adapters.
FORM = {
    "ave": {"alpha": 0.3, "beta": 0.05, "gate_last": True},
    "avvp": {"alpha": 0.3, "beta": 0.05, "gate_last": True},
    "avs_s4": {"alpha": 0.3, "beta": 0.05, "gate_last": False},
    "avs_ms3": {"alpha": 0.2, "beta": 0.1, "gate_last": False},
    "avqa": {"alpha": 0.3, "beta": 0.05, "gate_last": True},
}


def dg_sct_config(task: str) -> CaeAvConfig:
    options = {"reduction": 4, "groups": 2, "num_latent_tokens": 3}
    values = {"method": "dg_sct", "interaction_options": options, "text_config": {}, "adapter_stages": (1, 2, 3, 4)}
    if task == "avvp":
        values |= {"head_gate_size": 8, "head_intermediate_size": 20}
    if task == "avs_ms3":
        values["head_gate_scale"] = 0.2
    if task.startswith("avs"):
        values["frame_size"] = 64
    return small_config(task, **values)


def dg_sct_model(task: str) -> CaeAvPreTrainedModel:
    model = small_model(dg_sct_config(task))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.model.interactions.named_parameters():
            # Latent tokens start at zero in some tasks, and attention with large ones selects a single token.
            if name.endswith(("latents", "gate")):
                tensor.copy_(0.5 + 0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def dg_sct_state(model: CaeAvPreTrainedModel, unused: bool = True) -> dict[str, Tensor]:
    """Return a model's checkpoint as the authors' program would write it; `unused` adds the layers that never run."""
    task = model.config.task
    state = official_state(model, extras=unused, adapters=False)
    case = GoldenCase(f"dg_sct_{'ave' if task == 'avvp' else task}")
    number = 0
    for layers in model.model.interactions:
        for layer in layers:
            for short, modality in (("vis", "visual"), ("audio", "audio")):
                for part, branch in (("p1", "attention"), ("p2", "feed_forward")):
                    adapter = getattr(layer, f"{modality}_{branch}_adapter")
                    names = without(case.state, "^gate(?:_tk)?$")
                    if adapter.gate is not None:
                        names["gate"] = torch.zeros(1)
                    theirs = in_their_names(adapter, names, key_map.DG_SCT)
                    if unused:
                        theirs |= {name: torch.randn(shape) for name, shape in UNUSED[task].items()}
                        if task == "avs_s4":
                            tokens, other = (getattr(layer.position, name).num_tokens for name in ("visual", "audio"))
                            pair = (tokens, other) if short == "vis" else (other, tokens)
                            theirs["conv_adapter.weight"] = torch.randn(*pair, 1, 1)
                            theirs["conv_adapter.bias"] = torch.randn(pair[0])
                    state |= prefixed(f"{short}_adapter_blocks_{part}.{number}.", theirs)
            number += 1
    if task == "avvp":
        gate = without(GoldenCase("dg_sct_parsing_gate").state, "|".join(key_map.PARSING_GATE_IGNORED))
        gate = in_their_names(model.head.temporal_gate, gate, key_map.PARSING_GATE)
        state |= prefixed("temporal_attn.", gate)
    if unused:
        return state | {key: torch.randn(2) for key in UNUSED_OF_MODEL.get(task, ())}
    never_run = r"\.(?:en|de)coder_layer\.|decoder\.layers\.\d\.self_attn"
    return without(state, rf"{never_run}|num_batches_tracked|attn_mask|relative_position_index")


def convert(state: dict[str, Tensor], task: str, **arguments) -> CaeAvPreTrainedModel:
    values = {"options": OPTIONS[task], "vision": THEIR_VISION, "audio": {**THEIR_AUDIO, "tile_seconds": 1}}
    return from_official(state, task, **{**values, **UNTOLD, **arguments})


def their_adapter(state: dict[str, Tensor], prefix: str, task: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return an adapter's addition to tokens x (N, L, C) that read y (N, L', C'), and its attention map (N, L)."""
    own = {key.removeprefix(prefix): value.double() for key, value in state.items() if key.startswith(prefix)}
    form = FORM[task]

    def linear(name: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, own[f"{name}.weight"], own[f"{name}.bias"])

    def convolution(name: str, tokens: Tensor) -> Tensor:
        weight = own[f"{name}.weight"][..., 0]
        return F.conv1d(tokens.transpose(1, 2), weight, groups=tokens.shape[2] // weight.shape[1]).transpose(1, 2)

    def batch_norm(name: str, tokens: Tensor) -> Tensor:
        if f"{name}.weight" not in own:
            return tokens
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(tokens.transpose(1, 2), *(own[f"{name}.{part}"] for part in names)).transpose(1, 2)

    def layer_norm(name: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])

    if task == "avs_s4":
        mapped = linear("fc", y)
        side, new_side = round(y.shape[1] ** 0.5), round(x.shape[1] ** 0.5)
        grid = mapped.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        mapped = F.interpolate(grid, size=(new_side, new_side), mode="bicubic").flatten(2).transpose(1, 2)
    else:
        weight, bias = own["conv_adapter.weight"][..., 0, 0], own["conv_adapter.bias"]
        mapped = linear("fc", torch.einsum("ij,njc->nic", weight, y) + bias[:, None])
    latents = own["my_tokens"].expand(len(x), -1, -1)
    latents = latents + (latents @ mapped.transpose(1, 2)).softmax(-1) @ mapped
    x = x + own["gate_av"] * ((x @ latents.transpose(1, 2)).softmax(-1) @ latents)
    prompt = mapped.mean(1, keepdim=True)
    guided = (linear("fc_affine_audio_1", prompt).relu() * linear("fc_affine_video_1", x).relu()).mean(1, keepdim=True)
    channels = linear("fc_affine_v_c_att", linear("fc_affine_bottleneck", guided).relu()).sigmoid()
    focused = linear("fc_affine_video_2", x * (channels + 1)).relu() * linear("fc_affine_audio_2", prompt).relu()
    scores = linear("fc_affine_v_s_att", focused)
    x = x * (form["alpha"] * channels + form["beta"] * scores.sigmoid() + 1 - form["alpha"])
    if not task.startswith("avs"):
        x = layer_norm("ln_before", x)
    x = batch_norm("bn2", convolution("up_sampler", batch_norm("bn1", convolution("down_sampler", x)).relu()))
    gate = own.get("gate", torch.ones(1).double())
    x = gate * layer_norm("ln_post", x) if form["gate_last"] else layer_norm("ln_post", gate * x)
    return x, scores.squeeze(-1).tanh().softmax(-1)


def their_pools(
    model: CaeAvPreTrainedModel, state: dict[str, Tensor], batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the normed visual tokens, both pools (B, T, C), and the stages' visual tokens, in their order."""
    base, task = model.model, model.config.task
    frames = FrameLayout(*batch["pixel_values_videos"].shape[:2])
    pixels = batch["pixel_values_videos"].flatten(0, 1)
    if task.startswith("avs"):
        pixels = F.interpolate(pixels, size=(64, 64), mode="bicubic")
    visual = base.vision_tower.embed(pixels)
    audio = base.audio_tower.embed(batch["input_features"].flatten(0, 1))
    number, maps = 0, []
    for stage in range(4):
        visual, audio = base.vision_tower.enter_stage(stage, visual), base.audio_tower.enter_stage(stage, audio)
        visual_blocks, audio_blocks = base.vision_tower.blocks(stage), base.audio_tower.blocks(stage)
        every = len(visual_blocks) // len(audio_blocks)
        for index, block in enumerate(visual_blocks):
            if (index + 1) % every:
                visual = block(visual)
                continue

            def added(part: str, visual: Tensor, audio: Tensor, number: int = number) -> Iterator[Any]:
                yield their_adapter(state, f"vis_adapter_blocks_{part}.{number}.", task, visual, audio)
                yield their_adapter(state, f"audio_adapter_blocks_{part}.{number}.", task, audio, visual)

            (to_visual, _), (to_audio, _) = added("p1", visual, audio)
            visual = visual + block.attention(visual) + to_visual
            audio = audio_blocks[(index + 1) // every - 1](audio) + to_audio
            (to_visual, visual_map), (to_audio, audio_map) = added("p2", visual, audio)
            visual, audio = visual + block.feed_forward(visual) + to_visual, audio + to_audio
            number += 1
        maps.append(visual)
    visual = maps[-1] = base.vision_tower.final_norm(visual)
    pools = [
        frames.to_grid((weights[..., None] * tokens).sum(1))
        for weights, tokens in ((visual_map, visual), (audio_map, audio))
    ]
    return frames.to_grid(visual), *pools, maps


class TheirGate(nn.Module):
    """Gate of the visual frames by PyTorch's own layers, which have the authors' names."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        size, width = state["temporal_attn.audio_encoder.affine_matrix.weight"].shape
        hidden = len(state["temporal_attn.audio_encoder.encoder.layers.0.linear1.bias"])
        layer = nn.TransformerEncoderLayer(size, 4, hidden, batch_first=True)
        self.rnn = nn.LSTM(len(state["fc_v.bias"]), size, batch_first=True, bidirectional=True)
        self.affine, self.gate = nn.Linear(width, size), nn.Linear(size, 1)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(2))
        names = {
            "rnn": "audio_visual_rnn_layer.audio_rnn",
            "affine": "audio_encoder.affine_matrix",
            "gate": "audio_gated.0",
            "layers": "audio_encoder.encoder.layers",
        }
        for name, theirs in names.items():
            prefix = f"temporal_attn.{theirs}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            getattr(self, name).load_state_dict(part)
        self.double().eval()

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> Tensor:
        states = self.affine(self.rnn(audio)[0])
        for layer in self.layers:
            states = layer(states)
        return visual + self.gate(states).sigmoid() * visual * 0.05


def their_output(model: CaeAvPreTrainedModel, state: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run their adapters, pairs, pools and gate, with the heads that reference cases fix."""
    frames = FrameLayout(*batch["pixel_values_videos"].shape[:2])
    tokens, visual, audio, maps = their_pools(model, state, batch)
    task, head = model.config.task, model.head
    if task == "ave":
        logits = head(visual, audio, frames)
        return {"event_logits": logits.event, "class_logits": logits.clip_class}
    if task == "avvp":
        head = copy.deepcopy(head)
        head.temporal_gate = TheirGate(state)
        logits = head(visual, audio, frames, batch["visual_3d_features"])
        probs = {"event_probs": logits.event, "audio_probs": logits.audio, "visual_probs": logits.visual}
        return {**{name: value.sigmoid() for name, value in probs.items()}, "visual_frame_probs": logits.visual_frames}
    if task == "avqa":
        heard = head.encode_audio(audio)
        grounding = head.ground(tokens, heard)
        logits = head(grounding, heard, batch["question_ids"], None, frames)
        return {"logits": logits.answer, "match_logits": grounding.match}
    return {"logits": frames.to_grid(head(tuple(maps), frames.to_list(audio), frames).logits)}


QUICK = slow_after(1, ["avvp", "ave", "avs_s4", "avs_ms3", "avqa"])


@pytest.fixture(scope="module", params=QUICK)
def own(request: pytest.FixtureRequest) -> CaeAvPreTrainedModel:
    return dg_sct_model(request.param)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("unused", [True, False])
def test_whole_models_compute_what_the_equations_do(own: CaeAvPreTrainedModel, unused: bool) -> None:
    """With and without the tensors that their programs store but never use."""
    task = own.config.task
    state = dg_sct_state(own, unused)
    given = {f"module.{key}": value for key, value in state.items()} if task == "avqa" else state
    model = convert(given, task)
    assert model.config.interaction == "dg_sct"
    reference, model = in_double(own, model)
    batch = inputs(own.config)
    if task.startswith("avs"):
        batch["pixel_values_videos"] = torch.randn(1, 5, 3, 80, 80).double()
    output, expected = model(**batch), their_output(reference, state, batch)
    for name, value in expected.items():
        assert value.abs().max() > 1e-3
        assert_equal(getattr(output, name), value, tolerance=1e-5)


@pytest.mark.slow
def test_every_key_is_explained(own: CaeAvPreTrainedModel) -> None:
    task = own.config.task
    state = dg_sct_state(own)
    report = convert(state, task).conversion_report
    assert set(report.mapped) | set(report.ignored) == set(state)
    assert not set(report.mapped) & set(report.ignored)
    assert all([*report.ignored.values(), *report.missing.values()])
    new_keys = [key for keys in report.mapped.values() for key in keys]
    assert sorted([*new_keys, *report.missing]) == sorted(own.state_dict())
    for name in UNUSED[task]:
        assert f"vis_adapter_blocks_p2.7.{name}" in report.ignored
    assert set(UNUSED_OF_MODEL.get(task, ())) <= set(report.ignored)
    assert "htsat.bn0.running_mean" in report.mapped
    assert all("relative_position_index" in key for key in report.missing)
    lean = dg_sct_state(own, unused=False)
    missing = convert(lean, task).conversion_report.missing
    assert all(reason for reason in missing.values())


@pytest.mark.slow  # a whole model of each task
def test_sizes_come_from_the_tensors(own: CaeAvPreTrainedModel) -> None:
    task = own.config.task
    gamma = {"gamma": 0.2} if task == "avs_ms3" else None  # in no tensor
    given = {"tile_seconds": 1}
    found = from_official(dg_sct_state(own), task, options=gamma, audio=given, **UNTOLD).config
    expected = {**DGSCTInteraction.preset(task, "full")["interaction_options"], **own.config.interaction_options}
    read = DGSCTInteraction.read_options
    assert read(found) == read(CaeAvConfig.from_preset(task, method="dg_sct", interaction_options=expected))
    unread = {"head_visual_dim", "head_audio_dim", "head_hidden_size", "head_intermediate_size"}
    unread |= {"matching_hidden_sizes", "dtype", "adapter_reduction", "adapter_groups", "num_latent_tokens"}
    unread |= {"gate_dim", "caption_bottleneck_dim", "projection_dim", "text_config", "interaction_options"}
    theirs, ours = found.to_dict(), own.config.to_dict()
    assert {key for key in ours if key not in unread and theirs[key] != ours[key]} <= {"vision_config", "audio_config"}
    for name, sizes in (("vision_config", VISION), ("audio_config", AUDIO)):
        for key, value in sizes.items():
            assert getattr(getattr(found, name), key) == (list(value) if isinstance(value, tuple) else value)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dg_sct_state(dg_sct_model("ave"))


@pytest.mark.slow
def test_the_method_is_found_or_given(state: dict[str, Tensor]) -> None:
    assert convert(state, "ave", method="dg_sct").config.interaction == "dg_sct"
    with pytest.raises(CaeAvError, match=r"`method` is 'avmoe', but '.*fc_affine.*' is a key of 'dg_sct'"):
        convert(state, "ave", method="avmoe")
    with pytest.raises(CaeAvError, match="`method` must be one of avmoe, cae_av, dg_sct"):
        convert(state, "ave", method="dgsct")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_tokens": 32}, ["num_tokens", "vis_adapter_blocks_p1.0.my_tokens"]),
        ({"is_bn": 0}, ["is_bn", "bn1.weight"]),
        ({"is_gate": 0}, ["is_gate", "audio_adapter_blocks_p1.0.gate"]),
        ({"Adapter_downsample": 8}, ["Adapter_downsample", "down_sampler.weight"]),
        ({"is_before_layernorm": 0}, ["is_before_layernorm", "ln_before.weight"]),
        ({"gama": 1}, ["gama", "gamma"]),
    ],
)
def test_contradictions_name_the_key(state: dict[str, Tensor], options: dict, names: list[str]) -> None:
    with pytest.raises(CaeAvError) as caught:
        convert(state, "ave", options=options)
    assert all(name in str(caught.value) for name in names), caught.value


def test_nothing_is_dropped_silently(state: dict[str, Tensor]) -> None:
    with pytest.raises(CaeAvError, match=r"'vis_adapter_blocks_p1\.0\.surprise'"):
        convert({**state, "vis_adapter_blocks_p1.0.surprise": torch.zeros(2)}, "ave")
    key = "audio_adapter_blocks_p2.3.fc_affine_bottleneck.bias"
    lacking = {name: value for name, value in state.items() if name != key}
    with pytest.raises(CaeAvError, match=r"audio_feed_forward_adapter\.channel_bottleneck\.bias"):
        convert(lacking, "ave")
    # The checkpoint's own HTS-AT reads the sound; it never comes from elsewhere.
    with pytest.raises(CaeAvError, match="htsat"):
        convert({name: value for name, value in state.items() if not name.startswith("htsat.")}, "ave")
