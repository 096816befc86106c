"""
Measure how the cost of a model grows with the clips of a batch and with the frames of a clip.

    python benchmarks/scaling.py --out scaling.json --plot scaling.png
    python benchmarks/scaling.py --size toy --precision bf16

Batches have `--batch-frames` frames per clip, longer clips come one by one. One model runs all cases, and they take
turns, so that drifts of the machine's speed affect all; cost per frame is compared within a turn. A case whose memory,
extrapolated from the case before it, would be above `--memory-limit` is left out, and recorded so. Lines are fitted to
the seconds and, of forward passes, to the multiply-accumulates, which have no noise; the largest deviation from a line
tells whether the cost is linear.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import peak_memory, reset_peak_memory
from throughput import (
    Settings,
    add_model_options,
    describe_machine,
    make_config,
    make_inputs,
    multiply_accumulates,
    seconds,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm.auto import tqdm

from caeav_hf.command_line import tune_memory
from caeav_hf.task import get_task
from caeav_hf.visualization.drawing import SERIES, new_figure, save_figure


FORWARD, STEP = "forward", "training step"


@dataclass(frozen=True)
class Case:
    """A batch: what is run, on how many clips of how many frames."""

    name: str
    clips: int
    frames: int

    @property
    def all_frames(self) -> int:
        return self.clips * self.frames


class Runner:
    """
    One model on a device, and its inputs of any size.

    Args:
        settings: Model, device and seed.
        precision: `"fp32"` or `"bf16"`.
    """

    def __init__(self, settings: Settings, precision: str):
        self.settings = settings
        self.is_mixed = precision == "bf16"
        self.config = make_config(settings)
        torch.manual_seed(settings.seed)
        self.model = get_task(settings.task, settings.method).model_class(self.config)
        self.optimizer = torch.optim.Adam(p for p in self.model.parameters() if p.requires_grad)

    def prepare(self, case: Case) -> Callable[[], Any]:
        """Return a function that runs a case on inputs drawn before; a forward pass returns the model's output."""
        inputs = make_inputs(self.config, replace(self.settings, batch_size=case.clips, frames=case.frames))
        labels = inputs.pop("labels")

        def run(**labels: torch.Tensor) -> Any:
            if not self.is_mixed:
                return self.model(**inputs, **labels)
            with torch.autocast(torch.device(self.settings.device).type, dtype=torch.bfloat16):
                return self.model(**inputs, **labels)

        def forward() -> Any:
            self.model.eval()
            with torch.no_grad():
                return run()

        def step() -> None:
            self.model.train()
            run(labels=labels).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return forward if case.name == FORWARD else step


def make_cases(
    name: str, clips: Sequence[int], frames: Sequence[int], batch_frames: int
) -> tuple[list[Case], list[Case]]:
    """Return the batches and the clips of increasing size."""
    batches = [Case(name, count, batch_frames) for count in sorted(clips)]
    return batches, [Case(name, 1, count) for count in sorted(frames)]


def count_work(settings: Settings, cases: Sequence[Case]) -> dict[Case, float]:
    """Count the multiply-accumulates of each forward pass, on tensors that have a shape but no values."""
    with torch.device("meta"):
        runner = Runner(replace(settings, device="cpu"), "fp32")
    forward = [case for case in cases if case.name == FORWARD]
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        # The towers' constants are cached by the addresses of weights, which have none here.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        runner.model.to_empty(device="cpu")
        return {case: multiply_accumulates(runner.prepare(case)) for case in tqdm(forward, "counting", leave=False)}


