"""
The caption file while it grows: a Parquet file beside an append-only journal (`data.store.Journal`).

Every clip that was captioned is a record of the journal, on the disk before the next one. From time to time, and at
the beginning and the end of a job, the journal's records are put into the Parquet file, which is replaced in one step,
and only then the journal is emptied. A job may end at any moment: a record that is in the Parquet file already changes
nothing when it is put there once more.

Captions that somebody has edited are read anew each time and are never written over.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from ..constants import MODALITIES
from ..data.caption_file import (
    CAPTION_SCHEMA,
    CaptionRow,
    is_edited,
    is_missing,
    read_caption_rows,
    write_caption_rows,
)
from ..data.store import Journal, claim
from ..errors import CaeAvError


PROVENANCE = ("model", "prompt_version", "settings")


class CaptionTable:
    """
    The rows of a caption file, open for writing by one process at a time.

    Args:
        path: The Parquet file; it need not exist.

    Raises:
        CaeAvError: Another job is writing it (on entering), it cannot be written, or has another suffix.
        DataError: It is no caption file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if self.path.suffix != ".parquet":
            raise CaeAvError(f"{path}: expected the name of a .parquet file")
        self.journal = Journal(
            self.path.with_name(f"{self.path.name}.journal"), ("clip", "file", "captions", *PROVENANCE)
        )
        self.rows: dict[str, CaptionRow] = {}
        self._claim = ExitStack()

    def __enter__(self) -> "CaptionTable":
        with ExitStack() as stack:
            stack.enter_context(claim(self.path))
            self.compact()
            self._claim = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._claim:
            self.compact()

    def missing(self, clip: str, provenance: Mapping[str, str] | None = None) -> list[str]:
        """
        The modalities of a clip that want a caption: where there is none and nobody took it out.

        Args:
            clip: Its name.
            provenance: If given, also those whose caption nobody has edited and that comes from elsewhere.
        """
        row = self.rows.get(clip, {})
        other = provenance is not None and any(row.get(name) != provenance[name] for name in PROVENANCE)
        return [m for m in MODALITIES if is_missing(row, m) or (other and not is_edited(row, m))]

    def record(self, clip: str, file: str, captions: Mapping[str, str], provenance: Mapping[str, str]) -> None:
        """
        Keeps captions of a clip; when this returns they are on the disk.

        Args:
            clip: Its name.
            file: Where it is.
            captions: By modality.
            provenance: `model`, `prompt_version` and `settings`.
        """
        record = {"clip": clip, "file": file, "captions": dict(captions), **provenance}
        self.journal.append(record)
        _apply(self.rows, record)

    def compact(self) -> None:
        """Reads the Parquet file as it is now, puts the journal's captions into it, and empties the journal."""
        self.journal.close()
        rows, schema = read_caption_rows(self.path) if self.path.is_file() else ({}, CAPTION_SCHEMA)
        records = list(self.journal.records())
        for record in records:
            _apply(rows, record)
        if records:
            write_caption_rows(self.path, list(rows.values()), schema)
        self.journal.clear()
        self.rows = rows


def _apply(rows: dict[str, CaptionRow], record: Mapping[str, Any]) -> None:
    row = rows.setdefault(record["clip"], {"clip": record["clip"]})
    written = {m: text for m, text in record["captions"].items() if m in MODALITIES and not is_edited(row, m)}
    for modality, text in written.items():
        row[f"{modality}_caption"] = row[f"{modality}_generated"] = text
    if written:
        row.update({name: record[name] for name in ("file", *PROVENANCE)})
