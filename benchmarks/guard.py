"""
What decoding in guarded workers (`caeav_hf.media.guard`) costs.

    python benchmarks/guard.py

Each row is done in this process and in a worker in turn: the median processor time of each, that of the worker
included, and the medians of the turns' ratios, of processor time and by the clock. Clips are the scene of
`frame_skipping.py`, 10 s at 30 frames a second, of which ten frames and their sound are read; the data set is a toy
corpus in AVE's layout. The results of both are compared. A new worker is one that starts with the call, as for the
first clip of a process.
"""

import argparse
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from frame_skipping import write_clip

from caeav_hf import CaeAvConfig, CaeAvProcessor
from caeav_hf.data import AveBuilder, prepare_clips
from caeav_hf.media.clip import load_clip, probe
from caeav_hf.media.guard import VARIABLE, end_workers
from caeav_hf.toy import generate


SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}


def processor_time() -> float:
    """Return the processor seconds of this process and of its children, living or not."""
    seconds = sum(os.times()[:4])
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            # Fields 14 and 15 of the line: user and system, after a name in brackets that may contain spaces.
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def timed(function: Callable[[], Any], guarded: bool, calls: int) -> tuple[np.ndarray, Any]:
    """Return the seconds of a call, by the processor and by the clock, and its result, here or in a worker."""
    os.environ[VARIABLE] = "1" if guarded else "0"
    started = np.array([processor_time(), time.perf_counter()])
    for _ in range(calls):
        result = function()
    return (np.array([processor_time(), time.perf_counter()]) - started) / calls, result


def measure(
    name: str,
    function: Callable[[], Any],
    same: Callable[[Any, Any], bool],
    repeats: int,
    new_worker: bool = False,
    calls: int = 1,
) -> None:
    """Print a row of the table."""
    turns = []
    for guarded in (False, True):
        timed(function, guarded, 1)  # warms up
    for turn in range(repeats):
        seconds: dict[bool, np.ndarray] = {}
        results: dict[bool, Any] = {}
        for guarded in (turn % 2 == 0, turn % 2 == 1):
            if new_worker:
                end_workers()
            seconds[guarded], results[guarded] = timed(function, guarded, calls)
        if not same(results[False], results[True]):
            raise AssertionError(f"{name}: the results differ")
        turns.append((seconds[False][0], seconds[True][0], *seconds[True] / seconds[False]))
    alone, worker, ratio, by_clock = (statistics.median(values) for values in zip(*turns, strict=True))
    print(f"| {name} | {alone:.4f} | {worker:.4f} | {ratio:.2f} | {by_clock:.2f} |", flush=True)


def same_clips(one: Any, other: Any) -> bool:
    """Return whether two clips are equal, bit for bit."""
    return np.array_equal(one.frames, other.frames) and np.array_equal(one.waveform, other.waveform)


def shards_of(folder: Path) -> dict[str, bytes]:
    """Return the shards of a data set."""
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What decoding in guarded workers costs.")
    parser.add_argument("--seconds", type=int, default=10, help="length of the clips (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=60, help="clips of the data set (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=11, help="pairs of turns (default: %(default)s)")
    options = parser.parse_args()
    print("| what | in this process, s | in a worker, s | ratio | by the clock |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, (width, height) in SIZES.items():
            path = folder / f"{size}.mp4"
            write_clip(path, options.seconds, 250, width, height)

            load = partial(load_clip, path, num_segments=10, sampling_rate=32_000)
            measure(f"`load_clip`, {size}, new worker", load, same_clips, options.repeats, new_worker=True)
            measure(f"`load_clip`, {size}", load, same_clips, options.repeats)
            measure(f"`probe`, {size}", partial(probe, path), operator.eq, options.repeats, calls=50)
        corpus, count = folder / "corpus", 0
        generate(corpus, "ave", options.clips, progress=False)
        builder = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media"), "embed_media": True}

        def build() -> dict[str, bytes]:
            nonlocal count
            count += 1
            AveBuilder(**builder).build(folder / f"built{count}")
            return shards_of(folder / f"built{count}")

        processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy"))

        def prepare() -> dict[str, bytes]:
            nonlocal count
            count += 1
            prepare_clips(folder / "built1", processor, folder / f"prepared{count}")
            return shards_of(folder / f"prepared{count}")

        repeats = max(1, options.repeats // 3)
        measure(f"`AveBuilder.build`, {options.clips} clips", build, operator.eq, repeats)
        measure(f"`prepare_clips`, {options.clips} clips", prepare, operator.eq, repeats)


if __name__ == "__main__":
    main()
