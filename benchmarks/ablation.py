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
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from runs import draw_scores, execute, prepare, text, train_or_resume, write

from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.demo import stage_aucs
from caeav_hf.task import get_task
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.build import build_processor
from caeav_hf.training.evaluation import evaluate
from caeav_hf.visualization.drawing import new_figure, save_figure


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


def run_one(task: str, variant: str, seed: int, out: Path) -> None:
    """Train one variant with one seed, score it and write its file."""
    run = out / task / "runs" / f"{variant}, seed {seed}"
    paths = {"data": str(out / task / "dataset"), "output_dir": str(run), "cache_dir": str(out / task / "cache")}
    values = {**paths, "seed": seed, "model_config": VARIANTS[variant]}
    recipe = load_recipe(find_recipe(task, "toy"), values)
    model, checkpoint, seconds = train_or_resume(recipe)
    processor = build_processor(model, checkpoint)
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
    found["training_seconds"] = seconds
    write(result_file(out, task, variant, seed), json.dumps(found, indent=1))


def with_captions(rows: Any, scenes: dict[str, Any], kind: str) -> Any:
    """
    Return the rows without captions, with ones that deny whatever happens, or each with those of a clip that shares no
    class with it.
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
    """Tabulate what other captions change, in the score and in the probability of the events, run by run."""
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


def draw(
    found: dict[tuple[str, str], list[dict[str, Any]]], tasks: Sequence[str], variants: Sequence[str], path: Path
) -> None:
    """Draw one row per task: the scores of every variant, and the effect of captions."""
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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(CLIPS), default=list(CLIPS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    for task in arguments.tasks:
        prepare(arguments.out / task, task, "hard", CLIPS[task], SPLIT)
    runs = {
        result_file(arguments.out, task, variant, seed): (task, variant, seed, arguments.out)
        for seed in arguments.seeds
        for task in arguments.tasks
        for variant in arguments.variants
    }
    execute(run_one, runs, arguments.out / "logs")
    summarize(arguments.out, arguments.seeds, arguments.tasks, arguments.variants)


if __name__ == "__main__":
    main()
