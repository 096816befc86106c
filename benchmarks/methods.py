"""
Methods side by side on the toy corpora of the tasks: same data, same steps, same towers.

    python benchmarks/methods.py --out methods
    python benchmarks/methods.py --out methods --methods cae_av gated_mean --import gated_mean

Trains the toy preset of every method on every task, at the normal and at the hard level, with each seed, and scores it
on held-out clips by the task's main metric. Three rows say what doing nothing scores: the constant guess of
`baselines.py`, and the task's head alone in both formulations, trained the same way on the frozen towers without any
interaction. Differences are to the one of the formulation in the method's preset. SSUFormer, a model of its own for
segmentation, is compared with its decoder alone, without the integration. Every run is a process with one thread and
leaves a file in `--out`; the command continues where it was stopped, and ends with a table (`methods.md`), all numbers
(`methods.json`) and a picture (`methods.png`).

Steps are few and towers tiny: the table shows what each method costs and that it learns, not how the published methods
rank.
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import baselines
from machine import peak_memory, processor_name, reset_peak_memory
from runs import BUILDERS, check_setting, draw_scores, execute, prepare, text, train_or_resume, write

from caeav_hf import CaeAvConfig
from caeav_hf.modeling.interaction import InteractionLayer, InteractionOutput, register_interaction
from caeav_hf.task import get_task
from caeav_hf.toy import LEVELS
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.run import score
from caeav_hf.visualization.drawing import SERIES, new_figure, save_figure


METHODS = (
    *("head_alone", "official_head_alone", "cae_av", "avmoe", "dg_sct", "lavish", "stg_cma"),
    *("ssuformer_decoder_alone", "ssuformer"),
)
# Rows whose models are not CAE-AV's with another interaction: the method of their recipes, and what differs from it.
OTHER_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ssuformer_decoder_alone": ("ssuformer", {"num_integration_layers": 0}),
    "ssuformer": ("ssuformer", {}),
}
NAMES = {
    "head_alone": "head alone",
    "official_head_alone": "head alone, official",
    "cae_av": "CAE-AV",
    "avmoe": "AVMoE",
    "dg_sct": "DG-SCT",
    "lavish": "LAVisH",
    "stg_cma": "STG-CMA",
    "ssuformer_decoder_alone": "decoder alone, SSUFormer",
    "ssuformer": "SSUFormer",
}
TASKS = ("ave", "avvp", "avs_ms3", "avqa")
TITLES = {
    "ave": "Event localization, segment accuracy (%)",
    "avvp": "Video parsing, Type F-score of segments (%)",
    "avs_s4": "Single-source segmentation, J (%)",
    "avs_ms3": "Multi-source segmentation, J (%)",
    "avqa": "Question answering, accuracy (%)",
}
CLIPS = {"ave": 320, "avvp": 240, "avs_s4": 160, "avs_ms3": 160, "avqa": 240}
# Training, validation, test: the intervals are those of the seeds, so that the test clips should add little to them.
SPLIT = (4, 1, 3)
# The recipe's 8 clips would be twice the frames of the other tasks' batches.
BATCH = {"ave": 4}
# Scores of the other tasks are fractions.
IN_PERCENT = ("avvp",)


@register_interaction("head_alone")
class HeadAlone(InteractionLayer):
    """No interaction: every frozen block runs as it is."""

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        return {"use_case": False, "use_text_tower": False}

    def forward(self, visual, audio, visual_block, audio_block, frames) -> InteractionOutput:
        return InteractionOutput(visual_block(visual), audio_block(audio))


@register_interaction("official_head_alone")
class OfficialHeadAlone(HeadAlone):
    """The same with the official formulation's heads, which the presets of DG-SCT, LAVisH and STG-CMA take."""

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        return {**super().preset(task, size), "formulation": "official"}


