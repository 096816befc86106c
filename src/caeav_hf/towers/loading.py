"""Separately pretrained towers: where they come from, and the configuration that their sizes make."""

import hashlib
import os
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

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError


ASSETS = Path(__file__).resolve().parents[1] / "assets"

# What of the audio configuration describes the spectrogram rather than the tower.
FRONT_END = {
    *("sampling_rate", "fft_window_size", "hop_length", "frequency_min", "frequency_max", "tile_seconds"),
    *("tile_padding", "mel_scale", "spectrogram_dtype"),
}
# Where transformers saves a feature extractor: by itself, or as part of a processor.
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")

# A name for the towers that come with the package, which lie elsewhere on every machine.
_PACKAGED = "caeav_hf:"
_HUB = "hf-hub:"


@dataclass
class PretrainedTower:
    """
    Attributes:
        config: `vision_config`, `audio_config` or `text_config` for `CaeAvConfig`.
        state: Tensors under the tower's own parameter names.
        source: What `CaeAvConfig.tower_sources` holds of it: `name`, `revision`, `sha256`.
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
    Load a tower; see `CaeAvPreTrainedModel.from_backbones` for what the names may be.

    Args:
        kind: `"vision"`, `"audio"` or `"text"`.
        name: Name, Hub repository (a revision may follow behind an `@`) or local folder.
        revision: Revision of a Hub repository.
        front_end: Values of the front end in the audio configuration, such as `tile_seconds`, in place of those that
            come with the tower.

    Raises:
        CaeAvError: The tower cannot be loaded, or is none of the supported kinds.
    """
    name = str(name)
    place = _packaged_path(name)
    if not Path(place).exists() and "@" in name:
        place, _, revision = name.partition("@")
        name = place
    if kind == "vision":
        config, state = _load_vision(place, revision)
    elif kind == "audio":
        config, state = _load_audio(place, revision, front_end or {})
    else:
        config, state = load_text_tower(place, revision)
    commit = None if Path(place).exists() else _cached_commit(_repository(kind, place), revision)
    return PretrainedTower(
        config, state, {"name": _lasting_name(place), "revision": commit, "sha256": hash_tensors(state)}
    )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """
    SHA-256 of the floating tensors of a tower: of their names, shapes and values in float32, so that a tower stored in
    half precision and its copy in single precision are the same. Integer tensors are indices that follow from the
    sizes, and counters.
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


def _lasting_name(name: str) -> str:
    """What finds a tower again from another working folder."""
    if not Path(name).exists():
        return name
    path = Path(name).resolve()
    return _PACKAGED + path.relative_to(ASSETS).as_posix() if path.is_relative_to(ASSETS) else str(path)


def _repository(kind: str, name: str) -> str | None:
    """The Hub repository behind a name of timm, open_clip or the Hub, if it stands for one."""
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
    """The commit of a Hub repository that has just been read, as far as it can be told."""
    for file in ("config.json", "open_clip_config.json", "model.safetensors"):
        try:
            path = None if repository is None else try_to_load_from_cache(repository, file, revision=revision)
        except HFValidationError:
            break
        if isinstance(path, str):
            return Path(path).parent.name
    return revision


def _local(name: str) -> str:
    """Both timm and open_clip mark a local folder by the same scheme."""
    return f"local-dir:{name}" if Path(name).is_dir() else name


def _load_vision(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    # Here and below only where they are needed: these libraries take seconds to load.
    import timm
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    place = _local(name)
    repository = None if revision is None or Path(name).exists() else _repository("vision", name)
    if repository is not None:
        place = f"{_HUB}{repository}@{revision}"
    try:
        model = timm.create_model(place, pretrained=True, num_classes=0)
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
    """The settings of the `ClapFeatureExtractor` that is saved beside a CLAP model; none if there is none."""
    from transformers import ClapFeatureExtractor

    try:
        # A file that is missing is none; one that cannot be fetched is an error.
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
    # Through the class, whose defaults hold where a file leaves something out.
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
        # It has two banks of filters, and takes one or the other by how it would shorten sound.
        "mel_scale": "htk" if extractor.truncation == "fusion" else "slaney",
        "spectrogram_dtype": "float64",
    }


def _architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of an audio tower that are fields of `CaeAvAudioConfig`."""
    architecture = set(CaeAvAudioConfig.__dataclass_fields__)
    values = {key: value for key, value in config.to_dict().items() if key in architecture}
    for key in ("transformers_version", "architectures", "dtype"):
        values.pop(key, None)
    return values


def load_text_tower(name: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """
    Sizes for `CaeAvTextConfig`, and the tensors of CLIP's text tower under its own names.

    Raises:
        CaeAvError: It cannot be loaded, or is of another kind.
    """
    import open_clip
    from open_clip.transformer import QuickGELU, TextTransformer

    if revision is not None and name.startswith(_HUB):
        # open_clip knows no revisions, but reads a folder that has one.
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
