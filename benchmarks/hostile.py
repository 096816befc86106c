"""
Hand over thousands of broken and malicious inputs, and count what the package does with them.

    python benchmarks/hostile.py --out hostile --seed 0 --inputs 20000 --processes 2
    python benchmarks/hostile.py --out hostile --only recipes --inputs 500
    python benchmarks/hostile.py --replay hostile/findings/recipes/wrong-error-1/finding.json

A door is a way by which something handed over gets into the package; its inputs are changed copies of good ones, drawn
by the seed. Each is handed over in a process with limits of time and memory. Expected is a result, or one error of the
package that names the file. Everything else is a finding, and so is a trace outside the folder of the input: code that
ran, a file written, a connection, a process. The smallest input of each finding is stored in `--out`, with a record by
which `--replay` hands it over again and shows the traceback.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import platform
import random
import resource
import shutil
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from hostile_data import DOORS as DATA_DOORS
from hostile_models import DOORS as MODEL_DOORS
from hostile_mutators import Change, Door, Link, Original, find
from machine import processor_name
from tqdm import tqdm

import caeav_hf
from caeav_hf.errors import CaeAvError


DOORS = (*MODEL_DOORS, *DATA_DOORS)
# Expected outcomes, then findings.
GOOD = ("result", "error", "library's error")
BAD = ("unnamed", "wrong error", "memory", "hang", "crash", "trace")
# Inputs of a worker before a new process takes its place.
CHUNK = 200


@dataclass
class Outcome:
    """
    What the package did with an input.

    Attributes:
        door, number: Which input.
        kind: One of `GOOD` or `BAD`.
        error: Class of the error.
        place: Where in the package it was raised, or in which of its functions the process was.
        message: The error's message.
        seconds: How long it took.
        memory: Peak of what it took beyond what the process held before, in MB.
        size: Size of the changed files in bytes.
    """

    door: str
    number: int
    kind: str
    error: str = ""
    place: str = ""
    message: str = ""
    seconds: float = 0.0
    memory: float = 0.0
    size: int = 0


# The input


def write_input(door: Door, originals: Path, seed: int, number: int, folder: Path) -> int:
    """Write an input into a new folder, and return the size of what is changed."""
    rng = random.Random(f"{seed} {door.name} {number}")
    goods = sorted(path for path in (originals / door.name).iterdir() if path.is_dir())
    original = Original(rng.choice(goods))
    changes: Change = door.mutate(rng, original)
    for name in original.names():
        if name not in changes:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(original.folder / name, folder / name)
    for name, change in changes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(change, Link):
            path.symlink_to(change.target)
        elif change is not None:
            path.write_bytes(change)
    return sum(len(change) for change in changes.values() if isinstance(change, bytes))


# One input in a process


_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_HERE = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", None)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Audit events on files, with the number of paths among their first arguments.
_ON_FILES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), 1),
    **dict.fromkeys(("os.rename", "os.symlink", "os.link"), 2),
}


class Traces:
    """Side effects that an input must not have, seen by Python's audit events, and stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.found: list[str] = []
        self.is_watching = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_watching:
            return
        if event in _PROCESSES:
            self._stop(f"{event} {arguments[:2]!r}")
        elif event == "socket.getaddrinfo" and arguments[0] not in _HERE:
            self._stop(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in _HERE:
            self._stop(f"{event} {arguments[1]!r}")
        elif event in _ON_FILES:
            for path in arguments[: _ON_FILES[event]]:
                self._check(event, path)
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._check(event, arguments[0])

    def _check(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is already open
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith((self.folder, "/dev/null", "/proc/", "/dev/shm/")):
            self._stop(f"{event} {place}")

    def _stop(self, trace: str) -> None:
        self.found.append(trace)
        raise PermissionError(f"the hostile input tried to: {trace}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look for traces in the block."""
        self.found.clear()
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False


def hand_over(door: Door, folder: Path, traces: Traces) -> Outcome:
    """Hand the input in a folder to the package."""
    held = _reset_peak()
    started = time.perf_counter()
    outcome = Outcome(door.name, -1, "result")
    try:
        with traces.watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door.open(folder)
    except BaseException as error:  # panics of libraries in Rust are no `Exception`
        outcome.kind = _kind(door, folder, error)
        outcome.error = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        outcome.place = _place(traceback.extract_tb(error.__traceback__))
        outcome.message = str(error)[:2000]
    outcome.seconds = time.perf_counter() - started
    outcome.memory = max(0.0, _peak() - held)
    if traces.found:
        outcome.kind, outcome.message = "trace", "; ".join(traces.found)[:2000]
    elif outcome.memory > door.memory:
        outcome.kind = "memory"
    return outcome


def _kind(door: Door, folder: Path, error: BaseException) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "std::bad_alloc" in str(error):
        return "memory"
    names = [folder.name, *(path.name for path in folder.rglob("*")), *door.names]
    # Unprintable names stand in messages as Python writes them.
    is_named = any(name in str(error) or repr(name)[1:-1] in str(error) for name in names)
    if isinstance(error, CaeAvError):
        return "error" if is_named else "unnamed"
    return "library's error" if isinstance(error, door.allowed) and is_named else "wrong error"


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost function of the package, and that of the library it called if there is one."""
    package = str(Path(caeav_hf.__file__).parent)
    own = [number for number, frame in enumerate(frames) if frame.filename.startswith(package)]
    if not own:
        return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    frame = frames[own[-1]]
    place = f"{Path(frame.filename).relative_to(package).as_posix()}:{frame.name}"
    return place if own[-1] == len(frames) - 1 else f"{place} > {Path(frames[-1].filename).name}:{frames[-1].name}"


def _status(name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _reset_peak() -> float:
    """Reset the peak of resident memory, and return what is resident in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


# The processes


def work(channel: connection.Connection, name: str, seed: int, work_folder: Path, slot: int, numbers: range) -> None:
    """Hand over inputs of a door one after the other, and send each outcome."""
    door, originals = find(DOORS, name), work_folder / "originals"
    place = work_folder / f"worker-{slot}"
    _isolate(place, door)
    traces = Traces(place)
    for number in numbers:
        shutil.rmtree(place / "input", ignore_errors=True)
        folder = place / "input" / f"input-{number}"
        folder.mkdir(parents=True)
        size = write_input(door, originals, seed, number, folder)
        # If the time is over, says where the process is and ends it; this also interrupts code in C.
        with open(place / "stack.txt", "w", encoding="utf-8") as stack:
            faulthandler.dump_traceback_later(door.seconds, exit=True, file=stack)
            channel.send(("begins", number, size))
            outcome = hand_over(door, folder, traces)
            faulthandler.cancel_dump_traceback_later()
        outcome.number, outcome.size = number, size
        if outcome.kind in BAD:
            (place / "kept").mkdir(exist_ok=True)
            folder.rename(place / "kept" / folder.name)
        channel.send(("ends", number, outcome))
    channel.close()


def _isolate(place: Path, door: Door) -> None:
    """Give the process a folder of its own for everything it writes, and a limit of memory."""
    (place / "temporary").mkdir(parents=True, exist_ok=True)
    os.environ.update({name: str(place / "temporary") for name in ("TMPDIR", "HF_HOME", "HOME", "XDG_CACHE_HOME")})
    tempfile.tempdir = None
    os.chdir(place / "temporary")
    sys.dont_write_bytecode = True
    with open(place / "output.txt", "a", encoding="utf-8") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    socket.setdefaulttimeout(door.seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the address space cannot be limited
        # Twice, since libraries reserve what they never touch; what is touched is measured.
        limit = int((_status("VmSize") + 2 * door.memory + 500) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Worker:
    """A process for one chunk after the other; a dead one is replaced."""

    def __init__(self, context: Any, work_folder: Path, seed: int, slot: int) -> None:
        self.context, self.work_folder, self.seed, self.slot = context, work_folder, seed, slot
        self.folder = work_folder / f"worker-{slot}"
        self.number, self.size, self.started = -1, 0, 0.0

    def start(self, door: Door, numbers: range) -> None:
        self.door, self.left = door, numbers
        self.channel, child = self.context.Pipe(duplex=False)
        arguments = child, door.name, self.seed, self.work_folder, self.slot, numbers
        self.process = self.context.Process(target=work, args=arguments)
        self.process.start()
        child.close()
        self.number, self.started = -1, time.perf_counter()

    def receive(self) -> Outcome | None:
        """Return the next outcome; `None` if the worker has finished its chunk or only begins an input."""
        try:
            event, number, content = self.channel.recv()
        except (EOFError, OSError):
            return self._ended()
        self.number, self.started = number, time.perf_counter()
        if event == "begins":
            self.size = content
            return None
        self.left = range(number + 1, self.left.stop)
        self.number = -1
        return content

    def _ended(self) -> Outcome | None:
        self.process.join()
        self.channel.close()
        if self.number < 0:
            if self.left:
                raise SystemExit(f"{self.door.name}: a worker failed outside its inputs:\n{self._last_output()}")
            return None
        stack = (self.folder / "stack.txt").read_text(encoding="utf-8", errors="replace")
        is_late = "Timeout" in stack
        outcome = Outcome(self.door.name, self.number, "hang" if is_late else "crash", size=self.size)
        outcome.error = f"over {self.door.seconds:g} s" if is_late else f"exit code {self.process.exitcode}"
        outcome.place, outcome.message = _place_of_stack(stack), (stack or self._last_output())[-2000:]
        outcome.seconds = time.perf_counter() - self.started
        self.left = range(self.number + 1, self.left.stop)
        return outcome

    def _last_output(self) -> str:
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-2000:]

    def check_time(self) -> None:
        """End a process that could not end itself."""
        if self.number >= 0 and time.perf_counter() - self.started > 3 * self.door.seconds:
            (self.folder / "stack.txt").write_text("Timeout: the process did not answer", encoding="utf-8")
            self.process.kill()


def _place_of_stack(stack: str) -> str:
    """Return the innermost function of the package in a dump, which begins with the innermost."""
    lines = [line.strip() for line in stack.splitlines() if "caeav_hf" in line and line.strip().startswith("File")]
    if not lines:
        return ""
    file, _, rest = lines[0].removeprefix('File "').partition('"')
    return f"{file.partition('caeav_hf/')[2]}:{rest.rpartition(' in ')[2]}"


def shares(doors: Sequence[Door], inputs: int) -> dict[str, int]:
    """Return the number of inputs of each door; they add up to `inputs`."""
    total, taken, number, counts = sum(door.share for door in doors), 0.0, 0, {}
    for door in doors:
        taken += door.share
        until = round(inputs * taken / total)
        counts[door.name], number = until - number, until
    return counts


def run(doors: Sequence[Door], seed: int, inputs: int, processes: int, out: Path) -> dict[str, Any]:
    """Hand over the inputs of all doors, store the findings and return the counts."""
    started = time.perf_counter()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    # Its server imports the libraries once, for all processes.
    context = get_context("forkserver")
    context.set_forkserver_preload(["hostile_models", "hostile_data"])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    counts = shares(doors, inputs)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        work_folder = Path(temporary)
        for door in doors:
            (work_folder / "originals" / door.name).mkdir(parents=True)
            maker = context.Process(target=_make, args=(door.name, work_folder / "originals" / door.name))
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit(f"{door.name}: its originals cannot be made")
        waiting = [
            (door, range(first, min(first + CHUNK, counts[door.name])))
            for door in doors
            for first in range(0, counts[door.name], CHUNK)
        ]
        workers = [Worker(context, work_folder, seed, slot) for slot in range(processes)]
        busy: list[Worker] = []
        smallest: dict[tuple[str, ...], Outcome] = {}
        progress = tqdm(total=inputs, desc="inputs", unit="input", mininterval=5)
        while waiting or busy:
            for worker in workers:
                if waiting and worker not in busy:
                    worker.start(*waiting.pop(0))
                    busy.append(worker)
            ready = connection.wait([worker.channel for worker in busy], timeout=5)
            for worker in list(busy):
                if worker.channel not in ready:
                    worker.check_time()
                    continue
                outcome = worker.receive()
                if outcome is not None:
                    outcomes.append(outcome)
                    progress.update()
                    _keep(outcome, smallest, worker.folder, out, seed)
                if worker.channel.closed:
                    busy.remove(worker)
                    if worker.left:
                        waiting.insert(0, (worker.door, worker.left))
        progress.close()
    return {
        "seed": seed,
        "inputs": inputs,
        "processes": processes,
        "seconds": time.perf_counter() - started,
        "doors": [_count(door.name, outcomes) for door in doors],
        "findings": _findings(outcomes),
        "machine": processor_name(),
        "python": platform.python_version(),
    }


def _make(name: str, folder: Path) -> None:
    find(DOORS, name).make(folder)


def _key(outcome: Outcome) -> tuple[str, ...]:
    return outcome.door, outcome.kind, outcome.error, outcome.place


def _keep(outcome: Outcome, smallest: dict[tuple[str, ...], Outcome], work_folder: Path, out: Path, seed: int) -> None:
    """Store the input of a finding if it is the first or smallest of its kind."""
    if outcome.kind in GOOD:
        return
    key, name = _key(outcome), f"input-{outcome.number}"
    # A process that died left its last input where it was.
    source = next(path for path in (work_folder / "kept" / name, work_folder / "input" / name) if path.exists())
    if key not in smallest or outcome.size < smallest[key].size:
        smallest[key] = outcome
        index = [other for other in smallest if other[:2] == key[:2]].index(key) + 1
        folder = out / "findings" / outcome.door / f"{outcome.kind.replace(' ', '-')}-{index}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder / "input", symlinks=True)
        (folder / "finding.json").write_text(json.dumps({"seed": seed, **asdict(outcome)}, indent=1), encoding="utf-8")
    shutil.rmtree(source)


def _count(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    own = [outcome for outcome in outcomes if outcome.door == name]
    kinds = Counter(outcome.kind for outcome in own)
    return {
        "door": name,
        "inputs": len(own),
        **{kind: kinds[kind] for kind in (*GOOD, *BAD)},
        "slowest_seconds": max((outcome.seconds for outcome in own), default=0.0),
        "most_memory_mb": max((outcome.memory for outcome in own), default=0.0),
        "seconds": sum(outcome.seconds for outcome in own),
    }


def _findings(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the findings by place, the most frequent first."""
    groups = defaultdict(list)
    for outcome in outcomes:
        if outcome.kind in BAD:
            groups[_key(outcome)].append(outcome)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [{"count": len(group), **asdict(min(group, key=lambda outcome: outcome.size))} for group in ordered]


def table(result: dict[str, Any]) -> str:
    """Format the counts as a Markdown table."""
    kinds = [kind for kind in (*GOOD, *BAD) if kind in GOOD[:2] or any(door[kind] for door in result["doors"])]
    lines = ["| door | inputs | " + " | ".join(kinds) + " | slowest, s | most memory, MB |"]
    lines.append("|---|" + "--:|" * (len(kinds) + 3))
    total: dict[str, Any] = {"door": "all", "inputs": sum(door["inputs"] for door in result["doors"])}
    total |= {kind: sum(door[kind] for door in result["doors"]) for kind in kinds}
    total |= {name: max(door[name] for door in result["doors"]) for name in ("slowest_seconds", "most_memory_mb")}
    for door in [*result["doors"], total]:
        cells = [door["door"], f"{door['inputs']:,}", *(f"{door[kind]:,}" for kind in kinds)]
        lines.append(
            "| " + " | ".join([*cells, f"{door['slowest_seconds']:.1f}", f"{door['most_memory_mb']:.0f}"]) + " |"
        )
    for finding in result["findings"]:
        message = finding["message"].strip().splitlines() or [""]
        lines.append(
            f"\n{finding['count']} x {finding['door']}: {finding['kind']}, {finding['error']} in {finding['place']}, "
            f"for instance number {finding['number']}: {message[-1][:200]}"
        )
    return "\n".join(lines)


def replay(path: Path) -> None:
    """Hand over a stored finding in this process, without limits; its error is raised."""
    finding = json.loads(path.read_text(encoding="utf-8"))
    door = find(DOORS, finding["door"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / f"input-{finding['number']}"
        shutil.copytree(path.parent / "input", folder, symlinks=True)
        with Traces(Path(temporary)).watched():
            print(door.open(folder))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Hand over broken inputs, and count results, errors and findings.")
    parser.add_argument("--out", type=Path, help="folder of the counts and the findings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[door.name for door in DOORS], metavar="DOOR", help="only these")
    parser.add_argument("--processes", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="hand over a finding again: its finding.json")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay)
        return
    if options.out is None:
        parser.error("expected --out, or --replay")
    doors = [door for door in DOORS if options.only is None or door.name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    result = run(doors, options.seed, options.inputs, options.processes, options.out.resolve())
    (options.out / "hostile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "hostile.md").write_text(table(result) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
