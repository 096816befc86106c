"""Loading of separately pretrained towers, with configurations of their sizes."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ClapTextConfig, PreTrainedConfig
from transformers.utils import cached_file

from ..configuration_cae_av import CaeAvAudioConfig, CaeAvTextConfig
from ..errors import CaeAvError
from .base import Tower, model_types, tower_class


ASSETS = Path(__file__).resolve().parents[1] / "assets"

# Fields of the audio configuration that describe the front end rather than the tower.
FRONT_END = {
    *("sampling_rate", "fft_window_size", "hop_length", "frequency_min", "frequency_max", "tile_seconds"),
    *("tile_padding", "mel_scale", "spectrogram_dtype", "filter_sampling_rate"),
}
# Files of a feature extractor in Transformers' format: saved by itself, or as part of a processor.
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")

# Prefix for the towers in the package's assets, whose path depends on the installation.
_PACKAGED = "caeav_hf:"
_HUB = "hf-hub:"

_WEIGHTS = "model.safetensors"

# Fields of a visual tower's configuration that no tensor depends on, and that may be set for a pretrained one.
_SHAPELESS = {"num_attention_heads"}

# Kinds of towers that read frames: the one of whole frames, and that of what is cut out of them.
_OF_FRAMES = ("vision", "region")

# Model type that Transformers gives to timm's folders and repositories.
_OF_TIMM = "timm_wrapper"

# Entries of a configuration that say nothing about the tower.
_BOOKKEEPING = ("model_type", "transformers_version", "architectures", "dtype")


@dataclass
class PretrainedTower:
    """
    A pretrained tower's weights and sizes.

    Attributes:
        model_type: Model type of its configuration.
        config: `vision_config`, `audio_config`, `text_config` or `audio_text_config` for `CaeAvConfig`.
        state: Tensors under the tower's own parameter names.
        source: Its entry in `CaeAvConfig.tower_sources`: `name`, `revision`, `sha256`.
    """

    model_type: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    source: dict[str, str | None]


def load_tower(
    kind: str,
    name: str | os.PathLike,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    projects: bool = False,
) -> PretrainedTower:
    """
    Load a tower; see `CaeAvPreTrainedModel.from_backbones` for the names it accepts.

    Args:
        kind: `"vision"`, or `"region"` for a second tower of frames; `"audio"`; `"text"`, or `"audio_text"` for CLAP's
            text branch.
        name: Name, Hub repository (optionally followed by `@revision`) or local folder.
        revision: Revision of a Hub repository.
        overrides: `model_type` of the tower, by default that of the folder, or of the first registered tower that
            converts the library's model; for `"audio"` fields of the front end, such as `tile_seconds`, that replace
            those of the tower; and for `"vision"` the `num_attention_heads` into which the weights are cut.
        projects: Whether to load the projection to the space that the tower shares with texts, or with frames or
            sounds.

    Raises:
        CaeAvError: The tower cannot be loaded, no registered tower converts it, an override is neither of these, or
            it has no such projection.
    """
    front_end = dict(overrides or {})
    model_type = front_end.pop("model_type", None)
    own = {"audio": FRONT_END, **dict.fromkeys(_OF_FRAMES, _SHAPELESS)}.get(kind, set())
    if unknown := sorted(front_end.keys() - own):
        allowed = sorted(own | {"model_type"})
        raise CaeAvError(f"`{kind}_config`: beside `{kind}`, only {allowed} may be given, got {unknown}")
    name = str(name)
    location = packaged_path(name)
    if not Path(location).exists() and "@" in name:
        location, _, revision = name.partition("@")
        name = location
    if kind == "text":
        config, state = load_text_tower(location, revision, projects)
        model_type = CaeAvTextConfig.model_type
    elif kind == "audio_text":
        config, state = _load_audio_text(location, revision)
        model_type = ClapTextConfig.model_type
    else:
        saved = _saved_model_type(location, revision)
        if saved in model_types():
            if model_type not in (None, saved):
                raise CaeAvError(f"`{kind}`: {name!r} is a {saved!r}, expected a {model_type!r}")
            model_type, (config, state) = saved, _load_saved(kind, location, revision)
        elif kind in _OF_FRAMES:
            model_type, config, state = _load_vision(location, revision, model_type, projects, saved)
        elif projects:
            model_type, config, state = _load_clap_audio(location, revision, front_end)
        else:
            model_type, config, state = _load_audio(location, revision, model_type, front_end)
    commit = None if Path(location).exists() else _cached_commit(_repository(kind, location), revision)
    source = {"name": _stable_name(location), "revision": commit, "sha256": hash_tensors(state)}
    values = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    return PretrainedTower(model_type, {**values, **front_end}, state, source)


def save_tower(tower: Tower, folder: str | os.PathLike) -> None:
    """
    Save a tower of any registered kind, so that `from_backbones` loads it: its configuration, and its tensors as
    safetensors.

    Raises:
        CaeAvError: The folder cannot be written.
    """
    try:
        tower.config.save_pretrained(folder)
        tensors = {name: tensor.contiguous() for name, tensor in tower.state_dict().items()}
        save_file(tensors, Path(folder) / _WEIGHTS, {"format": "pt"})
    except OSError as error:
        raise CaeAvError(f"{folder}: cannot be written: {error}") from error


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


def packaged_path(name: str) -> str:
    """Return the path of a tower in the package's assets, or the name of any other tower unchanged."""
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
    if kind in _OF_FRAMES:
        import timm

        registered = timm.get_pretrained_cfg(name)
        return (name if name.count("/") == 1 else None) if registered is None else registered.hf_hub_id
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


