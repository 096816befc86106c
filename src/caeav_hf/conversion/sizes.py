"""Inference of an official checkpoint's configuration from its tensors' shapes, the authors' flags, and a preset."""

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.sizes import audio_values, masked_tokens, vision_values
from .adapters import AdapterEvidence
from .flags import shaping_flags
from .methods import OfficialMethod
from .preset import converted_config


_ADAPTER = r"^{stream}(?:_moe)?_adapter_blocks_{part}\.(\d+)\."


def official_config(
    state: Mapping[str, Tensor],
    task: str,
    method: OfficialMethod,
    options: Mapping[str, Any] | argparse.Namespace | None,
    vision: Mapping[str, Any],
    audio: Mapping[str, Any],
    text_config: dict[str, Any] | None,
    overrides: Mapping[str, Any],
) -> tuple[CaeAvConfig, list[tuple[int, int]], dict[str, str]]:
    """
    Infer the configuration of an official checkpoint.

    Args:
        state: The checkpoint.
        task: Task whose preset provides what neither tensors nor flags determine.
        method: Method of the checkpoint.
        options: The authors' flags, or the namespace of a run.
        vision, audio: Sizes of the towers under the authors' names.
        text_config: Sizes of the text tower; by default those of a CLIP tower as wide as the caption features.
        overrides: Fields of the configuration, which take precedence.

    Returns:
        The configuration; for each pair of blocks with adapters its stage and its index in the stage, both from 0; and
        for each flag without effect the reason.

    Raises:
        CaeAvError: An argument is unknown or contradicts a tensor, or the checkpoint is not of such a model.
    """
    flags, without_effect = shaping_flags(options, task, method.shaping)
    evidence = Evidence(state)
    adapters = _adapters(evidence)
    depths = [
        evidence.count(rf"^htsat\.layers\.{stage}\.blocks\.(\d+)\.")
        for stage in range(evidence.count(r"^htsat\.layers\.(\d+)\."))
    ]
    if not depths:
        raise CaeAvError("the checkpoint has no tower for sound: no blocks under 'htsat.layers.0.blocks.'")
    pairs, visual_tokens, audio_tokens = _pairs(evidence, adapters, depths)
    stages = sorted({stage + 1 for stage, _ in pairs})
    found = AdapterEvidence(evidence, task, adapters, stages, len(depths), flags, overrides, without_effect)
    values: dict[str, Any] = {"adapter_stages": stages, "interaction": method.name, **method.read(found)}
    has_case = evidence.find(r"^case\.") is not None
    values["use_case"] = has_case
    if method.name == "cae_av":
        values["gate_dim"] = evidence.shape("vis_caste_blocks_p1.0.gate.v_proj.weight")[0]
    text = text_config
    if has_case:
        values["caption_bottleneck_dim"] = evidence.shape("frame_adapter_v.down_proj.weight")[0]
        values["projection_dim"] = evidence.shape("case.proj_v.1.weight")[0]
        width = evidence.shape("mapper.norm1.weight")[0]
        if text is None:
            text = {"hidden_size": width, "num_attention_heads": max(1, width // 64)}
        elif text["hidden_size"] != width:
            raise CaeAvError(f"`text` is {text['hidden_size']} wide, but 'mapper.norm1.weight' says {width}")
    values |= _head_values(evidence, task)
    values |= {
        "vision_config": vision_values(state, vision, "swin.", visual_tokens),
        "audio_config": audio_values(state, audio, "htsat.", audio_tokens),
        "text_config": text or {},
    }
    return converted_config(task, values, overrides, formulation="official"), pairs, without_effect


def _adapters(evidence: Evidence) -> list[str]:
    """Return the prefixes of the visual stream's first adapters, in the order of the blocks."""
    numbers = evidence.count(_ADAPTER.format(stream="vis", part="p1"))
    if not numbers:
        raise CaeAvError("the checkpoint has no adapters, neither 'vis_adapter_blocks_p1.0.' nor with '_moe'")
    moe = "_moe" if evidence.find(r"^vis_moe_adapter_blocks_p1\.") else ""
    return [f"vis{moe}_adapter_blocks_p1.{number}." for number in range(numbers)]


def _pairs(
    evidence: Evidence, adapters: list[str], depths: list[int]
) -> tuple[list[tuple[int, int]], tuple[int, int, str] | None, tuple[int, int, str] | None]:
    """
    Find each adapter's stage by its width.

    Returns:
        The pairs, see [`official_config`]; and for the visual and the audio stream the number of tokens in a stage,
        the stage, and the key that says so, if there is one.
    """
    first_width = evidence.shape("swin.patch_embed.proj.weight")[0]
    widths = {first_width * 2**stage: stage for stage in range(len(depths))}
    pairs: list[tuple[int, int]] = []
    for adapter in adapters:
        key = f"{adapter}fc.weight"
        width = evidence.shape(key)[0]
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
    if key not in evidence.state:
        return pairs, masked_tokens(evidence, "swin"), masked_tokens(evidence, "htsat")
    visual, audio = evidence.shape(key)[:2]
    return pairs, (visual, pairs[0][0], key), (audio, pairs[0][0], key)


def _head_values(evidence: Evidence, task: str) -> dict[str, Any]:
    """Infer the sizes of the task head."""
    if task == "ave":
        return _event_values(evidence)
    if task == "avvp":
        values = {
            "head_hidden_size": evidence.shape("fc_a.weight")[0],
            "num_labels": evidence.shape("fc_cls.weight")[0],
            "visual_3d_size": evidence.shape("fc_st.weight")[1],
            **_parsing_gate_values(evidence),
            "unimodal_grouping_depth": evidence.count(r"^visual_cug\.blocks\.(\d+)\."),
            "cross_modal_grouping_depth": evidence.count(r"^av_mcg\.blocks\.(\d+)\."),
        }
        frames = "audio_cug.han_encoder.mlp_inter.fc1.weight"
        return {**values, "num_frames": evidence.shape(frames)[1]}
    if task == "avqa":
        return {
            "num_labels": evidence.shape("fc_ans.weight")[0],
            "question_vocab_size": evidence.shape("question_encoder.word2vec.weight")[0],
            "matching_hidden_sizes": [evidence.shape(f"fc{number}.weight")[0] for number in (1, 2, 3)],
        }
    encoder = "temporal_attn.video_encoder.0.encoder.layers.0.linear1.weight"
    return {
        "head_hidden_size": evidence.shape("x1_linear_.weight")[0],
        "head_audio_dim": evidence.shape("audio_linear.weight")[0],
        "head_intermediate_size": evidence.shape(encoder)[0],
    }


def _parsing_gate_values(evidence: Evidence) -> dict[str, Any]:
    """Infer the sizes of video parsing's temporal gate, if there is one."""
    if evidence.find(r"^temporal_attn\.") is None:
        return {}
    encoder = "temporal_attn.audio_encoder."
    return {
        "head_gate_size": evidence.shape(f"{encoder}affine_matrix.weight")[0],
        "head_intermediate_size": evidence.shape(f"{encoder}encoder.layers.0.linear1.weight")[0],
    }


def _event_values(evidence: Evidence) -> dict[str, Any]:
    if not evidence.values["is_cmbs"]:
        classes = evidence.shape("mlp_class_2.weight")[0] - 1
        values = {"event_head": "mlp", "head_visual_dim": evidence.shape("mlp_class.weight")[0]}
    else:
        classes, size = evidence.shape("CMBS.localize_module.event_classifier.weight")
        values = {"event_head": "cmbs_linear", "head_hidden_size": size}
        if evidence.values["is_temporal_att"]:
            values = {
                "event_head": "cmbs",
                "head_hidden_size": size,
                "head_visual_dim": evidence.shape("temporal_attn.v_fc.weight")[0],
                "head_audio_dim": evidence.shape("temporal_attn.a_fc.weight")[0],
                "head_intermediate_size": evidence.shape(
                    "temporal_attn.video_encoder.encoder.layers.0.linear1.weight"
                )[0],
            }
    return {**values, "num_labels": classes}
