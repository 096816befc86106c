"""
Clips of a streamed data set, whose rows are read on the fly from local files or the Hub.

The training process reads the undecoded rows of each batch, and the workers of its loader decode them. Batches
therefore depend neither on the number of workers nor on the number of files.
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
from .shards import iterate, stream_rows


logger = logging.get_logger(__name__)


class StreamedRow(NamedTuple):
    """
    A row to decode.

    `number` is the position of its item in the epoch, the counterpart of an index of a map-style data set. `clip`
    (epoch, position of the row) is equal for the questions of one prepared clip.
    """

    number: int
    clip: tuple[int, int]
    values: dict[str, Any]

    def __index__(self) -> int:
        return self.number


class StreamedClips(torch.utils.data.Dataset):
    """
    Items of [`CaeAvDataset`] in the order in which `datasets` streams their rows. `batches` yields lists of rows, and
    indexing with such a row decodes it. All processes read all rows, and each decodes its share. The first clip of the
    split that can be decoded replaces broken ones.

    Args:
        data: A folder written by a builder or `caeav prepare`, or the name of such a data set on the Hub.
        processor, split, cache_dir, mask_size, use_captions, task: See [`CaeAvDataset`].
        shuffle_buffer: Number of rows in the buffer by which `datasets` shuffles, in addition to the order of the
            files; `None` keeps the order of the rows.
        seed: Seed of the order.
        process_index, num_processes: Share to decode, see `datasets.distributed.split_dataset_by_node`.

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
        self.processor = processor
        self.features = {**rows.features, **question_features(rows.features)}
        self._make_item = ItemMaker(
            rows.features, processor, cache_dir=cache_dir, mask_size=mask_size, task=task, source=f"{data}:"
        )
        if processor is not None and PREPARED in rows.features:
            for row in iterate(stream_rows(data, split, [PREPARED]).take(1), data):
                check_settings(row[PREPARED], processor, f"{data}: its first row")
        self.shuffle_buffer = shuffle_buffer
        if shuffle_buffer is not None:
            rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        # Split by rows rather than files, so that a step has the same clips on any number of processes.
        self.rows = split_dataset_by_node(rows, process_index, num_processes, strategy="examples")
        self.process_index, self.num_processes = process_index, num_processes

    def __len__(self) -> int:
        """Return the number of items of the split: one per row, or per question if rows contain several."""
        return sum(self._items_of_rows)

    @property
    def num_rows(self) -> int:
        """Number of rows of the split, in all shares."""
        return len(self._items_of_rows)

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, one per item, in the order of the files, without reading other columns."""
        data, split = self._source
        if name in stream_rows(data, split).features:
            values = [row[name] for row in iterate(stream_rows(data, split, [name]), data)]
            return [value for value, items in zip(values, self._items_of_rows, strict=True) for _ in range(items)]
        rows = iterate(stream_rows(data, split, [QUESTIONS]), data)
        return [question[name] for row in rows for question in row[QUESTIONS] or ()]

    def batches(self, batch_size: int, *, epoch: int = 0, start: int = 0) -> Iterator[list[StreamedRow]]:
        """
        Yield the batches of this process in one epoch. Their number is the same on all processes, so the last may be
        empty.

        `batch_size` is the number of rows, and `start` the number of rows to skip, over all processes. Skipped rows
        are read but not decoded, since the state of a stream in `datasets` does not include its shuffle buffer.
        """
        self.rows.set_epoch(epoch)
        places = range(self.process_index, self.num_rows, self.num_processes)
        skipped = len(range(self.process_index, start, self.num_processes))
        rows = islice(zip(places, iterate(self.rows, self._source[0]), strict=False), skipped, None)
        for _ in range(start, self.num_rows, batch_size * self.num_processes):
            yield [item for place, row in islice(rows, batch_size) for item in self._items(epoch, place, row)]

    def __getitem__(self, row: StreamedRow) -> dict[str, Any]:
        try:
            return self._make_item(row.values, row.clip if self._make_item.task.shares_clips else None)
        except MediaError as error:
            logger.warning(f"clip replaced by the first one that can be decoded: {error}")
        return self._make_item.replacement(self._replacement, row.number)

    @cached_property
    def _replacement(self) -> dict[str, Any]:
        """The first item of the split that can be decoded, which does not depend on share and order."""
        for row in iterate(stream_rows(*self._source, self._columns), self._source[0]):
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
            return [len(row[QUESTIONS] or ()) for row in iterate(stream_rows(data, split, [QUESTIONS]), data)]
        return [1 for _ in iterate(stream_rows(data, split, ["video_id"]), data)]

    @cached_property
    def _firsts(self) -> list[int]:
        firsts = [0]
        for items in self._items_of_rows:
            firsts.append(firsts[-1] + items)
        return firsts
