"""Draw clips over time: what a model found in them, with their frames and their sound."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from ..errors import CaeAvError
from .contact_sheet import tinted
from .drawing import COLOURS, SERIES, draw_frames, frames_of, make_bare, new_figure, save_figure, set_label, strip_step


BACKGROUND = "background"
TRACKS = ("audible", "visible", "both")
# Kind (a colour), name and intervals of a row.
Row: TypeAlias = tuple[str, str, list[dict[str, Any]]]
# Widths in inches: the picture, the margins beside its rows, a letter of 12 points, and one in a long name.
_WIDTH, _LEFT, _RIGHT, _LETTER, _MEAN_LETTER = 13.0, 1.235, 0.39, 0.108, 0.098
# Maximum letters of a class name beside a row, and markers of a line, for both to stay readable.
_LONGEST_NAME, _MAX_MARKERS = 32, 60
# Sentences below a timeline: height of a line in inches, letters of a line, and most lines.
_NOTE_LINE, _NOTE_LETTERS, _MAX_NOTES = 0.27, 110, 60


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
    agree. Every bar is labelled: inside, beside it, or, if that does not fit, by a line for each class.

    Args:
        clip: A `caeav_hf.media.clip.Clip`: `frames` (n, H, W, 3) uint8, `waveform` (samples of n segments,),
            `duration` in seconds, `has_audio` and `name` are read.
        prediction: The pipeline's result for the clip: `intervals` with `label`, `start`, `end` (seconds) and `score`;
            `agreement`, one number per segment, or one list per stage; and `misaligned`, intervals with `start` and
            `end` in which sound and picture do not belong together, or None if the agreement is a cosine.
        truth: The true events, as one label per segment (`"background"` for none) or as intervals like the predicted.
        path: File to save the picture to; the suffix sets the format (png, pdf, svg ...).
        segment_seconds: Seconds of a segment.
        title: Line above the picture; by default the name of the clip.

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, `prediction` has no `intervals`, or `path` cannot be written.
    """
    if "intervals" not in prediction:
        raise CaeAvError(f"`prediction` needs the key 'intervals', got {', '.join(prediction) or 'nothing'}")
    rows = [("prediction", "Predicted", list(prediction["intervals"]))]
    if truth is not None:
        rows.append(("truth", "True", _as_intervals(truth, segment_seconds)))
    return _plot_timeline(clip, rows, prediction, path, segment_seconds, title)


def plot_parsing_timeline(
    clip: Any,
    prediction: dict[str, Any],
    truth: dict[str, Any] | None = None,
    path: str | Path | None = None,
    *,
    segment_seconds: float = 1.0,
    title: str | None = None,
) -> Figure:
    """
    Draw a clip over time: its frames, its sound, which classes are heard, seen, or both, and how well the two
    modalities agree. Each class has one line in each of the three tracks in which it occurs.

    Args:
        clip: As for [`plot_event_timeline`].
        prediction: The pipeline's result for the clip: `audible`, `visible` and `both`, lists of intervals with
            `label`, `start`, `end` (seconds) and `score`, and `agreement` and `misaligned` as there.
        truth: The true tracks in the same form without scores, each drawn below the predicted one.
        path, segment_seconds, title: As for [`plot_event_timeline`].

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, a track is missing, or `path` cannot be written.
    """
    rows: list[Row] = []
    for name, tracks in (("prediction", prediction), ("truth", truth)):
        if tracks is not None and (missing := [track for track in TRACKS if track not in tracks]):
            raise CaeAvError(f"`{name}` needs the key '{missing[0]}', got {', '.join(tracks) or 'nothing'}")
    for track in TRACKS:
        rows += _lines(track, track.capitalize(), prediction[track])
        if truth is not None:
            rows += _lines("truth", "True", truth[track])
    return _plot_timeline(clip, rows, prediction, path, segment_seconds, title)


