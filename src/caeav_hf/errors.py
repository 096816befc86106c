"""Errors of the package, with one base class to catch them all."""

import re


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
