"""
Conversion of checkpoints of DG-SCT's few-shot code, whose four towers are those of CLIP and CLAP.

Duan et al., "Cross-modal Prompts: Adapting Large Pre-trained Models for Audio-Visual Downstream Tasks" (NeurIPS 2023).
"""

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.renaming import CLIP_VIT, HTSAT, HTSAT_IGNORED, Rules, Section, section
from ..towers.sizes import audio_values
from . import key_map
from .flags import shaping_flags
from .preset import converted_config


TASKS = ("ave_few_shot", "ave_few_shot_classification", "avvp_few_shot_classification")

# A key that only these checkpoints have.
MARKER = r"^prompt_learner\.ctx$"

_SHAPING: Mapping[str, type] = dict.fromkeys(
    ("Adapter_downsample", "num_conv_group", "num_tokens", "is_bn", "is_gate", "is_multimodal"), int
)

# Channels of a head in CLIP and RoBERTa, which checkpoints do not determine.
_HEAD_SIZE = 64

# The front end of the authors' code, in which CLAP's mel filters for 48 kHz replace HTS-AT's.
_SAMPLING_RATE, _HOP, _FILTER_RATE = 32_000, 320, 48_000

_PROJECTION: Rules = {r"^0\.": "linear1.", r"^2\.": "linear2."}
_BOTTLENECK: Rules = {r"^fc\.0": "down", r"^fc\.2": "up"}
_ADAPTER_IGNORED: Rules = {
    **key_map.DG_SCT_IGNORED,
    r"^fc_caption\.": "a layer for captions, which the authors' code never runs",
}
_CLASS_TEXTS = "tokens of the class names, which `name_classes` of the model stores again"
_UNUSED: Rules = {
    r"^prompt_learner\.token_(?:prefix|suffix)$": _CLASS_TEXTS,
    r"^prompt_learner\.meta_net\.": "a network that would condition the context on the image, which never runs",
    r"^clap_text_encoder\.text_transform\.": "a map of CLAP's that the authors' code never runs",
    r"^(?:CMBS|audio_adapter)\.": "modules that the authors' code builds but never runs",
}