def _saved_model_type(name: str, revision: str | None) -> str | None:
    """Return the model type in the `config.json` of a folder or Hub repository, or `None` if there is none."""
    if not (Path(name).is_dir() or name.startswith(_HUB) or name.count("/") == 1) or Path(name).is_file():
        return None
    try:
        values, _ = PreTrainedConfig.get_config_dict(name.removeprefix(_HUB), revision=revision)
    except (OSError, ValueError):
        return None  # The library that loads the name raises the proper error.
    return values.get("model_type")


def _load_saved(kind: str, name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load what [`save_tower`] wrote."""
    repository = name.removeprefix(_HUB)
    try:
        values = AutoConfig.from_pretrained(repository, revision=revision).to_dict()
        return values, load_file(cast(str, cached_file(repository, _WEIGHTS, revision=revision)))
    except (OSError, ValueError, SafetensorError) as error:
        raise CaeAvError(f"`{kind}`: cannot load {name!r}: {error}") from error


def _convert(
    kind: str, name: str, model: nn.Module, model_type: str | None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Convert another library's model by the tower of a model type, or by the first that is of its architecture."""
    candidates = {name: tower_class(name) for name in (model_types() if model_type is None else [model_type])}
    for candidate, tower in candidates.items():
        try:
            converted = tower.convert(model)
        except CaeAvError as error:
            raise CaeAvError(f"`{kind}`: {name!r}: {error}") from error
        if converted is not None:
            return candidate, *converted
    known = ", ".join(tower.__name__ for tower in candidates.values())
    raise CaeAvError(f"`{kind}`: {name!r} is a {type(model).__name__}, expected a model that one of {known} converts")


def _load_vision(
    name: str, revision: str | None, model_type: str | None, projects: bool, saved: str | None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if saved not in (None, _OF_TIMM):
        try:
            of_transformers = AutoModel.from_pretrained(
                name.removeprefix(_HUB), revision=revision, use_safetensors=True
            )
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise CaeAvError(f"`vision`: cannot load {name!r} with transformers: {error}") from error
        return _convert("vision", name, of_transformers, model_type)
    # Imported here and below where needed, since these libraries take seconds to load.
    import timm

    location = _local(name)
    repository = None if revision is None or Path(name).exists() else _repository("vision", name)
    if repository is not None:
        location = f"{_HUB}{repository}@{revision}"
    try:
        model = timm.create_model(location, pretrained=True, num_classes=0)
        if projects and (width := model.pretrained_cfg.get("num_classes")):
            # timm keeps CLIP's projection as a classifier.
            model = timm.create_model(location, pretrained=True, num_classes=width)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise CaeAvError(f"`vision`: cannot load {name!r} as a timm model or folder: {error}") from error
    return _convert("vision", name, model, model_type)


def _load_clap(kind: str, name: str, revision: str | None) -> Any:
    """Load CLAP with its text branch and its projections."""
    from transformers import ClapModel

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type != "clap":
            raise CaeAvError(f"`{kind}`: {name!r} is a {config.model_type!r} model, expected `clap`")
        return ClapModel.from_pretrained(name, revision=revision, use_safetensors=True)
    except (OSError, ValueError) as error:
        if isinstance(error, CaeAvError):
            raise
        raise CaeAvError(f"`{kind}`: cannot load {name!r} with transformers: {error}") from error


def _load_audio_text(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the values of `ClapTextConfig` and the tensors of CLAP's text branch."""
    clap = _load_clap("audio_text", name, revision)
    known = set(ClapTextConfig.__dataclass_fields__) - set(_BOOKKEEPING)
    config = {key: value for key, value in clap.config.text_config.to_dict().items() if key in known}
    state = {f"text_model.{key}": value for key, value in clap.text_model.state_dict().items()}
    state |= {f"text_projection.{key}": value for key, value in clap.text_projection.state_dict().items()}
    return config, {**state, "logit_scale": clap.logit_scale_a.detach()}


def _load_clap_audio(
    name: str, revision: str | None, front_end: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return the values of `CaeAvAudioConfig` and the tensors of CLAP's HTS-AT with its projection."""
    clap = _load_clap("audio", name, revision)
    model_type, values, state = _convert("audio", name, clap, CaeAvAudioConfig.model_type)
    if not front_end.keys() >= FRONT_END:
        values = {**values, **_clap_front_end(name, revision, values["num_mel_bins"])}
    # A segment is one spectrogram, for which a CLAP trained for fusion has the same weights as any other.
    fusion = re.compile(r"patch_embed\.(fusion_model|mel_conv2d)\.")
    state = {key: value for key, value in state.items() if not fusion.search(key)}
    state |= {f"audio_projection.{key}": value for key, value in clap.audio_projection.state_dict().items()}
    return model_type, {**values, "enable_fusion": False, "use_projection": True}, state


def _load_audio(
    name: str, revision: str | None, model_type: str | None, front_end: dict[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if Path(name).is_file():
        from .checkpoint_files import load_checkpoint
        from .public_htsat import htsat_from_public
        from .sizes import FRONT_END_NAMES
        from .vggish import VggishTower

        checkpoint = load_checkpoint(name)
        if (public := VggishTower.from_public(checkpoint)) is not None:
            config, state = public
            return config.model_type, config.to_dict(), state
        try:
            given = {field: value for field, value in front_end.items() if field in FRONT_END_NAMES}
            config, state, _ = htsat_from_public(checkpoint, given)
        except CaeAvError as error:
            raise CaeAvError(f"`audio`: {name}: {error}") from error
        fields = CaeAvAudioConfig.__dataclass_fields__
        return config.model_type, {key: value for key, value in config.to_dict().items() if key in fields}, state
    from transformers import ClapAudioModel

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        # Transformers' mapping lacks the audio half of CLAP.
        model_class = ClapAudioModel if config.model_type == "clap_audio_model" else AutoModel
        model = model_class.from_pretrained(name, revision=revision, use_safetensors=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise CaeAvError(f"`audio`: cannot load {name!r} with transformers: {error}") from error
    model_type, values, state = _convert("audio", name, model, model_type)
    if model.config.model_type in ("clap", "clap_audio_model") and not front_end.keys() >= FRONT_END:
        values = {**values, **_clap_front_end(name, revision, values["num_mel_bins"])}
    return model_type, values, state


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


def load_text_tower(
    name: str, revision: str | None = None, projects: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """
    Load CLIP's text tower, with `projects` also its projection and temperature.

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
    state = dict(model.state_dict())
    projection = state.pop("text_projection", None)
    if projects:
        if projection is None:
            raise CaeAvError(f"`text`: {name!r} has no projection to the space of frames")
        state |= {"text_projection": projection, "logit_scale": clip.logit_scale.detach()}
        config["projection_dim"] = projection.shape[1]
    return config, state
