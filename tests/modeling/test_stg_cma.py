"""STG-CMA: the authors' modules to 1e-5, and what any method has to do."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from timm.models import save_for_hf
from torch import Tensor, nn

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel, CaeAvProcessor
from caeav_hf.assets import aligned_toy_towers, toy_towers, toy_vision_tower
from caeav_hf.conversion import key_map
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.interaction import pair_positions
from caeav_hf.modeling.stg_cma import Adapter, AudioVisualAdapter, STGCMAInteraction
from caeav_hf.task import get_task
from caeav_hf.tasks.event_localization.head import MLPHead
from caeav_hf.tasks.question_answering.head import QuestionAnsweringHead
from caeav_hf.tasks.segmentation.head import SegmentationHead
from caeav_hf.towers.base import build_tower
from tests.golden import GoldenCase, assert_equal, part
from tests.lanes import slow_after
from tests.modeling.helpers import as_double, randomise, task_batch, toy_batch, toy_model


TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")
VIT = {
    "model_type": "cae_av_vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
# Filter banks of other sides than the frames, which are no multiples of a patch.
VIT_SOUND = {"spectrogram_frames": 27, "num_mel_bins": 20}
KINDS = {"swin": {}, "vit": {"vision_config": VIT, "audio_config": VIT_SOUND}}


def golden_layer(config: CaeAvConfig, number: int = 0) -> STGCMAInteraction:
    position = pair_positions(config.visual_stages, config.audio_stages)[0][number]
    layer = STGCMAInteraction(config, position).eval()
    assert isinstance(layer, STGCMAInteraction)
    return layer


def load_some(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load tensors, all of which the module must have; index buffers that follow from the sizes are left out."""
    state = {k: v for k, v in state.items() if not k.endswith(("index", "mask")) and "Adapter" not in k}
    known = module.state_dict()
    names = {k: v for k, v in state.items() if "temporal" not in k and "t_relative" not in k and "gate" not in k}
    assert names.keys() <= known.keys(), names.keys() - known.keys()
    module.load_state_dict(names, strict=False)


@torch.no_grad()
def test_adapter_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_t_adapter")
    adapter = Adapter(32, 4)
    case.load_into(adapter, key_map.STG_CMA_VIT)
    assert_equal(adapter(case.inputs["x"]), case.outputs["x"])


@torch.no_grad()
def test_audio_visual_adapter_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_av_adapter")
    adapter = AudioVisualAdapter(32, 4)
    rules = {r"^S_Adapter_Audio": "audio", r"^S_Adapter": "visual", r"D_fc1": "down", r"D_fc2": "up"}
    case.load_into(adapter, rules, {r"^gate_": "of the block"})
    gates = (case.state["gate_v"], case.state["gate_a"])
    visual, audio = adapter(case.inputs["visual"], case.inputs["audio"], gates)
    assert_equal(visual, case.outputs["visual"])
    assert_equal(audio, case.outputs["audio"])


@torch.no_grad()
def test_block_of_a_vit_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_vit_block")
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        method="stg_cma",
        vision_config={**VIT, "image_size": 24, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1},
        audio_config={"spectrogram_frames": 24, "num_mel_bins": 32},
    )
    layer = golden_layer(config)
    case.load_into(layer, key_map.STG_CMA_VIT, {r"^(ln_|attn\.|mlp\.)": "the tower's"})
    tower = build_tower(config.vision_config).eval()
    names = {"ln_": "norm", "attn.in_proj_": "attn.qkv.", "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1"}
    names["mlp.c_proj"] = "mlp.fc2"
    state = {}
    for key, value in case.state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    load_some(
        tower.layers[0], {k: v for k, v in state.items() if k.split(".")[0] in ("norm1", "norm2", "attn", "mlp")}
    )
    block, frames = tower.blocks(0)[0], FrameLayout(2, 3)
    visual, audio = case.inputs["visual"], case.inputs["audio"]
    for step, name in ((layer.along_time, "_temporal"), (layer.spatial, "_spatial"), (layer.across, "")):
        visual, audio = step(visual, audio, block, block, *([frames] if name == "_temporal" else []))
        assert_equal(visual, case.outputs[f"visual{name}"])
        assert_equal(audio, case.outputs[f"audio{name}"])


