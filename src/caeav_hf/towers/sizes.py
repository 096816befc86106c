"""Inference of the towers' sizes from the tensors of a checkpoint and the caller's values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.models.clap.modeling_clap import ClapAudioSelfAttention

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError
from .evidence import Evidence


VISION_NAMES = {"img_size", "window_size", "embed_dim", "depths", "num_heads"}
AUDIO_NAMES = {"spec_size", "window_size", "embed_dim", "depths", "num_heads", "mel_bins"}
FRONT_END_NAMES = {
    *("sampling_rate", "fft_window_size", "hop_length", "frequency_min", "frequency_max", "tile_seconds"),
}

# Front ends of the public HTS-AT checkpoints by their number of classes. All filters end at 14 kHz, although the
# checkpoint for speech commands, at 16 kHz, has no signal above 8 kHz.
_HTSAT_32K = {"sampling_rate": 32000, "fft_window_size": 1024, "hop_length": 320}
_HTSAT_16K = {"sampling_rate": 16000, "fft_window_size": 1024, "hop_length": 160}
_FILTERS = {"frequency_min": 50, "frequency_max": 14000}
HTSAT_FRONT_ENDS: Mapping[int, tuple[str, dict[str, Any]]] = {
    527: ("AudioSet", {**_HTSAT_32K, **_FILTERS}),
    50: ("ESC-50", {**_HTSAT_32K, **_FILTERS}),
    35: ("SCV2", {**_HTSAT_16K, **_FILTERS}),
}


def vision_values(
    state: Mapping[str, Tensor], given: Mapping[str, Any], prefix: str, tokens: tuple[int, int, str] | None
) -> dict[str, Any]:
    """
    Infer values for [`CaeAvVisionConfig`].

    Args:
        state: The checkpoint.
        given: The caller's values, under the names of the authors' version of timm.
        prefix: Prefix of the tower's keys.
        tokens: Number of tokens in a stage, the stage from 0, and the key that says so. Without it, `given` must
            include the image size.

    Raises:
        CaeAvError: A given value contradicts a tensor.
    """
    evidence = Evidence(state)
    embedding = f"{prefix}patch_embed.proj.weight"
    embed_dim, channels, patch_size, _ = evidence.shape(embedding)
    evidence.record("embed_dim", embed_dim, embedding)
    _record_depths(evidence, prefix)
    first_heads = [
        f"{prefix}layers.{stage}.blocks.0.attn.logit_scale" for stage in range(len(evidence.values["depths"]))
    ]
    evidence.record("num_heads", [evidence.shape(key)[0] for key in first_heads], first_heads[0])
    if tokens is not None:
        evidence.record("img_size", _side(tokens) * patch_size, tokens[2])
    masks = f"^{prefix.replace('.', '[.]')}.*attn_mask$"
    if (mask := evidence.find(masks)) is not None:
        evidence.record("window_size", round(evidence.shape(mask)[-1] ** 0.5), mask)
    values = evidence.merge("`vision`", given, VISION_NAMES)
    hidden = evidence.shape(f"{prefix}layers.0.blocks.0.mlp.fc1.weight")[0]
    config = {
        "patch_size": patch_size,
        "num_channels": channels,
        "mlp_ratio": hidden / embed_dim,
        "pretrained_window_sizes": [0] * len(values["depths"]),
    }
    renamed = {"img_size": "image_size"}
    return {**config, **{renamed.get(name, name): value for name, value in values.items()}}


def audio_values(
    state: Mapping[str, Tensor], given: Mapping[str, Any], prefix: str, tokens: tuple[int, int, str] | None = None
) -> dict[str, Any]:
    """
    Infer values for [`CaeAvAudioConfig`], including the front end.

    Args:
        state: The checkpoint.
        given: The caller's values, under the authors' names, and for the front end under the configuration's.
        prefix: Prefix of the tower's keys.
        tokens: Number of tokens in a stage, the stage from 0, and the key that says so.

    Raises:
        CaeAvError: A given value contradicts a tensor, or the filters in the checkpoint differ from the front end's.
    """
    evidence = Evidence(state)
    embedding = f"{prefix}patch_embed.proj.weight"
    width, _, patch_size, _ = evidence.shape(embedding)
    evidence.record("embed_dim", width, embedding)
    _record_depths(evidence, prefix)
    tables = [
        f"{prefix}layers.{stage}.blocks.0.attn.relative_position_bias_table"
        for stage in range(len(evidence.values["depths"]))
    ]
    evidence.record("num_heads", [evidence.shape(table)[1] for table in tables], tables[0])
    evidence.record("window_size", (round(evidence.shape(tables[0])[0] ** 0.5) + 1) // 2, tables[0])
    evidence.record("mel_bins", evidence.shape(f"{prefix}bn0.weight")[0], f"{prefix}bn0.weight")
    if tokens is not None:
        evidence.record("spec_size", _side(tokens) * patch_size, tokens[2])
    front_end = {name: value for name, value in given.items() if name in FRONT_END_NAMES}
    architecture = {name: value for name, value in given.items() if name not in FRONT_END_NAMES}
    values = evidence.merge("`audio`", architecture, AUDIO_NAMES)
    config = {
        "spec_size": values.get("spec_size", 256),
        "window_size": values["window_size"],
        "patch_embeds_hidden_size": width,
        "hidden_size": width * 2 ** (len(values["depths"]) - 1),
        "depths": values["depths"],
        "num_attention_heads": values["num_heads"],
        "num_mel_bins": values["mel_bins"],
        "patch_size": patch_size,
        "patch_stride": [patch_size, patch_size],
    }
    return {**config, **_front_end(evidence, prefix, front_end)}


def relative_position_indices(config: CaeAvAudioConfig, prefix: str) -> dict[str, Tensor]:
    """Return the audio tower's index buffers, which follow from its sizes."""
    indices = {}
    for stage, depth in enumerate(config.depths):
        heads = config.num_attention_heads[stage]
        attention = ClapAudioSelfAttention(config, dim=heads, num_heads=heads, window_size=config.window_size)
        for block in range(depth):
            key = f"{prefix}layers.{stage}.blocks.{block}.attention.self.relative_position_index"
            indices[key] = attention.relative_position_index.clone()
    return indices


