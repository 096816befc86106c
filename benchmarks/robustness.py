"""
Who stays reliable when sound and picture disagree: the methods on graded toy test sets.

    python benchmarks/robustness.py --out robustness

Trains every method with each seed on event localization, video parsing and multi-source segmentation: on corpora of
which a third of the clips are misaligned, and for event localization on aligned ones too. Then scores all of them on
an aligned test set and on each kind and level of its misalignment (`caeav robustness`). Two rows say what doing
nothing scores: the task's head alone, in both formulations, trained the same way on the frozen towers without any
interaction; and a constant guess, which shows what the corrected labels alone do to a score.

Everything is stored in `--out` as soon as it exists, and the command continues where it was stopped. It ends with
tables, numbers and a picture per task and training corpus, in `<task>/<corpus>/`, and a summary, `robustness.md`.
Steps are few and towers tiny: the numbers show how the benchmark reads, not how the published methods rank.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from methods import BATCH, NAMES, TITLES
from runs import execute, prepare, text, train_or_resume, write

from caeav_hf.data.misalign import KINDS, LEVELS, misalign
from caeav_hf.data.shards import load_rows
from caeav_hf.robustness import ScoringOptions, score_models, write_report
from caeav_hf.robustness.records import Record, StackedSums
from caeav_hf.robustness.scoring import CLEAN, Scored, ScoredModel
from caeav_hf.training import find_recipe, load_recipe


# Starting from 0, as in the paper, CASE's scales stay too small in runs this short for captions to matter.
_CASE = {"case_scale_init": 1.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "head alone": ("head_alone", {}),
    "head alone, official": ("official_head_alone", {}),
    "CAE-AV": ("cae_av", {**_CASE, "agreement_loss_weight": 0.0}),
    "CAE-AV + agreement": ("cae_av", {**_CASE, "agreement_loss_weight": 0.3}),
    **{NAMES[method]: (method, {"agreement_loss_weight": 0.0}) for method in ("avmoe", "dg_sct", "lavish", "stg_cma")},
}
REFERENCE = "head alone"
GUESS = "constant guess"
# Share of misaligned clips in the corpora to train on.
CORPORA = {"misaligned": 1 / 3, "aligned": 0.0}
TRAINED_ON = {"ave": ("misaligned", "aligned"), "avvp": ("misaligned",), "avs_ms3": ("misaligned",)}
CLIPS = {"ave": 200, "avvp": 160, "avs_ms3": 120}
# Training and validation; the test set is a corpus of its own. The toy corpora have no empty split.
SPLIT = (6, 1, 1)
TEST_CLIPS = 40
STEPS = {"ave": 60, "avvp": 150, "avs_ms3": 100}
# Of the corpora to train on it is 0, so that no test clip is among them.
TEST_SEED = 1
SCORED_AT_A_TIME = 8


def train_one(task: str, corpus: str, variant: str, seed: int, steps: int, out: Path) -> None:
    """Train one method with one seed and write where its best checkpoint is."""
    folder, (method, config) = out / task / corpus, VARIANTS[variant]
    values = {
        "method": method,
        "data": str(folder / "dataset"),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "runs" / f"{variant}, seed {seed}"),
        "seed": seed,
        **({"batch_size": BATCH[task]} if task in BATCH else {}),
        "epochs": steps,
        "max_steps": steps,
        "model_config": {"agreement_loss_weight": 0.0, **config},
    }
    _, checkpoint, seconds = train_or_resume(load_recipe(find_recipe(task, "toy"), values))
    found = {"checkpoint": str(checkpoint), "steps": steps, "training_seconds": seconds}
    write(run_file(out, task, corpus, variant, seed), json.dumps(found, indent=1))


def run_file(out: Path, task: str, corpus: str, variant: str, seed: int) -> Path:
    return out / task / corpus / "trained" / f"{variant}, seed {seed}.json"


def score_task(task: str, settings: Path) -> None:
    """Score all models of a task, those of all training corpora on the same decoded clips, and write its reports."""
    out = settings.parent
    chosen = json.loads(settings.read_text(encoding="utf-8"))
    variants, seeds = chosen["variants"], chosen["seeds"]
    names = [(corpus, variant, seed) for corpus in TRAINED_ON[task] for variant in variants for seed in seeds]
    checkpoints = [json.loads(run_file(out, task, *name).read_text(encoding="utf-8"))["checkpoint"] for name in names]
    options = ScoringOptions(
        kinds=chosen["kinds"],
        levels=chosen["levels"],
        batch_size=20,
        device="cpu",
        models_at_a_time=len(TRAINED_ON[task]) * SCORED_AT_A_TIME,
    )
    scored = score_models(checkpoints, out / task / "test" / "dataset", out / task, options)
    by_name = dict(zip(names, scored.models, strict=True))
    guess = constant_guess(scored, out / task)
    for corpus in TRAINED_ON[task]:
        methods = {variant: [by_name[corpus, variant, seed] for seed in seeds] for variant in variants}
        write_report(scored, {**methods, GUESS: [guess]}, out / task / corpus, reference=variants[0])


def constant_guess(scored: Scored, out: Path) -> ScoredModel:
    """Score, without a model, what needs neither sound nor picture: no event, or an empty mask."""
    model = scored.models[0]
    guess = replace(model, name=GUESS, records=out / "scores" / "constant-guess")
    conditions = [CLEAN, *((kind, level) for kind in scored.kinds for level in scored.levels)]
    rows = load_rows(Path(scored.data), "test")
    for condition in conditions:
        if guess.path(condition).exists():
            continue
        kind, level = condition
        changed = rows if condition == CLEAN else misalign(rows, kind, level, scored.seed, model.task.name)
        of_model = model.load(condition)
        Record(
            rows=of_model.rows,
            clips=of_model.clips,
            sums=StackedSums.stack(guess_sums(model, changed, of_model.rows), model.task),
            affected=of_model.affected,
            agreement=None,
        ).save(guess.path(condition), guess.fingerprint_of(condition, scored.seed))
    return guess


def guess_sums(model: ScoredModel, rows: Any, chosen: np.ndarray) -> list[Any]:
    """Return the metric's sums of a model that predicts nothing, from the targets of the rows alone."""
    task = model.task
    sums = []
    for index in chosen.tolist():
        row = rows[index]
        form = task.row_form(None, 64, rows.features)
        segments = {"ave": 10, "avvp": 10, "avs_ms3": 5}[task.name]
        targets = {
            name: value[None] for name, value in form.targets(row, torch.ones(segments, dtype=torch.bool)).items()
        }
        if task.name == "ave":
            classes = len(rows.features["label"].names)
            outputs: Any = SimpleNamespace(
                event_logits=-torch.ones(1, segments), class_logits=torch.zeros(1, classes), frame_log_probs=None
            )
        elif task.name == "avvp":
            frames = torch.zeros_like(targets["audio_labels"])
            outputs = {
                f"{modality}_{part}": values
                for modality in ("audio", "visual")
                for part, values in (("frame_probs", frames), ("probs", frames[:, 0]))
            }
        else:
            outputs = SimpleNamespace(logits=-torch.ones(targets["labels"].shape))
        sums += task.sums(outputs, targets)
    return sums


