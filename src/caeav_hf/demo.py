"""Demo of the whole package: a toy corpus, training, evaluation, saving, reloading, prediction, plots."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .data import AveBuilder, CaeAvCollator, CaeAvDataset
from .errors import CaeAvError
from .files import write_text
from .pipelines import AudioVisualEventLocalizationPipeline
from .task import get_task
from .tasks.agreement import agreement_auc
from .toy import generate
from .training import Recipe, find_recipe, load_recipe
from .training.build import build_processor, load_trained_model
from .training.evaluation import evaluate
from .training.run import train
from .training.run_folder import without_progress_bars
from .visualization import plot_event_timeline


@dataclass(frozen=True)
class _Size:
    clips: int
    recipe: dict[str, Any]


_FULL = _Size(clips=288, recipe={})
_QUICK = _Size(clips=24, recipe={"epochs": 1, "batch_size": 4})
# Loaded weights have other addresses, for which some processors multiply in another order and round differently.
_TOLERANCE = 1e-4


def run_demo(out: str | Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """
    Generate a corpus in which a third of the clips are misaligned, train the toy preset on it and evaluate it.

    Args:
        out: Folder for everything; must be empty or not exist.
        seed: Seed of the corpus and of training.
        quick: Use a few clips and one epoch.

    Returns:
        The contents of `report.json` in `out`: accuracy on held-out clips, aligned and misaligned, the baseline's, and
        how well the agreement of each stage separates matching from mismatched segments (AUC).

    Raises:
        CaeAvError: `out` is not empty, or the reloaded model differs from the model in memory: in a weight, a label or
            an interval, or in a score by more than rounding.
    """
    out, started, size = Path(out), time.perf_counter(), _QUICK if quick else _FULL
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CaeAvError(f"{out}: is not an empty folder; choose another one with --out")

    _announce(f"1/5 Generating {size.clips} clips of moving, sounding objects, a third of them misaligned")
    corpus = out / "corpus"
    generate(corpus, layout="ave", num_clips=size.clips, misalignment=1 / 3, seed=seed, num_proc=2)

    _announce("2/5 Building the data set as Parquet, with the builder of AVE")
    with without_progress_bars():
        AveBuilder(
            annotations=str(corpus / "annotations"),
            media=str(corpus / "media"),
            captions=str(corpus / "captions.json"),
            cache_dir=str(out / "cache"),
        ).build(out / "dataset")

    _announce("3/5 Training the toy preset: adapters and head on frozen towers")
    paths = {"data": str(out / "dataset"), "output_dir": str(out / "run"), "cache_dir": str(out / "cache")}
    recipe = load_recipe(find_recipe("ave", "toy"), {**size.recipe, **paths, "seed": seed})
    result = train(recipe)

    _announce("4/5 Evaluating on held-out clips")
    with without_progress_bars():
        model = load_trained_model(get_task("ave").model_class, result.best_checkpoint)
    processor = build_processor(model, result.best_checkpoint)
    truth = json.loads((corpus / "toy.json").read_text(encoding="utf-8"))["clips"]
    data = CaeAvDataset(out / "dataset", processor, split="test", cache_dir=recipe.cache_dir)
    report = _evaluate_by_alignment(model, data, processor, truth, recipe)
    report["agreement_auc"] = stage_aucs(model, data, truth, recipe.eval_batch_size)
    print(
        "Agreement, segments with an object both seen and heard against segments with objects seen or heard alone: "
        f"AUC {', '.join(f'{auc:.2f}' for auc in report['agreement_auc'])} at stages 1 to 4 (0.50 is chance)"
    )

    _announce("5/5 Saving, reloading, predicting and plotting")
    with without_progress_bars():
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
        reloaded = load_trained_model(type(model), out / "model")
    weights, saved = model.state_dict(), reloaded.state_dict()
    if weights.keys() != saved.keys() or not all(torch.equal(saved[name], weights[name]) for name in weights):
        raise CaeAvError(f"{out / 'model'}: the weights of the reloaded model differ from those in memory")
    in_memory = AudioVisualEventLocalizationPipeline(model, processor=processor, device="cpu")
    from_disk = AudioVisualEventLocalizationPipeline(
        reloaded, processor=build_processor(reloaded, out / "model"), device="cpu"
    )
    chosen = {}
    for name, aligned in (("aligned", True), ("misaligned", False)):
        rows = [row for row in data.rows if truth[row["video_id"]]["aligned"] == aligned]
        row, prediction = _best_example(rows, in_memory)
        if not _is_same(from_disk(_clip(row)), prediction):
            raise CaeAvError(f"{out / 'model'}: the predictions of the reloaded model differ from those in memory")
        picture = out / f"{name}.png"
        names = [*model.config.id2label.values(), "background"]
        plot_event_timeline(
            processor.load_clip(row["media"]),
            prediction,
            truth=[names[label] for label in row["segment_labels"]],
            path=picture,
            segment_seconds=processor.segment_seconds,
            title=f"{row['video_id']}, held out, {name}{_kinds(truth[row['video_id']])}",
        )
        chosen[name] = row["video_id"]
    report |= {"pictures": chosen, "seed": seed, "seconds": round(time.perf_counter() - started, 1)}
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    print(
        "The reloaded model has the same weights, bit for bit, and predicts the same: labels and intervals exactly, "
        f"scores to {_TOLERANCE}. Pictures: {out}/aligned.png, {out}/misaligned.png"
    )
    print(f"Done in {report['seconds']:.0f} s; everything is in {out}.")
    print(f"Next: caeav predict {corpus}/media/{chosen['aligned']}.mp4 --model {out}/model --plot timeline.png")
    return report


def _evaluate_by_alignment(
    model: Any, data: CaeAvDataset, processor: Any, truth: dict[str, Any], recipe: Recipe
) -> dict[str, Any]:
    """Measure the accuracy on all, aligned and misaligned clips, and that of predicting background everywhere."""
    background = model.config.num_labels
    aligned = [truth[row["video_id"]]["aligned"] for row in data.rows]
    parts = {
        "all": list(range(len(data))),
        "aligned": [number for number, yes in enumerate(aligned) if yes],
        "misaligned": [number for number, yes in enumerate(aligned) if not yes],
    }
    accelerator = Accelerator()
    model.to(accelerator.device)
    report: dict[str, Any] = {}
    print(f"{'held-out clips':<16}{'clips':>6}{'accuracy':>10}{'baseline':>10}   (baseline: always background)")
    for name, numbers in parts.items():
        rows = data.rows.select(numbers)
        labels = [label for row in rows for label in row["segment_labels"]]
        metrics = evaluate(
            model,
            CaeAvDataset(rows, processor, cache_dir=recipe.cache_dir),
            CaeAvCollator(targets=get_task("ave").targets),
            get_task("ave"),
            accelerator,
            batch_size=recipe.eval_batch_size,
            description=f"evaluating {name} clips",
        )
        report[name] = {
            "clips": len(numbers),
            "accuracy": metrics["accuracy"],
            "baseline": sum(label == background for label in labels) / len(labels),
        }
        print(f"{name:<16}{len(numbers):>6}{report[name]['accuracy']:>10.1%}{report[name]['baseline']:>10.1%}")
    model.to("cpu")
    return report


@torch.no_grad()
def stage_aucs(model: Any, data: CaeAvDataset, scenes: dict[str, Any], batch_size: int) -> list[float] | None:
    """
    Return, per stage, how well the agreement (Eq. 1) separates segments of toy clips with an object both seen and
    heard from segments with objects seen or heard alone, as the area under the ROC curve. Segments without any object
    seen or heard are left out.

    Args:
        model: Any model; the result is `None` without CASTE.
        data: Toy clips.
        scenes: `clips` of the corpus's `toy.json`.
        batch_size: Clips per forward pass.
    """
    agreement, is_matching = [], []
    for first in range(0, len(data), batch_size):
        indices = range(first, min(first + batch_size, len(data)))
        inputs = CaeAvCollator(targets=get_task("ave").targets)([data[index] for index in indices])
        assert inputs is not None
        inputs = {name: value.to(model.device) for name, value in inputs.items() if name != "labels"}
        stages = model(**inputs).agreement
        if stages is None:
            return None
        segments = [segment for index in indices for segment in scenes[data.rows[index]["video_id"]]["segments"]]
        for values, segment in zip(torch.stack(stages, -1).flatten(0, 1).cpu(), segments, strict=True):
            visible, sounding = set(segment["visible"]), set(segment["sounding"])
            if visible | sounding:
                agreement.append(values)
                is_matching.append(bool(visible & sounding))
    return [agreement_auc(stage, torch.tensor(is_matching)) for stage in torch.stack(agreement, -1)]


def _clip(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "clip": row["media"],
        "visual_caption": row["visual_caption"],
        "audio_caption": row["audio_caption"],
    }


def _best_example(
    rows: list[dict[str, Any]], localize: AudioVisualEventLocalizationPipeline
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row with the most correct segments, and its prediction, among the first eight."""
    names = [*localize.model.config.id2label.values(), "background"]

    def hits(item: tuple[dict[str, Any], dict[str, Any]]) -> int:
        row, prediction = item
        pairs = zip(prediction["segments"], row["segment_labels"], strict=False)
        return sum(segment == names[label] for segment, label in pairs)

    return max(((row, localize(_clip(row))) for row in rows[:8]), key=hits)


def _is_same(result: Any, expected: Any) -> bool:
    """Compare results, with floats to `_TOLERANCE`, which is far less than the distance between two segment times."""
    if isinstance(expected, dict):
        return result.keys() == expected.keys() and all(_is_same(result[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(result) == len(expected) and all(map(_is_same, result, expected))
    if isinstance(expected, float):
        return math.isclose(result, expected, rel_tol=0, abs_tol=_TOLERANCE)
    return result == expected


def _kinds(clip: dict[str, Any]) -> str:
    """List the kinds of misalignment in a clip, for its title."""
    kinds = [segment["misalignment"] for segment in clip["segments"] if segment["misalignment"]]
    return "".join(f", {kind.replace('_', ' ')}" for kind in dict.fromkeys(kinds))


def _announce(text: str) -> None:
    print(f"\n{text}", flush=True)
