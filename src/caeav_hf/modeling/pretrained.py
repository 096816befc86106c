"""Separately pretrained towers: where they come from, and the configuration that their sizes make."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.transformer import QuickGELU, TextTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor
from transformers import AutoConfig, ClapAudioModel, ClapModel, PreTrainedConfig

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError


# What of the audio configuration describes the spectrogram rather than the tower.
FRONT_END = {"sampling_rate", "fft_window_size", "hop_length", "frequency_min", "frequency_max", "tile_seconds"}


@dataclass
class PretrainedTowers:
    """
    Attributes:
        configs: `vision_config`, `audio_config` and `text_config` for `CaeAvConfig`.
        vision, audio, text: State dicts under the towers' own parameter names; that of a missing tower is empty.
    """

    configs: dict[str, dict[str, Any]]
    vision: dict[str, Tensor]
    audio: dict[str, Tensor]
    text: dict[str, Tensor]


def load_towers(
    vision: str | os.PathLike,
    audio: str | os.PathLike | None,
    text: str | os.PathLike,
    front_end: dict[str, Any] | None = None,
) -> PretrainedTowers:
    """
    Load three towers; see `CaeAvPreTrainedModel.from_backbones` for what the names may be.

    Args:
        vision, audio, text: Names, Hub repositories or local folders; no `audio` where the visual tower reads the
            sound.
        front_end: Values of the audio configuration that no checkpoint holds, such as `tile_seconds`.

    Raises:
        CaeAvError: A tower cannot be loaded, or is none of the supported kinds.
    """
    vision_config, vision_state = _load_vision(str(vision))
    text_config, text_state = load_text_tower(str(text))
    configs = {"vision_config": vision_config, "text_config": text_config}
    audio_state: dict[str, Tensor] = {}
    if audio is not None:
        configs["audio_config"], audio_state = _load_audio(str(audio), front_end or {})
    return PretrainedTowers(
        configs=configs,
        vision=vision_state,
        audio=audio_state,
        text=text_state,
    )


def _local(name: str) -> str:
    """Both timm and open_clip mark a local folder by the same scheme."""
    return f"local-dir:{name}" if Path(name).is_dir() else name


def _load_vision(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        model = timm.create_model(_local(name), pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise CaeAvError(f"`vision`: cannot load {name!r} as a timm model or folder: {error}") from error
    if not isinstance(model, SwinTransformerV2):
        raise CaeAvError(f"`vision`: {name!r} is a {type(model).__name__}, expected a Swin Transformer V2")
    attention = [stage.blocks[0].attn for stage in model.layers]
    (height, width), (patch_height, patch_width) = model.patch_embed.img_size, model.patch_embed.patch_size
    if height != width or patch_height != patch_width:
        raise CaeAvError(f"`vision`: {name!r} reads {height}x{width} pixels, expected a square")
    config = {
        "image_size": height,
        "patch_size": patch_height,
        "num_channels": model.in_chans,
        "embed_dim": model.embed_dim,
        "depths": [len(stage.blocks) for stage in model.layers],
        "num_heads": [module.num_heads for module in attention],
        # Later stages may have shrunk theirs to their grid; the first has the nominal size.
        "window_size": attention[0].window_size[0],
        "mlp_ratio": model.layers[0].blocks[0].mlp_ratio,
        "pretrained_window_sizes": [module.pretrained_window_size[0] for module in attention],
    }
    return config, model.state_dict()


def _load_audio(name: str, front_end: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if unknown := sorted(set(front_end) - FRONT_END):
        raise CaeAvError(f"`audio_config`: beside `audio`, only {sorted(FRONT_END)} may be given, got {unknown}")
    if Path(name).is_file():
        # Only here, since conversion itself builds on the models.
        from ..conversion import htsat_from_public, load_checkpoint

        checkpoint = load_checkpoint(name)
        try:
            config, state, _ = htsat_from_public(checkpoint, front_end)
        except CaeAvError as error:
            raise CaeAvError(f"`audio`: {name}: {error}") from error
        return _architecture(config), state
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type == "clap":
            model = ClapModel.from_pretrained(name, use_safetensors=True).audio_model
        elif config.model_type == "clap_audio_model":
            model = ClapAudioModel.from_pretrained(name, use_safetensors=True)
        else:
            raise CaeAvError(
                f"`audio`: {name!r} is a {config.model_type!r} model, expected `clap` or `clap_audio_model`"
            )
    except (OSError, ValueError) as error:
        if isinstance(error, CaeAvError):
            raise
        raise CaeAvError(f"`audio`: cannot load {name!r} with transformers: {error}") from error
    return {**_architecture(model.config), **front_end}, model.state_dict()


def _architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of an audio tower that are fields of `CaeAvAudioConfig`."""
    architecture = set(CaeAvAudioConfig.__dataclass_fields__)
    values = {key: value for key, value in config.to_dict().items() if key in architecture}
    for key in ("transformers_version", "architectures", "dtype"):
        values.pop(key, None)
    return values


def load_text_tower(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """
    Sizes for `CaeAvTextConfig`, and the tensors of CLIP's text tower under its own names.

    Raises:
        CaeAvError: It cannot be loaded, or is of another kind.
    """
    architecture, _, tag = (
        name.partition("/") if not Path(name).is_dir() and ":" not in name else (_local(name), "", "")
    )
    try:
        clip = open_clip.create_model(
            architecture, pretrained=tag or None, force_custom_text=True, require_pretrained=True
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise CaeAvError(f"`text`: cannot load {name!r} with open_clip: {error}") from error
    model = clip.text
    if not isinstance(model, TextTransformer):
        raise CaeAvError(f"`text`: {name!r} has a {type(model).__name__}, expected CLIP's own text transformer")
    activation = model.transformer.resblocks[0].mlp.gelu
    config = {
        "vocab_size": model.vocab_size,
        "context_length": model.context_length,
        "hidden_size": model.width,
        "num_hidden_layers": model.transformer.layers,
        "num_attention_heads": model.heads,
        "mlp_ratio": model.transformer.resblocks[0].mlp.c_fc.out_features / model.width,
        "hidden_act": "quick_gelu" if isinstance(activation, QuickGELU) else "gelu",
    }
    state = {key: value for key, value in model.state_dict().items() if key != "text_projection"}
    return config, state
