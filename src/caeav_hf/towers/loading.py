"""Loading of separately pretrained towers, with configurations of their sizes."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from ..configuration_cae_av import CaeAvAudioConfig, CaeAvSwinConfig, CaeAvVitConfig
from ..errors import CaeAvError


ASSETS = Path(__file__).resolve().parents[1] / "assets"

# Fields of the audio configuration that describe the front end rather than the tower.
FRONT_END = {
    *("sampling_rate", "fft_window_size", "hop_length", "frequency_min", "frequency_max", "tile_seconds"),
    *("tile_padding", "mel_scale", "spectrogram_dtype"),
}
# Files of a feature extractor in Transformers' format: saved by itself, or as part of a processor.
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")

# Prefix for the towers in the package's assets, whose path depends on the installation.
_PACKAGED = "caeav_hf:"
_HUB = "hf-hub:"


@dataclass
class PretrainedTower:
    """
    A pretrained tower's weights and sizes.

    Attributes:
        config: `vision_config`, `audio_config` or `text_config` for `CaeAvConfig`.
        state: Tensors under the tower's own parameter names.
        source: Its entry in `CaeAvConfig.tower_sources`: `name`, `revision`, `sha256`.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    source: dict[str, str | None]


def load_tower(
    kind: str,
    name: str | os.PathLike,
    revision: str | None = None,
    front_end: dict[str, Any] | None = None,
) -> PretrainedTower:
    """
    Load a tower; see `CaeAvPreTrainedModel.from_backbones` for the names it accepts.

    Args:
        kind: `"vision"`, `"audio"` or `"text"`.
        name: Name, Hub repository (optionally followed by `@revision`) or local folder.
        revision: Revision of a Hub repository.
        front_end: Fields of the audio configuration's front end, such as `tile_seconds`, that replace those of the
            tower.

    Raises:
        CaeAvError: The tower cannot be loaded, or is not of a supported kind.
    """
    name = str(name)
    location = _packaged_path(name)
    if not Path(location).exists() and "@" in name:
        location, _, revision = name.partition("@")
        name = location
    if kind == "vision":
        config, state = _load_vision(location, revision)
    elif kind == "audio":
        config, state = _load_audio(location, revision, front_end or {})
    else:
        config, state = load_text_tower(location, revision)
    commit = None if Path(location).exists() else _cached_commit(_repository(kind, location), revision)
    return PretrainedTower(
        config, state, {"name": _stable_name(location), "revision": commit, "sha256": hash_tensors(state)}
    )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """
    Return the SHA-256 of a tower's floating-point tensors: their names, shapes and values in float32, so that a tower
    in half precision and its copy in single precision have the same hash. Integer tensors are skipped; they are
    counters, or indices that follow from the sizes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _packaged_path(name: str) -> str:
    return str(ASSETS / name.removeprefix(_PACKAGED)) if name.startswith(_PACKAGED) else name


def _stable_name(name: str) -> str:
    """Return a name that finds the tower from any working directory."""
    if not Path(name).exists():
        return name
    path = Path(name).resolve()
    return _PACKAGED + path.relative_to(ASSETS).as_posix() if path.is_relative_to(ASSETS) else str(path)


def _repository(kind: str, name: str) -> str | None:
    """Return the Hub repository of a timm, open_clip or Hub name, or `None` if it has none."""
    if name.startswith(_HUB):
        return name.removeprefix(_HUB)
    if kind == "vision":
        import timm

        registered = timm.get_pretrained_cfg(name)
        return None if registered is None else registered.hf_hub_id
    if kind == "text":
        import open_clip

        architecture, _, tag = name.partition("/")
        return (open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub") or "").strip("/") or None
    return name


def _cached_commit(repository: str | None, revision: str | None) -> str | None:
    """Return the commit of a Hub repository that was just loaded, or `revision` if the cache does not know it."""
    for file in ("config.json", "open_clip_config.json", "model.safetensors"):
        try:
            path = None if repository is None else try_to_load_from_cache(repository, file, revision=revision)
        except HFValidationError:
            break
        if isinstance(path, str):
            return Path(path).parent.name
    return revision


def _local(name: str) -> str:
    """Return a name for timm and open_clip, which share the scheme for local folders."""
    return f"local-dir:{name}" if Path(name).is_dir() else name


def _timm_model(name: str, location: str, num_classes: int) -> Any:
    """Load a model with timm; `name` is what the caller gave."""
    import timm

    try:
        return timm.create_model(location, pretrained=True, num_classes=num_classes)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise CaeAvError(f"`vision`: cannot load {name!r} as a timm model or folder: {error}") from error


def _vit_values(name: str, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values of `CaeAvVitConfig` and the tensors of a timm vision transformer."""
    from timm.layers import QuickGELU
    from torch import nn

    if not isinstance(model.norm_pre, nn.LayerNorm) or not model.has_class_token or model.num_reg_tokens:
        raise CaeAvError(
            f"`vision`: {name!r} is not built as CLIP's vision transformers, which have a class token, no register "
            "tokens and a norm before the first block"
        )
    (height, width), (patch_height, patch_width) = model.patch_embed.img_size, model.patch_embed.patch_size
    if height != width or patch_height != patch_width:
        raise CaeAvError(f"`vision`: {name!r} reads {height}x{width} pixels, expected a square")
    block = model.blocks[0]
    config = {
        "model_type": CaeAvVitConfig.model_type,
        "image_size": height,
        "patch_size": patch_height,
        "num_channels": model.in_chans,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.act, QuickGELU) else "gelu",
        "layer_norm_eps": block.norm1.eps,
        "projection_dim": model.num_classes or None,
    }
    state = {re.sub(r"^blocks\.", "layers.", key): value for key, value in model.state_dict().items()}
    weight, bias = state.pop("head.weight", None), state.pop("head.bias", None)
    if weight is not None:
        if bias is not None and bool(bias.any()):
            raise CaeAvError(f"`vision`: the head of {name!r} has a bias, so it is not CLIP's projection")
        state["projection"] = weight.T.contiguous()
    return config, state