@torch.no_grad()
def test_stage_of_a_swin_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_swin_stage")
    sizes = {"image_size": 32, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 2), "window_size": 4}
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        method="stg_cma",
        vision_config=sizes,
        num_frames=3,
        interaction_options={"ratios": [0.5, 0.5], "exchange": True},
    )
    tower = build_tower(config.vision_config).eval()
    load_some(tower.layers[1].downsample, part(case, "downsample.").state)
    visual, audio, frames = case.inputs["visual"], case.inputs["audio"], FrameLayout(2, 3)
    for number in range(2):
        layer, state = golden_layer(config, number), part(case, f"blocks.{number}.")
        is_of_tower = r"^(norm|mlp\.|attn\.(?!temporal)|attn_mask)"
        state.load_into(layer, key_map.STG_CMA_SWIN, {is_of_tower: "the tower's"})
        load_some(tower.layers[0].blocks[number], state.state)
        block = tower.blocks(0)[number]
        if number == 0:
            found = layer.along_time(visual, audio, block, block, frames)
            assert_equal(found[0], case.outputs["visual_temporal"])
            assert_equal(found[1], case.outputs["audio_temporal"])
            found = layer.spatial(*found, block, block)
            assert_equal(found[0], case.outputs["visual_spatial"])
            assert_equal(found[1], case.outputs["audio_spatial"])
        output = layer(visual, audio, block, block, frames)
        visual, audio = output.visual, output.audio
        assert_equal(visual, case.outputs[f"visual_block{number}"])
        assert_equal(audio, case.outputs[f"audio_block{number}"])
    assert_equal(tower.enter_stage(1, visual), case.outputs["visual"])
    assert_equal(tower.enter_stage(1, audio), case.outputs["audio"])


@torch.no_grad()
def test_embedding_of_clip_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_clip_embedding")
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        method="stg_cma",
        vision_config={**VIT, "image_size": 40, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1},
        audio_config={"spectrogram_frames": 26, "num_mel_bins": 32},
        num_frames=2,
    )
    model = CaeAvModel(config).eval()
    tower, state = model.vision_tower, case.state
    tower.cls_token.copy_(state["class_embedding"][None, None])
    tower.pos_embed.copy_(state["positional_embedding"][None])
    tower.patch_embed.proj.weight.copy_(state["conv1.weight"])
    tower.norm_pre.load_state_dict({name: state[f"ln_pre.{name}"] for name in ("weight", "bias")})
    model.initialize_from_towers()
    assert_equal(model.audio_embedding.projection.weight, case.outputs["conv1_audio.weight"])
    assert_equal(model.audio_embedding.positions, case.outputs["positional_embedding_audio"])
    model.temporal_embeddings.visual.copy_(state["temporal_embedding"])
    model.temporal_embeddings.audio.copy_(state["temporal_embedding_audio"])
    outputs = model(case.inputs["pixel_values"], case.inputs["features"][:, :, None], output_hidden_states=True)
    for name in ("visual", "audio"):
        found = tower.enter_stage(0, outputs[f"{name}_hidden_states"][0].flatten(0, 1))
        assert_equal(found, case.outputs[name])


@torch.no_grad()
def test_head_of_event_localization_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_head_event_localization")
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        method="stg_cma",
        vision_config={**VIT, "hidden_size": 16},
        audio_config=VIT_SOUND,
        head_visual_dim=512,
    )
    head = MLPHead(config).eval()
    # The authors concatenate the audio first.
    case.state["mlp_head.0.weight"] = case.state["mlp_head.0.weight"].roll(16, 1)
    case.load_into(head, key_map.STG_CMA_EVENT_LOCALIZATION)
    found = head(case.inputs["visual"][None], case.inputs["audio"][None], FrameLayout(1, 6))
    assert_equal(found.frame_class[0], case.outputs["logits"].log_softmax(-1))
    assert head.dropout.p == 0.5


