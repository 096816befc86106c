"""
Ablation of CAE-AV's additions to AVMoE on the toy corpora at their hard level: Table VI in miniature.

    python benchmarks/ablation.py --out ablation

Trains every variant on event localization and multi-source segmentation with each seed, two runs at a time with one
thread each, and scores them on held-out clips, aligned and misaligned ones apart; variants with CASE also without
captions, with those of other clips and with ones that deny whatever happens; variants with CASTE also by how well
their agreement tells matching from mismatched segments. Every run leaves a file in `--out`; the command continues
where it was stopped, and ends with tables (`ablation.md`), all numbers (`ablation.json`) and a picture
(`ablation.png`).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.axes import Axes
from tqdm import tqdm

from caeav_hf.data import AveBuilder, AvsBenchBuilder, CaeAvCollator, CaeAvDataset
from caeav_hf.demo import stage_aucs
from caeav_hf.task import get_task
from caeav_hf.toy import generate
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.build import build_processor, load_trained_model
from caeav_hf.training.evaluation import evaluate
from caeav_hf.training.run import train
from caeav_hf.visualization.drawing import COLOURS, SERIES, make_bare, new_figure, save_figure


# Starting from 0, as in the paper, CASE's scales stay too small in runs this short for captions to matter.
CASE_SCALE = {"case_scale_init": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "AVMoE": {"interaction": "avmoe", "use_case": False, "agreement_loss_weight": 0.0},
    "+ CASTE": {"use_case": False, "agreement_loss_weight": 0.0},
    "+ CASE": {**CASE_SCALE, "interaction": "avmoe", "agreement_loss_weight": 0.0},
    "CAE-AV": {**CASE_SCALE, "agreement_loss_weight": 0.0},
    "CAE-AV + agreement": {**CASE_SCALE, "agreement_loss_weight": 0.3},
    "CAE-AV, official": {"formulation": "official", "agreement_loss_weight": 0.0},
}
CLIPS = {"ave": 400, "avs_ms3": 200}
# Training, validation, test: differences of a few points need many test clips.
SPLIT = (4, 1, 3)
METRICS = {"ave": "accuracy", "avs_ms3": "j"}
TITLES = {"ave": "Event localization, segment accuracy (%)", "avs_ms3": "Multi-source segmentation, J (%)"}
PARTS = ("all", "aligned", "misaligned")
CAPTIONS = ("own", "none", "foreign", "denying")
DENIAL = {"visual_caption": "an empty room", "audio_caption": "silence"}
# Student's t: 97.5 % quantiles for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def prepare(out: Path, task: str) -> None:
    """Make the corpus of a task and build its data set, unless they exist."""
    if (out / task / "dataset").exists():
        return
    corpus = out / task / "corpus"
    if not (corpus / "toy.json").exists():
        generate(
            corpus, layout=task, level="hard", num_clips=CLIPS[task], split=SPLIT, seed=0, num_proc=2, overwrite=True
        )
    builder, options = (AveBuilder, {}) if task == "ave" else (AvsBenchBuilder, {"setting": "ms3"})
    builder(
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / "captions.json"),
        cache_dir=str(out / task / "cache"),
        **options,
    ).build(out / task / "dataset")


def run_one(out: Path, task: str, variant: str, seed: int) -> None:
    """Train one variant with one seed, score it and write its file."""
    started = time.process_time()
    run = out / task / "runs" / f"{variant}, seed {seed}"
    paths = {"data": str(out / task / "dataset"), "output_dir": str(run), "cache_dir": str(out / task / "cache")}
    values = {**paths, "seed": seed, "model_config": VARIANTS[variant]}
    recipe = load_recipe(find_recipe(task, "toy"), values)
    is_resumed = (run / "checkpoints" / "last").exists()
    result = train(recipe, resume=run if is_resumed else None)
    trained = time.process_time()
    model = load_trained_model(get_task(task).model_class, result.best_checkpoint)
    processor = build_processor(model, result.best_checkpoint)
    scenes = json.loads((out / task / "corpus" / "toy.json").read_text(encoding="utf-8"))["clips"]
    data = CaeAvDataset(out / task / "dataset", processor, split="test", cache_dir=recipe.cache_dir)
    found: dict[str, Any] = {"task": task, "variant": variant, "seed": seed, "scores": {}, "event_probability": {}}
    captions = CAPTIONS if model.config.use_case else CAPTIONS[:1]
    for kind in captions:
        rows = data.rows if kind == "own" else with_captions(data.rows, scenes, kind)
        aligned = [scenes[name]["aligned"] for name in rows["video_id"]]
        for part in PARTS if kind == "own" else PARTS[:1]:
            chosen = [
                index for index, yes in enumerate(aligned) if part in ("all", "aligned" if yes else "misaligned")
            ]
            subset = CaeAvDataset(rows.select(chosen), processor, cache_dir=recipe.cache_dir)
            scores = evaluate(
                model, subset, CaeAvCollator(), get_task(task), Accelerator(), batch_size=recipe.eval_batch_size
            )
            found["scores"][f"{kind} captions, {part}"] = 100 * scores[METRICS[task]]
            if task == "ave" and part == "all":
                found["event_probability"][kind] = event_probability(model, subset, recipe.eval_batch_size)
    found["agreement_auc"] = stage_aucs(model, data, scenes, recipe.eval_batch_size)
    found["zero_started"] = {
        name.removeprefix("model."): float(value.detach().abs().mean())
        for name, value in model.named_parameters()
        if name.split(".")[-1] in ("gamma", "gate", "gate_av")
    }
    # Those of a run that was interrupted are not known.
    found["training_seconds"] = None if is_resumed else trained - started
    write(result_file(out, task, variant, seed), json.dumps(found, indent=1))


def with_captions(rows: Any, scenes: dict[str, Any], kind: str) -> Any:
    """
    The rows without captions, with ones that deny whatever happens, or each with those of a clip that shares no class
    with it.
    """
    names = ["visual_caption", "audio_caption"]
    others: list[dict[str, Any]] = [DENIAL if kind == "denying" else dict.fromkeys(names)] * len(rows)
    if kind == "foreign":
        classes = [classes_of(scenes[name]) for name in rows["video_id"]]
        rng = np.random.default_rng(0)
        texts = rows.select_columns(names)
        others = [
            texts[int(rng.choice([index for index, there in enumerate(classes) if not there & here]))]
            for here in classes
        ]
    return rows.map(lambda _, index: others[index], with_indices=True, features=rows.features)


@torch.no_grad()
def event_probability(model: Any, data: CaeAvDataset, batch_size: int) -> float:
    """Return the mean probability, in percent, that a model gives to the events in their segments."""
    found = []
    for first in range(0, len(data), batch_size):
        inputs = CaeAvCollator()([data[index] for index in range(first, min(first + batch_size, len(data)))])
        assert inputs is not None
        labels = inputs.pop("labels")
        output = model(**inputs)
        classes = output.class_logits.softmax(-1)
        clip, segment = ((labels >= 0) & (labels < classes.shape[-1])).nonzero(as_tuple=True)
        found.append(output.event_logits[clip, segment].sigmoid() * classes[clip, labels[clip, segment]])
    return 100 * float(torch.cat(found).mean())


def classes_of(scene: dict[str, Any]) -> set[str]:
    """Return the names of everything that is seen or heard in a clip."""
    return {name for segment in scene["segments"] for name in (*segment["visible"], *segment["sounding"])}


def result_file(out: Path, task: str, variant: str, seed: int) -> Path:
    return out / task / "results" / f"{variant}, seed {seed}.json"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def run_all(out: Path, seeds: Sequence[int], tasks: Sequence[str], variants: Sequence[str]) -> None:
    """Execute every run that has no file yet, two at a time."""
    open_runs = [
        (task, variant, seed)
        for seed in seeds
        for task in tasks
        for variant in variants
        if not result_file(out, task, variant, seed).exists()
    ]
    # The text of a failed run must be found, that of the others is of no interest.
    (out / "logs").mkdir(parents=True, exist_ok=True)

    def start(run: tuple[str, str, int]) -> int:
        task, variant, seed = run
        command = [sys.executable, __file__, "--out", str(out), "--one", task, variant, str(seed)]
        with open(out / "logs" / f"{task}, {variant}, seed {seed}.txt", "w", encoding="utf-8") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode

    with ThreadPoolExecutor(2) as pool:
        codes = list(tqdm(pool.map(start, open_runs), total=len(open_runs), desc="runs", unit="run"))
    if failed := [run for run, code in zip(open_runs, codes, strict=True) if code]:
        raise SystemExit(f"failed: {failed}; their output is in {out / 'logs'}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval by Student's t, NaN for one value."""
    half = T_QUANTILES[len(values) - 2] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean(values), half


