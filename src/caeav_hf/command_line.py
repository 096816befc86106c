"""What all command lines share: misspelled flags, Ctrl-C and a full disk end in one line that says what to do next."""

import argparse
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from .errors import CaeAvError


DEBUG_VARIABLE = "CAEAV_DEBUG"
INTERRUPTED = 130  # as shells have it for an interrupted command
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries that hide the operating system's error say that less was written than they wanted: the safetensors,
# NumPy's `tofile`, PyTorch's zip writer.
_FULL_TEXTS = re.compile(
    r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written"
    r"|inline_container\.cc.*(unexpected pos|failed writing)"
)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that takes no abbreviated flags and answers an unknown flag or command with the nearest known one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Before anything else, since a flag that is missing is often the one that is misspelled.
        self._refuse_unknown(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        commands = None if self._subparsers is None else self._subparsers._group_actions[0].choices
        for argument in arguments:
            if argument == "--":
                return
            flag = argument.partition("=")[0]
            # As argparse tells flags from values, among which are negative numbers and texts.
            is_flag = re.match(r"--?[A-Za-z]", argument) is not None and " " not in flag
            if is_flag and flag not in self._option_string_actions:
                self._refuse("flag", flag, list(self._option_string_actions))
            if not is_flag and commands is not None:
                if argument not in commands:
                    self._refuse("command", argument, list(commands))
                return  # what follows is the command's

    def _refuse(self, kind: str, given: str, known: Sequence[str]) -> NoReturn:
        nearest = difflib.get_close_matches(given, known, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"`{self.prog} --help` lists those there are"
        self.exit(2, f"{self.prog}: error: unknown {kind} {given}; {advice}\n")


def run_command(program: str, command: Callable[[], int], *, next_step: Callable[[], str], place: str | None) -> int:
    """
    Run a command and print how it failed in one line on standard error.

    Args:
        program: Name in front of the line.
        command: Returns the exit code.
        next_step: Says what to do after the command was stopped, in an imperative sentence.
        place: The file or folder that the command writes, to name a full disk where the error does not.

    Returns:
        What the command returns; 1 for a full disk, 2 for another error of the package, 130 for Ctrl-C.

    With the environment variable `CAEAV_DEBUG` set, whatever the command raises is raised.
    """
    try:
        return command()
    except KeyboardInterrupt:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        line, code = f"stopped; {next_step()}", INTERRUPTED
    except Exception as error:
        is_full = disk_is_full(error)
        if os.environ.get(DEBUG_VARIABLE) or not (is_full or isinstance(error, CaeAvError)):
            raise
        if is_full:
            where = next((e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename), place)
            line = f"error: the disk that holds {where or 'the output'} is full; free some of it, then {next_step()}"
            code = 1
        else:
            line, code = f"error: {error}", 2
    # Of several processes one is enough to say it.
    if os.environ.get("LOCAL_RANK", "0") == "0" or code == 2:
        print(f"{program}: {line}", file=sys.stderr)
    return code


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or one that it followed from, says that a disk has no space left."""
    return any(
        (isinstance(one, OSError) and one.errno in _FULL) or _FULL_TEXTS.search(str(one)) is not None
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