def run_one(task: str, level: str, method: str, seed: int, steps: int, out: Path) -> None:
    """Train one method with one seed, score it and write its file."""
    folder = out / task / level
    of_recipe, changes = OTHER_MODELS.get(method, (None, {"agreement_loss_weight": 0.0}))
    values = {
        "method": of_recipe or method,
        "data": str(folder / "dataset"),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "runs" / f"{method}, seed {seed}"),
        "seed": seed,
        **({"batch_size": BATCH[task]} if task in BATCH else {}),
        "epochs": steps,
        "max_steps": steps,
        # The agreement loss is of this package, not of the paper.
        "model_config": changes,
    }
    recipe = load_recipe(find_recipe(task, "toy", of_recipe), values)
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    model, checkpoint, seconds = train_or_resume(recipe)
    memory = 1000 * (peak_memory("cpu") - before)
    scores = score(checkpoint, recipe, "test")
    trained = {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        for name, part in (("all", model), ("interaction", model.base_model))
    }
    found = {
        "task": task,
        "level": level,
        "method": method,
        "seed": seed,
        "steps": steps,
        "score": percent(task, scores[get_task(task).best_metric]),
        "scores": scores,
        # Those of a run that was interrupted are not known.
        "training_seconds": seconds,
        "memory_mb": None if seconds is None else memory,
        "trained_parameters": trained["all"],
        "trained_in_head": trained["all"] - trained["interaction"],
        "processor": processor_name(),
    }
    write(result_file(out, task, level, method, seed), json.dumps(found, indent=1))


def result_file(out: Path, task: str, level: str, method: str, seed: int) -> Path:
    return out / task / level / "results" / f"{method}, seed {seed}.json"


def has_row(task: str, method: str) -> bool:
    """Return whether there are models of a task for a row."""
    return method not in OTHER_MODELS or OTHER_MODELS[method][0] in get_task(task).methods


def percent(task: str, value: float) -> float:
    return value if task in IN_PERCENT else 100 * value


def constant_guess(out: Path, task: str, level: str) -> tuple[str, float]:
    """Return the best constant guess that the training split allows, and its score."""
    data = str(out / task / level / "dataset")
    if task == "ave":
        scores = baselines.events(data)
    elif task == "avvp":
        scores = {"nothing predicted": baselines.parsing(data)["nothing predicted"]["segment"]["type"]}
    elif task == "avqa":
        scores = baselines.questions(data)
    else:
        scores = baselines.segmentation(data)
    name, value = next(iter(scores.items()))
    return name, percent(task, value)


def summarize(
    out: Path, tasks: Sequence[str], levels: Sequence[str], methods: Sequence[str], seeds: Sequence[int], steps: int
) -> None:
    """Write the table, the numbers and the picture of all runs."""
    found = {
        (task, method): [
            {
                level: json.loads(result_file(out, task, level, method, seed).read_text(encoding="utf-8"))
                for level in levels
            }
            for seed in seeds
        ]
        for task in tasks
        for method in methods
        if has_row(task, method)
    }
    guesses = {task: {level: constant_guess(out, task, level) for level in levels} for task in tasks}
    lines = [f"{steps} steps; seeds {', '.join(map(str, seeds))}; mean and 95 % interval", ""]
    for task in tasks:
        lines += [
            f"{TITLES[task]}",
            "",
            f"| method | {' | '.join(f'{level} | against head alone' for level in levels)} | "
            "processor seconds of training | memory, MB | trained parameters, thousands | of these in the head |",
            "|---|" + (2 * len(levels) + 4) * "---:|",
        ]
        name = guesses[task][levels[0]][0]
        lines.append(f"| {name} | {' | '.join(f'{guesses[task][level][1]:.1f} | ' for level in levels)} | | | | |")
        lines += [
            f"| {NAMES.get(method, method)} | {row(found, task, method, levels)} |"
            for method in methods
            if has_row(task, method)
        ]
        lines.append("")
    print("\n".join(lines))
    write(out / "methods.md", "\n".join(lines))
    runs = [run for by_seed in found.values() for by_level in by_seed for run in by_level.values()]
    write(out / "methods.json", json.dumps({"guesses": guesses, "runs": runs}, indent=1))
    draw(found, guesses, tasks, levels, methods, out / "methods.png")


