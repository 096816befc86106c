"""Reading of the Parquet shards of a builder's folder as a data set or a stream."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from caeav_hf.errors import DataError


def local_folder(name: str | os.PathLike) -> Path:
    """
    Return the folder of a data set: `name` itself, or a cached download of the data set of that name on the Hub
    (`org/name` or `org/name@revision`).

    Raises:
        DataError: There is neither.
    """
    if (on_hub := _name_on_hub(name)) is None:
        return Path(name)
    repository, revision = on_hub
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: is not a folder, and cannot be downloaded from the Hub: {error}") from error


def _name_on_hub(name: str | os.PathLike) -> tuple[str, str | None] | None:
    """Return the repository and the revision that `name` refers to, or `None` if it is a folder."""
    repository, _, revision = str(name).partition("@")
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return None
    return repository, revision or None


def find_shards(folder: Path, split: str) -> list[Path]:
    """
    Return the shards of a split in order.

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
    Load the rows of a split of a folder, or of a data set on the Hub (see [`local_folder`]).

    Raises:
        DataError: See [`find_shards`]; or no split is given.
    """
    folder = local_folder(folder)
    if split is None:
        raise DataError(f"{folder}: `split` must say which split to read")
    shards = [str(path) for path in find_shards(folder, split)]
    return datasets.load_dataset("parquet", data_files={split: shards}, split=split)


def stream_rows(name: str | os.PathLike, split: str, columns: Sequence[str] | None = None) -> datasets.IterableDataset:
    """
    Stream the rows of a split, from a folder or directly from the Hub.

    Args:
        name: See [`local_folder`]; nothing is downloaded in advance.
        split: Name of the split.
        columns: Columns to read; by default all.

    Raises:
        DataError: There is no such data set or split.
    """
    columns = None if columns is None else list(columns)
    if (on_hub := _name_on_hub(name)) is None:
        shards = [str(path) for path in find_shards(Path(name), split)]
        return datasets.load_dataset(
            "parquet", data_files={split: shards}, split=split, streaming=True, columns=columns
        )
    repository, revision = on_hub
    try:
        return datasets.load_dataset(repository, revision=revision, split=split, streaming=True, columns=columns)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: cannot be streamed as a data set of the Hub: {error}") from error