def plot_description_timeline(
    clip: Any,
    prediction: dict[str, Any],
    path: str | Path | None = None,
    *,
    segment_seconds: float = 1.0,
    title: str | None = None,
) -> Figure:
    """
    Draw a clip over time: its frames, tinted where something sounds, its sound, and when each sentence holds. The
    sentences are numbered and listed below.

    Args:
        clip: As for [`plot_event_timeline`].
        prediction: The result of the pipeline of sound source understanding for the clip: `intervals` with
            `description`, `start` and `end` (seconds); and `masks` (n, H, W) bool, unless the model has none.
        path, segment_seconds, title: As for [`plot_event_timeline`].

    Returns:
        The figure.

    Raises:
        CaeAvError: The clip has no frames, `prediction` has no `intervals`, masks are not of the frames' number and
            size, or `path` cannot be written.
    """
    if "intervals" not in prediction:
        raise CaeAvError(f"`prediction` needs the key 'intervals', got {', '.join(prediction) or 'nothing'}")
    frames = frames_of(clip)
    if prediction.get("masks") is not None:
        masks = np.asarray(prediction["masks"], dtype=bool)
        if masks.shape != frames.shape[:3]:
            raise CaeAvError(f"`masks` must be of shape {frames.shape[:3]}, as the frames, got {masks.shape}")
        frames = np.stack([tinted(frame, mask, COLOURS["mask"]) for frame, mask in zip(frames, masks, strict=True)])
    numbers: dict[str, int] = {}
    intervals = [
        {**item, "label": str(numbers.setdefault(item["description"], len(numbers) + 1))}
        for item in prediction["intervals"]
    ]
    notes = [
        line
        for text, number in numbers.items()
        for line in wrap(f"{number}  {text}", _NOTE_LETTERS, subsequent_indent=" " * 4)
    ]
    if len(notes) > _MAX_NOTES:
        notes = [*notes[: _MAX_NOTES - 1], "\u2026 and further sentences"]
    rows: list[Row] = [("prediction", "Described", intervals)]
    return _plot_timeline(clip, rows, prediction, path, segment_seconds, title, frames=frames, notes=notes)


def _lines(kind: str, name: str, intervals: Sequence[dict[str, Any]]) -> list["Row"]:
    """Split a track into one line per class, ordered by start; the first line has the track's name."""
    classes = list(dict.fromkeys(item["label"] for item in sorted(intervals, key=lambda item: item["start"])))
    lines = [[item for item in intervals if item["label"] == label] for label in classes] or [[]]
    return [(kind, "" if number else name, line) for number, line in enumerate(lines)]


def _plot_timeline(
    clip: Any,
    rows: list["Row"],
    prediction: dict[str, Any],
    path: str | Path | None,
    segment_seconds: float,
    title: str | None,
    frames: np.ndarray | None = None,
    notes: Sequence[str] | None = None,
) -> Figure:
    """
    Draw a timeline with some rows of intervals.

    Args:
        frames: What to show instead of the clip's frames.
        notes: Lines below the timeline, to which the labels of bars refer; `None` if these are names.
    """
    frames = frames_of(clip) if frames is None else frames
    agreement, misaligned = prediction.get("agreement"), prediction.get("misaligned")
    seconds = max(len(frames) * segment_seconds, *(item["end"] for _, _, items in rows for item in items), 0.0)

    # Frames keep their shape, so the height of their row follows from the width of the picture. If all of them would
    # be too small to see, each one shown stands for a group of segments, of which it is the middle one.
    left = _LEFT
    placed = [
        _place_texts(intervals, seconds, _LETTER / (_WIDTH - left - _RIGHT) * seconds) for _, _, intervals in rows
    ]
    by_class = notes is None and any(text is None for texts in placed for text in texts)
    if by_class:
        rows = [line for kind, name, intervals in rows for line in _lines(kind, name, intervals)]
        left += 0.25 + _MEAN_LETTER * max(len(_class_name(line)) for line in rows)
    inner = _WIDTH - left - _RIGHT
    shape = frames.shape[1] / frames.shape[2]
    row = inner * len(frames) * segment_seconds / seconds
    step = strip_step(len(frames), row, shape)
    strip = min(2.2, step * row / len(frames) * shape)
    row_height = 0.55 if len(rows) < 5 else 0.36 if len(rows) < 20 else 0.28
    heights = [strip, 1.0, row_height * len(rows) + 0.15, *([1.5] if agreement is not None else [])]
    below = 0.6 + (_NOTE_LINE * len(notes) + 0.15 if notes else 0.0)
    figure = new_figure(_WIDTH, sum(heights) + 0.28 * len(heights) + 0.35 + below)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=heights,
        hspace=0.28 * len(heights) / sum(heights),
        left=left / _WIDTH,
        right=1 - _RIGHT / _WIDTH,
        top=1 - 0.45 / figure.get_figheight(),
        bottom=below / figure.get_figheight(),
    )
    axes = [figure.add_subplot(grid[row]) for row in range(len(heights))]

    draw_frames(axes[0], frames, segment_seconds, step)
    axes[0].set_title(
        title or str(clip.name), loc="left", fontsize=15, fontweight="bold", color=COLOURS["text"], pad=8
    )
    # The waveform covers the segments only, however long the clip is.
    has_audio = getattr(clip, "has_audio", True)
    _draw_waveform(axes[1], np.asarray(clip.waveform, dtype=np.float32), len(frames) * segment_seconds, has_audio)
    _draw_intervals(axes[2], rows, seconds, inner, by_class, "no event" if notes is None else "nothing sounds")
    for number, note in enumerate(notes or ()):
        place = (below - 0.6 - _NOTE_LINE * (number + 0.5)) / figure.get_figheight()
        figure.text(left / _WIDTH, place, note, fontsize=12, color=COLOURS["text"], va="center", parse_math=False)
    if agreement is not None:
        _draw_agreement(axes[3], agreement, misaligned, segment_seconds)
    for axis in axes:
        axis.set_xlim(0, seconds)
        axis.xaxis.set_major_locator(
            MultipleLocator(segment_seconds) if seconds <= 30 else MaxNLocator(10, steps=[1, 2, 3, 5, 10])
        )
        if axis is not axes[-1]:
            axis.tick_params(axis="x", labelbottom=False, length=0)
    part = ""
    if clip.duration - len(frames) * segment_seconds >= segment_seconds:
        part = f": the first {len(frames) * segment_seconds:g} of {clip.duration:.0f}"
    axes[-1].set_xlabel(f"Time (s){part}", fontsize=13)
    save_figure(figure, path)
    return figure