def head_alone(task: str, method: str) -> str:
    """Return the head alone in the formulation of a method's preset, or the decoder alone of another model."""
    if method in OTHER_MODELS:
        return "ssuformer_decoder_alone"
    config = CaeAvConfig.from_preset(task, "toy", method=method)
    return "official_head_alone" if config.is_official else "head_alone"


def row(found: dict[tuple[str, str], list[dict[str, Any]]], task: str, method: str, levels: Sequence[str]) -> str:
    """Format the cells of a method."""
    cells = []
    for level in levels:
        scores = [run[level]["score"] for run in found[task, method]]
        cells.append(text(scores))
        without = [run[level]["score"] for run in found.get((task, head_alone(task, method)), [])]
        gains = [a - b for a, b in zip(scores, without, strict=False)]
        cells.append("" if method == head_alone(task, method) or not gains else text(gains, sign="+"))
    runs = [run[level] for run in found[task, method] for level in levels]
    for name in ("training_seconds", "memory_mb"):
        known = [run[name] for run in runs if run[name] is not None]
        cells.append(f"{mean(known):.0f}" if known else "")
    cells += [f"{runs[0][name] / 1000:.1f}" for name in ("trained_parameters", "trained_in_head")]
    return " | ".join(cells)


def draw(
    found: dict[tuple[str, str], list[dict[str, Any]]],
    guesses: dict[str, dict[str, tuple[str, float]]],
    tasks: Sequence[str],
    levels: Sequence[str],
    methods: Sequence[str],
    path: Path,
) -> None:
    """Draw one panel per task: the scores of every method at each level, and the constant guess as a dashed line."""
    columns = min(2, len(tasks))
    figure = new_figure(8 * columns, 4.6 * -(-len(tasks) // columns))
    panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).flat
    for axis, task in zip(panels, tasks, strict=False):
        runs = {
            NAMES.get(method, method).replace(" ", "\n"): [
                {"scores": {level: run[level]["score"] for level in levels}} for run in of_method
            ]
            for method in methods
            if (of_method := found.get((task, method)))
        }
        for color, level in zip(SERIES, levels, strict=False):
            axis.axhline(guesses[task][level][1], color=color, linestyle="--", linewidth=1)
        draw_scores(axis, runs, {f"{level} level": level for level in levels})
        axis.tick_params(axis="x", labelsize=11)
        name, value = max(guesses[task].values(), key=lambda guess: guess[1])
        axis.annotate(name, (-0.3, value), xytext=(0, 3), textcoords="offset points", fontsize=10)
        axis.set_title(TITLES[task], loc="left", fontsize=13)
        axis.set_ylim(bottom=0)
    for axis in list(panels):
        axis.set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("methods"), help="folder for everything")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        help="rows: registered interaction methods, or models of their own",
    )
    parser.add_argument("--import", nargs="+", default=[], dest="modules", help="modules that register other methods")
    parser.add_argument("--tasks", nargs="+", choices=list(BUILDERS), default=list(TASKS))
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60, help="steps of every run")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    for module in arguments.modules:
        importlib.import_module(module)
    out = arguments.out
    check_setting(out, "steps", arguments.steps)
    cells = [(task, level) for task in arguments.tasks for level in arguments.levels]
    for task, level in cells:
        prepare(out / task / level, task, level, CLIPS[task], SPLIT)
    runs = {
        result_file(out, *cell, method, seed): (*cell, method, seed, arguments.steps, out)
        for seed in arguments.seeds
        for cell in cells
        for method in arguments.methods
        if has_row(cell[0], method)
    }
    execute(run_one, runs, out / "logs", arguments.modules, arguments.processes)
    summarize(out, arguments.tasks, arguments.levels, arguments.methods, arguments.seeds, arguments.steps)


if __name__ == "__main__":
    main()
