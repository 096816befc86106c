"""
Fetch clips at an address: `https://`, `http://` and `hf://` through fsspec; `file://` is a local path.

Redirects to other hosts are followed, those to other schemes are not; a password in the address is sent to its host
alone, and left out of messages.

The content goes to a temporary file, which is deleted with the returned object. Two environment variables limit it,
whatever size the server announces: `CAEAV_DOWNLOAD_MAX_MB`, megabytes (1024 by default), and
`CAEAV_DOWNLOAD_TIMEOUT`, seconds for a whole file (120 by default).
"""

import io
import re
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from fsspec.callbacks import Callback

from ..errors import MediaError
from .limits import positive_setting


REMOTE_SCHEMES = ("https", "http", "hf")

# A single letter is a Windows drive, not a scheme. `Path` turns two slashes into one.
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")
_USER = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+:/+)[^/?#]*@")


def is_address(path: str) -> bool:
    """Return whether a string is an address rather than a local path."""
    return _ADDRESS.match(path) is not None


class FetchedFile(io.BufferedRandom):
    """A fetched file, open for reading; `name` is its address."""

    name: str = ""


def without_password(address: str) -> str:
    """Return an address for messages: without the user's name and password in it."""
    return _USER.sub(r"\1", address)


def check_characters(address: str) -> None:
    """Raise a [`~errors.MediaError`] for line breaks and the like, which could forge the lines of a request."""
    if not address.isprintable():
        raise MediaError(f"{without_password(address)}: has characters that no address has; expected them as %XX")


def local_path(address: str) -> str:
    """
    Return the path of a `file://` address.

    Raises:
        MediaError: The file is on another host.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:  # brackets that hold no IPv6 address
        raise MediaError(f"{address}: is no address ({error}); expected file:///path") from error
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"{address}: is on the host {parts.netloc!r}; expected file:///path, on this machine")
    return url2pathname(parts.path)


def download_limits() -> tuple[int, float]:
    """
    Return the maximum bytes of a file and seconds for fetching it, from the environment.

    Raises:
        CaeAvError: A variable is not a positive number.
    """
    megabytes = positive_setting("CAEAV_DOWNLOAD_MAX_MB", 1024.0)
    return round(megabytes * 1_000_000), positive_setting("CAEAV_DOWNLOAD_TIMEOUT", 120.0)


def fetch(address: str) -> FetchedFile:
    """
    Fetch a file into a temporary one.

    Args:
        address: `https://...`, `http://...`, or `hf://...` as for [`~huggingface_hub.HfFileSystem`], which uses the
            token of the login.

    Returns:
        The file, at its beginning, named by its address.

    Raises:
        MediaError: The file cannot be fetched, is larger or takes longer than allowed; the message begins with the
            address.
    """
    name = without_password(address)
    scheme, separator, _ = address.partition("://")
    if not separator or scheme.lower() not in REMOTE_SCHEMES:
        raise MediaError(
            f"{name}: no address that can be read; expected a local path, https://, http://, hf:// or file://"
        )
    check_characters(address)
    most, seconds = download_limits()
    target = FetchedFile(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
    target.name = name
    try:
        _filesystem(scheme.lower(), seconds).get_file(address, target, callback=_Limits(name, most, seconds))
    except MediaError:
        target.close()
        raise
    except TimeoutError as error:
        target.close()
        raise _too_slow(name, seconds) from error
    except Exception as error:
        # Each file system, and each library below it, has its own errors, without a common class.
        target.close()
        raise MediaError(f"{name}: cannot be fetched ({_reason(error).replace(address, name)})") from error
    target.seek(0)
    return target


def _filesystem(scheme: str, seconds: float) -> Any:
    if scheme == "hf":
        return fsspec.filesystem("hf")
    # Imported here since it is slow to import and most users read local files.
    import aiohttp

    settings = {"timeout": aiohttp.ClientTimeout(total=seconds), "trust_env": True}
    return fsspec.filesystem("http", client_kwargs=settings, skip_instance_cache=True)


class _Limits(Callback):
    """Ends a transfer that is too large or too slow; fsspec calls it for each part of the file."""

    def __init__(self, address: str, most: int, seconds: float):
        super().__init__()
        self.address = address
        self.most = most
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        if size is not None and size > self.most:
            raise self._too_large(f"{size / 1e6:.1f} MB")

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self.most:
            raise self._too_large(f"more than {self.most / 1e6:g} MB")
        if time.monotonic() > self.deadline:
            raise _too_slow(self.address, self.seconds)

    def _too_large(self, size: str) -> MediaError:
        return MediaError(
            f"{self.address}: has {size}; expected at most {self.most / 1e6:g} MB (environment variable "
            "CAEAV_DOWNLOAD_MAX_MB)"
        )


def _too_slow(address: str, seconds: float) -> MediaError:
    return MediaError(
        f"{address}: was not there after {seconds:g} s; expected it within the time that the environment variable "
        "CAEAV_DOWNLOAD_TIMEOUT allows"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not found"
    if type(error).__name__ == "TooManyRedirects":
        return "it redirects again and again"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"{status} {getattr(error, 'message', '')}".strip()
    return str(error) or type(error).__name__
