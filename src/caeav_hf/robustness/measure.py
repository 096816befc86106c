"""The whole benchmark: score models, and write numbers, tables and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CaeAvError
from ..files import make_folder, write_json, write_text
from ..visualization.robustness import plot_robustness
from .report import Summary, csv_text, markdown_text
from .scoring import Scored, ScoredModel, ScoringOptions, score_models


def measure_robustness(
    methods: Mapping[str, Sequence[str | Path]],
    data: str | Path,
    out: str | Path,
    *,
    options: ScoringOptions | None = None,
    reference: str | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """
    Score methods on graded test sets, and write `robustness.json`, `.csv`, `.md` and `.png`. Continues where it was
    stopped.

    Args:
        methods: Models of each method by its name. Several models of a method are runs with different seeds; its
            scores are their means, with intervals over the seeds. The interval of a single model is over clips.
        data: Folder written by a builder, or such a data set on the Hub.
        out: Folder for everything.
        options: How to score.
        reference: Method that corruption errors refer to; by default the first.
        resamples: Number of resamples of the clips.

    Returns:
        The contents of `robustness.json` (see docs/robustness.md).

    Raises:
        CaeAvError: See [`score_models`] and [`Summary`].
    """
    if reference is not None and reference not in methods:
        raise CaeAvError(f"`reference` must be one of {', '.join(methods)}, got {reference!r}")
    scored = score_models([model for models in methods.values() for model in models], data, out, options)
    models = iter(scored.models)
    of_methods = {name: [next(models) for _ in given] for name, given in methods.items()}
    return write_report(scored, of_methods, out, reference=reference, resamples=resamples)


def write_report(
    scored: Scored,
    methods: Mapping[str, Sequence[ScoredModel]],
    out: str | Path,
    *,
    reference: str | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """
    Write `robustness.json`, `.csv`, `.md` and `.png` from stored scores.

    Args:
        scored: The result of [`score_models`].
        methods: Models of each method by its name, all or some of those in `scored`.
        out, reference, resamples: See [`measure_robustness`].

    Returns:
        The contents of `robustness.json`.
    """
    out = Path(out)
    make_folder(out)
    results = Summary(scored, methods, reference=reference, resamples=resamples).to_dict()
    write_json(out / "robustness.json", results)
    write_text(out / "robustness.csv", csv_text(results))
    write_text(out / "robustness.md", markdown_text(results))
    plot_robustness(results, out / "robustness.png")
    return results
