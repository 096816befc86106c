"""The Parquet shards of a builder's folder: finding them, and reading them as a data set."""

import re
from pathlib import Path

import datasets

from caeav_hf.errors import DataError


def find_shards(folder: Path, split: str) -> list[Path]:
    """
    The shards of a split, in order.

    Raises:
        DataError: There are none, or some are missing.
    """
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(f"{folder}: expected a builder's folder with data/{split}-*.parquet in it")
    totals = {match[1] for shard in shards if (match := re.search(r"-of-(\d+)\.parquet$", shard.name))}
    if totals and totals != {f"{len(shards):05d}"}:
        raise DataError(
            f"{folder}: has {len(shards)} shards of the split {split!r}, whose names announce "
            f"{' and '.join(str(int(total)) for total in sorted(totals))}; run what wrote it again"
        )
    return shards


def load_rows(folder: Path, split: str | None) -> datasets.Dataset:
    """
    The rows of a split.

    Raises:
        DataError: As for [`find_shards`], or the split is not named.
    """
    if split is None:
        raise DataError(f"{folder}: `split` must say which split to read")
    shards = [str(path) for path in find_shards(folder, split)]
    return datasets.load_dataset("parquet", data_files={split: shards}, split=split)