def summarize(out: Path, tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Write a table of all tasks and training corpora."""
    lines = []
    for task in tasks:
        for corpus in TRAINED_ON[task]:
            results = json.loads((out / task / corpus / "robustness.json").read_text(encoding="utf-8"))
            lines += [f"{TITLES[task]}; trained on the {corpus} corpus; seeds {', '.join(map(str, seeds))}", ""]
            lines += table(results)
        if len(TRAINED_ON[task]) > 1:
            lines += corpora_table(out, task, variants)
    print("\n".join(lines))
    write(out / "robustness.md", "\n".join(lines))


def table(results: Mapping[str, Any]) -> list[str]:
    """Tabulate the measures over all kinds and levels, with intervals over seeds."""
    families = list(next(iter(results["methods"].values()))["families"])
    head = ["clean", *families, "relative robustness", "absolute robustness", "mCE", "AUC of agreement"]
    lines = [f"| method | {' | '.join(head)} |", "|---" + "|---:" * len(head) + "|"]
    percent = 100 / results["score_scale"]
    for name, method in results["methods"].items():
        overall = method["overall"]
        values = [
            *((method["clean"], percent, 1), *((method["families"][f]["mean_score"], percent, 1) for f in families)),
            *((overall["relative_robustness"], 1, 3), (overall["absolute_robustness"], 1, 3)),
            (overall["mean_corruption_error"], 100, 1),
        ]
        cells = [show(*value) for value in values]
        found = (method["detection"] or {}).get("overall")
        lines.append(
            f"| {name} | {' | '.join(cells)} | {found['auc']:.2f} |"
            if found
            else f"| {name} | {' | '.join(cells)} | - |"
        )
    return [*lines, ""]


def show(value: Mapping[str, float | None], factor: float, digits: int) -> str:
    center, high = value["value"], value["high"]
    if center is None:
        return "-"
    shown = f"{factor * center:.{digits}f}"
    return shown if high is None else f"{shown} ± {factor * (high - center):.{digits}f}"


def corpora_table(out: Path, task: str, variants: Sequence[str]) -> list[str]:
    """Tabulate what training on misaligned clips changes, seed by seed."""
    one, other = (
        json.loads((out / task / corpus / "robustness.json").read_text(encoding="utf-8"))
        for corpus in TRAINED_ON[task]
    )
    percent = 100 / one["score_scale"]
    names = ["clean", *one["kinds"]]
    lines = [
        f"{TITLES[task]}: trained on the misaligned corpus, against the aligned one",
        "",
        f"| test set, mean over levels | {' | '.join(variants)} |",
        "|---" + "|---:" * len(variants) + "|",
    ]

    def score(results: Mapping[str, Any], variant: str, seed: int, name: str) -> float:
        model = results["methods"][variant]["model_scores"][seed]
        values = [model["clean"]] if name == "clean" else model["kinds"][name].values()
        return percent * float(np.mean([value["value"] for value in values if value["value"] is not None]))

    for name in names:
        cells = [
            text(
                [
                    score(one, variant, seed, name) - score(other, variant, seed, name)
                    for seed in range(len(one["methods"][variant]["models"]))
                ],
                sign="+",
            )
            for variant in variants
        ]
        lines.append(f"| {name if name == 'clean' else KINDS[name].title} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("robustness"), help="folder for everything")
    parser.add_argument("--tasks", nargs="+", choices=list(TRAINED_ON), default=list(TRAINED_ON))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--levels", type=int, nargs="+", choices=LEVELS, default=[1, 3, 5])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    out = arguments.out
    for task in arguments.tasks:
        for corpus in TRAINED_ON[task]:
            prepare(out / task / corpus, task, "normal", CLIPS[task], SPLIT, misalignment=CORPORA[corpus])
        prepare(
            out / task / "test",
            task,
            "normal",
            TEST_CLIPS + 4,
            (1, 1, TEST_CLIPS / 2),
            misalignment=0.0,
            seed=TEST_SEED,
        )
    runs = {
        run_file(out, task, corpus, variant, seed): (task, corpus, variant, seed, STEPS[task], out)
        for seed in arguments.seeds
        for task in arguments.tasks
        for corpus in TRAINED_ON[task]
        for variant in arguments.variants
    }
    execute(train_one, runs, out / "logs", processes=arguments.processes)
    settings = {name: getattr(arguments, name) for name in ("variants", "seeds", "kinds", "levels")}
    write(out / "settings.json", json.dumps(settings))
    # No file stands for the whole: what is stored is not scored again.
    scoring = {out / task / "no such file": (task, out / "settings.json") for task in arguments.tasks}
    execute(score_task, scoring, out / "logs", processes=arguments.processes)
    summarize(out, arguments.tasks, arguments.variants, arguments.seeds)


if __name__ == "__main__":
    main()
