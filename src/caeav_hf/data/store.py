"""
Storage of results that are computed once, clip by clip, and that survive a killed process.

A process claims the folder or file that it writes to (`claim`), and a folder records the settings of its results
(`keep_settings`). Files get their final names when they are complete (`files.atomic_write`), so existing files are not
computed again. Results too small for their own file are collected as lines of a `Journal`. `write_shards` writes the
Parquet shards of a data set:

    <out>/data/           the complete set of the last finished run
    <out>/.unfinished/    shards of an unfinished run; `datasets` ignores hidden folders
    <out>/.replaced/      the previous set, for the moment in which it is replaced

The footer of a shard holds the fingerprint of its sources, by which the next run recognises shards that it need not
write again; no other file could contradict it. Sets are replaced by renaming folders, so a reader sees the old or the
new set or, for a moment, none.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from caeav_hf.errors import DataError

from ..files import atomic_write, make_folder, parse_json, read_bytes, write_json
from .schema import SPLITS


_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet(\.part)?")
_FINGERPRINT_KEY = b"caeav_hf.fingerprint"
_NOTE_KEY = b"caeav_hf.note"
# In prepared shards of version 0.1.0 this key holds the note and the fingerprint (as `identity`).
_OLD_NOTE_KEY = b"caeav_hf.prepare"


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """
    Keep other processes from writing to a folder or a file until the block ends.

    Args:
        path: An existing folder, or a file, whose folder is created if necessary.

    Raises:
        DataError: Another process has claimed it, or it cannot be written.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock of a process that dies.
        claimed = filelock.FileLock(lock)
        claimed.acquire(timeout=0)
    except filelock.Timeout as error:
        raise DataError(f"{path}: another process is writing there; expected one at a time") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    try:
        yield
    finally:
        claimed.release()


def keep_settings(folder: Path, settings: Mapping[str, Any], results: str) -> None:
    """
    Record the settings of a folder's results in `settings.json`.

    Args:
        folder: A folder that this process has claimed.
        settings: Settings as JSON types.
        results: Pattern of the result files.

    Raises:
        DataError: The folder has results of other settings, or results without `settings.json`.
    """
    path = folder / "settings.json"
    if not path.is_file():
        if any(folder.glob(results)):
            raise DataError(f"{folder}: has {results}, but no settings.json that says how they were made")
        write_json(path, settings)
        return
    content = read_bytes(path, "file of settings")
    try:
        stored = parse_json(content.decode())
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(stored, dict):
        raise DataError(f"{path}: expected a JSON object, got a {type(stored).__name__}")
    if stored != settings:
        names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
        raise DataError(f"{folder}: was made with other settings ({', '.join(names)}; see {path}); use another folder")


class Journal:
    """
    A file of JSON lines, each of which is written to the disk before `append` returns.

    Args:
        path: The file.
        keys: Keys that every record has.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, keys
        self._file: IO[bytes] | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """
        Yield the records. An incomplete last line, left by a killed process, is ignored.

        Raises:
            DataError: Another line is not a valid record.
        """
        if not self.path.is_file():
            return
        *lines, _incomplete = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = parse_json(line)
                if not record.keys() >= set(self.keys):
                    raise ValueError("keys are missing")
            except (ValueError, AttributeError) as error:
                raise DataError(f"{self.path}:{number}: expected a JSON object with {', '.join(self.keys)}") from error
            yield record

    def clear(self) -> None:
        """Remove the records."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file until the next record."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True)
class Shard:
    """
    A shard of a data set.

    Args:
        name: Name of the file.
        fingerprint: Identifies everything that the shard is made from.
        schema: Columns of the shard.
        tables: Yields the rows as row groups.
        note: Results of `tables` besides rows, as JSON types; stored in the shard, and read from existing shards.
    """

    name: str
    fingerprint: str
    schema: pa.Schema
    tables: Callable[[], Iterator[pa.Table]]
    note: dict[str, Any] = field(default_factory=dict)


def read_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of a shard, or `None` for a file that is not a complete shard."""
    return _read_footer(path)[0]


def write_shards(
    out: Path, shards: Sequence[Shard], num_threads: int, before_replacing: Callable[[], None], **options: Any
) -> int:
    """
    Make `<out>/data` contain exactly these shards; files that are not shards stay there.

    Args:
        out: Folder of the data set, claimed by this process.
        shards: All shards of the set.
        num_threads: Number of shards to write in parallel; with 1 they are written in the calling thread.
        before_replacing: Called when all shards are complete, before they replace others.
        options: Options of `pyarrow.parquet.ParquetWriter`.

    Returns:
        The number of shards that were written; the others existed already.
    """
    data, unfinished, replaced = out / "data", out / ".unfinished", out / ".replaced"
    _finish_replacing(data, replaced)
    wanted = {shard.name: shard.fingerprint for shard in shards}
    existing = {name: read_fingerprint(data / name) for name in _shard_names(data)}
    if existing == wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        for shard in shards:
            shard.note.update(_read_footer(data / shard.name)[1])
        return 0
    make_folder(unfinished)
    for path in unfinished.iterdir():
        if path.name not in wanted or read_fingerprint(path) != wanted[path.name]:
            path.unlink()
    complete = {fingerprint: data / name for name, fingerprint in existing.items()}
    missing = []
    for shard in shards:
        path = unfinished / shard.name
        if not path.exists() and shard.fingerprint in complete:
            _link(complete[shard.fingerprint], path)
        if path.exists():
            shard.note.update(_read_footer(path)[1])
        else:
            missing.append(shard)

    if num_threads == 1:
        for shard in missing:
            _write(unfinished, shard, options)
    else:
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            # After the first failure, pending shards are cancelled.
            tasks = [pool.submit(_write, unfinished, shard, options) for shard in missing]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    before_replacing()
    if data.exists():
        data.rename(replaced)
    unfinished.rename(data)
    _finish_replacing(data, replaced)
    return len(missing)


def _write(folder: Path, shard: Shard, options: Mapping[str, Any]) -> None:
    with (
        atomic_write(folder / shard.name) as partial_path,
        pq.ParquetWriter(partial_path, shard.schema, **options) as writer,
    ):
        for table in shard.tables():
            writer.write_table(table)
        writer.add_key_value_metadata({_FINGERPRINT_KEY: shard.fingerprint})
        if shard.note:
            writer.add_key_value_metadata({_NOTE_KEY: json.dumps(shard.note)})


def _read_footer(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the fingerprint and the note of a shard."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        if _OLD_NOTE_KEY in metadata:
            note = dict(parse_json(metadata[_OLD_NOTE_KEY]))
            return note.pop("identity"), note
        return metadata.get(_FINGERPRINT_KEY, b"").decode() or None, dict(parse_json(metadata.get(_NOTE_KEY, b"{}")))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None, {}


def _finish_replacing(data: Path, replaced: Path) -> None:
    """Clean up after a replacement, or undo one that was interrupted by a kill."""
    if not replaced.exists():
        return
    if not data.exists():
        replaced.rename(data)
        return
    for path in replaced.iterdir():
        if _SHARD_NAME.fullmatch(path.name):
            path.unlink()
        elif not (data / path.name).exists():
            path.rename(data / path.name)
    shutil.rmtree(replaced)


def _shard_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name)] if folder.is_dir() else []


def _link(source: Path, target: Path) -> None:
    """Create a hard link, or a copy if the file system does not support links."""
    with suppress(OSError):
        os.link(source, target)
        return
    with atomic_write(target) as partial_path:
        shutil.copyfile(source, partial_path)
