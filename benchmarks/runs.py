"""What benchmarks of many toy runs share: corpora, runs that survive a kill, means with intervals, their picture."""

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from tqdm import tqdm

from caeav_hf.data import AveBuilder, AvsBenchBuilder, LlpBuilder, MusicAvqaBuilder, RaSsuBuilder
from caeav_hf.robustness.statistics import student_interval
from caeav_hf.toy import generate
from caeav_hf.training import Recipe
from caeav_hf.training.build import find_task, load_trained_model
from caeav_hf.training.run import train
from caeav_hf.visualization.drawing import COLOURS, SERIES, make_bare


BUILDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ave": (AveBuilder, {}),
    "avvp": (LlpBuilder, {}),
    "avs_s4": (AvsBenchBuilder, {"setting": "s4"}),
    "avs_ms3": (AvsBenchBuilder, {"setting": "ms3"}),
    "avqa": (MusicAvqaBuilder, {}),
    "ra_ssu": (RaSsuBuilder, {}),
}


def prepare(
    folder: Path, task: str, level: str, num_clips: int, split: Sequence[float], **corpus_options: Any
) -> None:
    """Make the toy corpus of a task, with further options of `generate`, and build its data set, unless they exist."""
    if (folder / "dataset").exists():
        return
    corpus = folder / "corpus"
    if not (corpus / "toy.json").exists():
        options_of_corpus = {"seed": 0, "num_proc": 2, "overwrite": True, **corpus_options}
        generate(corpus, task, num_clips, level=level, split=split, **options_of_corpus)
    builder, options = BUILDERS[task]
    builder(
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / "captions.json"),
        cache_dir=str(folder / "cache"),
        **options,
    ).build(folder / "dataset")


def train_or_resume(recipe: Recipe) -> tuple[Any, Path, float | None]:
    """
    Train, or finish an interrupted run.

    Returns:
        The best model; its checkpoint; and the processor seconds of training, `None` if the run was interrupted.
    """
    started = time.process_time()
    run = Path(str(recipe.output_dir))
    is_resumed = (run / "checkpoints" / "last").exists()
    checkpoint = train(recipe, resume=run if is_resumed else None).best_checkpoint
    seconds = time.process_time() - started
    return (
        load_trained_model(find_task(recipe, checkpoint).model_class, checkpoint),
        checkpoint,
        None if is_resumed else seconds,
    )


def execute(
    function: Callable[..., None],
    runs: Mapping[Path, tuple[Any, ...]],
    logs: Path,
    modules: Sequence[str] = (),
    processes: int = 2,
) -> None:
    """
    Execute the runs that have no result file yet, several at a time, each in a process of its own with one thread.

    Args:
        function: What executes a run and writes its result file.
        runs: The arguments of each run, by its result file.
        logs: Folder for the output of each run.
        modules: Modules to import in each process.
        processes: Number of runs at a time.

    Raises:
        SystemExit: A run failed; the message names its output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Its server imports the libraries once, for all runs.
    context = get_context("forkserver")
    context.set_forkserver_preload(["caeav_hf.training.run", "caeav_hf.data", "caeav_hf.visualization.drawing"])

    def name(arguments: tuple[Any, ...]) -> str:
        return ", ".join(str(argument) for argument in arguments if not isinstance(argument, Path))

    def start(arguments: tuple[Any, ...]) -> int | None:
        log = logs / f"{name(arguments)}.txt"
        process = context.Process(target=_run, args=(log, modules, function, arguments))
        process.start()
        process.join()
        return process.exitcode

    with ThreadPoolExecutor(processes) as pool:
        started = {pool.submit(start, arguments): arguments for file, arguments in runs.items() if not file.exists()}
        done = tqdm(as_completed(started), total=len(started), desc="runs", unit="run")
        failed = [name(started[run]) for run in done if run.result()]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}; their output is in {logs}")


def _run(log: Path, modules: Sequence[str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Execute a run with its output in a file, since that of a failed run must be found."""
    with open(log, "w", encoding="utf-8") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    for module in modules:
        importlib.import_module(module)
    function(*arguments)


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def check_setting(out: Path, name: str, value: Any) -> None:
    """
    Refuse to mix runs of different settings in one table.

    Raises:
        SystemExit: `out` has runs with another value of the option `--<name>`.
    """
    path = out / "settings.json"
    if not path.exists():
        write(path, json.dumps({name: value}))
    known = json.loads(path.read_text(encoding="utf-8"))[name]
    if known != value:
        raise SystemExit(
            f"{out}: has runs of {known} {name}; expected --{name} {known}, or another folder for {value}"
        )


def text(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    """Format the mean with its interval."""
    center, half = student_interval(values)
    # Adding 0 turns what rounds to minus zero into zero.
    shown = f"{round(center, digits) + 0.0:{sign}.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"


def draw_scores(axis: Axes, runs: Mapping[str, Sequence[dict[str, Any]]], scores: Mapping[str, str]) -> None:
    """Draw for each variant and each score, by its label, the mean with its interval, and beside it the runs."""
    for number, (label, score) in enumerate(scores.items()):
        offset = 0.18 * (number - (len(scores) - 1) / 2)
        places = [place + offset for place in range(len(runs))]
        values = [[run["scores"][score] for run in of_variant] for of_variant in runs.values()]
        centers, halves = zip(*map(student_interval, values), strict=True)
        axis.errorbar(places, centers, halves, fmt="o", color=SERIES[number], capsize=4, label=label)
        for place, singles in zip(places, values, strict=True):
            axis.plot([place + 0.05] * len(singles), singles, ".", color=SERIES[number], alpha=0.5, markersize=5)
    make_bare(axis, keep=("left", "bottom"))
    axis.set_xticks(range(len(runs)), [name.replace(" + ", "\n+ ").replace(", ", ",\n") for name in runs])
    axis.grid(axis="y", color=COLOURS["grid"])
    axis.set_axisbelow(True)
    axis.legend(fontsize=11, frameon=False)
