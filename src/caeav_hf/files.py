"""Files that are written completely or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, is_cache: bool = False) -> Iterator[Path]:
    """
    Write a file completely or not at all. The block writes to the path that it gets; readers see the old or the new
    file.

    Args:
        path: The file.
        is_cache: Whether the file can be made again at any time. Several processes may then write it at the same time,
            where the last one wins, and it is not synchronised to the disk.
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