def measure(
    runner: Runner, cases: Sequence[Case], repeats: int, memory_limit: float
) -> tuple[dict[Case, list[float]], dict[Case, float], dict[Case, float]]:
    """
    Return the seconds of each case by turn, its peak memory in GB, and the memory expected of cases left out.

    Args:
        runner: The model.
        cases: All cases, of increasing size.
        repeats: Turns.
        memory_limit: GB above which a case is left out.
    """
    device = runner.settings.device
    for name in dict.fromkeys(case.name for case in cases):
        # The first call makes constants and the optimizer's state.
        runner.prepare(next(case for case in cases if case.name == name))()
    times: dict[Case, list[float]] = {case: [] for case in cases}
    peaks: dict[Case, float] = {}
    left_out: dict[Case, float] = {}
    of_frame: dict[str, float] = {}  # GB, of the last case of each name
    reset_peak_memory(device)
    constant = peak_memory(device)
    for _, case in tqdm([*product(range(repeats), cases)], desc="timing", unit="case", leave=False):
        if case in left_out:
            continue
        expected = constant + of_frame.get(case.name, 0.0) * case.all_frames
        if case not in peaks and expected > memory_limit:
            left_out[case] = expected
            tqdm.write(
                f"{case.name}, {case.clips} clips of {case.frames} frames: left out, would need about "
                f"{expected:.1f} GB, more than --memory-limit {memory_limit:g}"
            )
            continue
        run = runner.prepare(case)
        reset_peak_memory(device)
        times[case].append(seconds(run, device))
        peak = peak_memory(device)
        peaks[case] = max(peak, peaks.get(case, 0.0))
        of_frame[case.name] = (peak - constant) / case.all_frames
    return {case: found for case, found in times.items() if found}, peaks, left_out


