"""Draw contact sheets of clips with their sounding pixels tinted."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import CaeAvError
from .drawing import COLOURS, every, frames_of, make_bare, new_figure, save_figure, set_label
from .overlay import tint_weights


# Frames that fit side by side and are still large enough to see.
MAX_COLUMNS = 8


def plot_masks(
    clip: Any,
    masks: np.ndarray,
    truth: np.ndarray | None = None,
    path: str | Path | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """
    Draw a contact sheet of a clip: its frames with what sounds tinted.

    Without `truth` there is one row. With it there are three: the plain frames, the predicted masks with each frame's
    intersection over union, and the true masks. Of a clip with more than `MAX_COLUMNS` frames, the sheet shows every
    second, every third and so on, and says so.

    Args:
        clip: A `caeav_hf.media.clip.Clip`: `frames` (n, H, W, 3) uint8, `frame_times` (n,) in seconds and `name`
            are read.
        masks: (n, H, W) bool, as the pipeline returns them for the clip.
        truth: (n, H, W) bool, the true masks.
        path: File to save the picture to; the suffix sets the format (png, pdf, svg ...).
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, masks differ from them in number or size, or `path` cannot be written.
    """
    frames = frames_of(clip)
    given = {"masks": np.asarray(masks)}
    if truth is not None:
        given["truth"] = np.asarray(truth)
    for name, values in given.items():
        if values.shape != frames.shape[:3]:
            raise CaeAvError(f"`{name}` must be of shape {frames.shape[:3]}, as the frames, got {values.shape}")
    predicted, *true = (values.astype(bool) for values in given.values())
    step = math.ceil(len(frames) / MAX_COLUMNS)
    shown = range(0, len(frames), step)
    rows: list[tuple[str, str | None, np.ndarray | None]] = [("Predicted", "mask", predicted)]
    if true:
        rows = [("Frames", None, None), *rows, ("True", "true mask", true[0])]

    # Pictures keep their shape; very wide or tall ones make the sheet flat or narrow.
    height, breadth = frames.shape[1:3]
    left, right, above, below, gap = 1.15 if true else 0.2, 0.2, 0.75 if step == 1 else 1.0, 0.2, 0.07
    side = min(2.2, 7.5 / len(rows) * breadth / height) if len(shown) > 1 else min(4.5, 4.5 * breadth / height)
    side = min(side, (13.0 - left - right) / len(shown) - gap)
    tall, line = side * height / breadth, 0.27 if true else 0.0
    width = max(4.0, left + len(shown) * (side + gap) + right)
    total = above + len(rows) * (tall + gap) + line + below
    figure = new_figure(width, total)
    figure.text(
        0.2 / width,
        1 - 0.3 / total,
        title or str(clip.name),
        fontsize=15,
        fontweight="bold",
        color=COLOURS["text"],
        va="center",
    )
    if step > 1:
        note = f"{every(step, len(frames))} frames"
        figure.text(0.2 / width, 1 - 0.58 / total, note, fontsize=12, color=COLOURS["text"], va="center")
    top = total - above
    for label, colour, row in rows:
        top -= tall
        for column, number in enumerate(shown):
            place = ((left + column * (side + gap)) / width, top / total, side / width, tall / total)
            axis = figure.add_axes(place)
            make_bare(axis)
            axis.set_xticks([])
            axis.set_yticks([])
            image = frames[number]
            if row is not None and colour is not None:
                image = tinted(image, row[number], COLOURS[colour])
            axis.imshow(image, aspect="auto")
            if label == rows[0][0]:
                axis.set_title(f"{clip.frame_times[number]:.1f} s", fontsize=12, color=COLOURS["text"], pad=4)
            if column == 0 and true:
                set_label(axis, label)
            if true and label == "Predicted":
                score = _overlap(predicted[number], true[0][number])
                name = "IoU" if true[0][number].any() else "nothing to find:"
                axis.set_xlabel(f"{name} {score:.2f}", fontsize=11, color=COLOURS["text"], labelpad=3)
        top -= gap + (line if label == "Predicted" else 0.0)
    save_figure(figure, path)
    return figure


def tinted(image: np.ndarray, mask: np.ndarray, colour: str, opacity: float = 0.55) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with the pixels of a mask (H, W) tinted and the mask's edge in full colour."""
    weight = tint_weights(mask, opacity)[..., None]
    tint = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return np.rint(image + (tint - image.astype(np.float32)) * weight).astype(np.uint8)


def _overlap(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the IoU of two masks (H, W); if the true one is empty, the share of pixels not predicted."""
    if not true.any():
        return 1.0 - float(predicted.mean())
    return float((predicted & true).sum() / (predicted | true).sum())
