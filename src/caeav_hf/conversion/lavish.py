"""
Conversion of checkpoints of LAVisH's code, whose one tower reads frames and sound.

Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (CVPR 2023).
"""

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.renaming import SWIN_V2, SWIN_V2_IGNORED, SWIN_V2_OLD, Section, section
from ..towers.sizes import FRONT_END_NAMES, masked_tokens, vision_values
from . import key_map
from .flags import shaping_flags
from .preset import converted_config


# Tasks that the authors' code has, or has results of.
TASKS = ("ave", "avs_s4", "avs_ms3", "avqa")

# Flags of the authors' programs that shape the model, with the types of their parsers.
_SHAPING: Mapping[str, type] = dict.fromkeys(
    (
        *("Adapter_downsample", "num_conv_group", "num_tokens", "is_bn", "is_gate", "is_multimodal", "is_vit_ln"),
        *("is_before_layernorm", "is_post_layernorm"),
    ),
    int,
)

# The caller's values for the filter banks, and their fields of `CaeAvAudioConfig`.
_AUDIO_NAMES = {
    **{name: name for name in (*FRONT_END_NAMES - {"tile_seconds"}, "feature_mean", "feature_std")},
    "mel_bins": "num_mel_bins",
    "frames": "spectrogram_frames",
}

_FIRST = "vis_adapter_blocks_p1.0."


