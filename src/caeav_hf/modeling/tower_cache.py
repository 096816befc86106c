"""
Tokens of frozen towers, stored in a folder so that the towers read each clip once:

    <folder>/<what determines them besides the clip>/<clip>.safetensors
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from ..files import atomic_write, make_folder
from ..towers.frozen import fingerprint
from .frames import FrameLayout


logger = logging.get_logger(__name__)


class TowerCache:
    """
    Stores what frozen towers compute from clips.

    Files are named by hashes of the clip's inputs, of weights, configuration and precision, so that no other result is
    read by mistake: not after other preprocessing, nor of other weights.

    Args:
        folder: Folder for the files, created when needed. Several processes and runs may share it.
        config: Configuration of the model.
    """

    def __init__(self, folder: str | os.PathLike, config: Any):
        self.folder = Path(folder)
        self._settings = json.dumps(config.to_diff_dict(), sort_keys=True, default=str)
        self._weights: dict[str, tuple[tuple, str]] = {}

    def get(
        self,
        part: str,
        weights: Mapping[str, Tensor],
        frames: FrameLayout,
        inputs: Sequence[Tensor],
        compute: Callable[[], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """
        Return tensors that depend on nothing but `inputs`, weights and configuration, without gradients. If those of a
        clip of the batch are not stored, all are computed, and stored.

        Args:
            part: Name of the part of the model that computes them.
            weights: The weights that they depend on, by name.
            frames: The layout of the frames.
            inputs: (N, ...) tensors of the N real frames.
            compute: Returns tensors (N, ...) by name.

        Raises:
            WriteError: A file cannot be written.
        """
        device = inputs[0].device
        folder = self.folder / self._identity(part, weights, device)
        counts = frames.lengths(torch.device("cpu")).tolist()
        clips = zip(*(tensor.split(counts) for tensor in inputs), strict=True)
        paths = [folder / f"{_digest(clip)}.safetensors" for clip in clips]
        stored: list[dict[str, Tensor]] = []
        for path in paths:
            if (found := _read(path)) is None:
                break
            stored.append(found)
        else:
            return {name: torch.cat([clip[name] for clip in stored]).to(device) for name in stored[0]}
        with torch.no_grad():
            computed = {name: tensor.contiguous() for name, tensor in compute().items()}
        make_folder(folder)
        for number, path in enumerate(paths):
            if not path.exists() or number == len(stored):  # The latter cannot be read if it exists.
                first = sum(counts[:number])
                own = {name: tensor[first : first + counts[number]].cpu() for name, tensor in computed.items()}
                with atomic_write(path, is_cache=True) as partial_path:
                    save_file(own, partial_path)
        return computed

    def _identity(self, part: str, weights: Mapping[str, Tensor], device: torch.device) -> str:
        mark = fingerprint(weights.values())
        if self._weights.get(part, ((), ""))[0] != mark:
            digest = hashlib.sha256()
            for name, tensor in sorted(weights.items()):
                digest.update(f"{name} {_digest([tensor])}".encode())
            self._weights[part] = (mark, digest.hexdigest())
        precision = None
        if torch.is_autocast_enabled(device.type):
            precision = str(torch.get_autocast_dtype(device.type))
        known = json.dumps([part, self._weights[part][1], self._settings, precision])
        return hashlib.sha256(known.encode()).hexdigest()[:32]


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file, or `None` if there is no such file or it cannot be read."""
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        logger.warning(f"{path}: cannot be read ({error}); it is written again")
        return None
