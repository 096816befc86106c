"""Draw answers to questions about a clip, where its sound is seen, and when the model looked and listened."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import CaeAvError
from .drawing import COLOURS, draw_frames, frames_of, make_bare, new_figure, save_figure, set_label, strip_step


_HEAT = "inferno"
_EVEN_LINE: dict[str, Any] = {"color": "#888888", "linewidth": 1, "linestyle": "--"}
# The bars of a question: key of the result, colour, name.
_ATTENTION = (("visual_attention", "visible", "Looks"), ("audio_attention", "audible", "Listens"))
_PER_FRAME = ("visual_attention", "audio_attention", "grounding")


def plot_answers(
    clip: Any,
    results: Sequence[dict[str, Any]],
    path: str | Path | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """
    Draw a model's answers: on top the clip's frames under a heat map of where it sees what it hears; below, for each
    question, its attention to the picture and sound of each frame, and its answers.

    The heat map is transparent up to an even share of a frame's weight, 1 / parts, and reaches its last colour at the
    highest weight in the clip, or at two even shares if that is more, so that uniform weights look uniform. Its range
    is printed.

    Args:
        clip: A `caeav_hf.media.clip.Clip`: `frames` (n, H, W, 3) uint8, `frame_times` (n,) in seconds and `name`
            are read.
        results: The pipeline's result for each question: `question`, `answers` with `answer` and `score`,
            `visual_attention` and `audio_attention`, one number per frame, and `grounding` (n, rows, columns).
        path: File to save the picture to; the suffix sets the format (png, pdf, svg ...).
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, there is no result or one lacks a key, attention or grounding have another
            number of frames than the clip, or `path` cannot be written.
    """
    frames = frames_of(clip)
    if not results:
        raise CaeAvError("`results` needs at least one question to draw")
    for result in results:
        if missing := [name for name in ("question", "answers", *_PER_FRAME) if result.get(name) is None]:
            raise CaeAvError(f"`results` need the key '{missing[0]}', got {', '.join(result) or 'nothing'}")
        if wrong := [name for name in _PER_FRAME if len(result[name]) != len(frames)]:
            raise CaeAvError(f"`{wrong[0]}` is of {len(result[wrong[0]])} frames; the clip has {len(frames)}")

    # Frames keep their shape, so the height of their row follows from the width of the picture.
    width, left, right, shares = 13.0, 0.085, 0.975, (0.7, 0.3)
    inner = shares[0] * (right - left) * width * 0.92
    shape = frames.shape[1] / frames.shape[2]
    step = strip_step(len(frames), inner, shape)
    strip = min(2.6, step * inner / len(frames) * shape)
    tallest = max(len(result["answers"]) for result in results)
    heights = [max(strip, 0.6), *[max(1.2, 0.3 * tallest)] * len(results)]
    gap = 0.62
    figure = new_figure(width, sum(heights) + gap * len(results) + 1.15)
    total = figure.get_figheight()
    grid = figure.add_gridspec(
        len(heights),
        2,
        height_ratios=heights,
        width_ratios=shares,
        hspace=gap * len(heights) / sum(heights),
        wspace=0.38,
        left=left,
        right=right,
        top=1 - 0.5 / total,
        bottom=0.65 / total,
    )
    top = figure.add_subplot(grid[0, 0])
    weights = np.asarray(results[0]["grounding"], dtype=np.float32)
    even = 1 / weights[0].size
    low, high = even, max(2 * even, float(weights.max()))
    shown = [heated(frame, part, low, high) for frame, part in zip(frames, weights, strict=True)]
    draw_frames(top, np.stack(shown), 1.0, step)
    top.set_title(title or str(clip.name), loc="left", fontsize=15, fontweight="bold", color=COLOURS["text"], pad=8)
    _draw_legend(figure.add_subplot(grid[0, 1]), low, high, weights)
    rows = []
    # One scale for all questions; attention without a preference fills half of it.
    highest = max(2 / len(frames), *(max(result[name]) for result in results for name, _, _ in _ATTENTION))
    for number, result in enumerate(results, start=1):
        rows.append(figure.add_subplot(grid[number, 0]))
        _draw_attention(rows[-1], result)
        rows[-1].set_ylim(0, 1.05 * highest)
        _draw_answers(figure.add_subplot(grid[number, 1]), result["answers"])
    middles = np.arange(len(frames)) + 0.5
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), 10)).round().astype(int))
    labels = [f"{clip.frame_times[index]:.1f}" for index in chosen]
    top.set_xlim(0, len(frames))
    top.set_xticks([])
    for axis in rows:
        axis.set_xlim(0, len(frames))
        axis.set_xticks(middles[chosen], labels if axis is rows[-1] else [""] * len(chosen))
    rows[-1].set_xlabel("Time of the frame (s)", fontsize=13)
    save_figure(figure, path)
    return figure


def heated(image: np.ndarray, weights: np.ndarray, low: float, high: float, opacity: float = 0.7) -> np.ndarray:
    """
    Return an image (H, W, 3) uint8 under a heat map.

    Args:
        weights: (rows, columns) for equal parts of the image, interpolated in between.
        low, high: Weights of the first and the last colour. The first is transparent, the last has `opacity`.
    """
    scaled = (np.asarray(weights, dtype=np.float32) - low) / max(high - low, 1e-12)
    height, width = image.shape[:2]
    heat = np.asarray(Image.fromarray(scaled.clip(0, 1)).resize((width, height), Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps[_HEAT](heat)[..., :3] * 255
    return np.rint(image + (colours - image) * (opacity * heat)[..., None]).astype(np.uint8)


def _draw_legend(axis: Axes, low: float, high: float, weights: np.ndarray) -> None:
    """Explain the colours of the heat map, with the range of its weights, and those of the bars."""
    make_bare(axis)
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    axis.imshow(np.linspace(0, 1, 256)[None], extent=(0, 1, 0.35, 0.6), aspect="auto", cmap=_HEAT)
    axis.set_xlim(0, 1)
    axis.set_xticks([])
    axis.text(0, 0.7, "Where the sound is seen", fontsize=12, color=COLOURS["text"])
    for place, text, side in ((0, f"{low:.3f} (even share)", "left"), (1, f"{high:.3f}", "right")):
        axis.text(place, 0.28, text, fontsize=11, color=COLOURS["text"], ha=side, va="top")
    span = f"Weights in this clip: {weights.min():.3f} to {weights.max():.3f}"
    axis.text(0, -0.05, span, fontsize=11, color=COLOURS["text"], va="top")
    bars: list[Artist] = [Patch(color=COLOURS[kind], label=label) for _, kind, label in _ATTENTION]
    bars.append(Line2D([], [], **_EVEN_LINE, label="Even share"))
    axis.legend(
        handles=bars,
        fontsize=11,
        frameon=False,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderpad=0,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _draw_attention(axis: Axes, result: dict[str, Any]) -> None:
    make_bare(axis, keep=("bottom",))
    set_label(axis, "Attention")
    axis.set_title(
        textwrap.shorten(result["question"], 100, placeholder=" \u2026"),
        loc="left",
        fontsize=14,
        fontweight="bold",
        color=COLOURS["text"],
        pad=6,
    )
    for number, (name, kind, _) in enumerate(_ATTENTION):
        places = np.arange(len(result[name])) + 0.32 + 0.36 * number
        axis.bar(places, result[name], width=0.34, color=COLOURS[kind])
    axis.axhline(1 / len(result["visual_attention"]), **_EVEN_LINE)
    axis.yaxis.set_major_locator(MaxNLocator(2))
    axis.yaxis.tick_right()


def _draw_answers(axis: Axes, answers: Sequence[dict[str, Any]]) -> None:
    make_bare(axis)
    axis.set_xlim(0, 1)
    axis.set_ylim(len(answers) - 0.5, -0.5)
    axis.set_xticks([])
    names = [textwrap.shorten(str(item["answer"]), 20, placeholder="\u2026") for item in answers]
    axis.set_yticks(range(len(answers)), names, fontsize=12)
    axis.tick_params(axis="y", length=0, pad=6)
    for row, item in enumerate(answers):
        colour = COLOURS["prediction"] if row == 0 else COLOURS["grid"]
        axis.barh(row, item["score"], height=0.74, color=colour)
        is_long = item["score"] > 0.8
        axis.text(
            item["score"] + (-0.02 if is_long else 0.02),
            row,
            f"{item['score']:.2f}",
            ha="right" if is_long else "left",
            va="center",
            fontsize=12,
            color="white" if is_long and row == 0 else COLOURS["text"],
        )
