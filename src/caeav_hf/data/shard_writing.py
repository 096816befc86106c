"""
Writing of shards so that a build may be killed at any moment and goes on where it stopped.

    <out>/data/           a complete set, that of the last build that got to its end
    <out>/.unfinished/    shards of a build that has not got there; `datasets` does not see hidden folders
    <out>/.replaced/      the earlier set, for an instant, while the new one takes its place

A shard is written under a passing name and gets its own when it is complete. Its footer holds the fingerprint of what
it was made from, so the next build knows which shards it need not write again, without any other file that could
disagree. Sets are replaced by renaming folders: whoever looks sees one set or the other, or, for an instant, none.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .schema import SPLITS


_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet(\.part)?")
_FINGERPRINT_KEY = b"caeav_hf.fingerprint"


@dataclass(frozen=True)
class Shard:
    """
    A shard that is to be there.

    Args:
        name: Of its file.
        fingerprint: Stands for everything that it is made from.
        tables: Makes its rows, a group at a time.
    """

    name: str
    fingerprint: str
    tables: Callable[[], Iterator[pa.Table]]


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a shard; None for a file that is no complete shard of a builder."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata.get(_FINGERPRINT_KEY, b"").decode() or None


def write_shards(
    out: Path, schema: pa.Schema, shards: Sequence[Shard], num_threads: int, before_replacing: Callable[[], None]
) -> int:
    """
    Makes `<out>/data` hold these shards and no others; files that are no shards stay there.

    Args:
        out: Folder of the data set.
        schema: Columns of the shards.
        shards: All shards of the set.
        num_threads: Shards that are written at the same time.
        before_replacing: Called when all shards are complete, before they take the place of others.

    Returns:
        How many had to be written; the others were there already.
    """
    data, unfinished, replaced = out / "data", out / ".unfinished", out / ".replaced"
    _finish_replacing(data, replaced)
    wanted = {shard.name: shard.fingerprint for shard in shards}
    there = {name: read_fingerprint(data / name) for name in _shard_names(data)}
    if there == wanted:
        shutil.rmtree(unfinished, ignore_errors=True)
        return 0
    unfinished.mkdir(parents=True, exist_ok=True)
    for path in unfinished.iterdir():
        if path.name not in wanted or read_fingerprint(path) != wanted[path.name]:
            path.unlink()
    complete = {fingerprint: data / name for name, fingerprint in there.items()}
    missing = []
    for shard in shards:
        if (unfinished / shard.name).exists():
            continue
        if shard.fingerprint in complete:
            _link(complete[shard.fingerprint], unfinished / shard.name)
        else:
            missing.append(shard)

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        # Whichever fails first, the rest is not begun.
        tasks = [pool.submit(_write, unfinished, schema, shard) for shard in missing]
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


def _write(folder: Path, schema: pa.Schema, shard: Shard) -> None:
    partial_path = folder / f"{shard.name}.part"
    with partial_path.open("wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            for table in shard.tables():
                writer.write_table(table)
            writer.add_key_value_metadata({_FINGERPRINT_KEY: shard.fingerprint.encode()})
        file.flush()
        os.fsync(file.fileno())
    partial_path.rename(folder / shard.name)


def _finish_replacing(data: Path, replaced: Path) -> None:
    """Clears up after the set was replaced, or, if a build was killed in the middle of that, goes back."""
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
    partial_path = target.with_name(f"{target.name}.part")
    with suppress(OSError):
        os.link(source, partial_path)
    if not partial_path.exists():
        shutil.copyfile(source, partial_path)
    partial_path.rename(target)
