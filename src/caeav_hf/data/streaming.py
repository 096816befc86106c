"""
Clips of a data set that `datasets` streams: rows are read as they come, here or on the Hub, and never copied.

The process that trains reads the rows of each batch, undecoded, and the workers of its loader decode them. So the
batches depend neither on the number of workers nor on that of files.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import torch
from datasets.distributed import split_dataset_by_node
from transformers.utils import logging

from caeav_hf.constants import PREPARED, QUESTIONS
from caeav_hf.errors import DataError, MediaError

from .items import ItemMaker
from .prepared import check_settings, question_features, rows_of_questions
from .schema import caption_features
from .shards import stream_rows


logger = logging.get_logger(__name__)


class StreamedRow(NamedTuple):
    """
    A row to decode.

    `number` is that of its item in the order of the pass; it stands for the row as the index of a map-style data set
    does. `clip` (epoch, place) is the same for the questions of one prepared clip.
    """

    number: int
    clip: tuple[int, int]
    values: dict[str, Any]

    def __index__(self) -> int:
        return self.number


class StreamedClips(torch.utils.data.Dataset):
    """
    The items of [`CaeAvDataset`] in the order in which `datasets` streams their rows: `batches` gives lists of rows,
    and indexing with such a row decodes it. All processes read all rows, and each decodes its share. The first clip
    of the split that can be decoded replaces those that cannot.

    Args:
        data: The folder that a builder or `caeav prepare` wrote, or the name of such a data set on the Hub.
        processor, split, cache_dir, mask_size, use_captions, task: As for [`CaeAvDataset`].
        shuffle_buffer: Rows of the buffer that `datasets` shuffles by, besides the order of the files; None leaves
            the rows in their order.
        seed: Seed of the order.
        process_index, num_processes: Which share is read, as by `datasets.distributed.split_dataset_by_node`.

    Raises:
        DataError: There is no such split, its rows lack a column, or they were prepared for other settings.
    """

    def __init__(
        self,
        data: str | os.PathLike,
        processor: Any,
        *,
        split: str,
        shuffle_buffer: int | None = None,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        cache_dir: str | os.PathLike | None = None,
        mask_size: int | None = None,
        task: str | None = None,
        use_captions: bool = True,
    ) -> None:
        self._source = data, split
        rows = stream_rows(data, split)
        if not use_captions:
            rows = stream_rows(data, split, [name for name in rows.column_names if name not in caption_features()])
        self._columns = rows.column_names
        self.features = {**rows.features, **question_features(rows.features)}
        self._make_item = ItemMaker(
            rows.features, processor, cache_dir=cache_dir, mask_size=mask_size, task=task, source=f"{data}:"
        )
        if processor is not None and PREPARED in rows.features:
            for row in stream_rows(data, split, [PREPARED]).take(1):
                check_settings(row[PREPARED], processor, str(data))
        self.shuffle_buffer = shuffle_buffer
        if shuffle_buffer is not None:
            rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        # By rows and not by files: then a step takes the same clips on any number of processes.
        self.rows = split_dataset_by_node(rows, process_index, num_processes, strategy="examples")
        self.process_index, self.num_processes = process_index, num_processes

    def __len__(self) -> int:
        """Items of the split: one a row, or one a question where a row holds several."""
        return sum(self._items_of_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the split, in all shares."""
        return len(self._items_of_rows)

    def column(self, name: str) -> list[Any]:
        """The values of a column, one an item, in the order of the files. Nothing else is read."""
        data, split = self._source
        if name in stream_rows(data, split).features:
            values = [row[name] for row in stream_rows(data, split, [name])]
            return [value for value, items in zip(values, self._items_of_rows, strict=True) for _ in range(items)]
        return [question[name] for row in stream_rows(data, split, [QUESTIONS]) for question in row[QUESTIONS]]

    def batches(self, batch_size: int, *, epoch: int = 0, start: int = 0) -> Iterator[list[StreamedRow]]:
        """
        The batches of this process in one epoch, which are as many as those of the others; the last may be empty.

        `batch_size` counts rows, `start` the first rows of the epoch, over all processes, that are left out. These
        are read again, since the state that `datasets` keeps does not hold its buffer, but they are not decoded.
        """
        self.rows.set_epoch(epoch)
        places = range(self.process_index, self.num_rows, self.num_processes)
        skipped = len(range(self.process_index, start, self.num_processes))
        rows = islice(zip(places, self.rows, strict=False), skipped, None)
        for _ in range(start, self.num_rows, batch_size * self.num_processes):
            yield [item for place, row in islice(rows, batch_size) for item in self._items(epoch, place, row)]

    def __getitem__(self, row: StreamedRow) -> dict[str, Any]:
        try:
            return self._make_item(row.values, row.clip if self._make_item.task.shares_clips else None)
        except MediaError as error:
            logger.warning(f"clip replaced by the first one that can be decoded: {error}")
        return {**self._replacement, "replaces": row.number}

    @cached_property
    def _replacement(self) -> dict[str, Any]:
        """The first item of the split that can be decoded, which is always the same one, for any share and order."""
        for row in stream_rows(*self._source, self._columns):
            try:
                return self._make_item(next(rows_of_questions(row)))
            except MediaError:
                continue
        raise DataError(f"{self._source[0]}: none of the clips can be decoded")

    def _items(self, epoch: int, place: int, row: dict[str, Any]) -> list[StreamedRow]:
        first = self._firsts[place]
        return [StreamedRow(first + i, (epoch, place), item) for i, item in enumerate(rows_of_questions(row))]

    @cached_property
    def _items_of_rows(self) -> list[int]:
        data, split = self._source
        if QUESTIONS in self.features:
            return [len(row[QUESTIONS]) for row in stream_rows(data, split, [QUESTIONS])]
        return [1 for _ in stream_rows(data, split, ["video_id"])]

    @cached_property
    def _firsts(self) -> list[int]:
        firsts = [0]
        for items in self._items_of_rows:
            firsts.append(firsts[-1] + items)
        return firsts
