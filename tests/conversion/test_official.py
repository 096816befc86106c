"""The authors' checkpoints load and agree with their modules, composed as in their programs."""

import argparse
import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError
from caeav_hf.conversion import from_official
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.modeling.captions import Captions
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.towers.renaming import rename
from tests.conversion.official_state import TASKS, TEXT, UNTOLD, official_state, small_config, small_model
from tests.golden import assert_equal
from tests.lanes import slow_after


OPTIONS = {
    "ave": {"num_skip": 2, "is_bn": 1, "is_gate": 1, "is_self_attention": 0, "is_cmbs": 1, "is_temporal_att": 1},
    "avvp": {"num_skip": 1, "is_bn": 0, "is_gate": 1},
    # The authors' segmentation ignores this flag.
    "avs_s4": {"num_skip": 1, "num_tokens": 32, "is_gate": 0, "is_self_attention": 1, "self_attention_version": "v1"},
    "avs_ms3": {"num_skip": 2, "is_gate": 0, "is_self_attention": 1, "self_attention_version": "v2"},
    "avqa": {"num_skip": 1, "num_tokens": 3, "num_singlemodal_experts": 2, "is_gate": 0, "avqa_fc_class": 42},
}
NEWER_TIMM = {rf"^swin\.layers\.{n}\.downsample": f"swin.layers.{n + 1}.downsample" for n in (2, 1, 0)}
VISION = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": [1, 2, 4, 8]}
AUDIO = {"spec_size": 128, "window_size": 4, "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}


def convert(state: dict[str, Tensor], task: str, **arguments) -> CaeAvPreTrainedModel:
    values = {"options": OPTIONS[task], "vision": VISION, "audio": {**AUDIO, "tile_seconds": 1}, "text": TEXT}
    return from_official(state, task, **{**values, **UNTOLD, **arguments})


def inputs(config: CaeAvConfig, batch_size: int = 1) -> dict[str, Tensor]:
    """Return random inputs of a batch in double precision, captions as features."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    frames = config.num_frames
    batch = {
        "pixel_values_videos": randn(batch_size, frames, 3, 64, 64),
        "input_features": 15 * randn(batch_size, frames, 1, 101, 64) - 30,
        "visual_caption_embeds": randn(batch_size, 7, 32),
        "audio_caption_embeds": randn(batch_size, 5, 32),
    }
    if config.visual_3d_size:
        batch["visual_3d_features"] = randn(batch_size, frames, config.visual_3d_size)
    if config.task == "avqa":
        batch["question_ids"] = torch.randint(1, config.question_vocab_size, (batch_size, 9), generator=generator)
    if not config.use_case:
        return {name: value for name, value in batch.items() if "caption" not in name}
    return batch


def authors_streams(model: CaeAvPreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run the loop of the authors' programs over their modules, each of which a reference case fixes."""
    config, base = model.config, model.model
    frames = FrameLayout(*batch["pixel_values_videos"].shape[:2])
    visual = base.vision_tower.embed(batch["pixel_values_videos"].flatten(0, 1))
    audio = base.audio_tower.embed(batch["input_features"].flatten(0, 1))
    maps = []
    for stage in range(4):
        visual, audio = base.vision_tower.enter_stage(stage, visual), base.audio_tower.enter_stage(stage, audio)
        visual_blocks, audio_blocks = base.vision_tower.blocks(stage), base.audio_tower.blocks(stage)
        every = len(visual_blocks) // len(audio_blocks)
        for number, block in enumerate(visual_blocks):
            if (number + 1) % every:
                visual = block(visual)
                continue
            index = (number + 1) // every - 1
            layer, heard = base.interactions[stage][index], audio_blocks[index]
            visual_before, audio_before = visual, audio
            skips_audio = config.task == "avvp" and config.interaction == "cae_av"
            audio_after = audio if skips_audio else heard(audio)
            visual_residual = audio_residual = torch.zeros(())
            if config.interaction == "cae_av" and index == 0:
                visual_residual = layer.visual_caste(visual_before, audio_before, frames)[0]
                audio_residual = layer.audio_caste(audio_before, visual_before, frames)[0]
            if stage + 1 not in config.adapter_stages:
                visual = visual + block.attention(visual) + visual_residual
                audio = audio_after + audio_residual
                visual = visual + block.feed_forward(visual)
                continue
            rich_visual, rich_audio = visual + visual_residual, audio + audio_residual
            audio_added, _ = layer.audio_attention_adapter(rich_audio, rich_visual, frames)
            visual_added, _ = layer.visual_attention_adapter(rich_visual, rich_audio, frames)
            visual = visual_before + block.attention(visual_before) + visual_added
            # Where the audio block is skipped, the authors' code continues from the enriched stream.
            audio = (rich_audio if skips_audio else audio_after) + audio_added
            audio_added, _ = layer.audio_feed_forward_adapter(audio, visual, frames)
            visual_added, _ = layer.visual_feed_forward_adapter(visual, audio, frames)
            visual = visual + block.feed_forward(visual) + visual_added
            audio = audio + audio_added
        maps.append(visual)
    maps[-1] = base.vision_tower.final_norm(maps[-1])
    if config.use_case:
        captions = Captions(batch["visual_caption_embeds"], batch["audio_caption_embeds"])
        output = base.case(visual, audio, base.caption_mapper(captions), frames, frames)
        visual, audio = output.visual, output.audio
    return base.vision_tower.final_norm(visual), audio, maps


def authors_output(model: CaeAvPreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    frames = FrameLayout(*batch["pixel_values_videos"].shape[:2])
    visual, audio, maps = authors_streams(model, batch)
    visual_clip, audio_clip = frames.to_grid(visual), frames.to_grid(audio.mean(1))
    task, head = model.config.task, model.head
    if task == "ave":
        logits = head(visual_clip.mean(2), audio_clip, frames)
        return {"event_logits": logits.event, "class_logits": logits.clip_class}
    if task == "avvp":
        logits = head(visual_clip.mean(2), audio_clip, frames, batch["visual_3d_features"])
        return {"audio_frame_probs": logits.audio_frames, "event_probs": logits.event.sigmoid()}
    if task == "avqa":
        audio_clip = head.encode_audio(audio_clip)
        grounding = head.ground(visual_clip, audio_clip)
        logits = head(grounding, audio_clip, batch["question_ids"], None, frames)
        return {"logits": logits.answer, "match_logits": grounding.match}
    return {"logits": frames.to_grid(head(tuple(maps), audio.mean(1), frames).logits)}


# One task in the quick lane, whose modules the reference cases cover for all.
QUICK = slow_after(1, TASKS)


@pytest.fixture(scope="module", params=QUICK)
def converted(request: pytest.FixtureRequest) -> tuple[CaeAvPreTrainedModel, dict[str, Tensor], CaeAvPreTrainedModel]:
    """Return a small official model, its checkpoint under the authors' names, and the converted model."""
    own = small_model(small_config(request.param))
    state = official_state(own)
    return own, state, convert(state, request.param)


def in_double(*models: CaeAvPreTrainedModel) -> list[CaeAvPreTrainedModel]:
    """
    Return copies in double precision. The official CASE selects among tokens of nearly one norm, and an error of
    single precision, which the addresses of the tensors decide on some processors, may select others.
    """
    return [copy.deepcopy(model).double() for model in models]


@torch.no_grad()
def test_whole_models_compute_what_the_authors_modules_do(converted) -> None:
    own, model = in_double(converted[0], converted[2])
    batch = inputs(own.config)
    output, expected = model(**batch), authors_output(own, batch)
    for name, value in expected.items():
        assert value.abs().max() > 1e-3
        assert_equal(getattr(output, name), value, tolerance=1e-4)


def test_every_key_is_explained(converted) -> None:
    own, state, model = converted
    report = model.conversion_report
    assert set(report.mapped) | set(report.ignored) == set(state)
    assert not set(report.mapped) & set(report.ignored)
    assert all([*report.ignored.values(), *report.missing.values()])
    new_keys = [key for keys in report.mapped.values() for key in keys]
    assert sorted([*new_keys, *report.missing]) == sorted(own.state_dict())
    assert "swin.head.weight" in report.ignored
    assert all("text_tower" in key or "relative_position_index" in key for key in report.missing)
    assert f"{len(report.mapped)} keys mapped" in report.summary()


@pytest.mark.slow  # a whole model of each task
def test_sizes_come_from_the_tensors(converted) -> None:
    own, state, _ = converted
    task = own.config.task
    model = from_official(state, task, audio={"tile_seconds": 1}, text=TEXT, **UNTOLD)
    expected, found = own.config.to_dict(), model.config.to_dict()
    used = {
        "ave": set(),
        "avvp": {"head_visual_dim", "head_audio_dim", "head_intermediate_size"},
        "avqa": {"head_visual_dim", "head_audio_dim", "head_hidden_size", "head_intermediate_size"},
    }.get(task, {"head_visual_dim"})
    used |= {"matching_hidden_sizes"} if task != "avqa" else set()
    for name, value in expected.items():
        if name.endswith("_config") and value is not None:
            same = {key: part for key, part in value.items() if key != "dtype"}
            assert same == {key: part for key, part in found[name].items() if key != "dtype"}
        elif name not in used | {"dtype"}:
            assert found[name] == value, name


@pytest.mark.slow  # a whole model of each task
def test_converting_saving_and_converting_again_is_stable(converted, tmp_path) -> None:
    own, state, model = converted
    before = {key: value.clone() for key, value in state.items()}
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    again = convert(official_state(reloaded), own.config.task)
    first, second, third = model.state_dict(), reloaded.state_dict(), again.state_dict()
    for key, value in own.state_dict().items():
        if "text_tower" not in key:
            assert all(torch.equal(value, state[key]) for state in (first, second, third)), key
    assert all(torch.equal(value, state[key]) for key, value in before.items())


def test_the_model_is_ready_for_use(converted) -> None:
    own, _, model = converted
    assert type(model) is type(own)
    assert not model.training
    assert (model.config.formulation, model.config.task) == ("official", own.config.task)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in own.named_parameters() if parameter.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ave", "avvp"])
@torch.no_grad()
def test_plain_avmoe(task: str) -> None:
    """Its checkpoints have neither CASTE nor CASE, and its video parsing runs the audio blocks."""
    own = small_model(small_config(task, interaction="avmoe", use_case=False))
    model = convert(official_state(own), task)
    assert (model.config.interaction, model.config.use_case) == ("avmoe", False)
    own, model = in_double(own, model)
    batch = inputs(own.config)
    output = model(**batch)
    for name, value in authors_output(own, batch).items():
        assert_equal(getattr(output, name), value, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "cmbs_linear"])
@torch.no_grad()
def test_other_heads_of_event_localization(head: str) -> None:
    own = small_model(small_config("ave", event_head=head))
    state = official_state(own, head=False)
    tensors = own.head.state_dict()
    if head == "mlp":
        names = {"hidden": "mlp_class", "classifier": "mlp_class_2"}
    else:
        names = {
            "relation.visual_projection": "v_fc",
            "relation.audio_projection": "a_fc",
            "event_classifier": "CMBS.localize_module.classifier",
            "class_classifier": "CMBS.localize_module.event_classifier",
            "visual_scores": "CMBS.video_cas",
            "audio_scores": "CMBS.audio_cas",
        }
    state |= {
        f"{theirs}.{kind}": tensors[f"{ours}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")
    }
    flags = {"is_cmbs": int(head != "mlp")} | ({"is_temporal_att": 0} if head != "mlp" else {})
    model = convert(state, "ave", options=flags)
    assert model.config.event_head == head
    own, model = in_double(own, model)
    batch = inputs(own.config)
    assert_equal(model(**batch).class_logits, own(**batch).class_logits)


# Other flags of the authors' parsers, by task.
RUNS = {
    "ave": {
        "lr_mlp": 4e-6,
        "is_audio_adapter_p3": 0,
        "vis_encoder_type": "swin",
        "gpu": [0, 1],
        "wandb": 0,
        "decay": 0.35,
    },
    "avvp": {
        "unimodal_assign": "soft",
        "dim": 16,
        "depth_vis": 3,
        "depth_av": 6,
        "log_interval": 50,
        "is_multimodal": 1,
    },
    "avs_s4": {"tpavi_stages": [], "session_name": "S4", "visual_only": 0, "checkpoint_dir": "train_logs/checkpoints"},
    "avs_ms3": {"masked_av_flag": True, "gamma": 0.1, "load_s4_params": False, "test_batch_size": 1},
    "avqa": {"video_res14x14_dir": "visual", "coff_av": 0.5, "batch_size": 2, "is_audio_adapter_p1": 1},
}
SHARED = {"backbone_type": "audioset", "lr": 5e-4, "accum_itr": None, "num_workers": 16}


@pytest.mark.slow  # a whole model of each task
def test_the_namespace_of_a_run_is_taken_whole(converted) -> None:
    own, state, _ = converted
    task = own.config.task
    plain = convert(state, task, options=None)
    given = {**OPTIONS[task], **SHARED, **RUNS[task]}
    reports = []
    for options in (given, argparse.Namespace(**given)):
        model = convert(state, task, options=options)
        reports.append(model.conversion_report.without_effect)
        assert model.config.to_dict() == plain.config.to_dict()
    report = reports[0]
    assert report == reports[1]
    expected = set(SHARED) | set(RUNS[task]) - {"dim", "depth_vis", "depth_av"}
    # The authors' segmentation has this flag but ignores it; their video parsing has no such flag.
    expected |= {"avs_s4": {"num_tokens"}, "avvp": {"num_skip"}}.get(task, set())
    assert set(report) == expected
    assert all(report.values())
    assert f"{sum('no size' in reason for reason in report.values())} options without effect: no size" in (
        model.conversion_report.summary()
    )


@pytest.mark.slow
def test_flags_of_another_task_have_no_effect(state: dict[str, Tensor]) -> None:
    options = {**OPTIONS["avqa"], **SHARED, **RUNS["avqa"], "num_skip": 2, "num_singlemodal_experts": 1, "is_gate": 1}
    report = convert(state, "ave", options=options).conversion_report
    for name in ("avqa_fc_class", "video_res14x14_dir", "coff_av"):
        assert "only of avqa" in report.without_effect[name]
    # Flags of this task's parser are checked, whatever other flags there are.
    with pytest.raises(CaeAvError, match="num_skip"):
        convert(state, "ave", options={**options, "num_skip": 1})


@pytest.mark.slow
def test_flags_as_text_and_yes_or_no(state: dict[str, Tensor]) -> None:
    options = {"num-skip": "2", "is_bn": True, "is_gate": "1", "is_cmbs": 1.0, "log-interval": "50"}
    report = convert(state, "ave", options=options).conversion_report
    assert list(report.without_effect) == ["log_interval"]


def test_groupings_that_do_not_exist_here_are_refused() -> None:
    from caeav_hf.conversion.flags import shaping_flags

    with pytest.raises(CaeAvError, match="'unimodal_assign' is 'hard'"):
        shaping_flags({"unimodal_assign": "hard"}, "avvp")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(small_model(small_config("ave")))


@pytest.mark.slow
def test_data_parallel(state: dict[str, Tensor]) -> None:
    model = convert({f"module.{key}": value for key, value in state.items()}, "ave")
    assert torch.equal(model.head.event_classifier.weight, state["CMBS.localize_module.classifier.weight"])


@pytest.mark.slow
def test_newer_timm(state: dict[str, Tensor]) -> None:
    """If downsampling starts a stage, its keys are already those of this package."""
    newer = {rename(key, NEWER_TIMM): value for key, value in state.items()}
    assert set(newer) != set(state)
    model, other = convert(newer, "ave"), convert(state, "ave")
    for key, value in model.model.vision_tower.state_dict().items():
        assert torch.equal(value, other.model.vision_tower.state_dict()[key]), key


@pytest.mark.slow
def test_text_tower_from_a_folder() -> None:
    folder = Path(__file__).parents[2] / "src" / "caeav_hf" / "assets" / "toy_towers" / "text"
    own = small_model(small_config("ave", text_config={**TEXT, "hidden_size": 64}))
    with pytest.raises(CaeAvError, match=r"`text` is 32 wide"):
        convert(official_state(own), "ave", text={**TEXT, "hidden_size": 32})
    model = convert(official_state(own), "ave", text=folder)
    stored = load_file(folder / "open_clip_model.safetensors")
    assert model.config.text_config.vocab_size == 1026
    key = next(key for key in stored if key.endswith("ln_final.weight"))
    assert torch.equal(model.model.text_tower.ln_final.weight, stored[key])
    assert "from `text`" in model.conversion_report.missing["model.text_tower.ln_final.weight"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"options": {"num_skip": 1}}, ["num_skip", "vis_moe_adapter_blocks_p1.3.fc.weight"]),
        (
            {"options": {"num_tokens": 32}},
            ["num_tokens", "vis_moe_adapter_blocks_p1.0.multimodal_experts.0.my_tokens"],
        ),
        ({"options": {"is_bn": 0}}, ["is_bn", "bn1.weight"]),
        ({"options": {"num_conv_group": 4}}, ["num_conv_group", "down_sampler.weight"]),
        ({"options": {"is_temporal_att": 0}}, ["is_temporal_att", "temporal_attn.v_fc"]),
        ({"options": {"num_tokns": 3}}, ["num_tokns", "num_tokens"]),
        ({"options": {"num_skip": "1"}}, ["num_skip", "vis_moe_adapter_blocks_p1.3.fc.weight"]),
        ({"options": {"is_bn": "yes"}}, ["is_bn", "integer", "'yes'"]),
        ({"options": {"num_skip": 1.5}}, ["num_skip", "integer", "1.5"]),
        ({"vision": {"embed_dim": 32}}, ["embed_dim", "swin.patch_embed.proj.weight"]),
        ({"vision": {"img_size": 128}}, ["img_size", "vis_moe_adapter_blocks_p1.0.conv_adapter.weight"]),
        ({"audio": {"mel_bins": 32}}, ["mel_bins", "htsat.bn0.weight"]),
        ({"text": {"hidden_size": 64, "num_attention_heads": 4}}, ["text", "mapper.norm1.weight"]),
    ],
)
def test_contradictions_name_the_key(state: dict[str, Tensor], arguments: dict, names: list[str]) -> None:
    with pytest.raises(CaeAvError) as caught:
        convert(state, "ave", **arguments)
    assert all(name in str(caught.value) for name in names), caught.value


def test_nothing_is_dropped_silently(state: dict[str, Tensor]) -> None:
    with pytest.raises(CaeAvError, match=r"'surprise\.weight'"):
        convert({**state, "surprise.weight": torch.zeros(2)}, "ave")
    lacking = {key: value for key, value in state.items() if key != "case.sa_v.norm.bias"}
    with pytest.raises(CaeAvError, match=r"model\.case\.visual_stream\.self_attention\.norm\.bias"):
        convert(lacking, "ave")
    wrong = {**state, "case.norm_v.weight": torch.zeros(3)}
    with pytest.raises(CaeAvError, match=r"'case\.norm_v\.weight' has the shape \(3,\)"):
        convert(wrong, "ave")
    with pytest.raises(CaeAvError, match="no adapters"):
        convert({"weight": torch.zeros(2)}, "ave")
    with pytest.raises(CaeAvError, match="`task`"):
        from_official(state, "speech")
