"""Summarize the stored scores of models: measures of robustness, comparisons, detection of misalignment, table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch

from ..data.misalign import KINDS
from ..errors import CaeAvError
from ..task import Task
from ..tasks.agreement import agreement_auc, misalignment_average_precision
from .records import Record
from .scoring import CLEAN, Scored, ScoredModel
from .statistics import (
    absolute_robustness,
    corruption_errors,
    known_mean,
    percentile_interval,
    relative_corruption_errors,
    relative_robustness,
    resample_counts,
    share_better,
    student_interval,
)


OVER_CLIPS = "clips (bootstrap)"
OVER_SEEDS = "seeds (Student's t)"
MEASURES = (
    *("mean_score", "relative_robustness", "absolute_robustness"),
    *("mean_corruption_error", "relative_mean_corruption_error"),
)


@dataclass(frozen=True)
class _Scores:
    """
    Main scores of a model: a first row on all clips, then one row per resample.

    Args:
        clean: (1 + resamples,) on the unchanged set.
        graded: (1 + resamples, kinds, levels).
    """

    clean: np.ndarray
    graded: np.ndarray


class Summary:
    """
    Scores of methods, each of one model or of several that differ in their seeds, on all conditions.

    All models and conditions are resampled together: a resample draws the same clips for all of them, so differences
    between models are paired.

    Args:
        scored: The result of [`score_models`].
        methods: Models of each method, by its name.
        reference: Name of the method that corruption errors refer to; by default the first.
        resamples: Number of resamples of the clips.
        seed: Seed of the resampling.

    Raises:
        CaeAvError: There is no such reference, or no clip was scored under all conditions.
    """

    def __init__(
        self,
        scored: Scored,
        methods: Mapping[str, Sequence[ScoredModel]],
        *,
        reference: str | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.scored, self.methods = scored, {name: list(models) for name, models in methods.items()}
        self.reference = next(iter(methods)) if reference is None else reference
        if self.reference not in self.methods:
            raise CaeAvError(f"`reference` must be one of {', '.join(self.methods)}, got {self.reference!r}")
        if resamples < 1:
            raise CaeAvError(f"`resamples` must be at least 1, got {resamples}")
        self.task: Task = scored.models[0].task
        self.sign = 1 if self.task.higher_is_better else -1
        self.conditions = [(kind, level) for kind in scored.kinds for level in scored.levels]
        self.resamples, self.seed = resamples, seed
        self.families = {
            family: [number for number, kind in enumerate(scored.kinds) if KINDS[kind].family == family]
            for family in dict.fromkeys(KINDS[kind].family for kind in scored.kinds)
        }

    @cached_property
    def common_clips(self) -> np.ndarray:
        """Numbers of the clips that were scored for all models under all conditions."""
        common: set[int] | None = None
        for model in self._models:
            for condition in [CLEAN, *self.conditions]:
                clips = set(model.load(condition).clips.tolist())
                common = clips if common is None else common & clips
        if not common:
            raise CaeAvError("no clip was scored under all conditions; see the warnings about clips")
        return np.array(sorted(common))

    @cached_property
    def scores(self) -> dict[str, list[_Scores]]:
        """Main scores of the models of each method."""
        counts = resample_counts(len(self.common_clips), self.resamples, self.seed)
        found = {}
        for model in self._models:
            rows = [self._scores_of(model.load(condition), counts) for condition in [CLEAN, *self.conditions]]
            shape = (1 + self.resamples, len(self.scored.kinds), len(self.scored.levels))
            found[model.records] = _Scores(rows[0], np.stack(rows[1:], axis=-1).reshape(shape))
        return {name: [found[model.records] for model in models] for name, models in self.methods.items()}

    @property
    def _models(self) -> list[ScoredModel]:
        return list({model.records: model for models in self.methods.values() for model in models}.values())

    def _scores_of(self, record: Record, counts: np.ndarray) -> np.ndarray:
        """Return the main score on all clips of a record, then those of the resamples."""
        by_clip = record.sums.by_clip(record.clips, int(max(record.clips.max(), self.common_clips.max())) + 1)
        weights = np.zeros((len(counts), len(next(iter(by_clip.columns.values())))))
        weights[:, self.common_clips] = counts
        totals = [*by_clip.totals(np.ones((1, weights.shape[1]))), *by_clip.totals(weights)]
        return np.array([self._main_score(total) for total in totals])

    def _main_score(self, total: Any) -> float:
        try:
            return self.task.scores([total]).get(self.task.best_metric, math.nan)
        except CaeAvError:  # a resample in which nothing counts
            return math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `robustness.json`; what is unknown is `None`."""
        scored = self.scored
        result = {
            "data": scored.data,
            "seed": scored.seed,
            "task": self.task.name,
            "metric": self.task.best_metric,
            "higher_is_better": self.task.higher_is_better,
            "score_scale": self.task.score_scale,
            "split": scored.models[0].fingerprint["split"],
            "clips": scored.num_clips,
            "clips_resampled": len(self.common_clips),
            "resamples": self.resamples,
            "reference": self.reference,
            "levels": list(scored.levels),
            "kinds": {
                kind: {
                    "title": KINDS[kind].title,
                    "family": KINDS[kind].family,
                    "unit": KINDS[kind].unit,
                    "levels": list(KINDS[kind].levels),
                }
                for kind in scored.kinds
            },
            "not_applicable": scored.not_applicable,
            "methods": {name: self._method(name) for name in self.methods},
            "comparisons": [self._comparison(*pair) for pair in combinations(self.methods, 2)],
        }
        return _without_nan(result)

    def _method(self, name: str) -> dict[str, Any]:
        models, of_models = self.methods[name], self.scores[name]
        measures = [self._measures(scores) for scores in of_models]

        def estimates(choose: Any) -> dict[str, dict[str, Any]]:
            return {
                measure: self._estimate([choose(of_model[measure]) for of_model in measures]) for measure in MEASURES
            }

        kinds = {}
        for number, kind in enumerate(self.scored.kinds):
            levels = {
                str(level): self._estimate([scores.graded[:, number, place] for scores in of_models])
                for place, level in enumerate(self.scored.levels)
            }
            # A kind's mean over kinds is its own value.
            kinds[kind] = {"levels": levels, **estimates(lambda values, number=number: values[:, number])}
        return {
            "models": [model.name for model in models],
            "interval": OVER_CLIPS if len(models) == 1 else OVER_SEEDS,
            "clean": self._estimate([scores.clean for scores in of_models]),
            "kinds": kinds,
            "families": {
                family: estimates(lambda values, members=members: known_mean(values[:, members]))
                for family, members in self.families.items()
            },
            "overall": estimates(known_mean),
            "model_scores": [
                {
                    "model": model.name,
                    "clean": self._single(scores.clean),
                    "all_clean_scores": self._all_scores(model.load(CLEAN)),
                    "kinds": {
                        kind: {
                            str(level): self._single(scores.graded[:, number, place])
                            for place, level in enumerate(self.scored.levels)
                        }
                        for number, kind in enumerate(self.scored.kinds)
                    },
                }
                for model, scores in zip(models, of_models, strict=True)
            ],
            "detection": self._detection(models),
        }

    def _all_scores(self, record: Record) -> dict[str, float]:
        return self.task.scores(record.sums.totals(np.ones((1, len(record.rows)))))

    def _measures(self, scores: _Scores) -> dict[str, np.ndarray]:
        """Return each measure of robustness of each kind, (1 + resamples, kinds)."""
        scale, sign = self.task.score_scale, self.sign
        reference = self.scores[self.reference]
        reference_clean = np.mean([other.clean for other in reference], axis=0)
        reference_graded = np.mean([other.graded for other in reference], axis=0)
        clean, graded = scores.clean, scores.graded
        return {
            "mean_score": known_mean(graded),
            "relative_robustness": known_mean(relative_robustness(clean, graded, sign=sign)),
            "absolute_robustness": known_mean(absolute_robustness(clean, graded, scale=scale, sign=sign)),
            "mean_corruption_error": corruption_errors(graded, reference_graded, scale=scale, sign=sign),
            "relative_mean_corruption_error": relative_corruption_errors(
                clean, graded, reference_clean, reference_graded, sign=sign
            ),
        }

    def _estimate(self, of_models: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the mean over models, (1 + resamples,) each, and its interval: over clips, or over several models."""
        if len(of_models) == 1:
            return self._single(of_models[0])
        center, half = student_interval([float(values[0]) for values in of_models])
        return {"value": center, "low": center - half, "high": center + half}

    def _single(self, values: np.ndarray) -> dict[str, float]:
        low, high = percentile_interval(values[1:])
        return {"value": float(values[0]), "low": low, "high": high}

    def _comparison(self, first: str, second: str) -> dict[str, Any]:
        """Compare two methods on the same resamples of the clips, at the mean score over their models."""
        one, other = (
            (
                np.mean([scores.clean for scores in self.scores[name]], axis=0),
                np.mean([known_mean(scores.graded) for scores in self.scores[name]], axis=0),
            )
            for name in (first, second)
        )

        def compared(difference: np.ndarray) -> dict[str, float]:
            low, high = percentile_interval(difference[1:])
            share = share_better(difference[1:], sign=self.sign)
            return {"difference": float(difference[0]), "low": low, "high": high, "share_better": share}

        graded = one[1] - other[1]
        return {
            "first": first,
            "second": second,
            "clean": compared(one[0] - other[0]),
            "kinds": {kind: compared(graded[:, number]) for number, kind in enumerate(self.scored.kinds)},
            "families": {
                family: compared(known_mean(graded[:, members])) for family, members in self.families.items()
            },
            "overall": compared(known_mean(graded)),
        }

    def _detection(self, models: Sequence[ScoredModel]) -> dict[str, Any] | None:
        """Return how well low agreement finds the affected segments, or `None` if the models have no agreement."""
        found = [detection(model, self.conditions) for model in models]
        if any(of_model is None for of_model in found):
            return None
        kinds: dict[str, dict[str, Any]] = {}
        for kind, level in self.conditions:
            values = [of_condition for of_model in found if of_model and (of_condition := of_model[kind, level])]
            if values:
                kinds.setdefault(kind, {})[str(level)] = {
                    name: np.mean([value[name] for value in values], axis=0).tolist()
                    for name in ("auc", "average_precision", "share_affected", "auc_by_stage")
                }
        overall = {
            name: float(np.mean([np.mean([value[name] for value in levels.values()]) for levels in kinds.values()]))
            for name in ("auc", "average_precision", "share_affected")
            if kinds
        }
        return {"kinds": kinds, "overall": overall or None}


def detection(
    model: ScoredModel, conditions: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], dict[str, Any] | None] | None:
    """
    Return, by condition, how well low agreement separates the affected segments from the other segments of the
    condition and all of the unchanged set: area under the ROC curve (chance: 0.5) and average precision (chance:
    `share_affected`) of the last stage, which the pipelines show, and the area of each stage. `None` where no segment
    is affected; and `None` if the model has no agreement.
    """
    clean = _segments(model.load(CLEAN))
    if clean is None:
        return None
    found: dict[tuple[str, int], dict[str, Any] | None] = {}
    for condition in conditions:
        segments = _segments(model.load(condition))
        assert segments is not None
        agreement, affected = (torch.cat([one, other]) for one, other in zip(clean, segments, strict=True))
        if not affected.any():
            found[condition] = None
            continue
        aucs = [agreement_auc(stage, ~affected) for stage in agreement.unbind(-1)]
        found[condition] = {
            "auc": aucs[-1],
            "average_precision": misalignment_average_precision(agreement[:, -1], ~affected),
            "share_affected": float(affected.double().mean()),
            "auc_by_stage": aucs,
        }
    return found


def _segments(record: Record) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return agreement (n, stages) and whether they are affected (n,) of the real segments of each clip, once each."""
    if record.agreement is None:
        return None
    _, first = np.unique(record.clips, return_index=True)
    agreement, affected = record.agreement[first].transpose(0, 2, 1), record.affected[first]
    real = affected >= 0
    return torch.from_numpy(agreement[real]), torch.from_numpy(affected[real] == 1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def csv_text(results: Mapping[str, Any]) -> str:
    """Return `robustness.csv`: one line per model and condition, intervals over clips, scores in their own scale."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "model", "kind", "family", "level", "setting", "unit", results["metric"], "low", "high"]
    )
    for name, method in results["methods"].items():
        for model in method["model_scores"]:
            start = [name, model["model"]]
            writer.writerow([*start, "clean", "", 0, "", "", *model["clean"].values()])
            for kind, levels in model["kinds"].items():
                about = results["kinds"][kind]
                for level, value in levels.items():
                    setting = about["levels"][int(level) - 1]
                    writer.writerow([*start, kind, about["family"], level, setting, about["unit"], *value.values()])
    return file.getvalue()


def markdown_text(results: Mapping[str, Any]) -> str:
    """Return `robustness.md`: tables of scores, measures, detection and comparisons."""
    methods, factor = results["methods"], 100 / results["score_scale"]
    names = list(methods)
    metric = results["metric"].replace("_", " ")

    def header(*first: str) -> list[str]:
        return [f"| {' | '.join((*first, *names))} |", "|---" * len(first) + "|---:" * len(names) + "|"]

    def line(label: str, cells: Sequence[str]) -> str:
        return f"| {label} | {' | '.join(cells)} |"

    intervals = ", ".join(dict.fromkeys(method["interval"] for method in methods.values()))
    lines = [
        f"{results['clips']} clips of the split {results['split']}; {metric} in percent, "
        f"{'higher' if results['higher_is_better'] else 'lower'} is better, with 95 % intervals over {intervals}. In "
        "parentheses: relative to the clean score.",
        "",
        *header("kind, mean over levels"),
        line("clean", [_interval(method["clean"], factor) for method in methods.values()]),
    ]
    groups = [
        *(
            (about["title"], lambda method, kind=kind: method["kinds"][kind])
            for kind, about in results["kinds"].items()
        ),
        *(
            (f"all of {family}", lambda method, family=family: method["families"][family])
            for family in next(iter(methods.values()))["families"]
        ),
        ("all kinds", lambda method: method["overall"]),
    ]
    for label, choose in groups:
        chosen = [choose(method) for method in methods.values()]
        scores = [_interval(value["mean_score"], factor) for value in chosen]
        kept = [_number(value["relative_robustness"]["value"], 1, 2) for value in chosen]
        lines.append(line(label, [f"{score} ({share})" for score, share in zip(scores, kept, strict=True)]))
    lines += ["", *header("over all kinds and levels")]
    titles = {
        "relative_robustness": "relative robustness (score relative to the clean one)",
        "absolute_robustness": "absolute robustness",
        "mean_corruption_error": f"mean corruption error (mCE), {results['reference']} = 100",
        "relative_mean_corruption_error": f"relative mCE, {results['reference']} = 100",
    }
    for measure, title in titles.items():
        scale, digits = (100, 1) if measure.endswith("corruption_error") else (1, 3)
        lines.append(
            line(title, [_interval(method["overall"][measure], scale, digits) for method in methods.values()])
        )
    lines += ["", *_detection_lines(results, header, line), "", *_comparison_lines(results, factor)]
    for kind, reason in results["not_applicable"].items():
        lines.append(f"Not applicable: {kind} ({reason})")
    return "\n".join(lines).rstrip() + "\n"


def _detection_lines(results: Mapping[str, Any], header: Any, line: Any) -> list[str]:
    lines = header("affected segments found by low agreement: AUC (average precision), mean over levels")
    for kind, about in results["kinds"].items():
        cells = []
        for method in results["methods"].values():
            levels = ((method["detection"] or {}).get("kinds") or {}).get(kind, {}).values()
            cells.append(
                f"{np.mean([v['auc'] for v in levels]):.2f} ({np.mean([v['average_precision'] for v in levels]):.2f})"
                if levels
                else "-"
            )
        if any(cell != "-" for cell in cells):
            lines.append(line(about["title"], cells))
    overall = [(method["detection"] or {}).get("overall") for method in results["methods"].values()]
    cells = [f"{v['auc']:.2f} ({v['average_precision']:.2f})" if v else "-" for v in overall]
    return [*lines, line("all kinds", cells)]


def _comparison_lines(results: Mapping[str, Any], factor: float) -> list[str]:
    if not results["comparisons"]:
        return []
    lines = [
        f"Paired differences in percentage points over {results['resamples']} resamples of "
        f"{results['clips_resampled']} clips, with their 95 % intervals; in parentheses the share of resamples in "
        "which the first method is better.",
        "",
    ]
    families = list(next(iter(results["methods"].values()))["families"])
    columns = ["clean", *(f"all of {family}" for family in families), "all kinds"]
    lines += [f"| first - second | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for pair in results["comparisons"]:
        cells = [
            f"{_number(value['difference'], factor, 1, '+')} [{_number(value['low'], factor, 1, '+')}, "
            f"{_number(value['high'], factor, 1, '+')}] ({_number(value['share_better'], 1, 2)})"
            for value in (pair["clean"], *(pair["families"][family] for family in families), pair["overall"])
        ]
        lines.append(f"| {pair['first']} - {pair['second']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _interval(value: Mapping[str, float | None], factor: float, digits: int = 1) -> str:
    text = _number(value["value"], factor, digits)
    if value["low"] is None:
        return text
    return f"{text} [{_number(value['low'], factor, digits)}, {_number(value['high'], factor, digits)}]"


def _number(value: float | None, factor: float, digits: int, sign: str = "") -> str:
    # Adding 0 turns what rounds to minus zero into zero.
    return "-" if value is None else f"{round(factor * value, digits) + 0.0:{sign}.{digits}f}"
