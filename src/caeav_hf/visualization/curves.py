"""Draw the curves of a training run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..errors import CaeAvError
from .drawing import COLOURS, SERIES, make_bare, new_figure, save_figure


def plot_curves(history: Sequence[dict[str, Any]], path: str | Path | None = None) -> Figure:
    """
    Draw the curves of a training run: the losses, the scores on the evaluation split and the learning rate, by epoch.

    Args:
        history: The records of `history.jsonl`: `epoch`, `train/...`, `eval/...` and `learning_rate`.
        path: File to save the picture to; the suffix sets the format.

    Returns:
        The figure.

    Raises:
        CaeAvError: `history` is empty, or `path` cannot be written.
    """
    if not history:
        raise CaeAvError("`history` needs at least one record to draw")
    counts = ("clips", "dropped_clips", "skipped_steps")
    names = list(dict.fromkeys(name for record in history for name in record))
    losses = [name for name in names if name.startswith("train/") and not name.endswith(counts)]
    scores = [name for name in names if name.startswith("eval/") and not name.endswith(counts)]
    figure = new_figure(13.0, 4.6)
    axes = figure.subplots(1, 3)
    _draw_series(axes[0], history, losses, "Training loss")
    only = f": {scores[0].partition('/')[2].replace('_', ' ')}" if len(scores) == 1 else ""
    _draw_series(axes[1], history, scores, f"Evaluation{only}")
    _draw_series(axes[2], history, ["learning_rate"], "Learning rate")
    for axis in axes:
        axis.set_xlabel("Epoch", fontsize=12)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))
    axes[2].set_ylim(bottom=0)
    figure.tight_layout(w_pad=2.5)
    save_figure(figure, path)
    return figure


def _draw_series(axis: Axes, history: Sequence[dict[str, Any]], names: list[str], title: str) -> None:
    make_bare(axis, keep=("bottom", "left"))
    axis.set_title(title, loc="left", fontsize=14, fontweight="bold", color=COLOURS["text"])
    axis.grid(color=COLOURS["grid"], linewidth=0.8)
    axis.set_axisbelow(True)
    for number, name in enumerate(names):
        points = [(record["epoch"], record[name]) for record in history if record.get(name) is not None]
        axis.plot(
            [epoch for epoch, _ in points],
            [value for _, value in points],
            color=SERIES[number % len(SERIES)],
            linestyle="-" if number < len(SERIES) else "--",
            marker="o",
            markersize=4,
            linewidth=2,
            label=name.partition("/")[2].replace("_", " "),
        )
    if len(names) > 1:  # below the axes, where it covers no line
        axis.legend(fontsize=11, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
