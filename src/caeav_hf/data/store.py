"""
What is made once, clip by clip, and survives a kill: one claim, one atomic write, one way to continue.

A process claims the folder, or the file, that it writes to (`claim`), and a folder keeps the settings of what is in it
(`keep_settings`). Files get their names when they are complete (`atomic_write`), so what has its name need not be made
again. Results that are too small for a file each are lines of a `Journal` first. `write_shards` writes the Parquet
shards of a data set:

    <out>/data/           a complete set, that of the last run that got to its end
    <out>/.unfinished/    shards of a run that has not got there; `datasets` does not see hidden folders
    <out>/.replaced/      the earlier set, for an instant, while the new one takes its place

The footer of a shard holds the fingerprint of what it was made from, so the next run knows which shards it need not
write again, without any other file that could disagree. Sets are replaced by renaming folders: a reader sees one set
or the other, or, for an instant, none.
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

from .schema import SPLITS


_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet(\.part)?")
_FINGERPRINT_KEY = b"caeav_hf.fingerprint"
_NOTE_KEY = b"caeav_hf.note"
# Prepared shards of version 0.1.0 have their fingerprint, as `identity`, and their note under one key.
_OLD_NOTE_KEY = b"caeav_hf.prepare"


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """
    Keep other processes from writing to a folder or a file until the block ends.

    Args:
        path: A folder that exists, or the name of a file, whose folder is made where it does not exist.

    Raises:
        DataError: Another process has claimed it, or it cannot be written.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f"{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The operating system takes the lock from a process that dies.
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
    Note in `settings.json` what the results in a folder are made with.

    Args:
        folder: A folder that this process has claimed.
        settings: In types that JSON knows.
        results: Pattern of the files of results.

    Raises:
        DataError: The folder has results of other settings, or some without a note.
    """
    path = folder / "settings.json"
    if not path.is_file():
        if any(folder.glob(results)):
            raise DataError(f"{folder}: has {results}, but no settings.json that says how they were made")
        write_json(path, settings)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    if there != settings:
        names = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        raise DataError(f"{folder}: was made with other settings ({', '.join(names)}; see {path}); use another folder")


@contextmanager
def atomic_write(path: Path, *, is_cache: bool = False) -> Iterator[Path]:
    """
    Write a file whole or not at all: to the path that the block gets. A reader sees the old or the new one.

    Args:
        is_cache: Whether several processes may write the same file at a time, of which the last one wins. It is not
            brought to the disk before it gets its name.
    """
    partial_path = path.with_name(f"{path.name}.{os.getpid()}.part" if is_cache else f"{path.name}.part")
    try:
        yield partial_path
        if not is_cache:
            with partial_path.open("rb+") as file:
                os.fsync(file.fileno())
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise
    partial_path.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    with atomic_write(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class Journal:
    """
    A file of JSON lines, each of which is on the disk before `append` returns.

    Args:
        path: The file.
        keys: Those that each record has.
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
        Read the records. A last line that was cut off by a kill is passed over.

        Raises:
            DataError: Another line is no such record.
        """
        if not self.path.is_file():
            return
        *lines, _cut_off = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
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
        name: Of its file.
        fingerprint: Stands for everything that it is made from.
        schema: Its columns.
        tables: Makes its rows, a row group at a time.
        note: What `tables` finds out, in types that JSON knows; kept in the shard, and read from one that is there.
    """

    name: str
    fingerprint: str
    schema: pa.Schema
    tables: Callable[[], Iterator[pa.Table]]
    note: dict[str, Any] = field(default_factory=dict)


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a shard; None for a file that is no complete shard."""
    return _read_footer(path)[0]


def write_shards(
    out: Path, shards: Sequence[Shard], num_threads: int, before_replacing: Callable[[], None], **options: Any
) -> int:
    """
    Make `<out>/data` hold these shards and no others; files that are no shards stay there.

    Args:
        out: Folder of the data set, claimed by this process.
        shards: All shards of the set.
        num_threads: Shards that are written at the same time; one is written in the thread that calls.
        before_replacing: Called when all shards are complete, before they take the place of others.
        options: Of `pyarrow.parquet.ParquetWriter`.

    Returns:
        How many had to be written; the others were there already.
    """
    data, unfinished, replaced = out / "data", out / ".unfinished", out / ".replaced"
    _finish_replacing(data, replaced)
    wanted = {shard.name: shard.fingerprint for shard in shards}
    there = {name: read_fingerprint(data / name) for name in _shard_names(data)}
    if there == wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        for shard in shards:
            shard.note.update(_read_footer(data / shard.name)[1])
        return 0
    unfinished.mkdir(parents=True, exist_ok=True)
    for path in unfinished.iterdir():
        if path.name not in wanted or read_fingerprint(path) != wanted[path.name]:
            path.unlink()
    complete = {fingerprint: data / name for name, fingerprint in there.items()}
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
            # Whichever fails first, the rest is not begun.
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
    """The fingerprint and the note of a shard."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        if _OLD_NOTE_KEY in metadata:
            note = json.loads(metadata[_OLD_NOTE_KEY])
            return note.pop("identity"), note
        return metadata.get(_FINGERPRINT_KEY, b"").decode() or None, json.loads(metadata.get(_NOTE_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None, {}


def _finish_replacing(data: Path, replaced: Path) -> None:
    """Clear up after the set was replaced, or, if a run was killed in the middle of that, go back."""
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
    """The same file under another name; a copy where the disk has no such thing."""
    with suppress(OSError):
        os.link(source, target)
        return
    with atomic_write(target) as partial_path:
        shutil.copyfile(source, partial_path)
