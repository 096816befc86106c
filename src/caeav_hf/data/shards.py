"""The Parquet shards of a builder's folder: finding them, and reading them as a data set."""

import os
import re
from pathlib import Path

import datasets
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from caeav_hf.errors import DataError


def local_folder(name: str | os.PathLike) -> Path:
    """
    The folder of a data set: `name` itself, or the copy of the data set of that name on the Hub (`org/name`, also
    `org/name@revision`), which is downloaded once.

    Raises:
        DataError: It is neither.
    """
    repository, _, revision = str(name).partition("@")
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return Path(name)
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: is no folder, and cannot be had as a data set of the Hub: {error}") from error


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
    The rows of a split of a folder, or of a data set on the Hub (see [`local_folder`]).

    Raises:
        DataError: As for [`find_shards`], or the split is not named.
    """
    folder = local_folder(folder)
    if split is None:
        raise DataError(f"{folder}: `split` must say which split to read")
    shards = [str(path) for path in find_shards(folder, split)]
    return datasets.load_dataset("parquet", data_files={split: shards}, split=split)
