"""Shared parts of the pictures: colours, figures, bare axes, a row of frames."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import CaeAvError
from ..files import WriteError, atomic_write
from .overlay import TINT


# Okabe and Ito's palette: distinguishable with all common forms of colour blindness.
COLOURS = {
    "prediction": "#0072B2",
    "truth": "#009E73",
    "audible": "#0072B2",
    "visible": "#CC79A7",
    "both": "#555555",
    "wave": "#56B4E9",
    "agreement": "#D55E00",
    "misaligned": "#F0E442",
    "text": "#222222",
    "grid": "#D9D9D9",
    "mask": TINT,
    "true mask": "#009E73",
}
# Minimum height of a row of frames in inches.
_LOWEST_STRIP = 0.5
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A", "#999999")


def frames_of(clip: Any) -> np.ndarray:
    """Return the frames of a clip, (n, H, W, 3) uint8; raise a CaeAvError if there are none."""
    frames = np.asarray(clip.frames)
    if frames.ndim != 4 or not len(frames):
        raise CaeAvError(f"`clip` needs frames of shape (n, H, W, 3) with n > 0, got {frames.shape}")
    return frames


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path | None) -> None:
    """Save a figure to a file whose suffix sets the format, PNG without one; do nothing if `path` is `None`."""
    if path is None:
        return
    path = Path(path)
    try:
        with atomic_write(path if path.suffix else path.with_name(f"{path.name}.png")) as partial_path:
            figure.savefig(partial_path, format=path.suffix[1:] or "png")
    except ValueError as error:  # which a `WriteError` is too
        reason = error.__cause__ if isinstance(error, WriteError) else error
        raise CaeAvError(f"{path}: cannot be written as a picture: {reason}") from error


def set_label(axis: Axes, text: str, fontsize: int = 13) -> None:
    axis.set_ylabel(text, fontsize=fontsize, rotation=0, ha="right", va="center", labelpad=8, color=COLOURS["text"])


def every(step: int, count: int) -> str:
    """Describe a choice of each `step`-th of `count` frames: "every 3rd of 60"."""
    ending = "th" if 10 < step % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(step % 10, "th")
    return f"every {step}{ending} of {count}"


def make_bare(axis: Axes, *, keep: Sequence[str] = ()) -> None:
    for name, spine in axis.spines.items():
        spine.set_visible(name in keep)
        spine.set_color(COLOURS["grid"])
    axis.tick_params(labelsize=12, colors=COLOURS["text"], length=3)


def strip_step(count: int, width: float, aspect: float) -> int:
    """
    Return the step between the frames that a row shows, so that they are large enough to see.

    Args:
        count: Number of frames.
        width: Width of the row in inches, which the shown frames fill.
        aspect: Height of a frame over its width.
    """
    return max(1, math.ceil(_LOWEST_STRIP * count / (width * aspect)))


def draw_frames(axis: Axes, frames: np.ndarray, width: float, step: int = 1) -> None:
    """Draw frames side by side, each `width` wide; of each group of `step`, its middle one, `step` times as wide."""
    make_bare(axis)
    set_label(
        axis, "Frames" if step == 1 else "Frames\n" + every(step, len(frames)).replace(" of", "\nof"), 13 - (step > 1)
    )
    frames = frames[[min(start + step // 2, len(frames) - 1) for start in range(0, len(frames), step)]]
    width *= step
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    gap = 0.02 * width
    for number, frame in enumerate(frames):
        start = number * width
        axis.imshow(frame, extent=(start + gap, start + width - gap, 0, 1), aspect="auto")
