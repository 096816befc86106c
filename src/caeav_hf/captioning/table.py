"""
The caption file while it grows: a Parquet file beside an append-only journal.

Every clip that was captioned is a line of the journal, on the disk before the next one. From time to time, and at the
beginning and the end of a job, the journal's lines are put into the Parquet file, which is replaced in one step, and
only then the journal is emptied. A job may end at any moment: a line that was written half is passed over, and a line
that is in the Parquet file already changes nothing when it is put there once more.

Captions that somebody has edited are read anew each time and are never written over.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import filelock

from ..constants import MODALITIES
from ..data.caption_file import (
    CAPTION_SCHEMA,
    CaptionRow,
    is_edited,
    is_missing,
    read_caption_rows,
    write_caption_rows,
)
from ..errors import CaeAvError, DataError


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
        self.journal = self.path.with_name(f"{self.path.name}.journal")
        self.rows: dict[str, CaptionRow] = {}
        self._lock = filelock.FileLock(self.path.with_name(f"{self.path.name}.lock"))
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "CaptionTable":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise CaeAvError(f"{self.path}: another job is writing captions there; wait for its end") from error
        except OSError as error:
            raise CaeAvError(f"{self.path}: cannot be written: {error}") from error
        try:
            self.compact()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.compact()
        finally:
            self._lock.release()

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
        if self._file is None:
            self._file = self.journal.open("ab")
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        _apply(self.rows, record)

    def compact(self) -> None:
        """Reads the Parquet file as it is now, puts the journal's captions into it, and empties the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None
        rows, schema = read_caption_rows(self.path) if self.path.is_file() else ({}, CAPTION_SCHEMA)
        records = list(self._journal_records())
        for record in records:
            _apply(rows, record)
        if records:
            write_caption_rows(self.path, list(rows.values()), schema)
        self.journal.unlink(missing_ok=True)
        self.rows = rows

    def _journal_records(self) -> Iterable[dict[str, Any]]:
        if not self.journal.is_file():
            return
        *lines, _cut_off = self.journal.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not {"clip", "file", "captions", *PROVENANCE} <= record.keys():
                    raise ValueError("not a caption")
            except (ValueError, AttributeError) as error:
                raise DataError(f"{self.journal}:{number}: expected a caption that this program wrote") from error
            yield record


def _apply(rows: dict[str, CaptionRow], record: Mapping[str, Any]) -> None:
    row = rows.setdefault(record["clip"], {"clip": record["clip"]})
    written = {m: text for m, text in record["captions"].items() if m in MODALITIES and not is_edited(row, m)}
    for modality, text in written.items():
        row[f"{modality}_caption"] = row[f"{modality}_generated"] = text
    if written:
        row.update({name: record[name] for name in ("file", *PROVENANCE)})
