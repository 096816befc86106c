"""
Interrupt the commands at random moments, and check that the next run gives what an uninterrupted run gives.

    python benchmarks/kills.py --kills 200 --out kills
    python benchmarks/kills.py --causes disk read-only clock --out kills      # as root, with a C compiler

- `kill`: SIGKILL to all processes of a command, at a moment drawn uniformly from the time that an uninterrupted run
  takes or, with `--operations`, before one of its file operations. Right after it, no file may be half written under
  its final name. Every twentieth kill is of a new process that imports all libraries; the others are forked from one
  that has imported them. Of two processes every other kill is of one alone, and the other one has to end by itself.
- `disk`: the outputs, caches and temporary files are on a small disk, which fills up.
- `read-only`: the outputs, finished by half, are in a folder that cannot be written; and so are the inputs of commands
  that only read them.
- `clock`: the time of day jumps by an hour or a year at a random moment; clocks that count from the start do not.

After a kill, and after room was made, the command that the documentation names continues, and all that it leaves is
compared with what an uninterrupted run leaves: bit for bit, except for times in reports (`interrupted.VARYING`) and,
counted apart, numbers that differ by rounding (`interrupted.TOLERANCE`). No temporary file may be left. A command that
fails has to say so in one line that names the folder.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from interrupted import (
    COMMANDS,
    PATIENCE,
    Kept,
    Place,
    damages,
    differences,
    fork,
    kill,
    make_inputs,
    make_pieces_small,
    start,
    start_captions,
    start_fresh,
    wait,
)
from runs import write

import caeav_hf.app.page
import caeav_hf.robustness
import caeav_hf.training.export
import caeav_hf.training.run  # noqa: F401


CAUSES = ("kill", "disk", "read-only", "clock")
_FRESH_EVERY = 20
# `sys.audit` events of the operations that change a folder.
_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.rmdir", "shutil.rmtree"}
# Of the room that an uninterrupted run needs, how much there is.
_SHARES_OF_DISK = (0.1, 0.5, 0.9)
_CLOCK_VARIABLE = "CAEAV_CLOCK"
_JUMPS = {"a year forward": 31_536_000, "a year back": -31_536_000, "an hour back": -3600}
# A library that moves the time of day of a process by the seconds in a file, but no clock that counts from the start.
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) {
    static volatile long *seconds;
    if (!seconds) {
        int file = open(getenv("CAEAV_CLOCK"), O_RDONLY);
        seconds = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    }
    return *seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*original)(clockid_t, struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "clock_gettime");
    int result = original(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


class Trial:
    """A command, what its uninterrupted run leaves, and what became of the interrupted ones."""

    def __init__(self, name: str, place: Place, logs: Path) -> None:
        self.name, self.command, self.place = name, COMMANDS[name], place
        self.log = logs / f"{name}.txt"
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest_end = 0.0
        place.clear()
        begun = time.monotonic()
        codes = wait(start(self.command, place, self.log))
        self.seconds = time.monotonic() - begun
        if set(codes) != {0}:
            raise SystemExit(f"{name}: fails without an interruption; see {self.log}")
        self.kept = Kept.of(place)

    def note(self, what: str, problems: Sequence[str]) -> bool:
        """Record problems of a run; return whether there are any."""
        for problem in problems:
            self.problems.append(f"{what}: {problem}")
            print(f"{self.name}: {what}: {problem}", flush=True)
        return bool(problems)

    def compare(self, what: str) -> None:
        """Compare what is there with what an uninterrupted run leaves."""
        rounded, wrong = differences(self.place, self.kept)
        self.note(what, wrong)
        self.counts["wrong" if wrong else "rounding" if rounded else "bits"] += 1

    def go_on(self, what: str) -> None:
        """Run the command that continues, and compare what it leaves."""
        codes = wait(start(self.command, self.place, self.log, again=True))
        if set(codes) != {0}:
            self.note(what, [f"the next run ends with {codes}"])
            self.counts["wrong"] += 1
        else:
            self.compare(what)

    def fail(self, what: str, folder: Path) -> None:
        """Run the command where it may fail, and check that it says so in one line that names the folder."""
        begin = self.log.stat().st_size
        codes = wait(start(self.command, self.place, self.log))
        said = self.log.read_bytes()[begin:].decode(errors="replace").replace("\r", "\n")
        if set(codes) == {0}:
            self.counts["finished"] += 1
            return
        self.counts["failed"] += 1
        lines = [line for line in said.splitlines() if ": error: " in line]
        problems = ["it hangs"] if None in codes else []
        if not self.command.is_command:  # the app reports it to the visitor, and goes on
            self.note(what, problems)
            return
        if "Traceback (most recent call last)" in said and self.command.processes == 1:
            problems.append(f"a traceback: {said.strip().splitlines()[-1]}")
        if not any(str(folder) in line for line in lines):
            problems.append(f"no line names {folder}: {lines}")
        self.note(what, problems)
        self.note(what, damages(self.place, self.kept, self.command))


def kill_once(trial: Trial, rng: random.Random, *, fresh_seconds: float, operations: int | None) -> bool:
    """
    Kill a command at a random moment, and continue it.

    Args:
        fresh_seconds: Time that a new process takes to import the libraries; 0 to fork one.
        operations: File operations of an uninterrupted run, to kill before one of them.

    Returns:
        Whether it was killed; it may have ended before.
    """
    command, place = trial.command, trial.place
    place.clear()
    moment = rng.uniform(0.0, trial.seconds + fresh_seconds)
    victims = list(range(command.processes))
    if command.processes > 1 and rng.random() < 0.5:
        victims = [rng.randrange(command.processes)]
    if operations is not None:
        number = rng.randrange(operations)
        what = f"killed before operation {number} of {operations}"
        processes = start(command, place, trial.log, before=lambda: count_operations(number))
    else:
        what = f"killed after {moment:.2f} of {trial.seconds + fresh_seconds:.2f} s"
        start_one = start_fresh if fresh_seconds else start
        processes = start_one(command, place, trial.log)
        time.sleep(moment)
        for rank in victims:
            kill(processes[rank])
    begun = time.monotonic()
    codes = wait(processes)
    if -signal.SIGKILL not in codes and None not in codes:
        return False
    if len(victims) < len(processes):
        trial.counts["one of two"] += 1
        trial.slowest_end = max(trial.slowest_end, time.monotonic() - begun)
        trial.note(what, [f"the other process still ran after {PATIENCE} s"] if None in codes else [])
    trial.counts["killed"] += 1
    trial.counts["fresh"] += bool(fresh_seconds)
    trial.note(what, damages(place, trial.kept, command))
    trial.go_on(what)
    return True


def count_operations(fatal: int | None = None, file: Path | None = None) -> None:
    """
    Count the file operations of this process.

    Args:
        fatal: The operation before which the process is killed, counted from 0.
        file: File to write the number to.
    """
    count = 0
    counter = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _OPERATIONS or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if count == fatal:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        count += 1
        if counter is not None:
            os.pwrite(counter, str(count).encode(), 0)

    sys.addaudithook(hook)


def fill_disk(trial: Trial) -> None:
    """Run a command on disks that are too small, then make room and continue."""
    place = trial.place
    needed = _bytes(place.work)
    for share in _SHARES_OF_DISK:
        with mounted(place.work, "size=256m"):
            place.clear()
            there = _bytes(place.work)
            size = there + round(share * (needed - there))
            _mount("-o", f"remount,size={-(-size // 4096) * 4}k", place.work)
            what = f"{share:.0%} of the room"
            trial.fail(what, place.work)
            _mount("-o", "remount,size=512m", place.work)
            trial.go_on(what)


def forbid_writing(trial: Trial, rng: random.Random) -> None:
    """Run a command where it cannot write, then allow it and continue; and where it cannot write to its inputs."""
    place = trial.place
    for half in (False, True):
        with mounted(place.out, "size=512m"):
            place.clear()
            if half:
                processes = start(trial.command, place, trial.log)
                time.sleep(rng.uniform(0.5, 1.0) * trial.seconds)
                for process in processes:
                    kill(process)
                wait(processes)
            _mount("-o", "remount,ro", place.out)
            what = "half of it in a read-only folder" if half else "a read-only folder"
            trial.fail(what, place.out)
            _mount("-o", "remount,rw", place.out)
            trial.go_on(what)
    _mount("--bind", place.inputs, place.inputs)
    try:
        _mount("-o", "remount,ro,bind", place.inputs)
        place.clear()
        codes = wait(start(trial.command, place, trial.log))
        if not trial.note("read-only inputs", [f"ends with {codes}"] if set(codes) != {0} else []):
            trial.compare("read-only inputs")
    finally:
        subprocess.run(["umount", str(place.inputs)], check=True)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Put an empty disk in memory in the place of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: Any) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _bytes(folder: Path) -> int:
    """Return the room that a folder takes, in whole pages."""
    seen = {
        (status.st_dev, status.st_ino): status
        for path in folder.rglob("*")
        if path.is_file()
        for status in [path.lstat()]
    }
    return sum(4096 * -(-status.st_size // 4096) for status in seen.values())


def jump(trial: Trial, rng: random.Random) -> None:
    """Let the time of day jump while a command runs."""
    file = Path(os.environ[_CLOCK_VARIABLE])
    for name, offset in _JUMPS.items():
        _set_clock(file, 0)
        trial.place.clear()
        before = time.time()
        processes = start(trial.command, trial.place, trial.log)
        time.sleep(rng.uniform(0.1, 0.9) * trial.seconds)
        _set_clock(file, offset)
        codes = wait(processes)
        if abs(time.time() - before - offset) > 600:
            raise SystemExit("the clock did not jump")
        if not trial.note(name, [f"ends with {codes}"] if set(codes) != {0} else []):
            trial.compare(name)
    _set_clock(file, 0)


def _set_clock(file: Path, seconds: int) -> None:
    with file.open("r+b") as opened:
        opened.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def with_another_clock(arguments: Sequence[str], out: Path) -> int:
    """Run this program with a time of day that can be moved."""
    file, library = out / "clock", out / "clock.so"
    file.write_bytes(bytes(8))
    compiler = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compiler, input=_CLOCK.encode(), check=True)
    environment = {**os.environ, _CLOCK_VARIABLE: str(file), "LD_PRELOAD": str(library)}
    return subprocess.run([sys.executable, *arguments], env=environment).returncode


def table(trials: Sequence[Trial], cause: str) -> str:
    """Return the outcomes of all commands as Markdown."""
    columns = {
        "kill": ("killed", "fresh", "one of two"),
        "disk": ("failed", "finished"),
        "read-only": ("failed", "finished"),
        "clock": (),
    }[cause]
    titles = {
        "killed": "kills",
        "fresh": "of new processes",
        "one of two": "of one of two",
        "failed": "failed, in one line",
        "finished": "finished",
        "bits": "then bit for bit",
        "rounding": "up to rounding",
        "wrong": "not the same",
        "problems": "problems",
    }
    shown = (*columns, "bits", "rounding", "wrong", "problems")
    lines = [
        f"| {cause} | seconds | {' | '.join(titles[name] for name in shown)} |",
        "|---|---:" + "|---:" * len(shown) + "|",
    ]
    total: Counter[str] = Counter()
    for trial in trials:
        counts = trial.counts + Counter(problems=len(trial.problems))
        total += counts
        cells = " | ".join(str(counts[name]) for name in shown)
        lines.append(f"| `{trial.name}` | {trial.seconds:.1f} | {cells} |")
    cells = " | ".join(str(total[name]) for name in shown)
    return "\n".join([*lines, f"| all | {sum(trial.seconds for trial in trials):.1f} | {cells} |"])


def main() -> None:
    """Interrupt the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument("--causes", nargs="+", choices=CAUSES, default=["kill"], help="default: kill")
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="commands (default: all)")
    parser.add_argument("--clips", type=int, default=96, metavar="N", help="clips of a corpus (default: %(default)s)")
    parser.add_argument("--operations", action="store_true", help="kill before file operations, not at moments")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    out = options.out.resolve()
    place, logs = Place(out / "inputs", out / "work"), out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if options.causes == ["clock"] and _CLOCK_VARIABLE not in os.environ:
        sys.exit(with_another_clock(sys.argv, out))
    # Before processes are forked, which must find no threads.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if any(wait([fork(lambda: make_inputs(place.inputs, options.only, options.clips), logs / "inputs.txt")], 600.0)):
        raise SystemExit(f"the inputs could not be made; see {logs / 'inputs.txt'}")
    make_pieces_small()
    server = start_captions(place.inputs)
    failed = False
    try:
        for cause in options.causes:
            if cause == "clock" and _CLOCK_VARIABLE not in os.environ:
                arguments = [sys.argv[0], "--out", str(out), "--causes", "clock", "--seed", str(options.seed)]
                failed |= with_another_clock([*arguments, "--only", *options.only], out) != 0
                continue
            begun = time.monotonic()
            trials = [_try(name, cause, place, logs, options) for name in options.only]
            text = table(trials, cause)
            slowest = max(trial.slowest_end for trial in trials)
            if slowest:
                text += f"\n\nA process that lost the other one ended after at most {slowest:.1f} s."
            problems = {trial.name: trial.problems for trial in trials if trial.problems}
            name = f"{cause} before operations" if options.operations and cause == "kill" else cause
            write(out / f"{name}.md", text)
            write(out / f"{name}.json", json.dumps(problems, indent=1))
            print(f"{text}\n{(time.monotonic() - begun) / 60:.1f} minutes, seed {options.seed}", flush=True)
            failed |= bool(problems)
    finally:
        kill(server)
        wait([server])
        shutil.rmtree(place.work, ignore_errors=True)
    sys.exit(int(failed))


