"""
Files and folders that are written completely or not at all, folders for temporary files, and text files that are
read within limits.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CaeAvError, DataError


# Most bytes of a text file that is read whole: twice those of AudioSet's list of segments, the largest known one.
# Parsed JSON may take 25 times as much.
MAX_TEXT_BYTES = 200_000_000
# Messages of libraries that hide the operating system's error: safetensors and PyTorch's zip writer.
_HIDDEN = re.compile(r"\(os error \d+\)|inline_container\.cc|PytorchStreamWriter|cannot be opened")


class WriteError(CaeAvError, OSError):
    """
    A file or folder, `filename`, cannot be written.

    Args:
        message: What is wrong; it begins with the path.
        path: The file or folder.
    """

    def __init__(self, message: str, path: str | os.PathLike | None = None) -> None:
        super().__init__(message)
        self.filename = None if path is None else os.fspath(path)

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """
    Raises:
        WriteError: The block raised another error of the operating system; the message begins with `path`.
    """
    try:
        yield
    except CaeAvError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and _HIDDEN.search(str(error)) is None:
            raise
        raise WriteError(f"{path}: cannot be written: {error}", path) from error


def make_folder(path: Path) -> None:
    """Create a folder and those above it, unless they exist; raise a [`WriteError`] if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be created as a folder: {error}", path) from error


@contextmanager
def atomic_write(path: Path, *, is_cache: bool = False) -> Iterator[Path]:
    """
    Write a file completely or not at all. The block writes to the path that it gets; readers see the old or the new
    file.

    Args:
        path: The file.
        is_cache: Whether the file can be made again at any time. Several processes may then write it at the same time,
            where the last one wins, and it is not synchronised to the disk. See [`remove_leftovers`].

    Raises:
        WriteError: The block, or replacing the file, raised an `OSError`.
    """
    partial_path = path.with_name(f"{path.name}.{os.getpid()}.part" if is_cache else f"{path.name}.part")
    with writing(path):
        held = _hold(partial_path, create=True) if is_cache else None
        try:
            yield partial_path
            if not is_cache:
                with partial_path.open("rb+") as file:
                    os.fsync(file.fileno())
            partial_path.replace(path)
        except BaseException:
            with suppress(OSError):
                partial_path.unlink()
            raise
        finally:
            if held is not None:
                os.close(held)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of the caches that they were writing in a folder."""
    for path in folder.glob("*.part"):
        if (held := _hold(path)) is not None:
            with suppress(OSError):
                path.unlink()
            os.close(held)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """
    Write the folder of a model. The block writes to the folder that it gets. A new folder appears with all its files;
    in one that exists each file is replaced at once, and while they are of different models there is no `config.json`.
    Other files in it stay, except for weights.

    Raises:
        WriteError: The block, or replacing a file, raised an `OSError`.
    """
    partial, config = path.with_name(f".{path.name}.part"), "config.json"
    with writing(path):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        try:
            partial.mkdir(parents=True)
            yield partial
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            if not path.exists():
                partial.replace(path)
                return
            (path / config).unlink(missing_ok=True)
            files = sorted(file.relative_to(partial) for file in partial.rglob("*") if file.is_file())
            for old in path.glob("model*.safetensors*"):
                if old.relative_to(path) not in files:
                    old.unlink()
            for file in sorted(files, key=lambda file: file.name == config):
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).replace(path / file)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """
    Create a folder for temporary files that is removed after the block, or, where the process is killed, before the
    next such folder is created.

    Args:
        prefix: Beginning of the folder's name, which nothing else uses.
    """
    place = Path(tempfile.gettempdir())
    for path in place.glob(f"{prefix}*"):
        if (held := _hold(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)
    with writing(place):
        folder = Path(tempfile.mkdtemp(prefix=prefix))
    held = _hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _hold(path: Path, *, create: bool = False) -> int | None:
    """
    Lock a file or a folder; return what to close to release it, or `None` if another process holds it, or if it is
    another user's. The operating system releases the locks of a process that dies. Windows, whose locks keep others
    from writing too, has none.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY | os.O_NOFOLLOW, 0o666)
    except OSError:
        if create:
            raise
        return None
    try:
        if os.fstat(held).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


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