def _load_vision(name: str, revision: str | None, projects: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    # Imported here and below where needed, since these libraries take seconds to load.
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    location = _local(name)
    repository = None if revision is None or Path(name).exists() else _repository("vision", name)
    if repository is not None:
        location = f"{_HUB}{repository}@{revision}"
    model = _timm_model(name, location, num_classes=0)
    if isinstance(model, VisionTransformer):
        if projects and (width := model.pretrained_cfg.get("num_classes")):
            # timm keeps CLIP's projection as a classifier.
            model = _timm_model(name, location, num_classes=width)
        return _vit_values(name, model)
    if projects:
        raise CaeAvError(f"`vision`: {name!r} is a {type(model).__name__}, expected a CLIP vision transformer")
    if not isinstance(model, SwinTransformer | SwinTransformerV2):
        raise CaeAvError(
            f"`vision`: {name!r} is a {type(model).__name__}, expected a Swin Transformer, its version 2 or a CLIP "
            "vision transformer"
        )
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
        # timm shrinks the windows of late stages to their grid; the first stage has the nominal size.
        "window_size": attention[0].window_size[0],
        "mlp_ratio": model.layers[0].blocks[0].mlp_ratio,
    }
    if isinstance(model, SwinTransformer):
        return {"model_type": CaeAvSwinConfig.model_type, **config}, model.state_dict()
    config["pretrained_window_sizes"] = [module.pretrained_window_size[0] for module in attention]
    return config, model.state_dict()


