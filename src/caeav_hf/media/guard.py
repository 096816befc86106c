"""
Decode media in worker processes, whose memory and time the operating system limits.

FFmpeg and its libraries read what users hand over. A file may make them take any memory, run for ever, or crash,
before limits within the process can act. Inside [`guarded_decoding`], the functions that open media run in a worker: a
process that imports little, serves one call after the other, and whose death is a [`~errors.MediaError`]. The next
call gets a new one. Results are the same, bit for bit, and so are errors and warnings.

Limits. A call may take `memory_mb` of [`~media.limits.DecodingLimits`] besides its result, `seconds` of processor time
besides what reading the media needs (4 s per second of media, but at most 20 s per megabyte of the file), and six
times that by the clock. Memory is limited on Linux, processor time wherever Python has the module `resource`, the time
by the clock everywhere. A worker is no sandbox: it runs with the rights of the user.

The environment variable `CAEAV_DECODING_WORKER` overrides the program: 1 turns workers on everywhere, 0 off.
"""

import atexit
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np

from ..errors import CaeAvError, DataError, MediaError
from .containers import MediaFile
from .limits import DecodingLimits, variable
from .wire import Channel, name_of


VARIABLE = "CAEAV_DECODING_WORKER"

# Processor seconds that reading media may need: per second of media, and at most per megabyte of the file. The former
# suffices for 4K at 60 frames per second; the latter is for files that claim to last for days.
_SECONDS_PER_SECOND, _SECONDS_PER_MEGABYTE = 4.0, 20.0
# A busy machine gives a worker only a share of its time.
_CLOCK_PER_PROCESSOR_SECOND = 6.0
# Idle workers that are kept, of about 40 MB each.
_MOST_IDLE = max(8, os.cpu_count() or 1)
# Maximum bytes that a worker reads of a file of this process at a time.
_MOST_READ = 1 << 26
_START = "import sys; sys.path[:] = sys.argv[1:]; from caeav_hf.media.decoding_worker import main; main()"
_ERRORS = {error.__name__: error for error in (CaeAvError, DataError, MediaError)}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_num_users = 0
# Workers are not guarded themselves.
is_worker = False


class OneByOne:
    """
    Arrays of one shape, which a worker gets one by one.

    Args:
        arrays: An array, or an object with `shape` and `[index]`, which may make each when it is asked for.
    """

    def __init__(self, arrays: Any) -> None:
        self.arrays, self.shape = arrays, tuple(arrays.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.arrays[index])


@contextmanager
def guarded_decoding() -> Iterator[None]:
    """Decode media in workers while the block runs, in all threads of the process."""
    global _num_users
    with _lock:
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1


def is_guarded() -> bool:
    """
    Return whether media are decoded in workers.

    Raises:
        CaeAvError: The environment variable is neither 0 nor 1.
    """
    if is_worker:
        return False
    text = os.environ.get(VARIABLE, "")
    if text not in ("", "0", "1"):
        raise CaeAvError(f"the environment variable {VARIABLE} is {text!r}; expected 0 or 1")
    return _num_users > 0 if not text else text == "1"


