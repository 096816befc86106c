"""
Ablation of SSUFormer's parts on the toy corpus of sound source understanding: the paper's ablation in miniature.

    python benchmarks/understanding.py --out understanding

Trains the toy recipe of `ra_ssu` without focal loss, mask collaboration (MCM), regional consistency (RCC) and mixture
of experts (MoHE), then adds one after the other up to the whole design, with each seed, and scores masks and
descriptions of held-out clips. The whole design is scored again with the sound, the picture or the expert's text of
another clip, which shows what it depends on; so do the objects that its descriptions name, and their places. Trivial
rows are those of `baselines.py`. Every run is a process with one thread and leaves a file in `--out`; the command
continues where it was stopped, and ends with tables (`understanding.md`), all numbers (`understanding.json`) and a
picture (`understanding.png`); with `--summarize` it writes them for the runs that are finished.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import baselines
import torch
from accelerate import Accelerator
from machine import processor_name
from runs import check_setting, draw_scores, execute, prepare, text, train_or_resume, write

from caeav_hf.data import CaeAvCollator
from caeav_hf.task import get_task
from caeav_hf.training import Recipe, find_recipe, load_recipe
from caeav_hf.training.build import build_processor, load_split, load_trained_model
from caeav_hf.training.evaluation import evaluate
from caeav_hf.visualization.drawing import SERIES, new_figure, save_figure


TASK = "ra_ssu"
RECORD = get_task(TASK)
COLLATOR = CaeAvCollator(targets=RECORD.targets)
# What a description says of an object: its look, and its place.
OBJECT = re.compile(r"the (\w+ \w+) ((?:on|at) the \w+) is \w+")
# What each variant has besides that of the one before.
PARTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "+ focal loss": {"focal_gamma": 2.0},
    "+ MCM": {"use_mcm": True},
    "+ RCC": {"use_rcc": True},
    "+ MoHE": {"use_mohe": True},
}
WITHOUT = {"focal_gamma": 0.0, "use_mcm": False, "use_rcc": False, "use_mohe": False}
WHOLE = list(PARTS)[-1]
CLIPS = 360
EPOCHS = 12
# Training, validation, test.
SPLIT = (4, 1, 1)
SCORES = {
    "j": "J",
    "f": "F",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "exact_match": "exact",
    "silent_accuracy": "silent",
}
# Those of the picture and of differences.
MAIN_SCORES = ("j", "bleu_4", "rouge_l", "meteor")
FOREIGN = {
    "sound": ("input_features",),
    "picture": ("pixel_values_videos",),
    "text": ("visual_caption_ids", "visual_caption_mask"),
}


class WithForeign:
    """
    Clips of a data set, each with entries of another clip: of the one that is half the data set away.

    Args:
        data: The data set.
        names: These entries.
    """

    def __init__(self, data: Any, names: Sequence[str]) -> None:
        self.data, self.names = data, names
        self.processor, self.column = data.processor, data.column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        other = self.data[(index + len(self) // 2) % len(self)]
        return {**self.data[index], **{name: other[name] for name in self.names}}


def switches(variant: str) -> dict[str, Any]:
    """Return the fields of the configuration of a variant."""
    values, names = dict(WITHOUT), list(PARTS)
    for name in names[: names.index(variant) + 1]:
        values |= PARTS[name]
    return values


def with_foreign(data: Any) -> dict[str, Any]:
    """Return the clips as they are and with each part of another clip."""
    return {"own": data} | {name: WithForeign(data, entries) for name, entries in FOREIGN.items()}


def recipe_of(variant: str, seed: int, epochs: int, out: Path) -> Recipe:
    """Return the recipe of a run."""
    return load_recipe(
        find_recipe(TASK, "toy"),
        {
            "data": str(out / "dataset"),
            "cache_dir": str(out / "cache"),
            "output_dir": str(out / "runs" / f"{variant}, seed {seed}"),
            "seed": seed,
            "epochs": epochs,
            "model_config": switches(variant),
        },
    )


def run_one(variant: str, seed: int, epochs: int, out: Path) -> None:
    """Train one variant with one seed, score it and write its file."""
    recipe = recipe_of(variant, seed, epochs, out)
    started = time.perf_counter()
    model, checkpoint, seconds = train_or_resume(recipe)
    wall_seconds = time.perf_counter() - started
    data = load_split(recipe, "test", build_processor(model, checkpoint))
    inputs = with_foreign(data) if variant == WHOLE else {"own": data}
    scores = {
        name: evaluate(model, clips, COLLATOR, RECORD, Accelerator(), batch_size=recipe.eval_batch_size)
        for name, clips in inputs.items()
    }
    found = {
        "variant": variant,
        "seed": seed,
        "epochs": epochs,
        "scores": scores["own"],
        "foreign": {name: scores[name] for name in scores if name != "own"},
        # Those of a run that was interrupted are not known.
        "training_seconds": seconds,
        "wall_seconds": None if seconds is None else wall_seconds,
        "trained_parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
        "processor": processor_name(),
    }
    write(result_file(out, variant, seed), json.dumps(found, indent=1))


def count_objects(variant: str, seed: int, epochs: int, out: Path) -> None:
    """Count the objects that a trained model names on the test clips, right ones and right places; write its file."""
    recipe = recipe_of(variant, seed, epochs, out)
    checkpoint = Path(str(recipe.output_dir)) / "checkpoints" / "best"
    model = load_trained_model(RECORD.model_class, checkpoint)
    data = load_split(recipe, "test", build_processor(model, checkpoint))
    found = {}
    for name, clips in with_foreign(data).items():
        totals: Counter[str] = Counter()
        for first in range(0, len(clips), recipe.eval_batch_size):
            rows = range(first, min(first + recipe.eval_batch_size, len(clips)))
            inputs = COLLATOR([clips[row] for row in rows])
            with torch.no_grad():
                ids = model(**RECORD.inputs_in_evaluation(inputs)).description_ids
            texts = data.processor.batch_decode(ids, skip_special_tokens=True)
            for row, of_clip in zip(rows, texts, strict=True):
                for sentence, reference in zip(of_clip, data.rows[row]["descriptions"], strict=True):
                    named, true = dict(OBJECT.findall(sentence)), dict(OBJECT.findall(reference))
                    both = named.keys() & true.keys()
                    places = sum(named[one] == true[one] for one in both)
                    totals.update(named=len(named), true=len(true), right=len(both), places=places)
        found[name] = {
            "recall": totals["right"] / max(1, totals["true"]),
            "precision": totals["right"] / max(1, totals["named"]),
            "places": totals["places"] / max(1, totals["right"]),
        }
    write(object_file(out, variant, seed), json.dumps(found, indent=1))


def object_file(out: Path, variant: str, seed: int) -> Path:
    return out / "objects" / f"{variant}, seed {seed}.json"


def result_file(out: Path, variant: str, seed: int) -> Path:
    return out / "results" / f"{variant}, seed {seed}.json"


def summarize(out: Path, variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the tables, the numbers and the picture of all finished runs."""
    found = {
        variant: {
            seed: json.loads(file.read_text(encoding="utf-8"))
            for seed in seeds
            if (file := result_file(out, variant, seed)).exists()
        }
        for variant in variants
    }
    found = {variant: by_seed for variant, by_seed in found.items() if by_seed}
    if not found:
        raise SystemExit(f"{out}: no run is finished")
    guesses = baselines.understanding(str(out / "dataset"))
    epochs = next(iter(next(iter(found.values())).values()))["epochs"]
    lines = [
        f"{epochs} epochs; mean and 95 % interval over the seeds",
        "",
        f"| variant | seeds | {' | '.join(SCORES.values())} | processor seconds | wall seconds |",
        f"|---|---|{'---:|' * (len(SCORES) + 2)}",
    ]
    for name, scores in guesses.items():
        cells = [f"{scores[score]:.3f}" if score in scores else "" for score in SCORES]
        lines.append(f"| {name} | | {' | '.join(cells)} | | |")
    for variant, by_seed in found.items():
        runs = list(by_seed.values())
        cells = [text([run["scores"][score] for run in runs], digits=3) for score in SCORES]
        for name in ("training_seconds", "wall_seconds"):
            known = [run[name] for run in runs if run[name] is not None]
            cells.append(f"{mean(known):.0f}" if known else "")
        lines.append(f"| {variant} | {', '.join(map(str, by_seed))} | {' | '.join(cells)} |")
    names = " | ".join(SCORES[score] for score in MAIN_SCORES)
    head = f" | seeds | {names} |\n|---|---|{'---:|' * len(MAIN_SCORES)}"
    gains = []
    for before, variant in zip(list(PARTS), list(PARTS)[1:], strict=False):
        pairs = {
            seed: (run["scores"], found[before][seed]["scores"])
            for seed, run in found.get(variant, {}).items()
            if seed in found.get(before, {})
        }
        if pairs:
            cells = [text([a[score] - b[score] for a, b in pairs.values()], "+", 3) for score in MAIN_SCORES]
            gains.append(f"| {variant} | {', '.join(map(str, pairs))} | {' | '.join(cells)} |")
    if gains:
        lines += ["", f"| against the variant before{head}", *gains]
    if WHOLE in found:
        lines += ["", f"| whole design, of another clip{head}"]
        for name in FOREIGN:
            runs = [run["foreign"][name] for run in found[WHOLE].values()]
            cells = [text([run[score] for run in runs], digits=3) for score in MAIN_SCORES]
            lines.append(f"| {name} | {', '.join(map(str, found[WHOLE]))} | {' | '.join(cells)} |")
    objects = [
        json.loads(file.read_text(encoding="utf-8"))
        for seed in found.get(WHOLE, {})
        if (file := object_file(out, WHOLE, seed)).exists()
    ]
    if objects:
        lines += [
            "",
            "| whole design | objects that sound named | named ones that sound | of these at the right place |",
            "|---|---:|---:|---:|",
        ]
        for name in ("own", *FOREIGN):
            cells = [
                text([run[name][part] for run in objects], digits=3) for part in ("recall", "precision", "places")
            ]
            lines.append(f"| {'own clip' if name == 'own' else f'other {name}'} | {' | '.join(cells)} |")
    print("\n".join(lines))
    write(out / "understanding.md", "\n".join(lines))
    runs = [run for by_seed in found.values() for run in by_seed.values()]
    write(out / "understanding.json", json.dumps({"guesses": guesses, "runs": runs}, indent=1))
    draw(found, guesses, out / "understanding.png")