@torch.no_grad()
def test_head_of_segmentation_is_that_of_the_authors() -> None:
    case = GoldenCase("stgcma_head_segmentation")
    config = CaeAvConfig.from_preset(
        "avs_s4",
        size="toy",
        method="stg_cma",
        vision_config={"embed_dim": 4},
        head_map_sizes=(6, 8, 10, 12),
        head_hidden_size=10,
        head_audio_dim=12,
        head_num_heads=2,
        head_decoder_sizes=(12, 6),
    )
    head = SegmentationHead(config).eval()
    case.load_into(head, key_map.STG_CMA_SEGMENTATION, key_map.STG_CMA_SEGMENTATION_IGNORED)
    maps = tuple(case.inputs[f"map{stage}"] for stage in range(4))
    found = head(maps, case.inputs["audio"][0], FrameLayout(1, 5))
    assert_equal(found.maps[3], case.outputs["map3"])
    assert_equal(found.audio[3], case.outputs["audio3"][0])
    assert_equal(found.logits, case.outputs["logits"])


@pytest.mark.parametrize(
    ("size", "widths"), [("l", {}), ("b", {"head_answer_size": 24, "head_answer_audio_size": 12})]
)
@torch.no_grad()
def test_head_of_question_answering_is_that_of_the_authors(size: str, widths: dict[str, int]) -> None:
    case = GoldenCase(f"stgcma_head_question_answering_{size}")
    config = CaeAvConfig.from_preset(
        "avqa",
        size="toy",
        method="stg_cma",
        **KINDS["vit"],
        head_audio_hidden=size == "b",
        matching_hidden_sizes=(24, 20, 12),
        **widths,
    )
    head = QuestionAnsweringHead(config).eval()
    case.load_into(head, key_map.STG_CMA_QUESTION_ANSWERING)
    audio = head.encode_audio(case.inputs["audio"].mean(-2))
    grounding = head.ground(case.inputs["visual"], audio)
    assert_equal(grounding.match, case.outputs["match_logits"])
    negative = head.ground(case.inputs["visual_negative"], audio).match
    assert_equal(negative, case.outputs["match_logits_negative"])
    answer = head(grounding, audio, case.inputs["question"], None, FrameLayout(2, 3)).answer
    assert_equal(answer, case.outputs["logits"])


