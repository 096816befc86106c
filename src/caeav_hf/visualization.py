"""
Pictures of what a model found in a clip and of how a training run went.

Everything is drawn on figures of its own, never through pyplot, so that calls from threads, servers and notebooks do
not meet in a global state, and no display is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from .errors import CaeAvError
from .overlay import TINT, tint_weights


# Okabe and Ito's palette: told apart with every common form of colour blindness.
COLOURS = {
    "prediction": "#0072B2",
    "truth": "#009E73",
    "wave": "#56B4E9",
    "agreement": "#D55E00",
    "text": "#222222",
    "grid": "#D9D9D9",
    "mask": TINT,
    "true mask": "#009E73",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BACKGROUND = "background"
# Frames that fit beside each other and can still be made out.
MAX_COLUMNS = 8


def plot_event_timeline(
    clip: Any,
    prediction: dict[str, Any],
    truth: Sequence[str] | Sequence[dict[str, Any]] | None = None,
    path: str | Path | None = None,
    *,
    segment_seconds: float = 1.0,
    title: str | None = None,
) -> Figure:
    """
    Draw a clip over time: its frames, its sound, the predicted and the true events, and how well the two modalities
    agree.

    Args:
        clip: A `caeav_hf.processing.media.Clip`: `frames` (n, H, W, 3) uint8, `waveform` (samples,), `duration` in
            seconds and `name` are read.
        prediction: What the pipeline returns for the clip: `intervals` with `label`, `start`, `end` (seconds) and
            `score`, and `agreement`, one cosine a segment - or one list a stage.
        truth: The true events, as one label a segment (`"background"` for none) or as intervals like the predicted.
        path: Where to save the picture; the suffix says in which format (png, pdf, svg ...).
        segment_seconds: Seconds of a segment.
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: the clip has no frames, `prediction` has no `intervals`, or `path` cannot be written.
    """
    frames = np.asarray(clip.frames)
    if frames.ndim != 4 or not len(frames):
        raise CaeAvError(f"`clip` needs frames of shape (n, H, W, 3) with n > 0, got {frames.shape}")
    if "intervals" not in prediction:
        raise CaeAvError(f"`prediction` needs the key 'intervals', got {', '.join(prediction) or 'nothing'}")
    seconds = max(len(frames) * segment_seconds, max((item["end"] for item in prediction["intervals"]), default=0.0))
    rows = [("prediction", "Predicted", list(prediction["intervals"]))]
    if truth is not None:
        rows.append(("truth", "True", _as_intervals(truth, segment_seconds)))
    agreement = prediction.get("agreement")

    # Frames keep their shape, so the height of their row follows from the width of the picture.
    width = 13.0
    inner = 0.875 * width
    height, breadth = frames.shape[1:3]
    strip = min(2.2, inner * segment_seconds / seconds * height / breadth)
    heights = [strip, 1.0, 0.55 * len(rows) + 0.15, *([1.5] if agreement is not None else [])]
    figure = _figure(width, sum(heights) + 0.28 * len(heights) + 0.95)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=heights,
        hspace=0.28 * len(heights) / sum(heights),
        left=0.095,
        right=0.97,
        top=1 - 0.45 / figure.get_figheight(),
        bottom=0.6 / figure.get_figheight(),
    )
    axes = [figure.add_subplot(grid[row]) for row in range(len(heights))]

    _draw_frames(axes[0], frames, segment_seconds, seconds)
    axes[0].set_title(
        title or str(clip.name), loc="left", fontsize=15, fontweight="bold", color=COLOURS["text"], pad=8
    )
    _draw_waveform(axes[1], np.asarray(clip.waveform, dtype=np.float32), float(clip.duration))
    _draw_intervals(axes[2], rows, seconds)
    if agreement is not None:
        _draw_agreement(axes[3], agreement, segment_seconds)
    for axis in axes:
        axis.set_xlim(0, seconds)
        axis.xaxis.set_major_locator(MultipleLocator(segment_seconds) if seconds <= 30 else MaxNLocator(10))
        if axis is not axes[-1]:
            axis.tick_params(axis="x", labelbottom=False, length=0)
    axes[-1].set_xlabel("Time (s)", fontsize=13)
    _save(figure, path)
    return figure


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

    Without `truth` it is one row. With it there are three: the frames as they are, the predicted masks with the
    intersection over the union of each frame, and the true masks. Of a clip with more frames than fit, evenly spaced
    ones are shown.

    Args:
        clip: A `caeav_hf.processing.media.Clip`: `frames` (n, H, W, 3) uint8, `frame_times` (n,) in seconds and `name`
            are read.
        masks: (n, H, W) bool: what the pipeline returns for the clip.
        truth: (n, H, W) bool: the true masks.
        path: Where to save the picture; the suffix says in which format (png, pdf, svg ...).
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: the clip has no frames, masks are not of its frames' number and size, or `path` cannot be written.
    """
    frames = np.asarray(clip.frames)
    if frames.ndim != 4 or not len(frames):
        raise CaeAvError(f"`clip` needs frames of shape (n, H, W, 3) with n > 0, got {frames.shape}")
    given = {"masks": np.asarray(masks)}
    if truth is not None:
        given["truth"] = np.asarray(truth)
    for name, values in given.items():
        if values.shape != frames.shape[:3]:
            raise CaeAvError(f"`{name}` must be of shape {frames.shape[:3]}, as the frames, got {values.shape}")
    predicted, *true = (values.astype(bool) for values in given.values())
    shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MAX_COLUMNS)).round().astype(int))
    rows: list[tuple[str, str | None, np.ndarray | None]] = [("Predicted", "mask", predicted)]
    if true:
        rows = [("Frames", None, None), *rows, ("True", "true mask", true[0])]

    # Pictures keep their shape; very wide or tall ones make the sheet flat or narrow.
    height, breadth = frames.shape[1:3]
    left, right, above, below, gap = 1.15 if true else 0.2, 0.2, 0.75, 0.2, 0.07
    side = min(2.2, 7.5 / len(rows) * breadth / height) if len(shown) > 1 else min(4.5, 4.5 * breadth / height)
    side = min(side, (13.0 - left - right) / len(shown) - gap)
    tall, line = side * height / breadth, 0.27 if true else 0.0
    width = max(4.0, left + len(shown) * (side + gap) + right)
    total = above + len(rows) * (tall + gap) + line + below
    figure = _figure(width, total)
    figure.text(
        0.2 / width,
        1 - 0.3 / total,
        title or str(clip.name),
        fontsize=15,
        fontweight="bold",
        color=COLOURS["text"],
        va="center",
    )
    top = total - above
    for label, colour, row in rows:
        top -= tall
        for column, number in enumerate(shown):
            place = ((left + column * (side + gap)) / width, top / total, side / width, tall / total)
            axis = figure.add_axes(place)
            _bare(axis)
            axis.set_xticks([])
            axis.set_yticks([])
            image = frames[number]
            if row is not None and colour is not None:
                image = tinted(image, row[number], COLOURS[colour])
            axis.imshow(image, aspect="auto")
            if label == rows[0][0]:
                axis.set_title(f"{clip.frame_times[number]:.1f} s", fontsize=12, color=COLOURS["text"], pad=4)
            if column == 0 and true:
                _label(axis, label)
            if true and label == "Predicted":
                score = _overlap(predicted[number], true[0][number])
                name = "IoU" if true[0][number].any() else "nothing to find:"
                axis.set_xlabel(f"{name} {score:.2f}", fontsize=11, color=COLOURS["text"], labelpad=3)
        top -= gap + (line if label == "Predicted" else 0.0)
    _save(figure, path)
    return figure


