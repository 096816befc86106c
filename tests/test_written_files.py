"""Files and folders appear whole or not at all, errors name them, and what killed processes leave is removed."""

import errno
import os
import pickle
import signal
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from caeav_hf.files import (
    WriteError,
    atomic_folder,
    atomic_write,
    make_folder,
    remove_leftovers,
    scratch_folder,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def kill_within(context: AbstractContextManager[Path], name: str = "") -> None:
    """Write a file in a process that is killed before the end of the context."""
    if not (child := os.fork()):
        try:
            with context as path:
                (path / name if name else path).write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("is_cache", [False, True])
def test_an_error_names_the_file(tmp_path, is_cache):
    path = tmp_path / "no folder" / "file"
    with (
        pytest.raises(WriteError, match=r"^.*file: cannot be written: .*No such file") as caught,
        atomic_write(path, is_cache=is_cache) as partial,
    ):
        partial.write_text("text")
    assert caught.value.filename == str(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    write_text(tmp_path / "file", "")
    with pytest.raises(WriteError, match=r"^.*file/below: cannot be created as a folder"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
        OSError("Not enough disk space. Needed: 2 GB"),
    ],
)
def test_errors_that_libraries_hide_name_the_file_too(error):
    with pytest.raises(WriteError, match=r"^file: cannot be written: "), writing("file"):
        raise error


def test_other_errors_stay():
    with pytest.raises(ZeroDivisionError), writing("file"):
        raise ZeroDivisionError


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "old")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"file: cannot be written: .*No space left"):
        write_text(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def write_model(folder: Path, text: str, *more: str, error: BaseException | None = None) -> None:
    for name in ("config.json", "model.safetensors", *more):
        (folder / name).write_text(text)
    if error is not None:
        raise error


def test_a_new_folder_appears_with_all_files(tmp_path):
    out = tmp_path / "below" / "model"
    with pytest.raises(KeyboardInterrupt), atomic_folder(out) as folder:
        write_model(folder, "half", error=KeyboardInterrupt())
    assert names(tmp_path) == ["below"]
    out.mkdir()  # an empty one is new too
    kill_within(atomic_folder(out), "config.json")
    assert not names(out)
    with atomic_folder(out) as folder:
        write_model(folder, "whole")
        assert not names(out)
    assert names(tmp_path) == ["below", "below/model", "below/model/config.json", "below/model/model.safetensors"]
    assert (out / "config.json").read_text() == "whole"


def test_files_of_an_existing_folder_are_replaced(tmp_path, monkeypatch):
    out = tmp_path / "model"
    out.mkdir()
    write_model(out, "old", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt")
    with pytest.raises(WriteError, match="model: cannot be written"), atomic_folder(out) as folder:
        write_model(folder, "half", error=OSError(errno.ENOSPC, "No space left on device"))
    assert len(names(out)) == 5
    replace, seen = Path.replace, []

    def watched(path: Path, target: Path) -> None:
        seen.append((target.name, (out / "config.json").exists()))
        replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    with atomic_folder(out) as folder:
        write_model(folder, "new")
    # While weights are replaced, there is no configuration that they would not belong to.
    assert seen == [("model.safetensors", False), ("config.json", False)]
    assert names(out) == ["config.json", "model.safetensors", "notes.txt"]
    assert (out / "notes.txt").read_text() == "old"
    assert names(tmp_path)[0] == "model"


def test_what_a_killed_process_left_of_a_cache_is_removed(tmp_path):
    kill_within(atomic_write(tmp_path / "dead", is_cache=True))
    assert len(names(tmp_path)) == 1
    with atomic_write(tmp_path / "alive", is_cache=True) as partial:
        partial.write_text("whole")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [partial.name]
    assert names(tmp_path) == ["alive"]


def test_a_folder_for_temporary_files_does_not_outlive_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    kill_within(scratch_folder("test-"), "file")
    assert len(names(tmp_path)) == 3
    with scratch_folder("test-") as first, scratch_folder("test-") as second:
        assert names(tmp_path) == sorted([first.name, second.name, "other"])
    assert names(tmp_path) == ["other"]