@pytest.mark.parametrize("kind", ["clip", "swin"])
def test_filter_banks_are_those_of_the_authors(kind: str) -> None:
    case = GoldenCase(f"stgcma_filter_bank_{kind}")
    sizes = {"vision_config": {"model_type": "cae_av_vit", "patch_size": 16}} if kind == "clip" else {}
    config = CaeAvConfig.from_preset("ave", method="stg_cma", **sizes)
    extractor = CaeAvProcessor.from_config(config).feature_extractor
    found = extractor(case.inputs["waveform"], sampling_rate=16_000)["input_features"]
    assert_equal(found[0, 0, 0], case.outputs["features"], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_new_model_is_its_frozen_tower(kind: str) -> None:
    model = CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", method="stg_cma", **KINDS[kind])).eval()
    batch = {k: v for k, v in toy_batch(model.config).items() if k in ("pixel_values_videos", "input_features")}
    outputs = model(**batch)
    reader, audio_reader = model.readers()
    frames = batch["pixel_values_videos"].flatten(0, 1)
    expected = reader.walk(reader.embed(frames)).finish().unflatten(0, (2, 4))
    torch.testing.assert_close(outputs.visual_hidden_state, expected)
    # The tower's own norm and kernel, without colours.
    weight = model.vision_tower.patch_embed.proj.weight
    weight = weight.sum(1, keepdim=True) if kind == "vit" else weight.mean(1, keepdim=True)
    torch.testing.assert_close(model.audio_embedding.projection.weight, weight)
    expected = audio_reader.pool(model.vision_tower.final_norm(outputs.audio_hidden_state))
    torch.testing.assert_close(outputs.audio_pooler_output, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formulation", slow_after(1, ["official", "paper"]))
@torch.no_grad()
def test_a_padded_batch_is_its_clips_one_by_one(kind: str, formulation: str) -> None:
    options = {"formulation": formulation, "exchange": True}
    model = toy_model(method="stg_cma", interaction_options=options, **KINDS[kind]).double()
    batch = as_double(toy_batch(model.config))
    batch = {k: v for k, v in batch.items() if k in ("pixel_values_videos", "input_features")}
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    whole = model(**batch, frame_mask=mask).frame_log_probs
    first = model(**{k: v[:1] for k, v in batch.items()}).frame_log_probs
    second = model(**{k: v[1:, :2] for k, v in batch.items()}).frame_log_probs
    torch.testing.assert_close(whole[:1], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole[1:, :2], second, atol=1e-5, rtol=1e-5)
    # Each stream and each frame of a clip reaches the others.
    for name in ("pixel_values_videos", "input_features"):
        changed = {**batch, name: batch[name].clone()}
        changed[name][:, -1] += 1
        assert (model(**changed).frame_log_probs - model(**batch).frame_log_probs).abs()[:, 0].max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", slow_after(1, TASKS))
def test_every_task_trains(task: str, kind: str) -> None:
    torch.manual_seed(0)
    small = {"avvp": {"num_labels": 7}, "avqa": {"num_labels": 5, "question_vocab_size": 20}}.get(task, {})
    sizes = {**KINDS[kind], **small}
    config = CaeAvConfig.from_preset(task, size="toy", method="stg_cma", **sizes)
    model = randomise(get_task(task).model_class(config)).train()
    outputs = model(**task_batch(config, num_frames=3))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    unused = {"visual_gate", "audio_gate"} if task == "ave" and kind == "swin" else set()
    for name, parameter in model.named_parameters():
        if name.startswith("model.") and parameter.requires_grad and name.rsplit(".", 1)[-1] not in unused:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"vision_tower", "audio_embedding"}
    trained = {name for name, p in model.model.vision_tower.named_parameters() if p.requires_grad}
    assert trained == ({"norm.weight", "norm.bias"} if kind == "vit" else set())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    model = toy_model(method="stg_cma", **KINDS[kind])
    embedding = model.model.audio_embedding
    embedding.projection.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path)
    # Loaded, not made again from the tower.
    assert torch.equal(loaded.model.audio_embedding.projection.weight, embedding.projection.weight)
    assert not any(p.requires_grad for p in loaded.model.audio_embedding.parameters())
    batch = as_double(toy_batch(model.config))
    expected = model.double()(**batch).frame_log_probs
    torch.testing.assert_close(loaded.double()(**batch).frame_log_probs, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", slow_after(1, ["cae_av_swin", "cae_av_vision", "cae_av_vit"]))
@torch.no_grad()
def test_on_pretrained_towers(model_type: str, tmp_path: Path) -> None:
    vision = toy_vision_tower(model_type)
    model = CaeAvForEventLocalization.from_backbones(
        vision, audio=None, text=None, task="ave", size="toy", method="stg_cma"
    )
    # Made from the loaded weights, not from those that the tower had before.
    kernel, is_vit = model.model.vision_tower.patch_embed.proj.weight, model_type == "cae_av_vit"
    assert model.config.vision_config.model_type == model_type
    expected = kernel.sum(1, keepdim=True) if is_vit else kernel.mean(1, keepdim=True)
    torch.testing.assert_close(model.model.audio_embedding.projection.weight, expected)
    assert model.config.trained_tower_norms == ("final" if is_vit else "none")
    model = randomise(model)
    batch = as_double(toy_batch(model.config))
    model.save_pretrained(tmp_path, adapter_only=True)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path)
    expected = model.eval().double()(**batch).frame_log_probs
    torch.testing.assert_close(loaded.eval().double()(**batch).frame_log_probs, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_printed_form_orders_positions_as_the_patches() -> None:
    options = {"formulation": "paper"}
    config = CaeAvConfig.from_preset("ave", size="toy", method="stg_cma", interaction_options=options, **KINDS["vit"])
    model = CaeAvModel(config)
    tower, embedding = model.vision_tower, model.audio_embedding
    kernel = tower.patch_embed.proj.weight
    torch.testing.assert_close(embedding.projection.weight, kernel.mean(1, keepdim=True))
    # 4 x 4 patches of a frame; 3 x 2 of the sound, time before bands, from the middle of the rows and columns.
    grid = tower.pos_embed[0, 1:].unflatten(0, (4, 4))
    expected = [grid[1 + band, 1 + time] for time in range(3) for band in range(2)]
    torch.testing.assert_close(embedding.positions, torch.stack([tower.pos_embed[0, 0], *expected]))
    layer = model.interactions[0][0]
    assert {name for name, _ in layer.named_parameters(recurse=False)} == {
        f"{prefix}{stream}_gate" for prefix in ("", "global_") for stream in ("visual", "audio")
    }
    # Sound longer than a frame's grid: its positions are stretched along time.
    longer = {**KINDS["vit"], "audio_config": {"spectrogram_frames": 48, "num_mel_bins": 20}}
    model = CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", method="stg_cma", **longer))
    assert model.audio_embedding.positions.shape == (1 + 6 * 2, 32)
    assert model.audio_embedding.positions.isfinite().all()


def test_temporal_adaptation_of_both_forms() -> None:
    """The code skips blocks with shifted windows, the print none."""
    for formulation, expected in (("official", [True, False, True, True, False, True]), ("paper", [True] * 6)):
        config = CaeAvConfig.from_preset(
            "ave", size="toy", method="stg_cma", interaction_options={"formulation": formulation}
        )
        layers = [layer for stage in CaeAvModel(config).interactions for layer in stage]
        assert [layer.is_temporal for layer in layers] == expected
        # The released script of event localization on Swin has no exchange.
        assert [layer.exchange for layer in layers] == [formulation == "paper"] * 6


def test_a_pretrained_vit_may_have_its_heads_cut_otherwise() -> None:
    vision, arguments = aligned_toy_towers()["vision"], {"task": "ave", "size": "toy", "method": "stg_cma"}
    models = [
        CaeAvModel.from_backbones(vision, None, None, **arguments, **values)
        for values in ({}, {"vision_config": {"num_attention_heads": 1}})
    ]
    heads = [model.config.vision_config.num_attention_heads for model in models]
    assert heads[0] > heads[1] == 1
    states = [model.vision_tower.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(CaeAvError, match="only \\['model_type', 'num_attention_heads'\\] may be given"):
        CaeAvModel.from_backbones(vision, None, None, **arguments, vision_config={"patch_size": 4})
    with pytest.raises(CaeAvError, match="CaeAvVisionConfig has no field `num_attention_heads`"):
        CaeAvModel.from_backbones(
            toy_towers()["vision"], None, None, **arguments, vision_config={"num_attention_heads": 1}
        )


def test_heads_of_clip_are_those_of_the_form() -> None:
    """The code cuts ViT-B/16 into 8 heads; ViT-L/14, and the print, have CLIP's."""
    base, large = {"model_type": "cae_av_vit", "patch_size": 16}, {"model_type": "cae_av_vit", "patch_size": 14}
    large |= {"hidden_size": 1024, "num_hidden_layers": 24}
    paper = {"interaction_options": {"formulation": "paper"}}
    for vision, values, heads in (
        (base, {}, 8),
        (base, paper, 12),
        ({**base, "num_attention_heads": 6}, {}, 6),
        (large, {}, 16),
        (large, paper, 16),
    ):
        config = CaeAvConfig.from_preset("ave", method="stg_cma", vision_config=vision, **values)
        assert config.vision_config.num_attention_heads == heads
    # Also of a tower by name, here of one block, which knows CLIP's own.
    assert CaeAvConfig.from_preset("ave", vision_config=base).vision_config.num_attention_heads == 12


@pytest.mark.slow
def test_a_pretrained_vit_gets_the_heads_of_the_form(tmp_path: Path) -> None:
    vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, depth=1, img_size=32)
    save_for_hf(vit, tmp_path, model_args={"depth": 1, "img_size": 32}, safe_serialization=True)
    arguments: dict[str, Any] = {"audio": None, "text": None, "task": "ave", "size": "toy", "method": "stg_cma"}
    for values, heads in (
        ({}, 8),
        ({"interaction_options": {"formulation": "paper"}}, 12),
        ({"vision_config": {"num_attention_heads": 4}}, 4),
    ):
        model = CaeAvModel.from_backbones(tmp_path, **arguments, **values)
        assert model.config.vision_config.num_attention_heads == heads
        assert model.vision_tower.layers[0].attn.num_heads == heads


@pytest.mark.parametrize(
    ("task", "window", "seconds"),
    [("ave", 1.0, 1.0), ("avs_s4", 1.95, 1.0), ("avvp", None, 1.0), ("avqa", None, 1.95)],
)
def test_windows_of_sound_are_those_of_the_scripts(task: str, window: float | None, seconds: float) -> None:
    config = CaeAvConfig.from_preset(task, method="stg_cma")
    assert (config.audio_config.window_seconds, config.segment_seconds) == (window, seconds)
    processor = CaeAvProcessor.from_config(config)
    extractor = processor.feature_extractor
    assert (extractor.window_seconds, extractor.hop_length) == (window, 70)
    assert bool(processor.video_processor.do_center_crop) == (task == "ave")
    assert processor.frame_sampling == ("spread_to_ends" if task == "avqa" else "consecutive")
    # Of segments that are spread, nothing lies between them.
    with pytest.raises(
        StrictDataclassClassValidationError, match="`window_seconds` of the audio front end needs `frame_sampling`"
    ):
        CaeAvConfig.from_preset(task, method="stg_cma", frame_sampling="spread", audio_config={"window_seconds": 1.0})


@torch.no_grad()
def test_checkpointing_and_half_precision() -> None:
    for kind in KINDS:
        model = toy_model(method="stg_cma", interaction_options={"exchange": True}, **KINDS[kind])
        batch = toy_batch(model.config)
        expected = model(**batch).frame_log_probs
        found = model.bfloat16()(**batch).frame_log_probs
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).abs().mean() < 0.1
        with torch.enable_grad():
            gradients = []
            for is_on in (False, True):
                fresh = toy_model(method="stg_cma", **KINDS[kind])
                if is_on:
                    fresh.gradient_checkpointing_enable()
                torch.manual_seed(0)
                fresh.train()(**batch).loss.backward()
                gradients.append({n: p.grad for n, p in fresh.named_parameters() if p.requires_grad})
            for name, gradient in gradients[0].items():
                torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_drop_path_is_drawn_for_a_position() -> None:
    torch.manual_seed(0)
    for kind in KINDS:
        config = CaeAvConfig.from_preset(
            "ave", size="toy", method="stg_cma", interaction_options={"drop_path": 0.5}, **KINDS[kind]
        )
        model = randomise(CaeAvModel(config)).train()
        layers = [layer for stage in model.interactions for layer in stage]
        assert [layer.drop_path for layer in (layers[0], layers[-1])] == [0, 0.5]
        layer, place = layers[-1], layers[-1].position.visual
        assert layer.is_temporal
        states = torch.randn(2 * 3, place.num_tokens, place.hidden_size)
        stage = model.readers()[0].stages[-1]
        block = model.vision_tower.blocks(len(model.readers()[0].stages) - 1, stage.grid)[-1]
        with torch.no_grad():
            added = layer._along_time("visual", states, block, layer.visual_temporal_adapter, FrameLayout(2, 3))
            layer.eval()
            whole = layer._along_time("visual", states, block, layer.visual_temporal_adapter, FrameLayout(2, 3))
        dropped = (added == 0).all(-1).unflatten(0, (2, 3))
        assert dropped.any()
        assert not dropped.all()
        assert torch.equal(dropped[:, 0], dropped[:, 2])
        assert torch.equal(dropped[0], dropped[1]) == (kind == "vit")
        kept = ~dropped.flatten(0, 1)
        torch.testing.assert_close(added[kept], 2 * whole[kept])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interaction_options": {"formulation": "code"}}, "`formulation` must be 'official' or 'paper'"),
        ({"interaction_options": {"size": "huge"}}, "`size` must be 'base' or 'tiny'"),
        ({"interaction_options": {"ratios": [0.5]}}, "`ratios` of STG-CMA needs one value per stage"),
        ({"interaction_options": {"ratios": 0.5}}, "`ratios` must be a list of positive numbers"),
        ({"interaction_options": {"drop_path": 1.0}}, "`drop_path` must lie in"),
        ({"interaction_options": {"heads": 8}}, "unknown option 'heads'"),
        ({"audio_config": {"spectrogram_frames": 32, "num_mel_bins": 32}}, "filter banks of the frames' size"),
    ],
)
def test_wrong_options_are_refused(change: dict, message: str) -> None:
    with pytest.raises(CaeAvError, match=message):
        CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", method="stg_cma", **change))


def test_two_towers_are_refused() -> None:
    config = CaeAvConfig.from_preset("ave", size="toy", interaction="stg_cma", use_case=False, use_text_tower=False)
    with pytest.raises(CaeAvError, match="needs `shared_tower`"):
        CaeAvModel(config)