def tinted(image: np.ndarray, mask: np.ndarray, colour: str, opacity: float = 0.55) -> np.ndarray:
    """An image (H, W, 3) uint8 with the pixels of a mask (H, W) tinted and their edge drawn in full colour."""
    weight = tint_weights(mask, opacity)[..., None]
    tint = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return np.rint(image + (tint - image.astype(np.float32)) * weight).astype(np.uint8)


def _overlap(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); where nothing is to be found, the share of pixels left out."""
    if not true.any():
        return 1.0 - float(predicted.mean())
    return float((predicted & true).sum() / (predicted | true).sum())


def plot_curves(history: Sequence[dict[str, Any]], path: str | Path | None = None) -> Figure:
    """
    Draw the curves of a training run: the losses, the scores on the evaluation split and the learning rate, by epoch.

    Args:
        history: The records of `history.jsonl`: `epoch`, `train/...`, `eval/...` and `learning_rate`.
        path: Where to save the picture; the suffix says in which format.

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
    figure = _figure(13.0, 4.6)
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
    _save(figure, path)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path | None) -> None:
    if path is None:
        return
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CaeAvError(f"{path}: cannot be written as a picture: {error}") from error


def _as_intervals(truth: Sequence[Any], segment_seconds: float) -> list[dict[str, Any]]:
    """Runs of equal labels as intervals; intervals stay as they are."""
    intervals: list[dict[str, Any]] = []
    previous = BACKGROUND
    for number, label in enumerate(truth):
        if isinstance(label, dict):
            intervals.append(label)
            continue
        if label != BACKGROUND and label == previous:
            intervals[-1]["end"] = (number + 1) * segment_seconds
        elif label != BACKGROUND:
            intervals.append(
                {"label": str(label), "start": number * segment_seconds, "end": (number + 1) * segment_seconds}
            )
        previous = label
    return intervals


def _label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, fontsize=13, rotation=0, ha="right", va="center", labelpad=8, color=COLOURS["text"])


