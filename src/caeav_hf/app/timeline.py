"""Draw what a model found in a clip as HTML: lanes over time, whose moments are buttons that seek the video."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image


# Most pictures of a strip, and their height in pixels.
_MAX_PICTURES, _PICTURE_HEIGHT = 10, 96
# Columns of the drawn sound, and the size of its drawing, which is stretched to the lane.
_COLUMNS, _HEIGHT = 300, 40
# Steps between the marks of the time axis, in seconds.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
_MOST_MARKS = 10


@dataclass(frozen=True)
class Moment:
    """
    A part of a lane that seeks the video.

    Args:
        start, end: Seconds.
        label: What it is, for the tooltip and for screen readers.
        text: What is written into it.
        seek: Second to which the video is set; by default `start`.
        level: Share of the lane's height that it fills.
    """

    start: float
    end: float
    label: str
    text: str = ""
    seek: float | None = None
    level: float = 1.0


@dataclass(frozen=True)
class Lane:
    """
    A row of the timeline.

    Args:
        name: Name beside it.
        kind: Its colour, see `page.css`.
        moments: What is found, in order.
        group: Heading of several lanes, such as a track with one lane per class; the first one shows it.
        empty: What is written into a lane without moments.
    """

    name: str
    kind: str
    moments: tuple[Moment, ...]
    group: str = ""
    empty: str = ""


def lanes_of(
    intervals: Iterable[dict[str, Any]], kind: str, *, group: str = "", empty: str = "no event"
) -> list[Lane]:
    """
    Return one lane per label, ordered by when it is first found, or one empty lane.

    Args:
        intervals: `label`, `start` and `end` in seconds, and `score` of each.
        kind, group, empty: Of the lanes.
    """
    ordered = sorted(intervals, key=lambda item: item["start"])
    lanes = [
        Lane(label, kind, tuple(_moment(item) for item in ordered if item["label"] == label), group)
        for label in dict.fromkeys(item["label"] for item in ordered)
    ]
    return lanes or [Lane(group or "Events", kind, (), group and "", empty)]


def _moment(item: dict[str, Any]) -> Moment:
    score = item.get("score")
    named = f"{item['label']}, {span(item)}" + ("" if score is None else f", score {score:.2f}")
    return Moment(item["start"], item["end"], named, "" if score is None else f"{score:.2f}")


def span(item: dict[str, Any]) -> str:
    """Return the time of an interval in words."""
    return f"{item['start']:g} to {item['end']:g} s"


def draw_timeline(
    lanes: Sequence[Lane],
    seconds: float,
    *,
    video: str,
    name: str,
    pictures: Sequence[tuple[float, np.ndarray]] = (),
    sound: np.ndarray | None = None,
    curve: Sequence[float] | None = None,
    curve_range: tuple[float, float] = (0.0, 1.0),
) -> str:
    """
    Return the timeline of a clip.

    Args:
        lanes: What is found.
        seconds: Length of the clip.
        video: Id of the element whose video is sought.
        name: Name of the clip.
        pictures: Seconds and frame (H, W, 3) uint8 of each segment; at most ten of them are shown.
        sound: (samples,) float32, the sound over the whole clip.
        curve: How much sound and picture agree in each of the equally long segments.
        curve_range: Its least and greatest possible value.
    """
    rows = [_picture_row(pictures, seconds)] if len(pictures) else []
    if sound is not None:
        rows.append(_row("Sound", _sound_drawing(sound), "caeav-sound"))
    group = ""
    for lane in lanes:
        heading = f"<small>{escape(lane.group)}</small> " if lane.group and lane.group != group else ""
        group = lane.group
        content = "".join(_moment_button(moment, lane.kind, seconds) for moment in lane.moments)
        rows.append(
            _row(heading + escape(lane.name), content or f'<span class="caeav-empty">{escape(lane.empty)}</span>')
        )
    if curve is not None and len(curve):
        rows.append(_row("Agreement", _curve_drawing(curve, *curve_range), "caeav-curve"))
    rows.append(_row("Seconds", _axis(seconds), "caeav-axis"))
    return (
        f'<section class="caeav-timeline" data-video="{escape(video)}" data-seconds="{seconds:.3f}" '
        f'aria-label="Timeline of {escape(name)}">{"".join(rows)}<div class="caeav-playhead" aria-hidden="true"></div>'
        "</section>"
    )


def _row(name: str, content: str, kind: str = "") -> str:
    lane = f'<div class="caeav-lane {kind}">{content}</div>'
    return f'<div class="caeav-row"><div class="caeav-name">{name}</div>{lane}</div>'


def _place(start: float, end: float, seconds: float) -> str:
    left, right = (100 * min(max(time / seconds, 0.0), 1.0) for time in (start, end))
    return f"left:{left:.3f}%;width:{right - left:.3f}%"


def _moment_button(moment: Moment, kind: str, seconds: float) -> str:
    seek = moment.start if moment.seek is None else moment.seek
    label = escape(moment.label)
    height = "" if moment.level >= 1 else f";height:{max(4.0, 100 * moment.level):.1f}%"
    return (
        f'<button type="button" class="caeav-moment caeav-{kind}" data-time="{seek:.3f}" title="{label}" '
        f'aria-label="{label}: show" style="{_place(moment.start, moment.end, seconds)}{height}">'
        f"<span>{escape(moment.text)}</span></button>"
    )


def _picture_row(pictures: Sequence[tuple[float, np.ndarray]], seconds: float) -> str:
    count = min(len(pictures), _MAX_PICTURES)
    chosen = [pictures[(2 * number + 1) * len(pictures) // (2 * count)] for number in range(count)]
    buttons = [
        f'<button type="button" class="caeav-frame" data-time="{time:.3f}" aria-label="Frame at {time:.1f} s: show" '
        f'style="{_place(number * seconds / count, (number + 1) * seconds / count, seconds)}">'
        f'<img src="{_data_address(frame)}" alt=""></button>'
        for number, (time, frame) in enumerate(chosen)
    ]
    return _row("Frames", "".join(buttons), "caeav-frames")


def _data_address(frame: np.ndarray) -> str:
    """Return a frame as a small JPEG in an address of its own."""
    image = Image.fromarray(frame)
    width = max(1, round(image.width * _PICTURE_HEIGHT / image.height))
    file = io.BytesIO()
    image.resize((width, _PICTURE_HEIGHT), Image.Resampling.BILINEAR).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sound_drawing(sound: np.ndarray) -> str:
    """Draw the highest and lowest sample of each column."""
    peak = float(np.abs(sound).max(initial=0.0))
    if peak < 1e-4:
        return '<span class="caeav-empty">silence</span>'
    parts = [part for part in np.array_split(sound / peak, _COLUMNS) if len(part)]
    middle = _HEIGHT / 2
    tops = [f"{x},{middle - middle * part.max():.1f}" for x, part in enumerate(parts)]
    bottoms = [f"{x},{middle - middle * part.min():.1f}" for x, part in enumerate(parts)]
    points = " ".join([*tops, *reversed(bottoms)])
    return _svg(len(parts) - 1, f'<polygon points="{points}"/>', "The loudness of the sound")


def _curve_drawing(curve: Sequence[float], low: float, high: float) -> str:
    heights = [_HEIGHT * (1 - (min(max(value, low), high) - low) / (high - low)) for value in curve]
    points = " ".join(f"{2 * x + 1},{y:.1f}" for x, y in enumerate(heights))
    # A segment's value holds from its beginning to its end.
    line = f"0,{heights[0]:.1f} {points} {2 * len(heights)},{heights[-1]:.1f}"
    values = ", ".join(f"{value:.2f}" for value in curve)
    return _svg(2 * len(heights), f'<polyline points="{line}"/>', f"Agreement of sound and picture: {values}")


def _svg(width: float, content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {max(width, 1)} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )


def _axis(seconds: float) -> str:
    step = next((step for step in _STEPS if seconds / step <= _MOST_MARKS), _STEPS[-1])
    marks = np.arange(0, seconds + 1e-6, step).tolist()
    return "".join(f'<span style="left:{100 * mark / seconds:.3f}%">{mark:g}</span>' for mark in marks)
