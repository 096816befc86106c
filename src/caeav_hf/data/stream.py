"""
Clips in one pass over Parquet files, here or on the Hub, that are read as they come and never copied.

The row groups of the files are what is read at once. They are put into an order drawn from the seed and the epoch, and
each process and, of its share, each worker of a loader takes its part of the rows in that order, counted to the row:
how many files there are does not matter.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from caeav_hf.errors import DataError, MediaError

from .items import ItemMaker
from .prepared import rows_of_questions
from .schema import caption_features
from .shards import find_shards


logger = logging.get_logger(__name__)


class _Group(NamedTuple):
    """A row group of a file."""

    path: str
    number: int
    rows: int


class CaeAvStream(torch.utils.data.IterableDataset):
    """
    The items of [`CaeAvDataset`], read one after the other. Nothing is held but the row group that is being read and
    the buffer, and nothing is written to a cache.

    A clip that cannot be decoded gives None, which the collator leaves out, is named in the log, and is counted in
    `num_broken`. Every process gets as many clips as the others; where the clips cannot be divided evenly, two
    processes have one in common. Prepared questions about a clip follow each other.

    Args:
        folder: What a builder or `caeav prepare` wrote, or an address that fsspec reads, such as
            `hf://datasets/user/name`.
        processor: A [`CaeAvProcessor`].
        split: Split to read.
        shuffle: Whether the order is drawn from `seed` and the epoch (see `set_epoch`), or is that of the files.
        seed: Seed of the order.
        buffer_size: Clips from which the next one is drawn, if the order is drawn. The order of row groups is drawn
            too, so a few times the clips of a group (16 prepared ones) are enough.
        process_index, num_processes: Which share is read.
        mask_size, use_captions: As for [`CaeAvDataset`].

    Raises:
        DataError: There is no such split, or its rows lack a column.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        processor: Any,
        *,
        split: str,
        shuffle: bool = True,
        seed: int = 0,
        buffer_size: int = 64,
        process_index: int = 0,
        num_processes: int = 1,
        mask_size: int | None = None,
        use_captions: bool = True,
    ) -> None:
        if buffer_size < 1 or not 0 <= process_index < num_processes:
            raise DataError(
                "`buffer_size` must be at least 1 and `process_index` one of `num_processes`, got "
                f"{buffer_size}, {process_index} and {num_processes}"
            )
        self.shuffle, self.seed, self.buffer_size = shuffle, seed, buffer_size
        self.process_index, self.num_processes = process_index, num_processes
        self._files, paths = _find_files(folder, split)
        with ThreadPoolExecutor(8) as pool:  # a request each, where they are far away
            footers = list(pool.map(self._footer, paths))
        self._groups = [
            _Group(path, number, footer.row_group(number).num_rows)
            for path, footer in zip(paths, footers, strict=True)
            for number in range(footer.num_row_groups)
        ]
        features = datasets.Features.from_arrow_schema(footers[0].schema.to_arrow_schema())
        self._columns = [name for name in features if use_captions or name not in caption_features()]
        self._make_item = ItemMaker({name: features[name] for name in self._columns}, processor, mask_size=mask_size)
        # In shared memory: workers count, and workers that live on are told of the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = torch.zeros(sum(group.rows for group in self._groups), dtype=torch.bool).share_memory_()

    @property
    def num_clips(self) -> int:
        """Clips of the split."""
        return len(self._broken)

    @property
    def num_broken(self) -> int:
        """Clips that could not be decoded so far, here or in the workers of a loader."""
        return int(self._broken.sum())

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is; each has an order of its own."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        share = -(-self.num_clips // self.num_processes)
        first = self.process_index * self.num_clips // self.num_processes
        begin, end = (first + share * part // workers for part in (number, number + 1))
        for clip, row in self._drawn(begin, end):
            for one in rows_of_questions(row):
                yield self._item(clip, one)

    def _item(self, clip: int, row: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._make_item(row, clip if self._make_item.form.shares_clips else None)
        except MediaError as error:
            if not self._broken[clip]:
                self._broken[clip] = True
                logger.warning(f"clip left out: {error}")
            return None

    def _drawn(self, begin: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows from `begin` to `end` of the epoch's order, with their numbers in the files."""
        order = [int(self.seed), int(self._epoch)]
        rows = self._rows(np.random.default_rng(order), begin, end)
        if not self.shuffle:
            yield from rows
            return
        generator = np.random.default_rng([*order, begin])
        buffer: list[tuple[int, dict[str, Any]]] = []
        for row in rows:
            if len(buffer) < self.buffer_size:
                buffer.append(row)
                continue
            place = int(generator.integers(self.buffer_size))
            yield buffer[place]
            buffer[place] = row
        while buffer:
            yield buffer.pop(int(generator.integers(len(buffer))))

    def _rows(self, generator: np.random.Generator, begin: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        starts = np.cumsum([0, *(group.rows for group in self._groups)])[:-1].tolist()
        order = generator.permutation(len(self._groups)) if self.shuffle else np.arange(len(self._groups))
        done = 0
        for number in order.tolist():
            group = self._groups[number]
            wanted = range(max(begin - done, 0), min(end - done, group.rows))
            done += group.rows
            if not wanted:
                continue
            with self._files.open(group.path, "rb") as file, pq.ParquetFile(file) as parquet:
                table = parquet.read_row_group(group.number, columns=self._columns)
            for row in wanted:
                yield starts[number] + row, table.slice(row, 1).to_pylist()[0]

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._files.open(path, "rb") as file:
            return pq.read_metadata(file)


def _find_files(folder: str | os.PathLike, split: str) -> tuple[Any, list[str]]:
    """The file system and the paths of a split's files."""
    files, root = fsspec.core.url_to_fs(os.fspath(folder))
    if "://" not in os.fspath(folder):
        return files, [str(path) for path in find_shards(Path(folder), split)]
    paths = sorted(files.glob(f"{root}/data/{split}-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: expected files data/{split}-*.parquet in it")
    return files, paths
