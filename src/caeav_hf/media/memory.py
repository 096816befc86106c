"""
What decoding says about its memory to the worker that it runs in, if any (see `media.guard`).

A worker may take a fixed amount of memory besides the result. How large that becomes is only known as it grows, since
headers may lie.
"""

from typing import Protocol


class Watcher(Protocol):
    """A worker's view of its memory."""

    def keep(self, num_bytes: int) -> None: ...

    def is_short(self, num_bytes: int) -> bool: ...


watcher: Watcher | None = None
"""That of this process, if it is a decoding worker."""


def keep(num_bytes: int) -> None:
    """Say that so many bytes were added to the result."""
    if watcher is not None:
        watcher.keep(num_bytes)


def is_short(num_bytes: int) -> bool:
    """
    Return whether an allocation of so many bytes may have failed. Some decoders report that as a damaged packet, which
    must not be skipped then.
    """
    return watcher is not None and watcher.is_short(num_bytes)
