"""
Clips at an address: `https://`, `http://` and `hf://` are fetched through fsspec, `file://` is a local path.

What is fetched goes to a temporary file, which vanishes with the object that is returned. Two environment variables
limit it, whatever the server promises: `CAEAV_DOWNLOAD_MAX_MB`, megabytes (1024 by default), and
`CAEAV_DOWNLOAD_TIMEOUT`, seconds for all of a file (120 by default).
"""

import asyncio
import io
import os
import re
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from fsspec.callbacks import Callback

from ..errors import CaeAvError, MediaError


REMOTE_SCHEMES = ("https", "http", "hf")

# A letter alone is a drive of Windows, not a scheme. `Path` makes one slash of two.
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")


def is_address(path: str) -> bool:
    """Whether a string is an address rather than a local path."""
    return _ADDRESS.match(path) is not None


class FetchedFile(io.BufferedRandom):
    """A fetched file, open for reading; `name` is its address."""

    name: str = ""


def local_path(address: str) -> str:
    """
    The path of a `file://` address.

    Raises:
        MediaError: It is on another host.
    """
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"{address}: is on the host {parts.netloc!r}; expected file:///path, on this machine")
    return url2pathname(parts.path)


def download_limits() -> tuple[int, float]:
    """
    Most bytes of a file, and most seconds for it, from the environment.

    Raises:
        CaeAvError: A variable holds no positive number.
    """
    values = []
    for name, default in (("CAEAV_DOWNLOAD_MAX_MB", 1024.0), ("CAEAV_DOWNLOAD_TIMEOUT", 120.0)):
        text = os.environ.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise CaeAvError(f"the environment variable {name} is {text!r}; expected a positive number")
        values.append(value)
    return round(values[0] * 1_000_000), values[1]


def fetch(address: str) -> FetchedFile:
    """
    Fetch a file into a temporary one.

    Args:
        address: `https://...`, `http://...`, or `hf://...` as [`~huggingface_hub.HfFileSystem`] has it, with the token
            of the login.

    Returns:
        The file, at its beginning, called by its address.

    Raises:
        MediaError: It cannot be fetched, is larger or takes longer than allowed; the message begins with the address.
    """
    scheme, separator, _ = address.partition("://")
    if not separator or scheme.lower() not in REMOTE_SCHEMES:
        raise MediaError(
            f"{address}: no address that can be read; expected a local path, https://, http://, hf:// or file://"
        )
    most, seconds = download_limits()
    target = FetchedFile(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
    target.name = address
    try:
        _filesystem(scheme.lower(), seconds).get_file(address, target, callback=_Limits(address, most, seconds))
    except MediaError:
        target.close()
        raise
    except (TimeoutError, asyncio.TimeoutError) as error:
        target.close()
        raise _too_slow(address, seconds) from error
    except Exception as error:
        # Each file system, and each library below it, has errors of its own, without a common class.
        target.close()
        raise MediaError(f"{address}: cannot be fetched ({_reason(error)})") from error
    target.seek(0)
    return target


def _filesystem(scheme: str, seconds: float) -> Any:
    if scheme == "hf":
        return fsspec.filesystem("hf")
    # Only here: most sessions read files, and importing it takes time.
    import aiohttp

    settings = {"timeout": aiohttp.ClientTimeout(total=seconds), "trust_env": True}
    return fsspec.filesystem("http", client_kwargs=settings, skip_instance_cache=True)


class _Limits(Callback):
    """Told by fsspec of each part of a file that has come, and ends the transfer where it is too much or too late."""

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
