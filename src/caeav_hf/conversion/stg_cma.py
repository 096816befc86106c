"""Checkpoints of STG-CMA's authors: their sizes, and the sections of their keys."""

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig, CaeAvSwinConfig, CaeAvVitConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.renaming import CLIP_VIT, SWIN_V2_OLD, Section, section
from .key_map import (
    STG_CMA_EVENT_LOCALIZATION,
    STG_CMA_QUESTION_ANSWERING,
    STG_CMA_SEGMENTATION,
    STG_CMA_SEGMENTATION_IGNORED,
    STG_CMA_SWIN,
    STG_CMA_VIT,
)
from .preset import converted_config


# Tasks of the authors' programs.
TASKS = ("ave", "avs_s4", "avqa")
_VISION_NAMES = {"img_size", "num_heads", "depths", "window_size", "embed_dim"}
_AUDIO_NAMES = {"mel_bins", "frames"}
_ADAPTED = r"(?=(?:T|S|MLP)_Adapter|S_Adapter2|gate_[av]$|attn\.temporal_position_bias_table)"
_SWIN_IGNORED = {
    r"^head\.": "the tower's own classifier",
    r"\.(?:attn_mask|relative_position_index|t_relative_coords(?:_a)?)$": "constant, computed from the sizes",
}
_ANSWERING_IGNORED = {
    r"^avqatask_fc_a[12]_pure\.": "a second audio projection that never runs",
    r"^avqatask_norm3\.": "a layer norm that never runs",
}