def read_lavish(
    state: Mapping[str, Tensor],
    task: str,
    options: Mapping[str, Any] | argparse.Namespace | None,
    vision: Mapping[str, Any],
    audio: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[CaeAvConfig, list[Section], dict[str, str]]:
    """
    Infer the configuration of a checkpoint, and say how its keys are renamed.

    Args:
        state: The checkpoint.
        task: Its task.
        options: The authors' flags, or the namespace of a run.
        vision: Sizes of the tower under the authors' names.
        audio: `mel_bins`, `frames` and other settings of the filter banks that differ from the task's.
        overrides: Fields of the configuration, which take precedence.

    Returns:
        The configuration, the sections of the authors' model, and for each flag without effect the reason.

    Raises:
        CaeAvError: An argument is unknown or contradicts a tensor, or the checkpoint is not of such a model.
    """
    if task not in TASKS:
        raise CaeAvError(f"`task` must be one of {', '.join(TASKS)}, those of LAVisH's code, got {task!r}")
    flags, without_effect = shaping_flags(options, task, _SHAPING)
    evidence = Evidence(state)
    values = {
        **_adapter_values(evidence, task, flags, without_effect),
        **_head_values(evidence, task),
        "vision_config": vision_values(state, vision, "swin.", masked_tokens(evidence, "swin")),
        "audio_config": _audio_values(audio),
    }
    pairs = _pairs(evidence)
    values["adapter_stages"] = sorted({stage + 1 for stage, _ in pairs})
    config = converted_config(task, values, overrides, method="lavish")
    has_old_swin = any(key.startswith("swin.layers.0.downsample.") for key in state)
    return config, _sections(task, pairs, has_old_swin), without_effect


def _sections(task: str, pairs: list[tuple[int, int]], has_old_swin: bool) -> list[Section]:
    ignored = {**key_map.LAVISH_IGNORED, **(key_map.NO_NORM_BEFORE if task.startswith("avs") else {})}
    return [
        section(r"swin\.", "model.vision_tower.", SWIN_V2_OLD if has_old_swin else SWIN_V2, SWIN_V2_IGNORED),
        *key_map.adapter_sections(pairs, key_map.DG_SCT, ignored),
        section("", "head.", *key_map.LAVISH_HEADS[task]),
    ]


def _pairs(evidence: Evidence) -> list[tuple[int, int]]:
    """Find the stage of each adapter by its width, and its number in the stage, both from 0."""
    stages = evidence.count(r"^swin\.layers\.(\d+)\.blocks\.")
    depths = [evidence.count(rf"^swin\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    expected = [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]
    first_width = evidence.shape("swin.patch_embed.proj.weight")[0]
    found = evidence.count(r"^vis_adapter_blocks_p1\.(\d+)\.")
    if found != len(expected):
        raise CaeAvError(f"the checkpoint has {found} visual adapters for {len(expected)} blocks of 'swin.layers'")
    for number, (stage, _) in enumerate(expected):
        key, width = f"vis_adapter_blocks_p1.{number}.my_tokens", first_width * 2**stage
        if evidence.shape(key)[-1] != width:
            raise CaeAvError(
                f"{key!r} is for {evidence.shape(key)[-1]} channels, but 'swin.patch_embed.proj.weight' makes "
                f"{width} in stage {stage + 1}"
            )
    return expected


def _audio_values(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(given) - _AUDIO_NAMES.keys()):
        raise CaeAvError(f"`audio` {unknown[0]!r} is unknown; expected one of {', '.join(sorted(_AUDIO_NAMES))}")
    return {_AUDIO_NAMES[name]: value for name, value in given.items()}


def _adapter_values(
    evidence: Evidence, task: str, flags: Mapping[str, Any], without_effect: dict[str, str]
) -> dict[str, Any]:
    """Infer the options of the adapters, and check the flags against them."""
    tokens, down = f"{_FIRST}my_tokens", f"{_FIRST}down_sampler.weight"
    (number, width), (bottleneck, group_width, *_) = evidence.shape(tokens), evidence.shape(down)
    evidence.record("num_tokens", number, tokens)
    evidence.record("Adapter_downsample", width // bottleneck, down)
    evidence.record("num_conv_group", width // group_width, down)
    is_segmentation = task.startswith("avs")
    keys = {
        "is_multimodal": tokens,
        "is_bn": f"{_FIRST}bn1.weight",
        "is_gate": "audio_adapter_blocks_p1.0.gate",
        "is_post_layernorm": f"{_FIRST}ln_post.weight",
        **({} if is_segmentation else {"is_before_layernorm": f"{_FIRST}ln_before.weight"}),
    }
    for name, key in keys.items():
        evidence.record(name, int(key in evidence.state), key)
    if not evidence.values["is_post_layernorm"]:
        raise CaeAvError(
            f"the checkpoint has no {keys['is_post_layernorm']!r}; adapters without this norm are unknown"
        )
    for key, value in evidence.state.items():
        if key.endswith(".gate_tk") and bool((value != 1).any()):
            raise CaeAvError(f"{key!r} must be 1, as the published form has no such gate")
    values: dict[str, Any] = {}
    checked = {name: value for name, value in flags.items() if name in evidence.values}
    for name in flags.keys() - checked.keys():
        if name == "is_vit_ln" and not is_segmentation:
            values["trained_tower_norms"] = "all" if flags[name] else "none"
        elif name == "is_vit_ln":
            without_effect[name] = "the authors' segmentation freezes the whole tower"
        else:
            without_effect[name] = "the authors' segmentation builds this norm but never runs it"
    evidence.merge("option", checked, set(_SHAPING))
    options = {
        "reduction": evidence.values["Adapter_downsample"],
        "groups": evidence.values["num_conv_group"],
        "num_latent_tokens": number,
        "batch_norm": bool(evidence.values["is_bn"]),
        "gated_streams": "both" if evidence.values["is_gate"] else "visual",
    }
    if not is_segmentation:
        options["norm_before"] = bool(evidence.values["is_before_layernorm"])
    return {**values, "interaction_options": options}


def _head_values(evidence: Evidence, task: str) -> dict[str, Any]:
    """Infer the sizes of the task head."""
    if task == "ave":
        return {
            "head_visual_dim": evidence.shape("mlp_class.weight")[0],
            "num_labels": evidence.shape("mlp_class_2.weight")[0] - 1,
        }
    if task == "avqa":
        return {
            "head_answer_size": evidence.shape("yb_fc_v.weight")[0],
            "num_labels": evidence.shape("fc_ans.weight")[0],
            "question_vocab_size": evidence.shape("question_encoder.word2vec.weight")[0],
            "matching_hidden_sizes": [evidence.shape(f"fc{number}.weight")[0] for number in (1, 2, 3)],
        }
    stages = evidence.count(r"^x(\d+)_linear\.")
    return {
        "head_map_sizes": [evidence.shape(f"x{stage}_linear.weight")[0] for stage in range(1, stages + 1)],
        "head_hidden_size": evidence.shape("conv1.conv2d_list.0.weight")[0],
        "head_audio_dim": evidence.shape("audio_linear.weight")[0],
    }