def fit_line(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """
    Fit a line by least squares of relative errors.

    Args:
        sizes: At least two different sizes.
        values: Seconds or multiply-accumulates.

    Returns:
        `constant` and `slope` of the line, and `deviation`, the largest relative distance of a value from it.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    slope, constant = np.polyfit(x, y, 1, w=1 / y)
    deviation = np.abs(y / (constant + slope * x) - 1).max()
    return {"constant": float(constant), "slope": float(slope), "deviation": float(deviation)}


def describe_series(
    cases: Sequence[Case], size: str, times: dict[Case, list[float]], peaks: dict[Case, float], work: dict[Case, float]
) -> dict[str, Any]:
    """
    Describe the growth of cost over cases.

    Args:
        cases: Cases of increasing size; those that were left out have no times.
        size: What increases, `"clips"` or `"frames"`.
        times, peaks, work: Seconds by turn, GB and multiply-accumulates of each case.
    """
    measured = [case for case in cases if case in times]
    rows: list[dict[str, Any]] = []
    for case in measured:
        per_frame = [one / case.all_frames for one in times[case]]
        first = [one / measured[0].all_frames for one in times[measured[0]]]
        middle = statistics.median(times[case])
        rows.append(
            {
                "clips": case.clips,
                "frames": case.frames,
                "seconds": middle,
                "clips_per_second": case.clips / middle,
                "relative_cost_per_frame": statistics.median(a / b for a, b in zip(per_frame, first, strict=True)),
                "gmac": work[case] / 1e9 if case in work else None,
                "peak_gb": peaks[case],
                "all_seconds": times[case],
            }
        )
    found: dict[str, Any] = {"rows": rows}
    if len(rows) > 1:
        found["line_of_seconds"] = fit_line([row[size] for row in rows], [row["seconds"] for row in rows])
        counted = [row for row in rows if row["gmac"] is not None]
        if counted:
            found["line_of_gmac"] = fit_line([row[size] for row in counted], [row["gmac"] for row in counted])
    return found


def report(result: dict[str, Any]) -> str:
    """Format the result as tables."""
    lines = []
    for name, of_name in result["cases"].items():
        for size in ("clips", "frames"):
            series = of_name[size]
            lines.append(
                f"{name + ', more ' + size:28}{'clips':>6}{'frames':>8}{'seconds':>10}{'clips/s':>10}"
                f"{'x per frame':>13}{'GMAC':>10}{'peak GB':>10}"
            )
            for row in series["rows"]:
                gmac = "" if row["gmac"] is None else f"{row['gmac']:.1f}"
                lines.append(
                    f"{'':28}{row['clips']:6}{row['frames']:8}{row['seconds']:10.3f}{row['clips_per_second']:10.3f}"
                    f"{row['relative_cost_per_frame']:13.2f}{gmac:>10}{row['peak_gb']:10.2f}"
                )
            for what in ("seconds", "gmac"):
                if line := series.get(f"line_of_{what}"):
                    unit = {"seconds": "s", "gmac": "GMAC"}[what]
                    lines.append(
                        f"{'':4}{unit}: {line['constant']:.3g} + {line['slope']:.3g} a {size.removesuffix('s')}, "
                        f"deviation at most {100 * line['deviation']:.1f} %"
                    )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw clips per second by batch, and seconds by frames with the line fitted to them."""
    figure = new_figure(11.5, 4.4)
    batches, longer = figure.subplots(1, 2)
    colors = dict(zip((FORWARD, STEP), SERIES, strict=False))
    for name, of_name in result["cases"].items():
        rows = of_name["clips"]["rows"]
        batches.plot(
            [row["clips"] for row in rows],
            [row["clips_per_second"] for row in rows],
            color=colors[name],
            marker="o",
            label=name,
        )
        rows, line = of_name["frames"]["rows"], of_name["frames"].get("line_of_seconds")
        longer.plot(
            [row["frames"] for row in rows],
            [row["seconds"] for row in rows],
            color=colors[name],
            marker="o",
            linestyle="none",
            label=name,
        )
        if line is not None:
            ends = np.array([0, rows[-1]["frames"]])
            longer.plot(
                ends,
                line["constant"] + line["slope"] * ends,
                color=colors[name],
                linestyle="--",
                linewidth=1,
                label=f"line, deviation at most {100 * line['deviation']:.1f} %",
            )
    sizes = sorted({row["clips"] for of_name in result["cases"].values() for row in of_name["clips"]["rows"]})
    frames = result["batch_frames"]
    batches.set_xscale("log", base=2)
    batches.set_xticks(sizes, [str(size) for size in sizes])
    batches.set_title(f"Clips of {frames} frames in a batch", loc="left", fontsize=13)
    batches.set_xlabel("clips in a batch")
    batches.set_ylabel("clips per second")
    longer.set_title("One clip of more frames", loc="left", fontsize=13)
    longer.set_xlabel("frames")
    longer.set_ylabel("seconds")
    for axis in (batches, longer):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    longer.set_xlim(left=0)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Run the command line."""
    tune_memory()  # as the commands do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ave")
    add_model_options(parser)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 2, 4, 8], help="batches of a forward pass")
    parser.add_argument("--train-clips", type=int, nargs="+", default=[1, 2, 4], help="batches of a training step")
    parser.add_argument("--batch-frames", type=int, default=5, help="frames of each clip in a batch")
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 10, 20, 60], help="frames of one clip")
    parser.add_argument("--memory-limit", type=float, default=16.0, metavar="GB", help="leave out larger cases")
    parser.add_argument("--repeats", type=int, default=2, help="turns; each times every case once")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("task", "size", "method", "formulation", "device", "threads", "repeats", "seed")
    values = {name: getattr(options, name) for name in names}
    settings = Settings(**values, batch_size=1, frames=options.batch_frames)
    begun = time.monotonic()
    series = {
        name: make_cases(name, clips, options.frames, options.batch_frames)
        for name, clips in ((FORWARD, options.clips), (STEP, options.train_clips))
    }
    cases = list(dict.fromkeys(case for both in series.values() for one in both for case in one))
    cases.sort(key=lambda case: case.all_frames)
    work = count_work(settings, cases)
    runner = Runner(settings, options.precision)
    runner.model.to(options.device)
    times, peaks, left_out = measure(runner, cases, options.repeats, options.memory_limit)
    result = {
        "settings": vars(settings),
        "precision": options.precision,
        "batch_frames": options.batch_frames,
        "machine": describe_machine(settings),
        "cases": {
            name: {
                size: describe_series(one, size, times, peaks, work)
                for size, one in zip(("clips", "frames"), both, strict=True)
            }
            for name, both in series.items()
        },
        "left_out": [{**vars(case), "expected_gb": expected} for case, expected in left_out.items()],
        "all_seconds": time.monotonic() - begun,
    }
    print(report(result))
    print(f"{result['all_seconds']:.0f} s in all")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot is not None:
        draw(result, options.plot)


if __name__ == "__main__":
    main()
