"""Map-style data set of clips, decoded from the rows of a Parquet folder on access."""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging

from caeav_hf.constants import MISALIGNMENT
from caeav_hf.errors import DataError, MediaError

from .items import ItemMaker, row_errors
from .prepared import MEDIA_COLUMNS, PREPARED, QUESTIONS, check_settings, question_rows
from .shards import load_rows


logger = logging.get_logger(__name__)

_CAPTIONS = ("visual_caption", "audio_caption")


class CaeAvDataset(torch.utils.data.Dataset):
    """
    Map-style data set of model inputs, which the processor computes from the rows of a builder.

    Item `i` is a dict with

    - **pixel_values_videos** (T, 3, H, W), **input_features** (T, 1, frames, mels), **frame_mask** (T,) bool;
    - **labels**: for event localization (T,) int64, the label of each segment; for segmentation (T, mask_size,
      mask_size) int8, 1 for sounding objects and 0 elsewhere, resized by nearest neighbours; for video parsing (C,)
      float, 1 for the clip's classes; for question answering () int64, the index of the answer. Segments after the end
      of the clip and frames without a mask are -100;
    - for video parsing also **audio_labels**, **visual_labels** (T, C) float, 1 for classes heard or seen in a
      segment, -100 if unknown or after the end of the clip; and **visual_3d_features** (T, size), if the row has them;
    - for question answering also **question_ids**, **question_mask** (Q,);
    - if the row has a caption, **visual_caption_ids**, **visual_caption_mask**, **audio_caption_ids**,
      **audio_caption_mask** (N,); the mask of a missing caption is zero;
    - **video_id**, a string, which [`CaeAvCollator`] omits from the batch.

    If the clip or mask of a row cannot be decoded, the item is that of the next row that can be, so that a broken clip
    does not end an epoch, but with -100 for all labels, so that no clip counts twice. It has a further key
    **replaces**, the requested index. The clip is logged once and listed in `broken_clips`.

    Args:
        rows: A `datasets.Dataset` with the columns of a task (see `schema`), a folder written by a builder, or the
            name of such a data set on the Hub.
        processor: A [`CaeAvProcessor`].
        split: Split to read, if `rows` is a folder.
        cache_dir: Folder that caches processed frames and sound, so that clips are decoded once; None disables it.
            Entries depend on the content of the clip and the settings of the processor, so data sets and processors
            may share a folder.
        mask_size: Side of the masks of segmentation; by default the processor's.
        use_captions: Whether to read captions.
        task: Task of the rows; by default the one whose column of labels they have.

    Raises:
        DataError: `rows` is not such a folder, lacks a column, or was prepared (see `data.prepared`) for other
            settings than the processor's; the size of the masks is unknown; or, on access, no clip can be decoded.
    """

    def __init__(
        self,
        rows: datasets.Dataset | str | os.PathLike,
        processor: Any,
        *,
        split: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        mask_size: int | None = None,
        use_captions: bool = True,
        task: str | None = None,
    ) -> None:
        self.rows = rows if isinstance(rows, datasets.Dataset) else load_rows(Path(rows), split)
        # Prepared clips with several questions are stored separately from the questions.
        self._clips = None
        if QUESTIONS in self.rows.column_names:
            if missing := [name for name in MEDIA_COLUMNS if name not in self.rows.column_names]:
                raise DataError(f"{rows}: its rows lack {', '.join(missing)}; expected prepared clips")
            self._clips, self.rows = self.rows.select_columns(list(MEDIA_COLUMNS)), question_rows(self.rows)
        if not use_captions:
            self.rows = self.rows.remove_columns([name for name in _CAPTIONS if name in self.rows.column_names])
        features = self.rows.features
        self._make_item = ItemMaker(
            features if self._clips is None else {**features, **self._clips.features},
            processor,
            cache_dir=cache_dir,
            mask_size=mask_size,
            task=task,
            source="`rows`:" if isinstance(rows, datasets.Dataset) else f"{rows}:",
        )
        self.processor = processor
        prepared = self.rows if self._clips is None else self._clips
        if processor is not None and PREPARED in prepared.column_names and len(prepared):
            with row_errors({}, self._make_item.source):
                check_settings(prepared.select_columns(PREPARED)[0][PREPARED], processor, "its first row")
        # In shared memory, so that failures in the workers of a loader are visible here.
        self._broken = torch.zeros(len(self.rows), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for candidate in chain((index,), range(index + 1, len(self)), range(index)):
            if candidate != index and self._broken[candidate]:
                continue
            try:
                item = self._item(candidate)
                return item if candidate == index else self._make_item.replacement(item, index)
            except MediaError as error:
                if not self._broken[candidate]:
                    self._broken[candidate] = True
                    logger.warning(f"clip replaced by the next one that can be decoded: {error}")
        raise DataError(f"{self._make_item.source} none of the {len(self)} clips can be decoded")

    def _item(self, index: int) -> dict[str, Any]:
        try:
            row, clip = self.rows[index], None
        except ValueError as error:  # a text that is not UTF-8
            raise DataError(f"{self._make_item.source} row {index} cannot be read ({error})") from error
        if self._clips is not None:
            clip = row["clip"]
            if not self._make_item.holds(clip):
                row |= self._clips[clip]
        elif self._make_item.task.shares_clips:
            clip = (row["media"] or row.get("audio"), row.get(MISALIGNMENT))
        return self._make_item(row, clip)

    @property
    def features(self) -> datasets.Features:
        """The columns of the rows and their types."""
        return self.rows.features

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, one per item, without reading other columns."""
        with row_errors({}, self._make_item.source):
            return list(self.rows.select_columns(name)[name])

    @property
    def groups(self) -> list[int] | None:
        """
        A number per row, equal for rows about the same clip, or `None` for tasks with one row per clip. Reading such
        rows consecutively is cheapest, since the last clip is cached.
        """
        if not self._make_item.task.shares_clips:
            return None
        numbers: dict[str, int] = {}
        return [numbers.setdefault(name, len(numbers)) for name in self.column("video_id")]

    @property
    def broken_clips(self) -> list[str]:
        """Names of the clips that could not be decoded so far, including in the workers of a loader."""
        names = self.column("video_id")
        return [names[index] for index in self._broken.nonzero().flatten().tolist()]
