"""
The caption file: Parquet with one row per clip, or JSON `{clip: {"visual": text, "audio": text}}`.

Besides the two captions, a row of the Parquet file contains their provenance and the text that a model generated
(`*_generated`), which differs from a caption that was edited by hand.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caeav_hf.constants import MODALITIES
from caeav_hf.errors import DataError

from ..files import atomic_write, parse_json, read_bytes


CAPTION_SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("file", pa.string()),
        ("visual_caption", pa.string()),
        ("audio_caption", pa.string()),
        ("visual_generated", pa.string()),
        ("audio_generated", pa.string()),
        ("model", pa.string()),
        ("prompt_version", pa.string()),
        ("settings", pa.string()),
    ]
)

CaptionRow = dict[str, Any]

# Most bytes of the texts of a Parquet file, and about those of a batch, and its rows.
MAX_TEXTS_BYTES = 2_000_000_000
_BATCH_BYTES, _BATCH_ROWS = 100_000_000, 1_000


def is_edited(row: Mapping[str, Any], modality: str) -> bool:
    """Return whether the caption of this modality was added, changed or removed by hand."""
    caption, generated = row.get(f"{modality}_caption"), row.get(f"{modality}_generated")
    return (caption or None) != (generated or None)


def is_missing(row: Mapping[str, Any], modality: str) -> bool:
    """Return whether there is no caption of this modality and none was removed by hand."""
    return not row.get(f"{modality}_caption") and not is_edited(row, modality)


def read_caption_rows(path: str | os.PathLike) -> tuple[dict[str, CaptionRow], pa.Schema]:
    """
    Return the rows of a Parquet caption file by clip, and its columns. Missing columns of provenance are added, and
    further columns are kept.

    Raises:
        DataError: It is not a Parquet file with text columns `clip`, `visual_caption` and `audio_caption`, contains a
            clip twice, or is larger than `MAX_TEXTS_BYTES`.
    """
    expected = f"{path}: expected a Parquet file with text columns clip, visual_caption and audio_caption"
    if not os.path.isfile(path):
        raise DataError(f"{path}: {'is no' if os.path.exists(path) else 'no such'} caption file")
    rows: dict[str, CaptionRow] = {}
    with open_texts(path, expected) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{expected}; it has two columns of one name")
        if missing := {"clip", "visual_caption", "audio_caption"} - set(names):
            raise DataError(f"{expected}; it lacks {', '.join(sorted(missing))}")
        extra = [field for field in file.schema_arrow if field.name not in CAPTION_SCHEMA.names]
        schema = pa.schema([*CAPTION_SCHEMA, *extra])
        for batch in text_batches(file, names, expected):
            columns = {
                field.name: batch[field.name].cast(field.type)
                if field.name in names
                else pa.nulls(batch.num_rows, field.type)
                for field in schema
            }
            for row in pa.table(columns, schema=schema).to_pylist():
                if not row["clip"]:
                    raise DataError(f"{path}: a row has no `clip`; expected the name of its clip")
                if row["clip"] in rows:
                    raise DataError(f"{path}: {row['clip']!r} is there twice")
                rows[row["clip"]] = row
    return rows, schema


@contextmanager
def open_texts(path: str | os.PathLike, expected: str) -> Iterator[pq.ParquetFile]:
    """
    Open a Parquet file for [`text_batches`].

    Args:
        path: The file.
        expected: Beginning of errors, which names the file.

    Raises:
        DataError: It is no Parquet file, or what the block reads is damaged or of other types.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except DataError:
        raise
    # Arrow's errors; texts that are not UTF-8 are ValueErrors, columns that are there twice KeyErrors.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{expected} ({error})") from error


def text_batches(file: pq.ParquetFile, columns: Sequence[str], expected: str) -> Iterator[pa.RecordBatch]:
    """
    Yield the rows of columns of texts in batches.

    Few bytes of a file may stand for many of a text, and one text of its dictionary for many rows: batches are small
    enough that neither takes much memory.

    Raises:
        DataError: The texts are larger than `MAX_TEXTS_BYTES`.
    """
    too_large = f"{expected}; its texts are larger than {MAX_TEXTS_BYTES / 1e6:g} MB"
    metadata, largest, total = file.metadata, 1, 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema.split(".")[0] in columns:
                largest = max(largest, chunk.total_uncompressed_size)
                total += chunk.total_uncompressed_size
    if total > MAX_TEXTS_BYTES:
        raise DataError(too_large)
    total = 0
    size = min(max(_BATCH_BYTES // largest, 1), _BATCH_ROWS)
    for batch in file.iter_batches(size, columns=list(columns)):
        for number, column in enumerate(batch.columns):
            if pa.types.is_dictionary(column.type):
                batch = batch.set_column(number, batch.schema.names[number], column.dictionary_decode())
        total += batch.nbytes
        if total > MAX_TEXTS_BYTES:
            raise DataError(too_large)
        yield batch


def write_caption_rows(path: Path, rows: Sequence[CaptionRow], schema: pa.Schema = CAPTION_SCHEMA) -> None:
    """Write a Parquet caption file atomically, sorted by clip."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["clip"]), schema=schema)
    with atomic_write(path) as partial_path:
        pq.write_table(table, partial_path)


def read_captions(path: str | os.PathLike) -> dict[str, dict[str, str | None]]:
    """
    Return the captions of a Parquet or JSON caption file: `{clip: {"visual": text or None, "audio": text or None}}`.

    Raises:
        DataError: The file is missing or has neither format.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        rows, _ = read_caption_rows(path)
        return {clip: {m: row[f"{m}_caption"] or None for m in MODALITIES} for clip, row in rows.items()}
    content = read_bytes(path, "caption file")
    try:
        captions = parse_json(content.decode())
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    expected = f'{path}: expected {{clip: {{"visual": text, "audio": text}}}}'
    if not isinstance(captions, dict):
        raise DataError(f"{expected}, got a {type(captions).__name__}")
    for clip, caption in captions.items():
        if not isinstance(caption, dict) or not all(isinstance(caption.get(m), str | None) for m in MODALITIES):
            raise DataError(f"{expected}, got {caption!r} for {clip}")
    return captions
