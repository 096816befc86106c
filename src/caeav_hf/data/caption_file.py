"""
The caption file: Parquet with one row per clip, or JSON `{clip: {"visual": text, "audio": text}}`.

Besides the two captions, a row of the Parquet file contains their provenance and the text that a model generated
(`*_generated`), which differs from a caption that was edited by hand.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caeav_hf.constants import MODALITIES
from caeav_hf.errors import DataError

from ..files import atomic_write


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
        DataError: It is not a Parquet file with text columns `clip`, `visual_caption` and `audio_caption`, or contains
            a clip twice.
    """
    expected = f"{path}: expected a Parquet file with text columns clip, visual_caption and audio_caption"
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such caption file") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{expected} ({error})") from error
    if missing := {"clip", "visual_caption", "audio_caption"} - set(table.column_names):
        raise DataError(f"{expected}; it lacks {', '.join(sorted(missing))}")
    known = set(CAPTION_SCHEMA.names)
    extra = [field for field in table.schema if field.name not in known]
    try:
        columns = {
            field.name: table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in CAPTION_SCHEMA
        }
    except pa.ArrowException as error:
        raise DataError(f"{expected} ({error})") from error
    schema = pa.schema([*CAPTION_SCHEMA, *extra])
    table = pa.table({**columns, **{field.name: table[field.name] for field in extra}}, schema=schema)
    rows: dict[str, CaptionRow] = {}
    for row in table.to_pylist():
        if not row["clip"]:
            raise DataError(f"{path}: a row has no `clip`; expected the name of its clip")
        if row["clip"] in rows:
            raise DataError(f"{path}: {row['clip']!r} is there twice")
        rows[row["clip"]] = row
    return rows, schema


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
    if not path.is_file():
        raise DataError(f"{path}: no such caption file")
    if path.suffix == ".parquet":
        rows, _ = read_caption_rows(path)
        return {clip: {m: row[f"{m}_caption"] or None for m in MODALITIES} for clip, row in rows.items()}
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    expected = f'{path}: expected {{clip: {{"visual": text, "audio": text}}}}'
    if not isinstance(captions, dict):
        raise DataError(f"{expected}, got a {type(captions).__name__}")
    for clip, caption in captions.items():
        if not isinstance(caption, dict) or not all(isinstance(caption.get(m), str | None) for m in MODALITIES):
            raise DataError(f"{expected}, got {caption!r} for {clip}")
    return captions
