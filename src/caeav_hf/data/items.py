"""Conversion of a row to the model's inputs."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from ..constants import IGNORED_LABEL
from ..errors import CaeAvError, DataError, MediaError
from ..files import atomic_write, make_folder, remove_leftovers
from .prepared import question_features
from .rows import RowForm, check_types, task_of_rows


logger = logging.get_logger(__name__)

_MEDIA_FEATURES = ("pixel_values_videos", "input_features", "frame_mask")


class ItemMaker:
    """
    Converts rows to the items of [`CaeAvDataset`].

    Args:
        features: Columns of the rows and their types.
        processor, cache_dir, mask_size, task: See [`CaeAvDataset`].
        source: Name of the rows in errors.

    Raises:
        DataError: A column is missing.
    """

    def __init__(
        self,
        features: Mapping[str, Any],
        processor: Any,
        *,
        cache_dir: str | os.PathLike | None = None,
        mask_size: int | None = None,
        task: str | None = None,
        source: str = "`rows`:",
    ) -> None:
        columns = [*features, *question_features(features)]
        self.task = task_of_rows(columns, task, source)
        check_types(self.task.row_form, {**features, **question_features(features)}, source)
        self.source = source
        self.processor = processor
        with row_errors({}, source):
            self.form: RowForm = self.task.row_form(processor, mask_size, features)
        self._cache = None if cache_dir is None or processor is None else Path(cache_dir) / _settings_digest(processor)
        if self._cache is not None:
            remove_leftovers(self._cache)
        self._last_clip: tuple[Any, dict[str, torch.Tensor]] | None = None

    def __call__(self, row: Mapping[str, Any], clip: Any = None) -> dict[str, Any]:
        """
        Return the item of a row.

        Args:
            row: The row.
            clip: Identifies the row's clip if rows share clips; the last clip is cached.

        Raises:
            MediaError: The clip, or a mask, cannot be decoded.
            DataError: The row does not have the documented form.
        """
        with row_errors(row, self.source):
            features = self._media_features(row, clip)
            targets = self.form.targets(row, features["frame_mask"])
            return {
                **features,
                **targets,
                **self._captions(row.get("visual_caption"), row.get("audio_caption")),
                "video_id": row["video_id"],
            }

    def replacement(self, item: Mapping[str, Any], index: int) -> dict[str, Any]:
        """
        Return the item that stands for row `index`, whose clip cannot be decoded: another row's item without labels,
        so that it counts neither in a task's loss nor in metrics.
        """
        unknown = {
            name: torch.full_like(item[name], IGNORED_LABEL)
            for name, target in self.task.targets.items()
            if target.padding == IGNORED_LABEL and name in item
        }
        return {**item, **unknown, "replaces": index}

    def holds(self, clip: Any) -> bool:
        """Return whether a clip is cached, so that its rows need no media."""
        return self._last_clip is not None and self._last_clip[0] == clip

    def _media_features(self, row: Mapping[str, Any], clip: Any) -> dict[str, torch.Tensor]:
        if clip is None:
            return self._stored_features(row)
        if not self.holds(clip):
            self._last_clip = (clip, self._stored_features(row))
        assert self._last_clip is not None
        return self._last_clip[1]

    def _stored_features(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if self._cache is None:
            return self._process(row)
        path = self._cache / f"{self.form.digest(row)}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            pass
        except SafetensorError as error:
            logger.warning(f"{path}: cannot be read ({error}); it is written again")
        features = self._process(row)
        make_folder(path.parent)
        with atomic_write(path, is_cache=True) as partial_path:
            save_file(features, partial_path)
        return features

    def _process(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = self.form.process(row)
        return {name: inputs[name][0].contiguous() for name in _MEDIA_FEATURES}

    def _captions(self, visual: str | None, audio: str | None) -> dict[str, torch.Tensor]:
        captions = {"visual": visual, "audio": audio}
        if not any(captions.values()):
            return {}
        inputs = self.processor(visual_captions=[visual or ""], audio_captions=[audio or ""])
        item = {name: inputs[name][0] for name in inputs if "_caption_" in name}
        for modality, caption in captions.items():
            if not caption:
                item[f"{modality}_caption_mask"] = torch.zeros_like(item[f"{modality}_caption_mask"])
        return item


@contextmanager
def row_errors(row: Mapping[str, Any], source: str) -> Iterator[None]:
    """Raise a [`~errors.DataError`] for what a row of unexpected nulls, lengths or numbers leads to."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source} {error}") from error
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError, RuntimeError) as error:
        if isinstance(error, MediaError):
            raise
        reason = str(error) if isinstance(error, CaeAvError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{source} the row of {row.get('video_id')!r} does not have the documented form ({reason})"
        ) from error


def _settings_digest(processor: Any) -> str:
    """Return a digest of the processor's settings that affect the features of a clip."""
    settings = {
        "num_frames": processor.num_frames,
        "frame_sampling": processor.frame_sampling,
        "video_processor": processor.video_processor.to_dict(),
        "feature_extractor": processor.feature_extractor.to_dict(),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
