"""The process in which `media.guard` decodes: it runs one call after the other, each within its limits."""

import io
import logging
import math
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import av  # noqa: F401  # before memory is limited

from ..errors import CaeAvError
from . import guard, memory
from .containers import MediaFile
from .wire import Channel, imported


try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Records of the log that a reply holds.
_MOST_RECORDS = 1000
# Open files; a call needs a few.
_MOST_FILES = 256
# Bytes by which a worker may grow before it is replaced, at the end of a call and within one.
_GROWTH, _PEAK_GROWTH = 512_000_000, 768_000_000
# Bytes of addresses that are limited but need no memory: stacks of threads, reserves of heaps.
_RESERVED = 256_000_000
# Bytes that an allocation may need besides those of a frame.
_SLACK = 32_000_000
_BUFFER_BYTES = 1 << 18
# Copies of the result that are made of it at most: its parts, the whole, and what follows from it.
_COPIES = 3


def main() -> None:
    """Serve the process that started this one, until it ends."""
    reader = os.fdopen(os.dup(0), "rb", buffering=0)
    writer = os.fdopen(os.dup(1), "wb", buffering=0)
    # What a library prints is no message.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    guard.is_worker = True
    _end_with(reader)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = _MOST_FILES if most == resource.RLIM_INFINITY else min(_MOST_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    log = _Log()
    root = logging.getLogger(__name__.partition(".")[0])
    root.addHandler(log)
    root.propagate = False
    with suppress(EOFError, OSError):
        _Server(Channel(reader, writer), log).serve()


def _end_with(reader: Any) -> None:
    """End this process as soon as the other end of the pipe is closed, even within a call."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(reader, 0)

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class _Server:
    """Runs calls."""

    def __init__(self, channel: Channel, log: "_Log") -> None:
        self.channel, self.log = channel, log
        channel.restore = self._restore
        self.limits = _Limits()
        # The generator of the last call, if it was one.
        self.items: Iterator[Any] | None = None

    def serve(self) -> None:
        """Run calls until the connection ends."""
        self.channel.send({"ready": True})
        while True:
            request = self.channel.receive()
            for name in [name for name in os.environ if name.startswith("CAEAV_")]:
                del os.environ[name]
            os.environ.update(request["environment"])
            logging.getLogger(__name__.partition(".")[0]).setLevel(request["log_level"])
            self._reply(request)

    def _reply(self, request: dict[str, Any]) -> None:
        """Send the result of a request, the next item of the generator of an earlier one, or an error."""
        self.log.records = []
        try:
            if "call" in request:
                # Before memory is limited: this may import much.
                function = imported(request["call"])
                with self.limits.set(request):
                    result = function(*request["args"], **request["kwargs"])
                self.items = result if request["is_iterator"] else None
            if self.items is not None:
                with self.limits.set(request):
                    result = next(self.items)
            reply = {"result": result}
        except StopIteration:
            reply = {"end": True}
        except Exception as error:
            reply = self._failure(error)
        self.channel.send({**reply, "log": self.log.records, "is_spent": self.limits.are_spent})

    @staticmethod
    def _failure(error: Exception) -> dict[str, Any]:
        if _is_about_memory(error):
            return {"memory": True}
        if isinstance(error, CaeAvError):
            return {"error": [type(error).__name__, str(error)]}
        return {"failure": f"{type(error).__name__}: {error}"}

    def _restore(self, description: dict[str, Any]) -> Any:
        if "arrays" in description:
            return guard.OneByOne(_Arrays(self, description["arrays"], description["shape"]))
        target = description["media"]
        if isinstance(target, int):
            raw = _File(self, target, description["size"], description["file_name"])
            target = raw if description["size"] is None else io.BufferedReader(raw, _BUFFER_BYTES)
        return MediaFile(target, description["name"])

    def ask(self, number: int, index: int | None, size: int | None = None) -> Any:
        """Ask the other process for one of several arrays, or for bytes of a file."""
        self.channel.send({"ask": [number, index, size]})
        return self.channel.receive(())


class _File(io.RawIOBase):
    """A file that the other process has open; of unknown size if it can be read only once."""

    def __init__(self, server: _Server, number: int, size: int | None, name: str | None) -> None:
        self.server, self.number, self.size, self.position = server, number, size, 0
        if name is not None:
            self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self.size is None:
            raise io.UnsupportedOperation("seek")
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, target: Any) -> int:
        data = self.server.ask(self.number, None if self.size is None else self.position, len(target))
        if isinstance(data, list):
            raise OSError(*data)
        target[: len(data)] = data
        self.position += len(data)
        return len(data)


class _Arrays:
    """Arrays of the other process."""

    def __init__(self, server: _Server, number: int, shape: list[int]) -> None:
        self.server, self.number, self.shape = server, number, shape

    def __getitem__(self, index: int) -> Any:
        return self.server.ask(self.number, index)


class _Limits:
    """The limits of a call."""

    def __init__(self) -> None:
        self.begin = _memory("VmSize")
        self.most = math.inf
        memory.watcher = self

    @contextmanager
    def set(self, request: dict[str, Any]) -> Iterator[None]:
        """Limit memory, processor time and written files while the block runs."""
        if resource is None:
            yield
            return
        size = _memory("VmSize")
        wanted = {
            resource.RLIMIT_CPU: time.process_time() + request["processor"],
            resource.RLIMIT_FSIZE: math.inf if request["writes"] else 0,
        }
        if size is not None:
            self.most = wanted[resource.RLIMIT_AS] = size + request["memory"] + _RESERVED
        before = {kind: resource.getrlimit(kind) for kind in wanted}
        for kind, (_, hard) in before.items():
            resource.setrlimit(kind, (_lower(wanted[kind], hard), hard))
        try:
            yield
        finally:
            for kind, values in before.items():
                resource.setrlimit(kind, values)
            self.most = math.inf

    @property
    def are_spent(self) -> bool:
        """Whether a new process should serve the next call, since this one holds, or held, much memory."""
        size, peak = _memory("VmSize"), _memory("VmPeak")
        if size is None or peak is None or self.begin is None:
            return False
        return size - self.begin > _GROWTH or peak - self.begin > _PEAK_GROWTH

    def keep(self, num_bytes: int) -> None:
        """Allow for so many bytes more of the result."""
        self.most += _COPIES * num_bytes
        if resource is not None and math.isfinite(self.most):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (_lower(self.most, hard), hard))

    def is_short(self, num_bytes: int) -> bool:
        """Return whether an allocation of so many bytes may have failed."""
        peak = _memory("VmPeak")
        return peak is not None and peak + num_bytes + _SLACK > self.most


class _Log(logging.Handler):
    """Collects the records of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[list[Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < _MOST_RECORDS:
            self.records.append([record.name, record.levelno, record.getMessage()])


def _lower(wanted: float, hard: int) -> int:
    """Return the lower of two limits, where the hard one may be the number for infinity."""
    assert resource is not None
    limit = math.inf if hard == resource.RLIM_INFINITY else hard
    lower = min(wanted, limit)
    return resource.RLIM_INFINITY if math.isinf(lower) else math.ceil(lower)


def _memory(field: str) -> int | None:
    """Return the bytes of a field of Linux's /proc/self/status; `None` elsewhere."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _is_about_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
