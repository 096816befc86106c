"""Clips for training and evaluation: rows of a Parquet folder, decoded and processed when they are asked for."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from caeav_hf.errors import DataError, MediaError

from .rows import row_form


logger = logging.get_logger(__name__)

_MEDIA_FEATURES = ("pixel_values_videos", "input_features", "frame_mask")


class CaeAvDataset(torch.utils.data.Dataset):
    """
    Map-style data set of the inputs of one clip each, made by the processor from the rows that a builder wrote.

    Item `i` is a dict with

    - **pixel_values_videos** (T, 3, H, W), **input_features** (T, 1, frames, mels), **frame_mask** (T,) bool;
    - **labels**: of event localization (T,) int64, the row's label of each segment; of segmentation (T, mask_size,
      mask_size) int8, 1 where something that sounds is seen, 0 elsewhere, masks of another size being resized by
      nearest neighbours; -100 where the clip has ended already and in frames without a mask; of video parsing (C,)
      float, 1 for the clip's classes; of question answering () int64, the number of the answer;
    - of video parsing besides: **audio_labels**, **visual_labels** (T, C) float, 1 for what is heard or seen in a
      segment, -100 where that is not known or the clip has ended; and **visual_3d_features** (T, size), if the row has
      them;
    - of question answering besides: **question_ids**, **question_mask** (Q,);
    - if the row has a caption, **visual_caption_ids**, **visual_caption_mask**, **audio_caption_ids**,
      **audio_caption_mask** (N,); the mask is all zero for a caption that is missing;
    - **video_id**, a string, which [`CaeAvCollator`] leaves out of the batch.

    Or it is None if the clip cannot be decoded: the clip is named once in the log and counted in `broken_clips`, and
    the collator drops it, so a broken clip never ends an epoch. So it is with a mask that cannot be read.

    Args:
        rows: A `datasets.Dataset` with the columns of `schema`, those of any task, or the folder that a builder wrote.
        processor: A [`CaeAvProcessor`].
        split: Split to read, if `rows` is a folder.
        cache_dir: Folder for the processed frames and sound, so that a clip is decoded once; None decodes each time.
            An entry belongs to the content of the clip and the settings of the processor, so one folder serves any
            number of data sets and processors.
        mask_size: Side of the masks of segmentation; by default the processor's.

    Raises:
        DataError: `rows` is no such folder or lacks a column, or the size of the masks is not known.
    """

    def __init__(
        self,
        rows: datasets.Dataset | str | os.PathLike,
        processor: Any,
        *,
        split: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        mask_size: int | None = None,
    ) -> None:
        self.rows = rows if isinstance(rows, datasets.Dataset) else _load_rows(Path(rows), split)
        form = row_form(self.rows.column_names)
        if missing := [name for name in form.columns if name not in self.rows.column_names]:
            raise DataError(f"`rows` lack the columns {', '.join(missing)}; they have {self.rows.column_names}")
        self.processor = processor
        self._form = form(processor, mask_size, self.rows.features)
        self._cache = None if cache_dir is None else Path(cache_dir) / _settings_digest(processor)
        self._last_clip: tuple[Mapping[str, Any], dict[str, torch.Tensor]] | None = None
        # In shared memory, so that clips which fail in the workers of a loader are known here.
        self._broken = torch.zeros(len(self.rows), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        row = self.rows[index]
        try:
            features = self._media_features(row)
            targets = self._form.targets(row, features["frame_mask"])
        except MediaError as error:
            if not self._broken[index]:
                self._broken[index] = True
                logger.warning(f"clip left out: {error}")
            return None
        return {
            **features,
            **targets,
            **self._captions(row.get("visual_caption"), row.get("audio_caption")),
            "video_id": row["video_id"],
        }

    @property
    def groups(self) -> list[int] | None:
        """
        A number for each row, the same for rows about the same clip, or None for tasks with one row a clip. Such rows
        cost least one after the other: the clip of the last one is kept.
        """
        if not self._form.shares_clips:
            return None
        numbers: dict[str, int] = {}
        return [numbers.setdefault(name, len(numbers)) for name in self.rows["video_id"]]

    @property
    def broken_clips(self) -> list[str]:
        """Names of the clips that could not be decoded so far, here or in the workers of a loader."""
        return [self.rows[index]["video_id"] for index in self._broken.nonzero().flatten().tolist()]

    def _media_features(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if not self._form.shares_clips:
            return self._stored_features(row)
        if self._last_clip is None or self._last_clip[0] != row["media"]:
            self._last_clip = (row["media"], self._stored_features(row))
        return self._last_clip[1]

    def _stored_features(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if self._cache is None:
            return self._process(row)
        path = self._cache / f"{self._form.digest(row)}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            pass
        except SafetensorError as error:
            logger.warning(f"{path}: made anew, since it cannot be read ({error})")
        features = self._process(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process: several may make the same entry, and the last one to finish wins.
        partial_path = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file(features, partial_path)
        partial_path.replace(path)
        return features

    def _process(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = self._form.process(row)
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


def _load_rows(folder: Path, split: str | None) -> datasets.Dataset:
    if split is None:
        raise DataError(f"{folder}: `split` must say which split to read")
    shards = sorted(str(path) for path in (folder / "data").glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(f"{folder}: expected a builder's folder with data/{split}-*.parquet in it")
    return datasets.load_dataset("parquet", data_files={split: shards}, split=split)


def _settings_digest(processor: Any) -> str:
    """Stands for everything about the processor that decides the features of a clip."""
    settings = {
        "num_frames": processor.num_frames,
        "frame_sampling": processor.frame_sampling,
        "video_processor": processor.video_processor.to_dict(),
        "feature_extractor": processor.feature_extractor.to_dict(),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
