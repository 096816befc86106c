"""
The caption file of a running job: a Parquet file and an append-only journal (`data.store.Journal`).

The captions of each clip are appended to the journal, which is written to the disk immediately. From time to time, and
at the start and the end of a job, the journal is merged into the Parquet file, which is replaced atomically before the
journal is cleared. A job may be killed at any moment, since merging a record twice has no effect.

Captions that were edited by hand are read again before each merge and never overwritten.
"""

import os
from collections.abc import Mapping, Sequence
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
from ..errors import CaeAvError, DataError


PROVENANCE = ("model", "prompt_version", "settings")


class CaptionTable:
    """
    Rows of a caption file, which one process at a time may write.

    Args:
        path: The Parquet file; it need not exist.

    Raises:
        CaeAvError: Another job is writing the file (on entering), it cannot be written, or has a wrong suffix.
        DataError: It is not a caption file.
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

    def missing(
        self, clip: str, provenance: Mapping[str, str] | None = None, modalities: Sequence[str] = MODALITIES
    ) -> list[str]:
        """
        Return the modalities of a clip without a caption, except where it was removed by hand.

        Args:
            clip: Name of the clip.
            provenance: If given, also return modalities whose caption has another provenance and was not edited.
            modalities: Modalities to look at.
        """
        row = self.rows.get(clip, {})
        other = provenance is not None and any(row.get(name) != provenance[name] for name in PROVENANCE)
        return [m for m in modalities if is_missing(row, m) or (other and not is_edited(row, m))]

    def record(self, clip: str, file: str, captions: Mapping[str, str], provenance: Mapping[str, str]) -> None:
        """
        Record captions of a clip; they are on the disk when this returns.

        Args:
            clip: Name of the clip.
            file: Path of the clip.
            captions: Captions by modality.
            provenance: `model`, `prompt_version` and `settings`.
        """
        record = {"clip": clip, "file": file, "captions": dict(captions), **provenance}
        self.journal.append(record)
        _apply(self.rows, record)

    def compact(self) -> None:
        """Read the Parquet file, merge the journal into it, and clear the journal."""
        self.journal.close()
        rows, schema = read_caption_rows(self.path) if self.path.is_file() else ({}, CAPTION_SCHEMA)
        records = list(self.journal.records())
        for number, record in enumerate(records, 1):
            captions = record["captions"]
            texts = [record["clip"], *(captions.values() if isinstance(captions, dict) else [None])]
            if not all(isinstance(text, str) for text in texts) or not all(
                isinstance(record[name], str | None) for name in ("file", *PROVENANCE)
            ):
                raise DataError(f"{self.journal.path}:{number}: expected texts, got {record}")
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
