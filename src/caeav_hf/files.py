"""Files that are written completely or not at all, and text files that are read within limits."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError


# Most bytes of a text file that is read whole: twice those of AudioSet's list of segments, the largest known one.
# Parsed JSON may take 25 times as much.
MAX_TEXT_BYTES = 200_000_000


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
    """Write a UTF-8 text file, atomically. Names of files that are not Unicode are written with escapes."""
    with atomic_write(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_bytes(path: Path, what: str) -> bytes:
    """
    Read a text file of a user's.

    Args:
        path: The file.
        what: What it is, for errors, such as "annotation file".

    Raises:
        DataError: There is no such file, it cannot be read, or it is larger than `MAX_TEXT_BYTES`.
    """
    try:
        if not os.path.isfile(path):  # a device or a pipe may have no end
            raise DataError(f"{path}: {'is no' if os.path.exists(path) else 'no such'} {what}")
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as {what} ({error.strerror or error})") from error
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"{path}: is larger than {MAX_TEXT_BYTES / 1e6:g} MB; expected a smaller {what}")
    return content


def parse_json(text: str | bytes, **options: Any) -> Any:
    """
    Parse JSON as `json.loads` does.

    Raises:
        ValueError: It is no JSON, nests too deeply, or has a text that is not Unicode: half of a surrogate pair.
    """
    try:
        value = json.loads(text, **options)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("a text has half of a surrogate pair, which is no character") from error
    return value
