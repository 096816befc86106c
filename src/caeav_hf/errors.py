"""Errors of the package, with one base class to catch them all, and how errors of libraries become one of them."""

import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


# Limits of values in messages.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 20
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200

# Most characters of a message, whatever it quotes from a file.
_MOST_CHARACTERS = 4000
# Control characters, which move a terminal's cursor or set its title, characters that turn the direction of text, and
# surrogates, which stand for bytes of a file's name that are not Unicode.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, kept: str = "") -> str:
    """Return a text in one line that no terminal acts on: control characters, but those in `kept`, are escaped."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


class CaeAvError(ValueError):
    """
    Base class of all errors. The message names the argument or file at fault and says what was expected. It is one
    line of limited length without control characters, whatever names and texts it quotes.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[: _MOST_CHARACTERS // 2]} ... {message[-_MOST_CHARACTERS // 2 :]}"
        if "\n" in message:  # of a library
            message = " ".join(line.strip() for line in message.split("\n"))
        super().__init__(printable(message))


class MediaError(CaeAvError):
    """A clip cannot be decoded into frames and sound. The message begins with the name of the file."""


class DataError(CaeAvError):
    """An annotation file, data set or row does not have the documented form."""


def shown(value: Any) -> str:
    """Return the `repr` of a value for a message, shortened: what is read from a file may be huge or hold itself."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a {type(value).__name__} of too many digits"


def last_line(error: BaseException) -> str:
    """Return the line of a library's error message that states the cause: the last, earlier ones give context."""
    # PyTorch's messages on pickles begin and end with advice.
    found = re.search(r"WeightsUnpickler error: (.+)", str(error))
    line = found[1] if found else (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return line if len(line) <= 1000 else f"{line[:1000]} ..."


@contextmanager
def reading(source: str | os.PathLike, expected: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """
    Convert whatever libraries raise while they read files that were handed over to one error that names them.

    Parsers raise errors of all kinds on broken files, KeyError, TypeError or RecursionError among them. A lack of
    memory says nothing about a file and passes.

    Args:
        source: Name of the file or folder in the message.
        expected: What it was read as, such as "a model".
        passing: Errors of libraries that pass if they name `source`, as those of this package do, for functions whose
            callers expect them.

    Raises:
        CaeAvError: The block failed.
    """
    try:
        yield
    except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of libraries in Rust are no `Exception`
        is_named = str(source) in str(error) or printable(str(source)) in str(error)
        if type(error).__name__ == "OutOfMemoryError" or (is_named and isinstance(error, (CaeAvError, *passing))):
            raise
        if isinstance(error, CaeAvError):
            raise CaeAvError(f"{source}: {error}") from error
        raise CaeAvError(f"{source}: cannot be read as {expected}: {last_line(error)}") from error