def guarded(
    *records: type,
    seconds: Callable[..., float] = lambda *_: 0.0,
    effort: float = 1.0,
    writes: bool = False,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """
    Make a function of a module run in a worker where [`is_guarded`] says so. Its first argument is the
    [`~media.containers.MediaFile`] that it reads.

    Args:
        records: Dataclasses and named tuples of its result, which otherwise holds plain values, bytes and arrays.
        seconds: Returns the seconds of media that a call reads, for its arguments; infinity if that is unknown.
        effort: Processor time that the call needs, as a multiple of what reading needs.
        writes: Whether the function writes a file.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if not is_guarded():
                return function(*args, **kwargs)
            media = cast(MediaFile, args[0])
            budget = _Budget.of(media, seconds(*args, **kwargs), effort, writes)
            with _worker() as worker:
                return cast(Result, worker.call(_Call(function, media.name, args, kwargs, records, budget)))

        return call

    return decorate


def guarded_iterator(
    *records: type, first_seconds: Callable[..., float], seconds: Callable[..., float]
) -> Callable[[Callable[Arguments, Iterator[Result]]], Callable[Arguments, Iterator[Result]]]:
    """
    Do as [`guarded`] for a generator, whose worker makes one item per request.

    Args:
        records: As in [`guarded`].
        first_seconds, seconds: Return the seconds of media that the first item, and each other one, reads.
    """

    def decorate(function: Callable[Arguments, Iterator[Result]]) -> Callable[Arguments, Iterator[Result]]:
        @wraps(function)
        def iterate(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Result]:
            if not is_guarded():
                yield from function(*args, **kwargs)
                return
            media = cast(MediaFile, args[0])
            # A source that runs while it is read may wait for its next frame.
            waits = media.is_address or media.is_pipe
            first, other = (_Budget.of(media, of(*args, **kwargs), waits=waits) for of in (first_seconds, seconds))
            with _worker() as worker:
                yield from worker.iterate(_Call(function, media.name, args, kwargs, records, first), other)

        return iterate

    return decorate


@dataclass(frozen=True)
class _Budget:
    """
    What a call may take.

    Args:
        memory: Bytes, besides what the worker has before and its result.
        result: Bytes of its result.
        processor: Seconds of processor time.
        clock: Seconds by the clock; infinity for media that run while they are read.
        writes: Whether it may write files.
    """

    memory: float
    result: float
    processor: float
    clock: float
    writes: bool

    @classmethod
    def of(
        cls, media: MediaFile, seconds: float, effort: float = 1.0, writes: bool = False, waits: bool = False
    ) -> "_Budget":
        """Return the budget of a call that reads so many seconds of media."""
        limits = DecodingLimits.from_environment()
        need = min(seconds * _SECONDS_PER_SECOND, _size_of(media) / 1e6 * _SECONDS_PER_MEGABYTE)
        processor = limits.seconds + effort * need
        clock = math.inf if waits else processor * _CLOCK_PER_PROCESSOR_SECOND
        return cls(limits.memory_mb * 1e6, limits.result_mb * 1e6, processor, clock, writes)


class _Call(NamedTuple):
    """A call of a function in a worker; `name` is that of its media in errors."""

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    records: tuple[type, ...]
    budget: _Budget


class _Worker:
    """A worker process, which serves one call at a time."""

    def __init__(self) -> None:
        package = str(Path(__file__).parents[2])
        paths = [package, *(path for path in sys.path if path and path != package)]
        try:
            # Isolated (-I): the current folder may be that of what is read. In a session of its own, it does not see
            # the Ctrl-C that is meant for this process.
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                # One thread for arithmetic, and few heaps: each takes addresses, which are what is limited.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )
        except OSError as error:
            raise CaeAvError(f"a decoding worker cannot be started: {error}") from error
        pipes = cast(IO[bytes], self.process.stdout), cast(IO[bytes], self.process.stdin)
        self.channel = Channel(*pipes, describe=self._describe)
        self.is_idle = False
        self._is_late = False
        self._served: list[Any] = []
        try:
            self.channel.receive(())
        except (EOFError, OSError, ValueError) as error:
            self.end()
            raise CaeAvError(
                f"a decoding worker cannot be started: {_how_it_ended(self.process.returncode)}; "
                f"{VARIABLE}=0 decodes without one"
            ) from error
        self.is_idle = True

    def call(self, call: _Call) -> Any:
        """Return the result of a call."""
        self.is_idle, self._served = False, []
        reply = self._ask(call, self._request(call, is_iterator=False), call.budget)
        self._finish(reply)
        return _result(call, reply)

    def iterate(self, call: _Call, other: _Budget) -> Iterator[Any]:
        """Yield the items of a generator; `other` is the budget of all but the first."""
        self.is_idle, self._served = False, []
        message, budget = self._request(call, is_iterator=True), call.budget
        while True:
            reply = self._ask(call, message, budget)
            if "result" not in reply:
                break
            yield reply["result"]
            message, budget = {"next": True, **_settings(other)}, other
        self._finish(reply)
        if "end" not in reply:
            _result(call, reply)

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close the connection, whereupon the process ends by itself."""
        for pipe in (self.channel.reader, self.channel.writer):
            with suppress(OSError):
                pipe.close()

    def _request(self, call: _Call, is_iterator: bool) -> dict[str, Any]:
        return {
            "call": name_of(call.function),
            "args": call.args,
            "kwargs": call.kwargs,
            "is_iterator": is_iterator,
            **_settings(call.budget),
        }

    def _ask(self, call: _Call, message: dict[str, Any], budget: _Budget) -> dict[str, Any]:
        """Send a request, answer what the worker asks for meanwhile, and return its reply."""
        try:
            self.channel.send(message)
        except OSError as error:
            raise self._death(call, budget) from error
        left = budget.clock
        while True:
            begin = time.monotonic()
            try:
                with self._ended_after(left):
                    reply = self.channel.receive(call.records, budget.result)
                self._check(reply)
            # A worker that was taken over may send anything.
            except Exception as error:
                raise self._death(call, budget) from error
            left = max(0.0, left - (time.monotonic() - begin))
            if "ask" not in reply:
                for name, level, text in reply["log"]:
                    logging.getLogger(name).log(level, "%s", text)
                return cast(dict[str, Any], reply)
            try:
                self.channel.send(self._answer(*reply["ask"]))
            except (BrokenPipeError, ConnectionError) as error:
                raise self._death(call, budget) from error

    def _check(self, reply: Any) -> None:
        """
        Raises:
            ValueError, TypeError, KeyError, AttributeError: It is no reply.
        """
        if "ask" in reply:
            number, index, size = reply["ask"]
            served = self._served[number]
            most = len(served) if isinstance(served, OneByOne) else sys.maxsize
            if isinstance(served, OneByOne) != (size is None) or not (index is None or 0 <= index < most):
                raise ValueError(f"asks for item {index}")
            if size is not None and not 0 <= size <= _MOST_READ:
                raise ValueError(f"asks for {size} bytes")
            return
        texts = [reply["failure"]] if "failure" in reply else reply.get("error", [])
        for name, level, text in reply["log"]:
            texts = [*texts, name, text]
            if not name.startswith("caeav_hf.") or not isinstance(level, int):
                raise ValueError("not a record of the package's log")
        if not all(isinstance(text, str) for text in texts) or not isinstance(reply["is_spent"], bool):
            raise ValueError("no reply")

    def _finish(self, reply: dict[str, Any]) -> None:
        self._served = []
        self.is_idle = not self._is_late and not reply["is_spent"]

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[None]:
        """Kill the process if the block takes longer."""
        if math.isinf(seconds):
            yield
            return
        timer = threading.Timer(seconds, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_late(self) -> None:
        self._is_late = True
        self.process.kill()

    def _death(self, call: _Call, budget: _Budget) -> MediaError:
        """Return the error for a call whose worker has died, or sent nonsense."""
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        code = self.process.wait()
        if self._is_late:
            return MediaError(
                f"{call.name}: was not decoded after {budget.clock:g} s; expected a file that is read within them "
                f"(environment variable {variable('seconds')})"
            )
        if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
            return MediaError(
                f"{call.name}: takes more than {budget.processor:g} s of processor time to decode; expected a file "
                f"that needs less (environment variable {variable('seconds')})"
            )
        return MediaError(
            f"{call.name}: the process that decoded it ended: {_how_it_ended(code)}; expected a readable media file"
        )

    def _describe(self, value: Any) -> dict[str, Any]:
        """Describe what stays in this process: a file, or arrays that the worker gets one by one."""
        if isinstance(value, MediaFile):
            if isinstance(value.target, str):
                # The worker keeps the current folder that it was started in.
                path = value.target.removeprefix("file:")
                target = value.target if value.is_address else f"file:{os.path.abspath(path)}"
                return {"media": target, "name": value.name}
            size = None if value.is_pipe else value.target.seek(0, os.SEEK_END)
            name = getattr(value.target, "name", None)
            served = {"size": size, "file_name": name if isinstance(name, str) else None}
            return {"media": self._serve(value.target), "name": value.name, **served}
        if isinstance(value, OneByOne):
            return {"arrays": self._serve(value), "shape": list(value.shape)}
        raise TypeError(f"a {type(value).__name__}")

    def _serve(self, value: Any) -> int:
        self._served.append(value)
        return len(self._served) - 1

    def _answer(self, number: int, index: int | None, size: int | None = None) -> Any:
        """Return one of several arrays, or bytes of a file; for an error of the operating system its description."""
        served = self._served[number]
        if size is None:
            return served[index]
        try:
            if index is not None:
                served.seek(index)
            return bytes(served.read(size) or b"")
        except OSError as error:
            return [error.errno, error.strerror or str(error)]


# Workers that no call uses, and all of this process.
_idle: list[_Worker] = []
_all: set[_Worker] = set()


@contextmanager
def _worker() -> Iterator[_Worker]:
    """Give a worker to the block: an idle one, or a new one."""
    worker = None
    while worker is None:
        with _lock:
            worker = _idle.pop() if _idle else None
        if worker is None:
            worker = _Worker()
            with _lock:
                _all.add(worker)
        elif worker.process.poll() is not None:
            # Something ended it while it was idle.
            _discard(worker)
            worker = None
    try:
        yield worker
    finally:
        with _lock:
            keep = worker.is_idle and len(_idle) < _MOST_IDLE
            if keep:
                _idle.append(worker)
        if not keep:
            _discard(worker)


def _discard(worker: _Worker) -> None:
    with _lock:
        _all.discard(worker)
    worker.end()


@atexit.register
def end_workers() -> None:
    """End the idle workers; the others end with their calls."""
    with _lock:
        idle = _idle[:]
        _idle.clear()
    for worker in idle:
        _discard(worker)


def _forget_workers() -> None:
    """In a forked process, leave the workers to the process that started them, and let them see its end."""
    global _lock, _num_users
    _lock = threading.Lock()
    for worker in _all:
        worker.close()
    _all.clear()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def _settings(budget: _Budget) -> dict[str, Any]:
    """Return what each request tells a worker: its budget, the level of the log, and the package's variables."""
    return {
        "memory": budget.memory,
        "processor": budget.processor,
        "writes": budget.writes,
        "log_level": logging.getLogger(__package__).getEffectiveLevel(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("CAEAV_")},
    }


def _result(call: _Call, reply: dict[str, Any]) -> Any:
    """Return a reply's result, or raise its error."""
    if "result" in reply:
        return reply["result"]
    if "error" in reply:
        kind, text = reply["error"]
        raise _ERRORS.get(kind, MediaError)(text)
    if "memory" in reply:
        raise MediaError(
            f"{call.name}: takes more than {call.budget.memory / 1e6:g} MB of memory to decode; expected a file "
            f"that needs less (environment variable {variable('memory_mb')})"
        )
    raise MediaError(f"{call.name}: decoding it failed ({reply['failure']}); expected a readable media file")


def _size_of(media: MediaFile) -> float:
    """Return the bytes of a file; infinity if they are unknown."""
    try:
        if media.is_address or media.is_pipe:
            return math.inf
        if isinstance(media.target, str):
            return os.path.getsize(media.target.removeprefix("file:"))
        return media.target.seek(0, os.SEEK_END)
    except (OSError, ValueError):
        return math.inf


def _how_it_ended(code: int) -> str:
    """Describe a return code of `subprocess`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
