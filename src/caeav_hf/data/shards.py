"""Reading of the Parquet shards of a builder's folder as a data set or a stream."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from caeav_hf.errors import CaeAvError, DataError


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
    if os.path.exists(name) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
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
    return read_parquet(shards, split)


def read_parquet(shards: Sequence[str], split: str = "train", **options: Any) -> Any:
    """
    Read Parquet files with `datasets`, without decoding of media.

    Args:
        shards: The files.
        split: Name of the split.
        options: Options of `load_dataset`, as for streaming.

    Raises:
        DataError: A file is no Parquet, or `datasets` cannot read it.
    """
    for shard in shards:
        try:
            pq.read_schema(shard)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{shard}: cannot be read as Parquet ({error})") from error
    with _errors_of_datasets(f"{shards[0]}: cannot be read as a data set"):
        rows = datasets.load_dataset("parquet", data_files={split: list(shards)}, split=split, **options)
        for name, feature in (rows.features or {}).items():
            if (stored := _undecoded(feature)) != feature:
                rows = rows.cast_column(name, stored)
        return rows


def iterate(rows: Iterable[dict[str, Any]], name: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yield streamed rows; raise a [`~errors.DataError`] where a file ends early or is damaged."""
    with _errors_of_datasets(f"{name}: its rows cannot be read"):
        yield from rows


@contextmanager
def _errors_of_datasets(what: str) -> Iterator[None]:
    try:
        yield
    except CaeAvError:
        raise
    # For foreign and damaged files `datasets`, and the libraries below it, raise errors without a common class.
    except Exception as error:
        cause = error.__cause__ or error
        raise DataError(f"{what} ({type(cause).__name__}: {cause})") from error


def _undecoded(feature: Any) -> Any:
    """Return the type of a column whose files are not decoded."""
    if isinstance(feature, datasets.Video | datasets.Audio | datasets.Image):
        return replace(feature, decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


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
        return read_parquet(shards, split, streaming=True, columns=columns)
    repository, revision = on_hub
    try:
        return datasets.load_dataset(repository, revision=revision, split=split, streaming=True, columns=columns)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: cannot be streamed as a data set of the Hub: {error}") from error
