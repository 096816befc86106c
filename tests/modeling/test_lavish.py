"""LAVisH: the authors' modules to 1e-5, pairs token by token, and the duties of any method."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel, CaeAvProcessor
from caeav_hf.assets import toy_towers
from caeav_hf.conversion import key_map
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.interaction import BlockPosition, PairPosition
from caeav_hf.modeling.lavish import LavishAdapter, LavishInteraction, LavishOptions
from caeav_hf.tasks.segmentation.head import DilatedSum
from caeav_hf.towers.base import FrozenBlock
from tests.golden import GoldenCase, assert_equal, numbers_in, part
from tests.lanes import slow_after
from tests.modeling.helpers import (
    assert_task_trains,
    block,
    opened,
    randomise,
    task_batch,
    toy_answering_model,
    toy_batch,
    toy_model,
    toy_segmentation_model,
)
from tests.same import assert_close


MASK = torch.tensor([[True, True, True, True], [True, False, True, False]])
TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")


def options_of(case: GoldenCase) -> dict:
    flags = {name: case.options[name] == "True" for name in ("norm_before", "batch_norm", "gate_before_norm")}
    numbers = {name: int(case.options[name]) for name in ("reduction", "groups")}
    return {**flags, **numbers, "num_latent_tokens": int(case.options["latent_tokens"])}


@pytest.mark.parametrize("name", ["ave", "avqa", "avs"])
def test_adapter_is_that_of_the_authors(name: str) -> None:
    case = GoldenCase(f"lavish_{name}")
    states, other = case.inputs["x"], case.inputs["other"]
    adapter = LavishAdapter(LavishOptions(**options_of(case)), block(states), block(other), has_gate=True)
    case.load_into(adapter.eval(), key_map.DG_SCT)
    assert_equal(adapter(states, other), case.outputs["residual"])


@torch.no_grad()
def test_shared_tower_is_that_of_the_authors() -> None:
    case = GoldenCase("lavish_stages")
    vision = numbers_in(case.options["vision"])
    image_size, depths = vision.pop("img_size"), vision["depths"]
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        method="lavish",
        vision_config={**vision, "image_size": image_size, "pretrained_window_sizes": [0] * len(depths)},
        interaction_options=options_of(case),
        adapter_stages=[1],
    )
    model = CaeAvModel(config).eval()
    assert model.audio_tower is None
    part(case, "swin.").load_into(model.vision_tower, key_map.SWIN_V2_OLD, key_map.SWIN_V2_IGNORED)
    layers = [layer for stage in model.interactions for layer in stage]
    assert len(layers) == sum(depths)
    names = {("vis", "visual"), ("audio", "audio")}, {("p1", "attention"), ("p2", "feed_forward")}
    for number, layer in enumerate(layers):
        for (short, modality), (place, branch) in itertools.product(*names):
            adapter = getattr(layer, f"{modality}_{branch}_adapter")
            part(case, f"{short}_adapter_blocks_{place}.{number}.").load_into(adapter, key_map.DG_SCT)
    found = model(
        case.inputs["pixel_values"][None],
        case.inputs["filter_bank"][None, :, None],
        output_hidden_states=True,
    )
    for name in ("visual", "audio"):
        for stage in range(len(depths)):
            assert_equal(found[f"{name}_hidden_states"][stage + 1][0], case.outputs[f"{name}_stage{stage}"])
        assert_equal(found[f"{name}_pooler_output"][0], case.outputs[f"{name}_final"].mean(1))


# The definitions, one frame and one token after the other.


def naive_adapter(adapter: LavishAdapter, x: Tensor, y: Tensor) -> Tensor:
    """Return the addition to tokens x (L, C) of a frame that read y (L', C)."""
    options, rows = adapter.options, []
    latents = [z + sum(p * t for p, t in zip((y @ z).softmax(0), y, strict=True)) for z in adapter.exchange.latents]
    latents = torch.stack(latents)
    for token in x:
        token = adapter.norm_before(token + adapter.exchange.gate * ((latents @ token).softmax(0) @ latents))
        for linear, norm in ((adapter.down, adapter.batch_norm_down), (adapter.up, adapter.batch_norm_up)):
            weights, inputs = linear.weight.chunk(options.groups), token.chunk(options.groups)
            token = norm(torch.cat([w @ i for w, i in zip(weights, inputs, strict=True)])[None])[0]
            token = token.relu() if linear is adapter.down else token
        gate = 1.0 if adapter.gate is None else adapter.gate
        if options.gate_before_norm:
            rows.append(adapter.norm_after(gate * token))
        else:
            rows.append(gate * adapter.norm_after(token))
    return torch.stack(rows)


FORMS = {
    "a": {},
    "b": {"batch_norm": False, "zero_latents": True, "groups": 4},
    "d": {"batch_norm": False, "norm_before": False, "gate_before_norm": True, "gated_streams": "visual"},
}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_pair_follows_the_definitions(form: str) -> None:
    """With different numbers of tokens in the streams, as of an image and a narrower filter bank."""

    def place(height: int, width: int) -> BlockPosition:
        return BlockPosition(
            0, 0, depth=1, num_tokens=height * width, hidden_size=8, grid=(height, width), num_heads=1
        )

    position = PairPosition(1, True, True, place(3, 3), place(2, 3))
    options = {"reduction": 2, "groups": 2, "num_latent_tokens": 3, **FORMS[form]}
    config = CaeAvConfig.from_preset("ave", size="toy", method="lavish", interaction_options=options)
    layer = opened(LavishInteraction(config, position))
    assert isinstance(layer, LavishInteraction)
    generator = torch.Generator().manual_seed(1)
    v, a = (torch.randn(5, *shape, generator=generator).double() for shape in ((9, 8), (6, 8)))
    frozen = FrozenBlock(attention=torch.sin, feed_forward=lambda tokens: 0.5 * tokens.cos())
    output = layer(v, a, frozen, frozen, FrameLayout(1, 5))

    def run(adapter: LavishAdapter, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([naive_adapter(adapter, x[n], y[n]) for n in range(len(x))])

    v, a = (
        v + v.sin() + run(layer.visual_attention_adapter, v, a),
        a + a.sin() + run(layer.audio_attention_adapter, a, v),
    )
    v, a = (
        v + 0.5 * v.cos() + run(layer.visual_feed_forward_adapter, v, a),
        a + 0.5 * a.cos() + run(layer.audio_feed_forward_adapter, a, v),
    )
    torch.testing.assert_close(output.visual, v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.audio, a, rtol=1e-9, atol=1e-9)
    assert output.visual_pooling is None


@torch.no_grad()
def test_it_begins_as_its_frozen_tower() -> None:
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("ave", size="toy", method="lavish")
    model = CaeAvModel(config).eval()
    batch = toy_batch(config)
    found = model(batch["pixel_values_videos"], batch["input_features"])
    for reader, name, inputs in zip(
        model.readers(), ("visual", "audio"), ("pixel_values_videos", "input_features"), strict=True
    ):
        alone = reader.final_norm(reader.walk(reader.embed(batch[inputs].flatten(0, 1))).finish())
        assert_close(found[f"{name}_pooler_output"].flatten(0, 1), alone.mean(1))


def test_the_tower_is_held_and_stored_once(tmp_path: Path) -> None:
    model = toy_model(method="lavish")
    assert list(model.model.named_towers()) == ["vision"]
    depth = sum(model.config.vision_config.depths)
    assert sum(len(stage) for stage in model.model.interactions) == depth
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(tensor.numel() for tensor in model.parameters()) == tower + trained
    model.save_pretrained(tmp_path)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    batch = toy_batch(model.config)
    with torch.no_grad():
        assert_close(again(**batch).frame_log_probs, model(**batch).frame_log_probs)


def test_adapter_only_checkpoint_without_audio_and_text_towers(tmp_path: Path) -> None:
    vision = toy_towers()["vision"]
    model = CaeAvForEventLocalization.from_backbones(vision, None, None, size="toy", method="lavish")
    assert model.model.text_tower is None
    randomise(model).save_pretrained(tmp_path, adapter_only=True)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert list(loaded.config.tower_sources) == ["vision"]
    batch = toy_batch(model.config)
    with torch.no_grad():
        assert_close(loaded.eval()(**batch).event_logits, model.eval()(**batch).event_logits)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = toy_model(method="lavish")
    batch = toy_batch(model.config)
    inputs = {name: batch[name] for name in ("pixel_values_videos", "input_features")}
    padded = model(**inputs, frame_mask=MASK)
    for clip, mask in enumerate(MASK):
        alone = model(**{name: value[clip : clip + 1, mask] for name, value in inputs.items()})
        for name in ("visual_pooler_output", "audio_pooler_output", "frame_log_probs"):
            assert_close(padded[name][clip, mask], alone[name][0])
    assert not padded.audio_pooler_output[~MASK].any()


@torch.no_grad()
def test_sound_of_other_sides_and_any_number_of_frames() -> None:
    """Also sides whose tokens fill windows only with padding."""
    for frames, bands in ((48, 32), (36, 64)):
        model = toy_model(method="lavish", audio_config={"spectrogram_frames": frames, "num_mel_bins": bands})
        batch = toy_batch(model.config, batch_size=1, num_frames=3)
        assert batch["input_features"].shape[-2:] == (frames, bands)
        output = model(**batch, output_hidden_states=True)
        assert output.frame_log_probs.isfinite().all()
        assert output.audio_hidden_states[0].shape[2] == frames * bands // 16
        assert output.visual_hidden_states[0].shape[2] == 256


def test_a_step_trains_every_layer_with_and_without_checkpointing() -> None:
    plain = toy_model(method="lavish").train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    batch = toy_batch(plain.config)
    for model in (plain, checkpointed):
        model(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    assert not any("tower" in name for name in gradients)
    for name, parameter in checkpointed.named_parameters():
        if name in gradients:
            assert_close(parameter.grad, gradients[name])
    for (name, first), (_, second) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        if "running" in name:
            assert_close(first, second)


@torch.no_grad()
def test_half_precision() -> None:
    model = toy_model(method="lavish")
    batch = toy_batch(model.config)
    expected = model(**batch)
    found = model.to(torch.bfloat16)(**batch)
    assert found.frame_log_probs.isfinite().all()
    assert (found.audio_pooler_output.float() - expected.audio_pooler_output).abs().max() < 0.3


def test_initial_values() -> None:
    for zero, expected in ((True, (0.0, 0.0)), (False, (0.0, 1.0))):
        config = CaeAvConfig.from_preset(
            "ave", size="toy", method="lavish", interaction_options={"zero_latents": zero}
        )
        for layer in CaeAvModel(config).modules():
            if isinstance(layer, LavishAdapter):
                assert layer.gate == 0
                assert layer.exchange.gate == 0
                assert layer.exchange.latents.min() >= expected[0]
                assert layer.exchange.latents.max() <= expected[1]
                assert bool(layer.exchange.latents.any()) != zero


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated_streams": "audio"}, "`gated_streams` must be one of 'both', 'visual'"),
        ({"num_latent_tokens": 0}, "`num_latent_tokens` must be a whole number of at least 1, got 0"),
        ({"norm_before": "no"}, "`norm_before` must be a bool, got 'no'"),
        ({"alpha": 0.3}, "unknown option 'alpha'"),
        ({"reduction": 4, "groups": 3}, r"`groups` \(3\) of `interaction_options` must divide the channels"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    config = CaeAvConfig.from_preset("ave", size="toy", method="lavish", interaction_options=options)
    with pytest.raises(CaeAvError, match=message):
        CaeAvModel(config)


def test_streams_of_other_widths_are_refused() -> None:
    audio = {"patch_embeds_hidden_size": 32, "hidden_size": 256}
    config = CaeAvConfig.from_preset("ave", size="toy", interaction="lavish", audio_config=audio, use_case=False)
    with pytest.raises(CaeAvError, match=r"'lavish' needs streams of equal channels .* got 16 and 32"):
        CaeAvModel(config)


def test_presets_hold_the_options_of_the_scripts() -> None:
    def of(task: str) -> tuple[CaeAvConfig, LavishOptions]:
        config = CaeAvConfig.from_preset(task, method="lavish")
        assert (config.shared_tower, config.audio_final_norm, config.use_text_tower) == (True, True, False)
        assert config.audio_config.spectrogram_size == (192, 192)
        return config, LavishInteraction.read_options(config)

    def front_end(config: CaeAvConfig) -> tuple[int, float, float, float]:
        audio = config.audio_config
        return audio.hop_length, config.segment_seconds, audio.feature_mean, audio.feature_std

    segmentation = LavishOptions(
        reduction=4,
        num_latent_tokens=16,
        zero_latents=True,
        norm_before=False,
        batch_norm=False,
        gated_streams="visual",
        gate_before_norm=True,
    )
    answering = LavishOptions(groups=4, num_latent_tokens=64, zero_latents=True, batch_norm=False)
    expected = {
        "ave": (LavishOptions(), (83, 1.0, -4.984795570373535, 3.7079780101776123)),
        "avvp": (LavishOptions(), (83, 1.0, -4.984795570373535, 3.7079780101776123)),
        "avs_s4": (segmentation, (160, 1.0, -5.210531711578369, 3.5918314456939697)),
        "avs_ms3": (segmentation, (160, 1.0, -5.210531711578369, 3.5918314456939697)),
        "avqa": (answering, (160, 1.95, -5.385333061218262, 3.5928637981414795)),
    }
    for task in TASKS:
        config, options = of(task)
        assert (options, front_end(config)) == expected[task]
    assert of("ave")[0].event_head == "mlp"
    assert of("ave")[0].event_loss == "binary"
    assert of("avs_s4")[0].head_map_sizes == [64, 128, 320, 512]
    assert of("avs_s4")[0].input_size == (224, 224)
    assert of("avqa")[0].head_answer_size == 512


def test_what_is_given_goes_over_the_preset_of_the_method() -> None:
    config = CaeAvConfig.from_preset(
        "avs_s4",
        method="lavish",
        interaction_options={"groups": 4},
        vision_config={"image_size": 256, "window_size": 16},
        audio_config={"feature_mean": -5.0},
    )
    assert (config.interaction_options["groups"], config.interaction_options["reduction"]) == (4, 4)
    front_end = config.audio_config
    assert (front_end.num_mel_bins, front_end.hop_length, front_end.feature_mean) == (256, 160, -5.0)
    assert CaeAvConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@torch.no_grad()
def test_two_towers_of_equal_channels() -> None:
    full = CaeAvConfig.from_preset("avs_s4", method="lavish", shared_tower=False)
    assert (full.audio_config.mel_scale, full.audio_config.hop_length) == ("slaney", 320)
    model = toy_model(method="lavish", shared_tower=False)
    assert model.model.audio_tower is not None
    output = model(**toy_batch(model.config))
    heard = model.model.audio_tower.final_norm(output.audio_hidden_state.flatten(0, 1)).mean(1)
    assert_close(output.audio_pooler_output.flatten(0, 1), heard)


@pytest.mark.parametrize("task", ["ave", "avs_s4", "avqa"])
def test_filter_banks_of_the_processor(task: str) -> None:
    """Equal to Kaldi's features of each segment, as computed by Transformers."""
    from transformers.audio_utils import mel_filter_bank, spectrogram

    config = CaeAvConfig.from_preset(task, method="lavish")
    extractor, front_end = CaeAvProcessor.from_config(config).feature_extractor, config.audio_config
    generator = torch.Generator().manual_seed(0)
    samples = round(config.segment_seconds * 16_000)
    wave = 0.1 * torch.randn(2 * samples, generator=generator) + 0.05
    found = extractor(wave, sampling_rate=16_000)["input_features"]
    assert found.shape == (1, 2, 1, 192, 192)
    filters = mel_filter_bank(257, 192, 20, 8000, 16_000, None, "kaldi", triangularize_in_mel_space=True)
    for number, segment in enumerate((wave - wave.mean()).split(samples)):
        bank = spectrogram(
            segment.double().numpy(),
            window=torch.hann_window(400, periodic=False).double().numpy(),
            frame_length=400,
            hop_length=front_end.hop_length,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=filters,
            log_mel="log",
            mel_floor=1.192092955078125e-07,
            remove_dc_offset=True,
        ).T[:192]
        expected = torch.zeros(192, 192)
        expected[: len(bank)] = torch.from_numpy((bank - front_end.feature_mean) / (2 * front_end.feature_std))
        torch.testing.assert_close(found[0, number, 0], expected, rtol=0, atol=1e-4)
        assert {"ave": 188, "avs_s4": 98, "avqa": 192}[task] == len(bank)


@pytest.mark.parametrize("task", slow_after(1, TASKS))
def test_every_task_trains(task: str) -> None:
    assert assert_task_trains("lavish", task) > 20


def test_loss_of_event_localization_is_binary() -> None:
    model = toy_model(method="lavish")
    batch = toy_batch(model.config)
    batch["labels"][0, 0] = -100
    output = model(**batch)
    real = batch["labels"] != -100
    targets = F.one_hot(batch["labels"][real], model.config.num_labels + 1).float()
    expected = F.binary_cross_entropy(output.frame_log_probs[real].exp(), targets)
    assert_close(output.loss_dict["task"], expected)
    # A certain and wrong prediction has a finite loss and finite gradients.
    sure = torch.tensor([[[0.0, 300.0, 0.0]]], requires_grad=True)
    logits = copy.copy(model.head(output.visual_pooler_output, output.audio_pooler_output, FrameLayout(2, 4)))
    logits.frame_class = sure.log_softmax(-1)
    loss = model.head.loss(logits, torch.tensor([[0]]))
    loss.backward()
    assert loss.isfinite()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    with pytest.raises(StrictDataclassError, match="`event_loss` 'binary' of CaeAvConfig needs `event_head` 'mlp'"):
        CaeAvConfig.from_preset("ave", size="toy", method="lavish", event_head="cmbs")


def test_dilated_convolutions_are_those_of_the_authors() -> None:
    case = GoldenCase("stgcma_dilated_classifier")
    maps, expected = case.inputs["map"], case.outputs["map"]
    module = DilatedSum(maps.shape[1], expected.shape[1])
    case.load_into(module, {r"^conv2d_list\.": ""})
    assert_equal(module(maps), expected, 1e-4)


@torch.no_grad()
def test_segmentation_head_without_gates() -> None:
    model = toy_segmentation_model(method="lavish", head_map_sizes=[8, 12, 16, 20])
    assert model.head.gates is None
    assert [projection.out_features for projection in model.head.projections] == [8, 12, 16, 20]
    batch = task_batch(model.config, num_frames=2)
    expected = model(**batch).logits
    assert expected.shape == (2, 2, 1, 64, 64)
    for changed in (*model.head.convolutions, *model.head.projections):
        before = copy.deepcopy(changed.state_dict())
        for parameter in changed.parameters():
            parameter.zero_()
        assert (model(**batch).logits - expected).abs().max() > 1e-6
        changed.load_state_dict(before)
    with pytest.raises(StrictDataclassError, match=r"`head_map_sizes` of CaeAvConfig needs one value per stage"):
        CaeAvConfig.from_preset("avs_s4", size="toy", head_map_sizes=[8, 8])


@torch.no_grad()
def test_question_answering_projects_frames_and_negatives() -> None:
    model = toy_answering_model(method="lavish", head_answer_size=24)
    assert isinstance(model.head.visual_projection, nn.Linear)
    assert model.head.classifier.in_features == 24
    batch = task_batch(model.config)
    negative = torch.randn_like(batch["pixel_values_videos"])
    output = model(**batch, pixel_values_negative=negative)
    assert output.logits.shape == (2, 5)
    vision = model.model.vision_tower
    tokens = vision.final_norm(output.visual_hidden_state).flatten(0, 1)
    seen = F.normalize(model.head.visual_projection(tokens), dim=-1)
    heard = F.relu(model.head.audio_hidden(vision.final_norm(output.audio_hidden_state).mean(2).flatten(0, 1)))
    heard = F.normalize(model.head.audio_output(heard), dim=-1)
    assert_close(output.grounding.flatten(0, 1), (seen @ heard[..., None]).squeeze(-1).softmax(-1))
    assert output.match_logits_negative.shape == (2, 4, 2)