def draw(found: Mapping[str, Mapping[int, Any]], guesses: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the scores of the variants, the best trivial ones as dashed lines, and those with parts of other clips."""
    figure = new_figure(15, 4.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(PARTS), 1 + len(FOREIGN)))
    shown = {SCORES[score]: score for score in MAIN_SCORES}
    draw_scores(left, {variant: list(by_seed.values()) for variant, by_seed in found.items()}, shown)
    left.set_title("Test scores; dashed: the best trivial ones", loc="left", fontsize=13)
    whole = list(found.get(WHOLE, {}).values())
    if whole:
        own = {"own clip": whole}
        foreign = {f"other {name}": [{"scores": run["foreign"][name]} for run in whole] for name in FOREIGN}
        draw_scores(right, own | foreign, shown)
    right.set_title("Whole design with parts of other clips", loc="left", fontsize=13)
    for axis in (left, right):
        for color, score in zip(SERIES, MAIN_SCORES, strict=False):
            best = max(scores.get(score, 0.0) for scores in guesses.values())
            axis.axhline(best, color=color, linestyle="--", linewidth=1)
    left.set_ylim(0, 1)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("understanding"), help="folder for everything")
    parser.add_argument("--variants", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every run (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--summarize", action="store_true", help="do not train, only summarize the finished runs")
    arguments = parser.parse_args()
    out = arguments.out
    if not arguments.summarize:
        check_setting(out, "epochs", arguments.epochs)
        prepare(out, TASK, "normal", CLIPS, SPLIT)
        # The whole design first, since an unfinished table needs it most.
        others = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants if variant != WHOLE]
        order = [(WHOLE, seed) for seed in arguments.seeds if WHOLE in arguments.variants] + others
        runs = {result_file(out, *run): (*run, arguments.epochs, out) for run in order}
        execute(run_one, runs, out / "logs", processes=arguments.processes)
    done = [seed for seed in arguments.seeds if result_file(out, WHOLE, seed).exists()]
    counts = {object_file(out, WHOLE, seed): (WHOLE, seed, arguments.epochs, out) for seed in done}
    execute(count_objects, counts, out / "logs", processes=arguments.processes)
    summarize(out, arguments.variants, arguments.seeds)


if __name__ == "__main__":
    main()