def _load_audio(
    name: str, revision: str | None, front_end: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if unknown := sorted(set(front_end) - FRONT_END):
        raise CaeAvError(f"`audio_config`: beside `audio`, only {sorted(FRONT_END)} may be given, got {unknown}")
    if Path(name).is_file():
        from .checkpoint_files import load_checkpoint
        from .public_htsat import htsat_from_public
        from .sizes import FRONT_END_NAMES

        checkpoint = load_checkpoint(name)
        try:
            given = {field: value for field, value in front_end.items() if field in FRONT_END_NAMES}
            config, state, _ = htsat_from_public(checkpoint, given)
        except CaeAvError as error:
            raise CaeAvError(f"`audio`: {name}: {error}") from error
        return {**_architecture(config), **front_end}, state
    from transformers import ClapAudioModel, ClapModel

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type == "clap":
            model = ClapModel.from_pretrained(name, revision=revision, use_safetensors=True).audio_model
        elif config.model_type == "clap_audio_model":
            model = ClapAudioModel.from_pretrained(name, revision=revision, use_safetensors=True)
        else:
            raise CaeAvError(
                f"`audio`: {name!r} is a {config.model_type!r} model, expected `clap` or `clap_audio_model`"
            )
    except (OSError, ValueError) as error:
        if isinstance(error, CaeAvError):
            raise
        raise CaeAvError(f"`audio`: cannot load {name!r} with transformers: {error}") from error
    architecture = _architecture(model.config)
    if not set(front_end) >= FRONT_END:
        front_end = {**_clap_front_end(name, revision, model.config.num_mel_bins), **front_end}
    return {**architecture, **front_end}, model.state_dict()


def _clap_front_end(name: str, revision: str | None, num_mel_bins: int) -> dict[str, Any]:
    """Return the settings of the `ClapFeatureExtractor` saved beside a CLAP model; empty if there is none."""
    from transformers import ClapFeatureExtractor

    try:
        # A missing file gives `None`; a file that cannot be downloaded raises.
        files = [
            cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
            for file in _EXTRACTOR_FILES
        ]
        if not any(files):
            return {}
        settings, _ = ClapFeatureExtractor.get_feature_extractor_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        raise CaeAvError(f"`audio`: cannot load the feature extractor of {name!r}: {error}") from error
    kind = settings.get("feature_extractor_type", ClapFeatureExtractor.__name__)
    if kind != ClapFeatureExtractor.__name__:
        raise CaeAvError(f"`audio`: the feature extractor of {name!r} is a {kind}, expected a ClapFeatureExtractor")
    # The class fills in defaults that the file omits.
    extractor = ClapFeatureExtractor.from_dict(settings)
    if extractor.feature_size != num_mel_bins:
        raise CaeAvError(
            f"`audio`: the feature extractor of {name!r} has {extractor.feature_size} mel bands, its model reads "
            f"{num_mel_bins}"
        )
    return {
        "sampling_rate": extractor.sampling_rate,
        "fft_window_size": extractor.fft_window_size,
        "hop_length": extractor.hop_length,
        "frequency_min": extractor.frequency_min,
        "frequency_max": extractor.frequency_max,
        "tile_seconds": extractor.max_length_s,
        "tile_padding": extractor.padding,
        # The extractor has two filter banks and chooses one by its way of truncation.
        "mel_scale": "htk" if extractor.truncation == "fusion" else "slaney",
        "spectrogram_dtype": "float64",
    }


def _architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the values of an audio tower's configuration that are fields of `CaeAvAudioConfig`."""
    architecture = set(CaeAvAudioConfig.__dataclass_fields__)
    values = {key: value for key, value in config.to_dict().items() if key in architecture}
    for key in ("transformers_version", "architectures", "dtype"):
        values.pop(key, None)
    return values


def load_text_tower(name: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """
    Load CLIP's text tower.

    Returns:
        Values for `CaeAvTextConfig`, and the tensors under the tower's own names.

    Raises:
        CaeAvError: The tower cannot be loaded, or is of another kind.
    """
    import open_clip
    from open_clip.transformer import QuickGELU, TextTransformer

    if revision is not None and name.startswith(_HUB):
        # open_clip does not support revisions, but loads a downloaded folder.
        try:
            name = snapshot_download(name.removeprefix(_HUB), revision=revision)
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise CaeAvError(f"`text`: cannot load {name!r} at revision {revision!r}: {error}") from error
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
