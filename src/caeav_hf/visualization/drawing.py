"""What the pictures share: colours, figures, bare axes, a row of frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import CaeAvError
from ..overlay import TINT


# Okabe and Ito's palette: told apart with every common form of colour blindness.
COLOURS = {
    "prediction": "#0072B2",
    "truth": "#009E73",
    "audible": "#0072B2",
    "visible": "#CC79A7",
    "both": "#555555",
    "wave": "#56B4E9",
    "agreement": "#D55E00",
    "text": "#222222",
    "grid": "#D9D9D9",
    "mask": TINT,
    "true mask": "#009E73",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def frames_of(clip: Any) -> np.ndarray:
    """The frames of a clip, (n, H, W, 3) uint8; a CaeAvError if there are none."""
    frames = np.asarray(clip.frames)
    if frames.ndim != 4 or not len(frames):
        raise CaeAvError(f"`clip` needs frames of shape (n, H, W, 3) with n > 0, got {frames.shape}")
    return frames


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path | None) -> None:
    if path is None:
        return
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CaeAvError(f"{path}: cannot be written as a picture: {error}") from error


def set_label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, fontsize=13, rotation=0, ha="right", va="center", labelpad=8, color=COLOURS["text"])


def make_bare(axis: Axes, *, keep: Sequence[str] = ()) -> None:
    for name, spine in axis.spines.items():
        spine.set_visible(name in keep)
        spine.set_color(COLOURS["grid"])
    axis.tick_params(labelsize=12, colors=COLOURS["text"], length=3)


def draw_frames(axis: Axes, frames: np.ndarray, width: float) -> None:
    """Frames side by side, each `width` wide."""
    make_bare(axis)
    set_label(axis, "Frames")
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    gap = 0.02 * width
    for number, frame in enumerate(frames):
        start = number * width
        axis.imshow(frame, extent=(start + gap, start + width - gap, 0, 1), aspect="auto")