def _as_intervals(truth: Sequence[Any], segment_seconds: float) -> list[dict[str, Any]]:
    """Turn runs of equal labels into intervals; keep intervals as they are."""
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


def _draw_waveform(axis: Axes, waveform: np.ndarray, seconds: float, has_audio: bool) -> None:
    make_bare(axis)
    set_label(axis, "Sound")
    axis.set_yticks([])
    axis.set_ylim(-1.08, 1.08)
    if not has_audio:
        _say_nothing(axis, 0, "no sound track")
        return
    # The picture is some thousand pixels wide: the lowest and highest sample of each column are all it can show.
    columns = min(1500, max(1, len(waveform)))
    low, high = np.zeros(columns), np.zeros(columns)
    for number, part in enumerate(np.array_split(waveform, columns)):
        if len(part):
            low[number], high[number] = part.min(), part.max()
    peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-4)
    times = (np.arange(columns) + 0.5) * seconds / columns
    axis.fill_between(times, low / peak, high / peak, color=COLOURS["wave"], linewidth=0.4, edgecolor=COLOURS["wave"])


def _class_name(row: Row) -> str:
    """Return the name of a row's only class, shortened if it is very long."""
    name = str(row[2][0]["label"]) if row[2] else ""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"


def _place_texts(
    intervals: Sequence[dict[str, Any]], seconds: float, letter: float, names: bool = True
) -> list[tuple[float, str, dict[str, Any]] | None]:
    """
    Place the text of each bar of a row: inside, else beside it, else inside in small lines; None if it does not fit.

    Args:
        seconds: The end of the row.
        letter: Width of a letter of 12 points, in seconds.
        names: Whether a text is name and score, or the score alone.
    """
    placed: list[tuple[float, str, dict[str, Any]] | None] = []
    taken = 0.0  # end of the bars and texts so far
    for number, item in enumerate(intervals):
        start, end = item["start"], item["end"]
        lines = [str(item["label"])] if names else []
        lines += [] if item.get("score") is None else [f"{item['score']:.2f}"]
        text = "  ".join(lines)
        free_after = (intervals[number + 1]["start"] if number + 1 < len(intervals) else seconds) - end
        needed = letter * (len(text) + 1)
        reach = end
        style: dict[str, Any] | None = None
        if needed <= end - start:
            place, style = (start + end) / 2, {"ha": "center", "color": "white", "fontweight": "bold"}
        elif free_after >= needed:
            place, style = end + letter / 2, {"ha": "left", "color": COLOURS["text"]}
            reach = end + needed
        elif start - taken >= needed:
            place, style = start - letter / 2, {"ha": "right", "color": COLOURS["text"]}
        elif 0.75 * letter * (max(map(len, lines), default=0) + 1) <= end - start:
            place, style = (start + end) / 2, {"ha": "center", "color": "white", "fontsize": 9}
            text = "\n".join(lines)
        placed.append(None if style is None else (place, text, style))
        taken = max(taken, reach)
    return placed