def read_stg_cma(
    state: Mapping[str, Tensor],
    task: str,
    options: Mapping[str, Any] | argparse.Namespace | None,
    vision: Mapping[str, Any],
    audio: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[CaeAvConfig, list[Section], dict[str, str]]:
    """
    Infer the configuration of a checkpoint.

    Args:
        state: The checkpoint.
        task: `ave`, `avs_s4` or `avqa`.
        options: The authors' flags, of which `ftmode` shapes the model: `"fusion"`, or `"multimodal"` for streams that
            do not read each other.
        vision: `img_size`, `num_heads`, `depths`, `window_size`, `embed_dim` of the tower. The tensors tell all but
            the heads of CLIP and the image size of Swin.
        audio: `mel_bins` and `frames` of the filter banks.
        overrides: Fields of the configuration, which take precedence.

    Returns:
        The configuration, the sections of the authors' model, and for each flag without effect the reason.

    Raises:
        CaeAvError: An argument is unknown or contradicts a tensor, or the checkpoint is not of such a model.
    """
    if task not in TASKS:
        raise CaeAvError(f"`task` must be one of {', '.join(TASKS)} for the method 'stg_cma', got {task!r}")
    flags = vars(options) if isinstance(options, argparse.Namespace) else dict(options or {})
    mode = flags.pop("ftmode", None)
    if mode not in (None, "fusion", "multimodal"):
        raise CaeAvError(f"option 'ftmode' must be 'fusion' or 'multimodal', got {mode!r}")
    evidence = Evidence(state)
    values = _vit(evidence, vision, audio) if "class_embedding" in state else _swin(evidence, vision, audio)
    if mode is not None:
        values["interaction_options"]["exchange"] = mode == "fusion"
    values |= {"ave": _event_values, "avs_s4": _segmentation_values, "avqa": _answering_values}[task](evidence)
    if task == "avs_s4":
        values["mask_size"] = values["vision_config"]["image_size"]
    config = converted_config(task, values, overrides, method="stg_cma", formulation="official")
    return config, _sections(config), dict.fromkeys(flags, "the checkpoint has no tensor that it shapes")


def _sections(config: CaeAvConfig) -> list[Section]:
    """Return the sections of the whole model; a key belongs to the first section whose prefix it has."""
    found: list[Section] = []
    stages = config.visual_stages
    if isinstance(config.vision_config, CaeAvVitConfig):
        found += [
            section(rf"transformer\.resblocks\.{block}\.{_ADAPTED}", f"model.interactions.0.{block}.", STG_CMA_VIT)
            for block in range(stages[0].depth)
        ]
        found += [
            section("conv1_audio", "model.audio_embedding.projection", {}),
            section("positional_embedding_audio", "model.audio_embedding.positions", {}),
            section("temporal_embedding_audio", "model.temporal_embeddings.audio", {}),
            section("temporal_embedding", "model.temporal_embeddings.visual", {}),
            section(
                r"(?=(?:conv1|ln_pre|ln_post|transformer)\.|(?:class|positional)_embedding$|proj$)",
                "model.vision_tower.",
                CLIP_VIT,
                {r"^proj$": "CLIP's projection to the space of its text tower"},
            ),
        ]
    else:
        found += [
            section(
                rf"layers\.{stage}\.blocks\.{block}\.{_ADAPTED}",
                f"model.interactions.{stage}.{block}.",
                STG_CMA_SWIN,
            )
            for stage, size in enumerate(stages)
            for block in range(size.depth)
        ]
        found += [
            section(r"patch_embed_audio\.proj", "model.audio_embedding.projection", {}),
            section(r"patch_embed_audio\.norm", "model.audio_embedding.norm", {}),
            section(r"(?=(?:patch_embed|layers|norm|head)\.)", "model.vision_tower.", SWIN_V2_OLD, _SWIN_IGNORED),
        ]
    heads = {
        "ave": (STG_CMA_EVENT_LOCALIZATION, {}),
        "avs_s4": (STG_CMA_SEGMENTATION, STG_CMA_SEGMENTATION_IGNORED),
        "avqa": (STG_CMA_QUESTION_ANSWERING, _ANSWERING_IGNORED),
    }
    return [*found, section("", "head.", *heads[config.task])]


def with_frames_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint whose head of event localization reads the frames before the sound, as it does here."""
    key, found = "mlp_head.0.weight", dict(state)
    if key in found:
        found[key] = found[key].roll(found[key].shape[1] // 2, 1)
    return found


def _ratio(width: int, size: int) -> float:
    """Return the ratio of a bottleneck; its width is the ratio times the channels, rounded down."""
    ratio = width / size
    return ratio if int(ratio * size) == width else (width + 0.5) / size


def _vit(evidence: Evidence, vision: Mapping[str, Any], audio: Mapping[str, Any]) -> dict[str, Any]:
    size, channels, patch, _ = evidence.shape("conv1.weight")
    evidence.record("embed_dim", size, "conv1.weight")
    depth = evidence.count(r"^transformer\.resblocks\.(\d+)\.")
    evidence.record("depths", [depth], f"transformer.resblocks.{depth - 1}")
    tokens = evidence.shape("positional_embedding")[0] - 1
    evidence.record("img_size", round(tokens**0.5) * patch, "positional_embedding")
    values = evidence.merge("`vision`", vision, _VISION_NAMES - {"window_size"})
    # The authors' ViT-B has 8 heads of 96 channels.
    heads = values.get("num_heads") or [8 if size == 768 else max(1, size // 64)]
    sound = {"mel_bins": 128, "frames": 102, **evidence.merge("`audio`", audio, _AUDIO_NAMES)}
    key = "positional_embedding_audio"
    expected = (sound["frames"] // patch) * (sound["mel_bins"] // patch) + 1
    if evidence.shape(key)[0] != expected:
        raise CaeAvError(
            f"`audio` of {sound['frames']} frames and {sound['mel_bins']} bands makes {expected} tokens, but {key!r} "
            f"is for {evidence.shape(key)[0]}; give `frames` and `mel_bins`"
        )
    block = "transformer.resblocks.0."
    return {
        "vision_config": {
            "model_type": CaeAvVitConfig.model_type,
            "image_size": values["img_size"],
            "patch_size": patch,
            "num_channels": channels,
            "hidden_size": size,
            "num_hidden_layers": depth,
            "num_attention_heads": heads[0] if isinstance(heads, list | tuple) else heads,
            "mlp_ratio": evidence.shape(f"{block}mlp.c_fc.weight")[0] / size,
        },
        "audio_config": {"num_mel_bins": sound["mel_bins"], "spectrogram_frames": sound["frames"]},
        "num_frames": evidence.shape("temporal_embedding")[1],
        "interaction_options": {"ratios": [_ratio(evidence.shape(f"{block}S_Adapter.D_fc1.weight")[0], size)]},
    }


def _swin(evidence: Evidence, vision: Mapping[str, Any], audio: Mapping[str, Any]) -> dict[str, Any]:
    size, channels = evidence.shape("patch_embed.proj.weight")[:2]
    patch = evidence.shape("patch_embed.proj.weight")[-1]
    evidence.record("embed_dim", size, "patch_embed.proj.weight")
    stages = range(evidence.count(r"^layers\.(\d+)\."))
    depths = [evidence.count(rf"^layers\.{stage}\.blocks\.(\d+)\.") for stage in stages]
    evidence.record("depths", depths, "layers.0.blocks.0")
    tables = [f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in stages]
    evidence.record("num_heads", [evidence.shape(table)[1] for table in tables], tables[0])
    evidence.record("window_size", (round(evidence.shape(tables[0])[0] ** 0.5) + 1) // 2, tables[0])
    values = evidence.merge("`vision`", vision, _VISION_NAMES)
    side = values.get("img_size", 224)
    sound = {"mel_bins": side, "frames": side, **evidence.merge("`audio`", audio, _AUDIO_NAMES)}
    downs = [f"layers.{stage}.blocks.0.S_Adapter.D_fc1.weight" for stage in stages]
    time = "layers.0.blocks.0.attn.temporal_position_bias_table"
    return {
        "vision_config": {
            "model_type": CaeAvSwinConfig.model_type,
            "image_size": side,
            "patch_size": patch,
            "num_channels": channels,
            "embed_dim": size,
            "depths": values["depths"],
            "num_heads": values["num_heads"],
            "window_size": values["window_size"],
            "mlp_ratio": evidence.shape("layers.0.blocks.0.mlp.fc1.weight")[0] / size,
        },
        "audio_config": {"num_mel_bins": sound["mel_bins"], "spectrogram_frames": sound["frames"]},
        "num_frames": (evidence.shape(time)[0] + 1) // 2,
        "interaction_options": {
            "ratios": [_ratio(evidence.shape(key)[0], size * 2**stage) for stage, key in enumerate(downs)]
        },
    }


def _event_values(evidence: Evidence) -> dict[str, Any]:
    return {
        "head_visual_dim": evidence.shape("mlp_head.0.weight")[0],
        "num_labels": evidence.shape("mlp_head.2.weight")[0] - 1,
    }


def _segmentation_values(evidence: Evidence) -> dict[str, Any]:
    scales = range(1, evidence.count(r"^avstask_x(\d+)_linear\.weight$") + 1)
    decoder = [evidence.shape(f"avstask_output_conv.{number}.weight") for number in (0, 2)]
    usual = [decoder[0][1] // 2, 32]
    sizes = [shape[0] for shape in decoder]
    return {
        "head_decoder_sizes": None if sizes == usual else sizes,
        "head_map_sizes": [evidence.shape(f"avstask_x{scale}_linear.weight")[0] for scale in scales],
        "head_hidden_size": evidence.shape("avstask_conv1.conv2d_list.0.weight")[0],
        "head_audio_dim": evidence.shape("avstask_audio_linear.weight")[0],
        "head_num_heads": 1,
    }


def _answering_values(evidence: Evidence) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_labels": evidence.shape("avqatask_fc_ans.weight")[0],
        "question_vocab_size": evidence.shape("avqatask_question_encoder.word2vec.weight")[0],
        "matching_hidden_sizes": [evidence.shape(f"avqatask_fc{number}.weight")[0] for number in (1, 2, 3)],
        "head_audio_hidden": "avqatask_fc_a1.weight" in evidence.state,
    }
    if "avqatask_yb_fc_v.weight" in evidence.state:
        values["head_answer_size"] = evidence.shape("avqatask_yb_fc_v.weight")[0]
        values["head_answer_audio_size"] = evidence.shape("avqatask_yb_fc_a.weight")[0]
    return values
