"""Draw how likely labels of the user's choice are in a clip, and when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import CaeAvError
from .drawing import COLOURS, draw_frames, frames_of, make_bare, new_figure, save_figure, strip_step


def plot_labels(
    clip: Any, labels: Sequence[dict[str, Any]], path: str | Path | None = None, *, title: str | None = None
) -> Figure:
    """
    Draw the result of zero-shot classification: the clip's frames, under them the probability of each label in each
    segment, and beside it in the clip.

    Args:
        clip: A `caeav_hf.media.clip.Clip`: `frames` (n, H, W, 3) uint8 and `name` are read.
        labels: The pipeline's result for the clip with `return_segments=True`: `label`, `score`, and `segments`, one
            number per frame. They are drawn in this order.
        path: File to save the picture to; the suffix sets the format (png, pdf, svg ...).
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, there is no label or one lacks a key, its segments are not as many as the
            frames, or `path` cannot be written.
    """
    frames = frames_of(clip)
    if not labels:
        raise CaeAvError("`labels` needs at least one label to draw")
    for label in labels:
        if missing := [name for name in ("label", "score", "segments") if name not in label]:
            raise CaeAvError(f"`labels` need the key '{missing[0]}', got {', '.join(label)}; see `return_segments`")
        if len(label["segments"]) != len(frames):
            raise CaeAvError(f"`segments` has {len(label['segments'])} entries; the clip has {len(frames)} frames")

    width, left, right, shares = 13.0, 0.17, 0.975, (0.75, 0.25)
    inner = shares[0] * (right - left) * width * 0.95
    shape = frames.shape[1] / frames.shape[2]
    step = strip_step(len(frames), inner, shape)
    heights = [max(min(2.6, step * inner / len(frames) * shape), 0.6), max(0.8, 0.42 * len(labels))]
    figure = new_figure(width, sum(heights) + 1.45)
    total = figure.get_figheight()
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=heights,
        width_ratios=shares,
        hspace=0.12,
        wspace=0.04,
        left=left,
        right=right,
        top=1 - 0.55 / total,
        bottom=0.75 / total,
    )
    top, map_axis, bars = (figure.add_subplot(part) for part in (grid[0, 0], grid[1, 0], grid[1, 1]))
    draw_frames(top, frames, 1.0, step)
    top.set_title(title or str(clip.name), loc="left", fontsize=15, fontweight="bold", color=COLOURS["text"], pad=8)
    top.set_xlim(0, len(frames))
    top.set_xticks([])

    values = np.asarray([label["segments"] for label in labels], dtype=np.float64)
    edges = np.arange(len(frames) + 1)
    map_axis.pcolormesh(edges, np.arange(len(labels) + 1), values, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
    map_axis.set_ylim(len(labels), 0)
    map_axis.set_yticks(np.arange(len(labels)) + 0.5, [label["label"] for label in labels])
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), 10)).round().astype(int))
    map_axis.set_xticks(chosen + 0.5, [str(index + 1) for index in chosen])
    map_axis.set_xlabel("Segment, coloured by probability from 0 (white) to 1", fontsize=13)
    make_bare(map_axis)
    map_axis.tick_params(length=0)

    scores = [label["score"] for label in labels]
    bars.barh(np.arange(len(labels)) + 0.5, scores, height=0.6, color=COLOURS["prediction"])
    for row, score in enumerate(scores):
        bars.text(score + 0.02, row + 0.5, f"{score:.2f}", va="center", fontsize=12, color=COLOURS["text"])
    bars.set_ylim(len(labels), 0)
    bars.set_xlim(0, 1.2)
    bars.set_yticks([])
    bars.set_xticks([0, 0.5, 1])
    bars.set_xlabel("Probability in the clip", fontsize=13)
    make_bare(bars, keep=("left",))
    save_figure(figure, path)
    return figure