def _try(name: str, cause: str, place: Place, logs: Path, options: argparse.Namespace) -> Trial:
    """Interrupt one command."""
    trial, rng = Trial(name, place, logs), random.Random(f"{options.seed} {cause} {name}")
    if cause == "disk":
        fill_disk(trial)
    elif cause == "read-only":
        forbid_writing(trial, rng)
    elif cause == "clock":
        jump(trial, rng)
    else:
        first = options.only.index(name)
        operations = _number_of_operations(trial) if options.operations else None
        # Spread evenly over the commands.
        for number in range(first, options.kills, len(options.only)):
            is_fresh = number % _FRESH_EVERY == 0 and trial.command.processes == 1 and trial.command.is_command
            fresh_seconds = _fresh_seconds(trial) if is_fresh and operations is None else 0.0
            while not kill_once(trial, rng, fresh_seconds=fresh_seconds, operations=operations):
                trial.counts["ended before"] += 1
    print(f"{name}, {cause}: {dict(trial.counts)}", flush=True)
    return trial


def _number_of_operations(trial: Trial) -> int:
    """Return the number of file operations of an uninterrupted run."""
    file = trial.log.with_suffix(".count")
    file.unlink(missing_ok=True)
    trial.place.clear()
    wait(start(trial.command, trial.place, trial.log, before=lambda: count_operations(file=file)))
    return int(file.read_text())


def _fresh_seconds(trial: Trial) -> float:
    """Return how much longer a new process takes."""
    trial.place.clear()
    begun = time.monotonic()
    wait(start_fresh(trial.command, trial.place, trial.log))
    return max(0.0, time.monotonic() - begun - trial.seconds)


if __name__ == "__main__":
    main()
