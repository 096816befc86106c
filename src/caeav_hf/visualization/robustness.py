"""Draw the scores of methods on graded test sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import CaeAvError
from .drawing import COLOURS, SERIES, make_bare, new_figure, save_figure


_COLUMNS = 4
# Markers and line styles tell methods apart in print without colours, too.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLES = ("-", "--", "-.", ":")
# Width in levels over which the points of all methods at the same level are spread, and their largest distance.
_SPREAD, _LARGEST_STEP = 0.4, 0.07


def plot_robustness(results: Mapping[str, Any], path: str | Path | None = None) -> Figure:
    """
    Draw one panel per kind of misalignment and one curve per method: its score by level with the 95 % interval, the
    unchanged set at level 0.

    Args:
        results: The contents of `robustness.json`.
        path: File to save the picture to; the suffix sets the format.

    Returns:
        The figure.

    Raises:
        CaeAvError: `results` has no kind or no method, or `path` cannot be written.
    """
    kinds, methods = results["kinds"], results["methods"]
    if not kinds or not methods:
        raise CaeAvError("`results` needs at least one kind and one method to draw")
    columns = min(_COLUMNS, len(kinds))
    num_rows = -(-len(kinds) // columns)
    legend_rows = -(-len(methods) // (2 * columns))
    below = 0.26 * legend_rows + 0.35  # inches for the legend and the note
    height = 2.7 * num_rows + below
    figure = new_figure(max(3.5 * columns, 5.5), height)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    panels = list(grid.flat)
    factor = 100 / results["score_scale"]
    for axis, (name, kind) in zip(panels, kinds.items(), strict=False):
        for number, (method, found) in enumerate(methods.items()):
            levels = {
                0: found["clean"],
                **{int(level): value for level, value in found["kinds"][name]["levels"].items()},
            }
            _draw_curve(axis, levels, number, len(methods), factor, method)
        _finish(axis, kind)
    for axis in panels[len(kinds) :]:
        axis.set_visible(False)
    for axis in grid[:, 0]:
        axis.set_ylabel(f"{results['metric'].replace('_', ' ')} (%)", fontsize=11)
    # Intervals over few seeds may leave the scale; the axes are shared.
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(max(low, -3), min(high, 103))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, below / height, 1, 1))
    place = (0.5, 0.2 / height)
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=place, ncols=2 * columns, frameon=False, fontsize=11
    )
    figure.text(0.005, 0.005, f"bars: 95 % interval over {_intervals(methods)}", fontsize=8, color=COLOURS["text"])
    save_figure(figure, path)
    return figure


def _draw_curve(
    axis: Axes, levels: Mapping[int, Mapping[str, Any]], number: int, count: int, factor: float, label: str
) -> None:
    """Draw one method, a little beside the others so that the bars of all can be seen."""
    offset = min(_LARGEST_STEP, _SPREAD / count) * (number - (count - 1) / 2)
    known = {level: value for level, value in levels.items() if value["value"] is not None}
    scores = [factor * value["value"] for value in known.values()]
    bars = [
        [
            0 if value[side] is None else abs(factor * value[side] - score)
            for value, score in zip(known.values(), scores, strict=True)
        ]
        for side in ("low", "high")
    ]
    axis.errorbar(
        [level + offset for level in known],
        scores,
        bars,
        color=SERIES[number % len(SERIES)],
        marker=_MARKERS[number % len(_MARKERS)],
        # Two methods of one colour have different styles.
        linestyle=_STYLES[(number + 2 * (number // len(SERIES))) % len(_STYLES)],
        markersize=4,
        linewidth=1.4,
        elinewidth=0.9,
        label=label,
    )


def _finish(axis: Axes, kind: Mapping[str, Any]) -> None:
    make_bare(axis, keep=("left", "bottom"))
    axis.tick_params(labelsize=10)
    axis.set_title(kind["title"], loc="left", fontsize=12, color=COLOURS["text"])
    axis.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xticks(range(len(kind["levels"]) + 1), ["clean", *(f"{value:g}" for value in kind["levels"])])
    axis.set_xlabel(kind["unit"], fontsize=10, color=COLOURS["text"])


def _intervals(methods: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(method["interval"] for method in methods.values()))