def masked_tokens(evidence: Evidence, tower: str) -> tuple[int, int, str] | None:
    """Return the number of tokens that a tower's mask of shifted windows is for, its stage, and its key."""
    key = evidence.find(rf"^{tower}\.layers\.\d+\.blocks\.\d+\.attn_mask$")
    if key is None:
        return None
    windows, tokens, *_ = evidence.shape(key)
    return windows * tokens, int(key.split(".")[2]), key


def _record_depths(evidence: Evidence, prefix: str) -> None:
    escaped = prefix.replace(".", "[.]")
    stages = evidence.count(rf"^{escaped}layers\.(\d+)\.blocks\.")
    depths = [evidence.count(rf"^{escaped}layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    if not depths or 0 in depths:
        raise CaeAvError(f"the checkpoint has no blocks under {prefix + 'layers.0.blocks.'!r}")
    evidence.record("depths", depths, evidence.find(rf"^{escaped}layers\.0\.blocks\.0\.") or "")


def _side(tokens: tuple[int, int, str]) -> int:
    """Return the side of the first stage's token grid, given the number of tokens in any stage."""
    count, stage, key = tokens
    side = round(count**0.5)
    if side * side != count:
        raise CaeAvError(f"{key!r} is for {count} tokens, expected a square number")
    return side * 2**stage


def _front_end(evidence: Evidence, prefix: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint's front end by its number of classes, checked against its filters."""
    classes = next(
        (key for key in (f"{prefix}tscam_conv.weight", f"{prefix}head.weight") if key in evidence.state), None
    )
    count = 527 if classes is None else evidence.shape(classes)[0]
    _, settings = HTSAT_FRONT_ENDS.get(count, HTSAT_FRONT_ENDS[527])
    settings = {**settings, **given}
    filters = f"{prefix}logmel_extractor.melW"
    if filters in evidence.state:
        stored = evidence.state[filters].float()
        expected = torch.tensor(
            mel_filter_bank(
                num_frequency_bins=settings["fft_window_size"] // 2 + 1,
                num_mel_filters=evidence.values["mel_bins"],
                min_frequency=settings["frequency_min"],
                max_frequency=settings["frequency_max"],
                sampling_rate=settings["sampling_rate"],
                norm="slaney",
                mel_scale="slaney",
            )
        ).float()
        if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-5):
            raise CaeAvError(
                f"{filters!r} holds other filters than those at {settings['sampling_rate']} Hz from "
                f"{settings['frequency_min']} to {settings['frequency_max']} Hz; pass the right values in `audio` "
                "(sampling_rate, frequency_min, frequency_max, fft_window_size, hop_length)"
            )
    return settings