def read_few_shot(
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
        vision: `num_heads` of CLIP's vision transformer, if its heads are not 64 wide.
        audio: Sizes of HTS-AT, and settings of the front end, that differ from the usual ones.
        overrides: Fields of the configuration, which take precedence.

    Returns:
        The configuration, the sections of the authors' model, and for each flag without effect the reason.

    Raises:
        CaeAvError: An argument is unknown or contradicts a tensor, or the checkpoint is not of such a model.
    """
    if task not in TASKS:
        raise CaeAvError(f"`task` must be one of {', '.join(TASKS)} for a few-shot checkpoint, got {task!r}")
    flags, without_effect = shaping_flags(options, task, _SHAPING)
    evidence = Evidence(state)
    width, projection = evidence.shape("ViT.proj")
    values: dict[str, Any] = {
        "vision_config": _vision_values(evidence, vision),
        "audio_config": _audio_values(state, evidence, audio, projection),
        "text_config": _text_values(evidence),
        "audio_text_config": _audio_text_values(evidence, projection),
        "num_context_tokens": evidence.shape("prompt_learner.ctx")[0],
        "feature_adapter_reduction": projection // evidence.shape("clip_adapter.fc.0.weight")[0],
        "interaction_options": _adapter_options(evidence, flags, width),
    }
    if "prompt_learner.token_prefix" in state:
        values["num_labels"] = evidence.shape("prompt_learner.token_prefix")[0] - (task == "ave_few_shot")
    config = converted_config(task, values, overrides)
    depths = [stage.depth for stage in config.audio_stages]
    if sum(depths) != (found := evidence.count(r"^vis_adapter_blocks_p1\.(\d+)\.")):
        raise CaeAvError(f"the checkpoint has {found} visual adapters for {sum(depths)} blocks of 'htsat.layers'")
    pairs = [(stage, pair) for stage, depth in enumerate(depths) for pair in range(depth)]
    return config, _sections(pairs), without_effect


def _sections(pairs: list[tuple[int, int]]) -> list[Section]:
    fusion = {r"patch_embed\.(?:fusion_model|mel_conv2d)\.": "weights of CLAP's fusion, which a segment does not need"}
    audio, audio_text = "model.audio_tower.", "model.audio_text_tower."
    return [
        section(r"ViT\.", "model.vision_tower.", CLIP_VIT),
        section(r"text_encoder\.", "model.text_tower.", {}),
        section(r"logit_scale$", "model.text_tower.logit_scale", {}),
        section(r"logit_scale_a$", f"{audio_text}logit_scale", {}),
        section(r"htsat\.", audio, HTSAT, {**HTSAT_IGNORED, **fusion}),
        section(r"audio_projection\.", f"{audio}audio_projection.", _PROJECTION),
        section(r"clap_text_encoder\.text_branch\.", f"{audio_text}text_model.", {}),
        section(r"clap_text_encoder\.text_projection\.", f"{audio_text}text_projection.", _PROJECTION),
        section(r"clip_adapter\.", "head.visual_adapter.", _BOTTLENECK),
        section(r"clip_adapter_text\.", "head.text_adapter.", _BOTTLENECK),
        section(r"prompt_learner\.ctx$", "head.context", {}),
        section(r"audio_visual_contrastive_learner\.fc_a1\.", "head.contrast.", {}),
        *key_map.adapter_sections(pairs, key_map.DG_SCT, _ADAPTER_IGNORED),
        section("", "head.", {}, _UNUSED),
    ]


def _vision_values(evidence: Evidence, given: Mapping[str, Any]) -> dict[str, Any]:
    size, channels, patch_size, _ = evidence.shape("ViT.conv1.weight")
    tokens, _ = evidence.shape("ViT.positional_embedding")
    side = round((tokens - 1) ** 0.5)
    if side**2 != tokens - 1:
        raise CaeAvError(f"'ViT.positional_embedding' is for {tokens} tokens, expected a square and the class token")
    if unknown := sorted(set(given) - {"num_heads"}):
        raise CaeAvError(f"`vision` {unknown[0]!r} is unknown; expected num_heads")
    return {
        "model_type": "cae_av_vit",
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "hidden_size": size,
        "num_hidden_layers": evidence.count(r"^ViT\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": given.get("num_heads", size // _HEAD_SIZE),
        "mlp_ratio": evidence.shape("ViT.transformer.resblocks.0.mlp.c_fc.weight")[0] / size,
        "projection_dim": evidence.shape("ViT.proj")[1],
    }


def _audio_values(
    state: Mapping[str, Tensor], evidence: Evidence, given: Mapping[str, Any], projection: int
) -> dict[str, Any]:
    given = dict(given)
    rates = {
        "sampling_rate": given.pop("sampling_rate", _SAMPLING_RATE),
        "hop_length": given.pop("hop_length", _HOP),
        "filter_sampling_rate": given.pop("filter_sampling_rate", _FILTER_RATE),
    }
    # The filters in the checkpoint are checked at the rate for which they were made.
    checked = {**given, "sampling_rate": rates["filter_sampling_rate"]}
    key = "vis_adapter_blocks_p1.0.conv_adapter.weight"
    values = audio_values(state, checked, "htsat.", (evidence.shape(key)[1], 0, key))
    return {**values, **rates, "use_projection": True, "projection_dim": projection}


def _text_values(evidence: Evidence) -> dict[str, Any]:
    length, size = evidence.shape("text_encoder.positional_embedding")
    return {
        "context_length": length,
        "hidden_size": size,
        "num_hidden_layers": evidence.count(r"^text_encoder\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, size // _HEAD_SIZE),
        "mlp_ratio": evidence.shape("text_encoder.transformer.resblocks.0.mlp.c_fc.weight")[0] / size,
        "projection_dim": evidence.shape("text_encoder.text_projection")[1],
    }


def _audio_text_values(evidence: Evidence, projection: int) -> dict[str, Any]:
    branch = "clap_text_encoder.text_branch."
    vocab_size, size = evidence.shape(f"{branch}embeddings.word_embeddings.weight")
    return {
        "vocab_size": vocab_size,
        "hidden_size": size,
        "num_hidden_layers": evidence.count(r"^clap_text_encoder\.text_branch\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, size // _HEAD_SIZE),
        "intermediate_size": evidence.shape(f"{branch}encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": evidence.shape(f"{branch}embeddings.position_embeddings.weight")[0],
        "projection_dim": projection,
    }


def _adapter_options(evidence: Evidence, flags: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Infer the options of the adapters, and check the flags against them."""
    first = "vis_adapter_blocks_p1.0."
    tokens, down = f"{first}my_tokens", f"{first}down_sampler.weight"
    bottleneck, group_width, *_ = evidence.shape(down)
    evidence.record("num_tokens", evidence.shape(tokens)[0], tokens)
    evidence.record("Adapter_downsample", width // bottleneck, down)
    evidence.record("num_conv_group", width // group_width, down)
    evidence.record("is_bn", int(f"{first}bn1.weight" in evidence.state), f"{first}bn1.weight")
    evidence.record("is_multimodal", 1, tokens)
    gate = "audio_adapter_blocks_p1.0.gate"
    evidence.record("is_gate", int(gate in evidence.state), gate)
    evidence.merge("option", flags, set(_SHAPING))
    return {
        "reduction": evidence.values["Adapter_downsample"],
        "groups": evidence.values["num_conv_group"],
        "num_latent_tokens": evidence.values["num_tokens"],
        "batch_norm": bool(evidence.values["is_bn"]),
        "gated_streams": "both" if evidence.values["is_gate"] else "visual",
    }