def _draw_intervals(axis: Axes, rows: list[Row], seconds: float, width: float, by_class: bool, if_empty: str) -> None:
    """
    Draw bars with their labels.

    Args:
        seconds, width: Length of the rows, in seconds and in inches.
        by_class: Whether each row has a single class, whose name is written beside it.
        if_empty: What a row without bars says.
    """
    make_bare(axis, keep=("bottom",))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    names = [name for _, name, _ in rows]
    if by_class:
        labels = [_class_name(row) for row in rows]
        track = -(0.25 + _MEAN_LETTER * max(map(len, labels))) / width
        for number, name in enumerate(names):
            place = axis.get_yaxis_transform()
            axis.text(
                track, number, name, transform=place, ha="right", va="center", fontsize=13, color=COLOURS["text"]
            )
        names = labels
    axis.set_yticks(range(len(rows)), names, fontsize=12 if by_class else 13)
    axis.tick_params(axis="y", length=0, pad=8)
    axis.grid(axis="x", color=COLOURS["grid"], linewidth=0.8)
    axis.set_axisbelow(True)
    for row, (kind, name, _) in enumerate(rows[1:], start=1):
        if (kind in TRACKS or by_class) and name:  # where the next track begins
            axis.axhline(row - 0.5, color=COLOURS["grid"], linewidth=0.8)
    letter = _LETTER / width * seconds
    for row, (kind, _, intervals) in enumerate(rows):
        if not intervals:
            _say_nothing(axis, row, if_empty)
        texts = _place_texts(intervals, seconds, letter, names=not by_class)
        for item, text in zip(intervals, texts, strict=True):
            length = item["end"] - item["start"]
            # The edge would cover a bar of a few pixels.
            edge = 1.0 if length > letter else 0.0
            bar: dict[str, Any] = {"height": 0.74, "color": COLOURS[kind], "edgecolor": "white", "linewidth": edge}
            axis.barh(row, length, left=item["start"], **bar)
            if text is not None and text[1]:
                _write(axis, text[0], row, text[1], **text[2])


def _say_nothing(axis: Axes, y: float, text: str) -> None:
    """Write that a row is empty."""
    place: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "ha": "left", "va": "center"}
    axis.text(0.008, y, text, fontsize=12, style="italic", color="#666666", **place)


def _write(axis: Axes, x: float, y: float, text: str, fontsize: int = 12, **style: Any) -> None:
    axis.text(x, y, text, va="center", fontsize=fontsize, linespacing=1.1, **style)


def _draw_agreement(
    axis: Axes, agreement: Sequence[Any], misaligned: Sequence[dict[str, float]] | None, segment_seconds: float
) -> None:
    """Draw probabilities from 0 to 1 over the misaligned intervals, or, without these, cosines from -1 to 1."""
    make_bare(axis, keep=("bottom", "right"))
    set_label(axis, "Agreement")
    axis.grid(color=COLOURS["grid"], linewidth=0.8)
    low, middle = (-1, 0) if misaligned is None else (0, 0.5)
    axis.axhline(middle, color="#888888", linewidth=1)
    for number, interval in enumerate(misaligned or ()):
        axis.axvspan(
            interval["start"],
            interval["end"],
            color=COLOURS["misaligned"],
            alpha=0.35,
            linewidth=0,
            label=None if number else "misaligned",
        )
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
            markevery=math.ceil(len(stage) / _MAX_MARKERS),
            linewidth=2.4 if last else 1.3,
            label=f"stage {number}" if len(stages) > 1 else None,
            clip_on=False,
        )
    if len(stages) > 1 or misaligned:
        axis.legend(fontsize=10, ncols=len(stages) + 1, frameon=False, loc="lower right")
    margin = 0.025 * (1 - low)
    axis.set_ylim(low - margin, 1 + margin)
    axis.set_yticks([low, middle, 1])
    axis.yaxis.tick_right()
