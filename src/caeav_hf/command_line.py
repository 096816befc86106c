"""
Shared by all commands: report misspelled flags, Ctrl-C and a full disk in one line that says what to do next, and
print nothing that a terminal acts on.
"""

import argparse
import ctypes
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .errors import CaeAvError, printable


DEBUG_VARIABLE = "CAEAV_DEBUG"
INTERRUPTED = 130  # exit code of interrupted commands in shells
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Messages of libraries that hide the operating system's error: safetensors, NumPy's `tofile`, PyTorch's zip writer.
_FULL_TEXTS = re.compile(
    r"No space left on device|Not enough disk space|Disk quota exceeded|\d+ requested and \d+ written"
    r"|inline_container\.cc.*(unexpected pos|failed writing)"
)


class ArgumentParser(argparse.ArgumentParser):
    """A parser without abbreviated flags that suggests the nearest known flag or command for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Checked first: a required flag that seems to be missing is often misspelled.
        self._reject_unknown(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def _reject_unknown(self, arguments: Sequence[str]) -> None:
        commands = None if self._subparsers is None else self._subparsers._group_actions[0].choices
        for argument in arguments:
            if argument == "--":
                return
            flag = argument.partition("=")[0]
            # Like argparse, take negative numbers and texts with spaces for values, not flags.
            is_flag = re.match(r"--?[A-Za-z]", argument) is not None and " " not in flag
            if is_flag and flag not in self._option_string_actions:
                self._reject("flag", flag, list(self._option_string_actions))
            if not is_flag and commands is not None:
                if argument not in commands:
                    self._reject("command", argument, list(commands))
                return  # the rest belongs to the command

    def _reject(self, kind: str, given: str, known: Sequence[str]) -> NoReturn:
        nearest = difflib.get_close_matches(given, known, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"run `{self.prog} --help` for a list"
        self.exit(2, f"{self.prog}: error: unknown {kind} {given}; {advice}\n")


def tune_memory() -> None:
    """
    Make memory for tensors on a CPU quicker to get, as suits a process that does nothing else.

    PyTorch stores tensors of 2 MB and more in huge pages, aligned to pages, unless the environment variable
    `THP_MEM_ALLOC_ENABLE` is set; it reads it when it makes the first tensor. The alignment saves memory even where
    Linux offers no huge pages: glibc often finds no use for the gaps that tensors aligned to 64 bytes leave.

    glibc keeps what is freed, pieces of up to 32 MB, for what comes next, unless one of its own variables
    `MALLOC_..._` is set. Otherwise it gives memory back after each training step, and each page costs a fault in the
    next one.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    # Other C libraries have no such function, or one that does nothing.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        # The largest threshold that glibc would choose itself; setting the other one stops it from choosing.
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, -1)


def run_command(program: str, command: Callable[[], int], *, next_step: Callable[[], str], place: str | None) -> int:
    """
    Run a command; if it fails, print the reason in one line on standard error. What it prints, logs and raises is
    escaped so that names and texts cannot act on the terminal. Memory is tuned by [`tune_memory`].

    With the environment variable `CAEAV_DEBUG` set, exceptions of the command are raised instead.

    Args:
        program: Name at the beginning of the line.
        command: Function that returns the exit code.
        next_step: Returns an imperative sentence on what to do after the command was stopped.
        place: File or folder that the command writes, named as the full disk if the error names none.

    Returns:
        The command's exit code; 1 for a full disk, 2 for another error of the package, 130 for Ctrl-C.
    """
    tune_memory()
    with _safe_terminal():
        return _run(program, command, next_step, place)


def _run(program: str, command: Callable[[], int], next_step: Callable[[], str], place: str | None) -> int:
    try:
        return command()
    except KeyboardInterrupt:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        line, code = f"stopped; {next_step()}", INTERRUPTED
    except Exception as error:
        is_full = disk_is_full(error)
        is_known = isinstance(error, CaeAvError) or (isinstance(error, OSError) and error.filename is not None)
        if os.environ.get(DEBUG_VARIABLE) or not (is_full or is_known):
            raise
        if is_full:
            where = next((e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename), place)
            line = f"error: the disk with {where or 'the output'} is full; free some space, then {next_step()}"
            code = 1
        elif isinstance(error, CaeAvError):
            line, code = f"error: {error}", 2
        else:  # of the operating system, about a file
            line, code = f"error: {error.filename}: {error.strerror or error}", 2  # type: ignore[attr-defined]
    # Of several processes, only one reports it.
    if os.environ.get("LOCAL_RANK", "0") == "0" or code == 2:
        print(f"{program}: {printable(line)}", file=sys.stderr)
    return code


class _SafeStream:
    """A stream that escapes control characters, except those by which progress bars move the cursor."""

    # What tqdm writes by itself: lines down or up.
    _MOVES = re.compile(r"(\n|\x1b\[A)*\r?")

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._MOVES.fullmatch(text) is None:
            # A bar begins with a return to the start of its line.
            start = "\r" if text.startswith("\r") else ""
            text = start + printable(text[len(start) :], kept="\n\t")
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


@contextmanager
def _safe_terminal() -> Iterator[None]:
    """Escape what is printed. After an exception this stays so, since the interpreter prints it then."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not None and not isinstance(stream, _SafeStream):
            setattr(sys, name, _SafeStream(stream))
    yield
    sys.stdout, sys.stderr = before


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that a disk has no space left."""
    return any(
        (isinstance(e, OSError) and e.errno in _FULL) or _FULL_TEXTS.search(str(e)) is not None for e in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
