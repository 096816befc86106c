"""The configuration of an official checkpoint: from the shapes of its tensors, the authors' flags, and a preset."""

import argparse
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.sizes import audio_values, vision_values
from .flags import FLAGS, SHAPING, shaping_flags


_ADAPTER = r"^{stream}(?:_moe)?_adapter_blocks_{part}\.(\d+)\."


def official_config(
    state: Mapping[str, Tensor],
    task: str,
    options: Mapping[str, Any] | argparse.Namespace | None,
    vision: Mapping[str, Any],
    audio: Mapping[str, Any],
    text_config: dict[str, Any] | None,
    overrides: Mapping[str, Any],
) -> tuple[CaeAvConfig, list[tuple[int, int]], dict[str, str]]:
    """
    The configuration; stage and number in it (both from 0) of each pair of blocks with adapters; and the flags without
    effect, to the reason.

    Args:
        state: The checkpoint.
        task: A preset, for what neither tensors nor flags say.
        options: The authors' flags, or the namespace of a run.
        vision, audio: Sizes of the towers under the authors' names.
        text_config: Sizes of the text tower; by default CLIP's of the captions' width.
        overrides: Fields of the configuration, above all.

    Raises:
        CaeAvError: Something that was given is unknown or contradicts a tensor, or the checkpoint is of no such model.
    """
    if task not in FLAGS:
        raise CaeAvError(f"`task` must be one of {', '.join(FLAGS)}, got {task!r}")
    flags, without_effect = shaping_flags(options, task)
    told = Evidence(state)
    adapters = _adapters(told)
    depths = [
        told.count(rf"^htsat\.layers\.{stage}\.blocks\.(\d+)\.")
        for stage in range(told.count(r"^htsat\.layers\.(\d+)\."))
    ]
    pairs, visual_tokens, audio_tokens = _pairs(told, adapters, depths)
    stages = sorted({stage + 1 for stage, _ in pairs})
    values: dict[str, Any] = {
        "adapter_stages": stages,
        **_adapter_values(told, task, adapters, flags, without_effect, stages, len(depths)),
    }
    has_case = told.find(r"^case\.") is not None
    values["use_case"] = has_case
    values["interaction"] = "cae_av" if told.find(r"^(?:vis|audio)_caste_blocks_p1\.") else "avmoe"
    if values["interaction"] == "cae_av":
        values["gate_dim"] = told.shape("vis_caste_blocks_p1.0.gate.v_proj.weight")[0]
    text = text_config
    if has_case:
        values["caption_bottleneck_dim"] = told.shape("frame_adapter_v.down_proj.weight")[0]
        values["projection_dim"] = told.shape("case.proj_v.1.weight")[0]
        width = told.shape("mapper.norm1.weight")[0]
        if text is None:
            text = {"hidden_size": width, "num_attention_heads": max(1, width // 64)}
        elif text["hidden_size"] != width:
            raise CaeAvError(f"`text` is {text['hidden_size']} wide, but 'mapper.norm1.weight' says {width}")
    values |= _head_values(told, task)
    towers: dict[str, dict[str, Any]] = {
        "vision_config": vision_values(state, vision, "swin.", visual_tokens),
        "audio_config": audio_values(state, audio, "htsat.", audio_tokens),
        "text_config": text or {},
    }
    for name, value in overrides.items():
        values[name] = {**towers.get(name, {}), **value} if name in towers else value
    if values.get("num_labels") == CaeAvConfig.from_preset(task).num_labels:
        # The preset's own classes keep the names that it has for them.
        del values["num_labels"]
    values = {**towers, **values}
    try:
        return CaeAvConfig.from_preset(task, formulation="official", **values), pairs, without_effect
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"no model is of the sizes of the checkpoint and of what was given: {error}") from error


def _adapters(told: Evidence) -> list[str]:
    """The prefixes of the visual stream's first adapters, in the order of the blocks."""
    numbers = told.count(_ADAPTER.format(stream="vis", part="p1"))
    if not numbers:
        raise CaeAvError("the checkpoint has no adapters, neither 'vis_adapter_blocks_p1.0.' nor with '_moe'")
    moe = "_moe" if told.find(r"^vis_moe_adapter_blocks_p1\.") else ""
    return [f"vis{moe}_adapter_blocks_p1.{number}." for number in range(numbers)]


def _pairs(
    told: Evidence, adapters: list[str], depths: list[int]
) -> tuple[list[tuple[int, int]], tuple[int, int, str], tuple[int, int, str]]:
    """Where each adapter stands, by its channels; and the tokens of both streams where the first one stands."""
    first_width = told.shape("swin.patch_embed.proj.weight")[0]
    widths = {first_width * 2**stage: stage for stage in range(len(depths))}
    pairs: list[tuple[int, int]] = []
    for adapter in adapters:
        key = f"{adapter}fc.weight"
        width = told.shape(key)[0]
        if width not in widths:
            raise CaeAvError(
                f"{key!r} is for {width} channels, but 'swin.patch_embed.proj.weight' makes stages of {sorted(widths)}"
            )
        stage = widths[width]
        pairs.append((stage, sum(other == stage for other, _ in pairs)))
    for stage in sorted({stage for stage, _ in pairs}):
        count = sum(other == stage for other, _ in pairs)
        if count != depths[stage]:
            raise CaeAvError(
                f"stage {stage + 1} has {count} adapters for {depths[stage]} blocks of 'htsat.layers.{stage}'"
            )
    key = f"{adapters[0]}conv_adapter.weight"
    visual, audio = told.shape(key)[:2]
    return pairs, (visual, pairs[0][0], key), (audio, pairs[0][0], key)


def _adapter_values(
    told: Evidence,
    task: str,
    adapters: list[str],
    flags: dict[str, Any],
    without_effect: dict[str, str],
    stages: list[int],
    num_stages: int,
) -> dict[str, Any]:
    """What the first adapters say and the flags agree with; flags that nothing can contradict have no effect."""
    first, audio = adapters[0], adapters[0].replace("vis", "audio", 1)
    experts = {
        name: told.count(rf"^{first.replace('.', '[.]')}{name}_experts\.(\d+)\.")
        for name in ("multimodal", "singlemodal")
    }
    expert = f"{first}multimodal_experts.0." if experts["multimodal"] else f"{first}singlemodal_experts.0."
    own = f"{first}singlemodal_experts.0."
    down = f"{expert}down_sampler.weight"
    bottleneck, group_width = told.shape(down)[:2]
    width = told.shape(f"{first}fc.weight")[0]
    told.tell("num_multimodal_experts", experts["multimodal"], f"{first}router.4.weight")
    told.tell("num_singlemodal_experts", experts["singlemodal"], f"{first}router.4.weight")
    told.tell("Adapter_downsample", width // bottleneck, down)
    told.tell("num_conv_group", width // group_width, down)
    latents = next((key for key in (f"{expert}my_tokens", f"{own}my_tokens") if key in told.state), None)
    if latents is not None:
        told.tell("num_tokens", told.shape(latents)[0], latents)

    def flag(name: str, key: str) -> None:
        told.tell(name, int(key in told.state), key)

    audio_expert = expert.replace("vis", "audio", 1)
    flag("is_bn", f"{expert}bn1.weight")
    flag("is_gate", f"{audio_expert}gate")
    flag("is_before_layernorm", f"{expert}ln_before.weight")
    flag("is_post_layernorm", f"{expert}ln_post.weight")
    attention, key = "none", f"{own}down_sampler.weight"
    for kind, name in (("self", "self_attention.in_proj_weight"), ("latent", "gate_self"), ("dot", "gate_av")):
        if f"{own}{name}" in told.state:
            attention, key = kind, f"{own}{name}"
    if task != "avvp":
        told.tell("is_self_attention", int(attention != "none"), key)
    if attention in ("self", "latent"):
        told.tell("self_attention_version", "v1" if attention == "self" else "v2", key)
    if task == "ave":
        told.tell("is_cmbs", int(told.find(r"^CMBS\.") is not None), told.find(r"^(CMBS|mlp_class)\.") or "CMBS.")
        if told.values["is_cmbs"]:
            relation = told.find(r"^(?:temporal_attn\.)?v_fc\.") or "temporal_attn.v_fc.weight"
            told.tell("is_temporal_att", int(relation.startswith("temporal_attn.")), relation)
    if task == "avqa":
        told.tell("avqa_fc_class", told.shape("fc_ans.weight")[0], "fc_ans.weight")
    if task == "avvp":
        told.tell("dim", told.shape("fc_a.weight")[0], "fc_a.weight")
        for name, blocks in (("depth_aud", "audio_cug"), ("depth_vis", "visual_cug"), ("depth_av", "av_mcg")):
            number = told.count(rf"^{blocks}\.blocks\.(\d+)\.")
            told.tell(name, number, f"{blocks}.blocks.{number - 1}")

    checked = {}
    for name, value in flags.items():
        if name == "num_tokens" and task.startswith("avs"):
            # Its latents are 87 whatever the flag says.
            without_effect[name] = "the authors' segmentation does not pass it on"
        elif name in told.values or name == "num_skip":
            checked[name] = value
        else:
            without_effect[name] = "the checkpoint has nothing that it shapes"
    skip = checked.get("num_skip", 1)
    by_skip = [stage for stage in range(1, num_stages + 1) if skip <= 1 or stage % skip]
    if "num_skip" in checked and by_skip != stages:
        raise CaeAvError(
            f"option 'num_skip' is {skip}, which leaves adapters in the stages {by_skip}, but "
            f"{adapters[-1] + 'fc.weight'!r} and those before it are for the stages {stages}"
        )
    told.agree("option", checked, set(SHAPING))
    values = {
        "num_cross_modal_experts": experts["multimodal"],
        "num_unimodal_experts": experts["singlemodal"],
        "adapter_reduction": told.values["Adapter_downsample"],
        "adapter_groups": told.values["num_conv_group"],
        "adapter_batch_norm": bool(told.values["is_bn"]),
        "adapter_gate": bool(told.values["is_gate"]),
        "visual_adapter_gate": f"{expert}gate" in told.state,
        "adapter_norm_before": bool(told.values["is_before_layernorm"]),
        "adapter_norm_after": bool(told.values["is_post_layernorm"]),
        "unimodal_attention": attention,
    }
    if latents is not None:
        values["num_latent_tokens"] = told.values["num_tokens"]
    if f"{audio}fc.weight" not in told.state:
        raise CaeAvError(f"the checkpoint has {first + 'fc.weight'!r}, but no {audio + 'fc.weight'!r}")
    return values


def _head_values(told: Evidence, task: str) -> dict[str, Any]:
    """Sizes of the task head."""
    if task == "ave":
        return _event_values(told)
    if task == "avvp":
        values = {
            "head_hidden_size": told.shape("fc_a.weight")[0],
            "num_labels": told.shape("fc_cls.weight")[0],
            "visual_3d_size": told.shape("fc_st.weight")[1],
            "unimodal_grouping_depth": told.count(r"^visual_cug\.blocks\.(\d+)\."),
            "cross_modal_grouping_depth": told.count(r"^av_mcg\.blocks\.(\d+)\."),
        }
        frames = "audio_cug.han_encoder.mlp_inter.fc1.weight"
        return {**values, "num_frames": told.shape(frames)[1]}
    if task == "avqa":
        return {
            "num_labels": told.shape("fc_ans.weight")[0],
            "question_vocab_size": told.shape("question_encoder.word2vec.weight")[0],
            "matching_hidden_sizes": [told.shape(f"fc{number}.weight")[0] for number in (1, 2, 3)],
        }
    encoder = "temporal_attn.video_encoder.0.encoder.layers.0.linear1.weight"
    return {
        "head_hidden_size": told.shape("x1_linear_.weight")[0],
        "head_audio_dim": told.shape("audio_linear.weight")[0],
        "head_intermediate_size": told.shape(encoder)[0],
    }


def _event_values(told: Evidence) -> dict[str, Any]:
    if not told.values["is_cmbs"]:
        classes = told.shape("mlp_class_2.weight")[0] - 1
        values = {"event_head": "mlp", "head_visual_dim": told.shape("mlp_class.weight")[0]}
    else:
        classes, size = told.shape("CMBS.localize_module.event_classifier.weight")
        values = {"event_head": "cmbs_linear", "head_hidden_size": size}
        if told.values["is_temporal_att"]:
            values = {
                "event_head": "cmbs",
                "head_hidden_size": size,
                "head_visual_dim": told.shape("temporal_attn.v_fc.weight")[0],
                "head_audio_dim": told.shape("temporal_attn.a_fc.weight")[0],
                "head_intermediate_size": told.shape("temporal_attn.video_encoder.encoder.layers.0.linear1.weight")[0],
            }
    return {**values, "num_labels": classes}