def _bare(axis: Axes, *, keep: Sequence[str] = ()) -> None:
    for name, spine in axis.spines.items():
        spine.set_visible(name in keep)
        spine.set_color(COLOURS["grid"])
    axis.tick_params(labelsize=12, colors=COLOURS["text"], length=3)


def _draw_frames(axis: Axes, frames: np.ndarray, segment_seconds: float, seconds: float) -> None:
    _bare(axis)
    _label(axis, "Frames")
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    gap = 0.02 * segment_seconds
    for number, frame in enumerate(frames):
        start = number * segment_seconds
        axis.imshow(frame, extent=(start + gap, start + segment_seconds - gap, 0, 1), aspect="auto")


def _draw_waveform(axis: Axes, waveform: np.ndarray, duration: float) -> None:
    _bare(axis)
    _label(axis, "Sound")
    axis.set_yticks([])
    # A picture is some thousand pixels wide: lowest and highest sample of each column say all that fits.
    columns = min(1500, max(1, len(waveform)))
    low, high = np.zeros(columns), np.zeros(columns)
    for number, part in enumerate(np.array_split(waveform, columns)):
        if len(part):
            low[number], high[number] = part.min(), part.max()
    peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-4)
    times = (np.arange(columns) + 0.5) * duration / columns
    axis.fill_between(times, low / peak, high / peak, color=COLOURS["wave"], linewidth=0.4, edgecolor=COLOURS["wave"])
    axis.set_ylim(-1.08, 1.08)


def _draw_intervals(axis: Axes, rows: list[tuple[str, str, list[dict[str, Any]]]], seconds: float) -> None:
    _bare(axis, keep=("bottom",))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [name for _, name, _ in rows], fontsize=13)
    axis.tick_params(axis="y", length=0, pad=8)
    axis.grid(axis="x", color=COLOURS["grid"], linewidth=0.8)
    axis.set_axisbelow(True)
    letter = 0.0095 * seconds  # width of a letter of 12 points, in seconds
    for row, (kind, _, intervals) in enumerate(rows):
        if not intervals:
            axis.text(0.1, row, "no event", ha="left", va="center", fontsize=12, style="italic", color="#666666")
        for number, item in enumerate(intervals):
            start, end = item["start"], item["end"]
            axis.barh(row, end - start, left=start, height=0.74, color=COLOURS[kind], edgecolor="white", linewidth=1)
            text = item["label"] if item.get("score") is None else f"{item['label']}  {item['score']:.2f}"
            free_before = start - (intervals[number - 1]["end"] if number else 0.0)
            free_after = (intervals[number + 1]["start"] if number + 1 < len(intervals) else seconds) - end
            needed = letter * (len(text) + 1)
            if needed <= end - start:
                _write(axis, (start + end) / 2, row, text, ha="center", color="white", fontweight="bold")
            elif free_after >= needed:
                _write(axis, end + letter / 2, row, text, ha="left", color=COLOURS["text"])
            elif free_before >= needed:
                _write(axis, start - letter / 2, row, text, ha="right", color=COLOURS["text"])
            else:  # two small lines inside the bar, cut where even that is too long
                fitting = max(1, int((end - start) / (0.75 * letter)) - 1)
                lines = [part if len(part) <= fitting else part[: fitting - 1] + "\u2026" for part in text.split("  ")]
                _write(axis, (start + end) / 2, row, "\n".join(lines), ha="center", color="white", fontsize=9)


def _write(axis: Axes, x: float, y: float, text: str, fontsize: int = 12, **style: Any) -> None:
    axis.text(x, y, text, va="center", fontsize=fontsize, linespacing=1.1, **style)


def _draw_agreement(axis: Axes, agreement: Sequence[Any], segment_seconds: float) -> None:
    _bare(axis, keep=("bottom", "right"))
    _label(axis, "Agreement")
    axis.grid(color=COLOURS["grid"], linewidth=0.8)
    axis.axhline(0, color="#888888", linewidth=1)
    stages = [list(stage) for stage in agreement] if np.ndim(agreement[0]) else [list(agreement)]
    for number, stage in enumerate(stages, start=1):
        middles = (np.arange(len(stage)) + 0.5) * segment_seconds
        last = number == len(stages)
        colour = COLOURS["agreement"] if last else SERIES[(number + 2) % len(SERIES)]
        axis.plot(
            middles,
            stage,
            color=colour,
            marker="o" if last else None,
            markersize=6,
            linewidth=2.4 if last else 1.3,
            label=f"stage {number}",
            clip_on=False,
        )
    if len(stages) > 1:
        axis.legend(fontsize=10, ncols=len(stages), frameon=False, loc="lower right")
    axis.set_ylim(-1.05, 1.05)
    axis.set_yticks([-1, 0, 1])
    axis.yaxis.tick_right()


def _draw_series(axis: Axes, history: Sequence[dict[str, Any]], names: list[str], title: str) -> None:
    _bare(axis, keep=("bottom", "left"))
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
