"""
Caption features stored in the folder of a data set:

    <data set>/caption_features/<text tower>/features-00000.safetensors ...

Each file maps captions, as cleaned by the tokenizer, to one tensor each. The folder is named by a hash of everything
that determines the features: weights and configuration of the text tower, and whether padded positions are kept. So
features of another tower are never used by mistake.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from ..errors import CaeAvError
from ..files import atomic_write, make_folder


logger = logging.get_logger(__name__)

FOLDER = "caption_features"

_FORMAT = "caeav-caption-features-1"
# Keeps a caption from having the name of the file's own header, `__metadata__`.
_PREFIX = "caption: "


def text_tower_identity(model: Any) -> str:
    """
    Return a hash of a model's text tower, equal for two models if their caption features are.

    Args:
        model: A `CaeAvFor...` model.
    """
    config, digest = model.config, hashlib.sha256()
    settings = {"text_config": config.text_config.to_diff_dict(), "keep_padding": config.is_official}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.base_model.text_tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def feature_folder(data: str | Path, identity: str) -> Path:
    """Return the folder for the features of a text tower, within the folder of a data set."""
    return Path(data) / FOLDER / identity[:16]


class CaptionFeatureStore(Mapping[str, torch.Tensor]):
    """
    The stored features of one text tower: maps cleaned captions to (tokens, size) float32.

    Args:
        data: Folder of the data set.
        identity: [`text_tower_identity`] of the model.
    """

    def __init__(self, data: str | Path, identity: str) -> None:
        self.folder = feature_folder(data, identity)
        self.identity = identity
        self._files: dict[str, Any] = {}
        for path in sorted(self.folder.glob("features-*.safetensors")):
            self._open(path)

    def __getitem__(self, text: str) -> torch.Tensor:
        return self._files[text].get_tensor(_PREFIX + text).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def add(self, features: Mapping[str, torch.Tensor]) -> None:
        """
        Write another file atomically.

        Args:
            features: Maps cleaned captions to (tokens, size).

        Raises:
            CaeAvError: The file cannot be written.
        """
        stems = (path.stem.removeprefix("features-") for path in self.folder.glob("features-*.safetensors"))
        numbers = [int(stem) for stem in stems if re.fullmatch("[0-9]{1,9}", stem)]
        path = self.folder / f"features-{max(numbers, default=-1) + 1:05d}.safetensors"
        metadata = {"format": _FORMAT, "text_tower": self.identity}
        make_folder(self.folder)
        try:
            tensors = {_PREFIX + text: tensor.contiguous() for text, tensor in features.items()}
            with atomic_write(path) as partial_path:
                save_file(tensors, partial_path, metadata=metadata)
        except SafetensorError as error:
            raise CaeAvError(f"{path}: cannot be written: {error}") from error
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            logger.warning(f"{path}: skipped, its captions are encoded again ({error})")
            return
        if metadata.get("format") != _FORMAT or metadata.get("text_tower") != self.identity:
            logger.warning(f"{path}: skipped, expected features of the text tower {self.identity[:16]}")
            return
        names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
        if any(len(file.get_slice(name).get_shape()) != 2 for name in names):
            logger.warning(f"{path}: skipped, expected features of the shape (tokens, size)")
            return
        self._files.update({name.removeprefix(_PREFIX): file for name in names})


def open_store(data: str | Path | None, model: Any) -> CaptionFeatureStore | None:
    """Return the stored features that fit a model's text tower; None if there are none."""
    if data is None or not (Path(data) / FOLDER).is_dir():
        return None
    store = CaptionFeatureStore(data, text_tower_identity(model))
    if not store:
        logger.warning(
            f"{Path(data) / FOLDER}: has no features of this model's text tower; the captions are encoded again"
        )
        return None
    return store