def summarize(out: Path, seeds: Sequence[int], tasks: Sequence[str], variants: Sequence[str]) -> None:
    """Write the table, the numbers and the picture of all runs."""
    found = {
        (task, variant): [
            json.loads(result_file(out, task, variant, seed).read_text(encoding="utf-8")) for seed in seeds
        ]
        for task in tasks
        for variant in variants
    }
    lines = []
    for task in tasks:
        baseline = [run["scores"] for run in found.get((task, "AVMoE"), [])]
        lines += [
            f"{TITLES[task]}; seeds {', '.join(map(str, seeds))}; mean and 95 % interval",
            "",
            "| variant | all | aligned | misaligned | all, against AVMoE | AUC of agreement, stages 1 to 4 | "
            "processor seconds of training |",
            "|---|---:|---:|---:|---:|---|---:|",
        ]
        for variant in variants:
            runs = found[task, variant]
            cells = [text([run["scores"][f"own captions, {part}"] for run in runs]) for part in PARTS]
            own = [run["scores"]["own captions, all"] for run in runs]
            gains = [value - base["own captions, all"] for value, base in zip(own, baseline, strict=False)]
            cells.append("" if variant == "AVMoE" or not gains else text(gains, sign="+"))
            aucs = [run["agreement_auc"] for run in runs if run["agreement_auc"] is not None]
            cells.append(", ".join(text(stage, digits=2) for stage in zip(*aucs, strict=True)))
            seconds = [run["training_seconds"] for run in runs if run["training_seconds"] is not None]
            cells.append(f"{mean(seconds):.0f}" if seconds else "")
            lines.append(f"| {variant} | {' | '.join(cells)} |")
        lines += ["", *caption_table({name: found[task, name] for name in variants if has_case(name)}), ""]
    print("\n".join(lines))
    write(out / "ablation.md", "\n".join(lines))
    write(out / "ablation.json", json.dumps([run for runs in found.values() for run in runs], indent=1))
    draw(found, tasks, variants, out / "ablation.png")


def caption_table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What other captions change, in the score and in the probability of the events, run by run."""
    if not found:
        return []
    has_events = all(run["event_probability"] for runs in found.values() for run in runs)
    events = "probability of the event, own | none | foreign | denying | " if has_events else ""
    lines = [
        "| variant | own captions | none, against own | foreign, against own | foreign, against none | "
        f"denying, against own | {events}".rstrip(),
        "|---|" + (9 if has_events else 5) * "---:|",
    ]
    for variant, runs in found.items():
        scores = {kind: [run["scores"][f"{kind} captions, all"] for run in runs] for kind in CAPTIONS}
        pairs = [(kind, "own") for kind in CAPTIONS[1:]]
        pairs.insert(2, ("foreign", "none"))
        changes = [[a - b for a, b in zip(scores[one], scores[other], strict=True)] for one, other in pairs]
        cells = [text(scores["own"]), *(text(change, sign="+") for change in changes)]
        if has_events:
            cells += [text([run["event_probability"][kind] for run in runs]) for kind in CAPTIONS]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def has_case(variant: str) -> bool:
    return bool(VARIANTS[variant].get("use_case", True))


def text(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    center, half = interval(values)
    # Adding 0 turns what rounds to minus zero into zero.
    shown = f"{round(center, digits) + 0.0:{sign}.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"


def draw(
    found: dict[tuple[str, str], list[dict[str, Any]]], tasks: Sequence[str], variants: Sequence[str], path: Path
) -> None:
    """One row a task: the scores of every variant, and what captions do."""
    figure = new_figure(15, 4.6 * len(tasks))
    grid = figure.subplots(len(tasks), 2, squeeze=False, sharey="row", width_ratios=(2, 1))
    with_case = [name for name in variants if has_case(name)]
    parts = {f"{part} clips": f"own captions, {part}" for part in PARTS[1:]}
    captions = {f"{kind} captions".replace("none", "no"): f"{kind} captions, all" for kind in CAPTIONS}
    for (left, right), task in zip(grid, tasks, strict=True):
        draw_scores(left, {name: found[task, name] for name in variants}, parts)
        left.set_title(TITLES[task], loc="left", fontsize=13)
        draw_scores(right, {name: found[task, name] for name in with_case}, captions)
        right.set_title("What captions do", loc="left", fontsize=13)
    figure.tight_layout()
    save_figure(figure, path)


def draw_scores(axis: Axes, runs: dict[str, list[dict[str, Any]]], scores: dict[str, str]) -> None:
    """For each variant and each score, by its label, the mean with its interval, and beside it the runs."""
    for number, (label, score) in enumerate(scores.items()):
        offset = 0.18 * (number - (len(scores) - 1) / 2)
        places = [place + offset for place in range(len(runs))]
        values = [[run["scores"][score] for run in of_variant] for of_variant in runs.values()]
        centers, halves = zip(*map(interval, values), strict=True)
        axis.errorbar(places, centers, halves, fmt="o", color=SERIES[number], capsize=4, label=label)
        for place, singles in zip(places, values, strict=True):
            axis.plot([place + 0.05] * len(singles), singles, ".", color=SERIES[number], alpha=0.5, markersize=5)
    make_bare(axis, keep=("left", "bottom"))
    axis.set_xticks(range(len(runs)), [name.replace(" + ", "\n+ ").replace(", ", ",\n") for name in runs])
    axis.grid(axis="y", color=COLOURS["grid"])
    axis.set_axisbelow(True)
    axis.legend(fontsize=11, frameon=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(CLIPS), default=list(CLIPS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--one", nargs=3, metavar=("TASK", "VARIANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        task, variant, seed = arguments.one
        run_one(arguments.out, task, variant, int(seed))
        return
    for task in arguments.tasks:
        prepare(arguments.out, task)
    run_all(arguments.out, arguments.seeds, arguments.tasks, arguments.variants)
    summarize(arguments.out, arguments.seeds, arguments.tasks, arguments.variants)


if __name__ == "__main__":
    main()
