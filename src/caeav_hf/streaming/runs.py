"""Runs of segments as intervals that cross windows, and the updates of a stream as one result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CaeAvError
from ..pipelines.segments import Found


@dataclass
class _Run:
    first: int
    last: int
    total: float = 0.0


class Runs:
    """
    Joins consecutive segments in which the same was found to intervals.

    Args:
        segment_seconds: Seconds of a segment.
    """

    def __init__(self, segment_seconds: float) -> None:
        self.segment_seconds = segment_seconds
        self._open: dict[Found, _Run] = {}

    def add(self, index: int, found: Mapping[Found, float | None]) -> list[tuple[str, dict[str, Any]]]:
        """Add what was found in the next segment; return the intervals that ended before it, by their list's name."""
        ended = [key for key, run in self._open.items() if key not in found or run.last + 1 < index]
        items = [self._item(key, self._open.pop(key)) for key in ended]
        for key, score in found.items():
            run = self._open.setdefault(key, _Run(index, index))
            run.last = index
            run.total += 0.0 if score is None else score
        return items

    def close(self) -> list[tuple[str, dict[str, Any]]]:
        """End all intervals and return them."""
        items = self.ongoing()
        self._open.clear()
        return items

    def ongoing(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the intervals that have not ended, as they are so far."""
        return [self._item(key, run) for key, run in self._open.items()]

    def _item(self, key: Found, run: _Run) -> tuple[str, dict[str, Any]]:
        item: dict[str, Any] = dict(key.entries)
        item |= {"start": run.first * self.segment_seconds, "end": (run.last + 1) * self.segment_seconds}
        if key.score_name is not None:
            item[key.score_name] = run.total / (run.last + 1 - run.first)
        return key.name, item


def by_list(items: list[tuple[str, dict[str, Any]]], names: Any) -> dict[str, list[dict[str, Any]]]:
    """Return intervals by the name of their list, in order."""
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, item in items:
        lists.setdefault(name, []).append(item)
    return {name: sorted(found, key=_order) for name, found in lists.items()}


def _order(item: Mapping[str, Any]) -> tuple[float, int]:
    """Sort intervals by their start, those of one start by their class."""
    return item["start"], item.get("label_id", 0)


@dataclass(frozen=True, eq=False)
class StreamUpdate:
    """
    What a stream has found since its last update.

    Attributes:
        file: Name of the source.
        start, end: The part whose results are final now, in seconds after time zero; both the beginning of the gap if
            there is nothing but a gap.
        num_segments: Number of segments in this part.
        has_audio: Whether the source has sound.
        values: Results with one item per segment of this part, as in the pipeline's result for a clip: labels, scores,
            agreement, masks and probabilities (num_segments, H, W) with their `timestamps`.
        ended: Intervals that have ended, by the name of their list in the pipeline's result, such as `"intervals"` or
            `"audible"`; an interval is in one update only.
        ongoing: Those that have not ended, as they are so far, in the same form.
        gaps: Gaps that were noticed: dicts of `start`, `end` and `reason`. One that lasts has the end `None`; once it
            is over, it comes again with its end, which is its start if nothing is missing after all.
    """

    file: str
    start: float
    end: float
    num_segments: int
    has_audio: bool
    values: dict[str, Any]
    ended: dict[str, list[dict[str, Any]]]
    ongoing: dict[str, list[dict[str, Any]]]
    gaps: list[dict[str, Any]]


class JoinedResult:
    """
    Joins the updates of a stream to one result, in the form of the pipeline's result for a clip, with `gaps`.

    Lists with one item per segment hold `None` for the segments of a gap, unless there are `timestamps` beside them,
    which tell the times. Arrays, such as masks, are left out: those of a long video do not fit into memory.

    Args:
        segment_seconds: Seconds of a segment.
    """

    def __init__(self, segment_seconds: float) -> None:
        self.segment_seconds = segment_seconds
        self._last: StreamUpdate | None = None
        self._start: float | None = None
        self._end = self._duration = 0.0
        self._num_segments = 0
        self._values: dict[str, Any] = {}
        self._intervals: dict[str, list[dict[str, Any]]] = {}
        self._gaps: dict[float, dict[str, Any]] = {}

    def add(self, update: StreamUpdate) -> None:
        """Add the next update."""
        self._last = update
        for gap in update.gaps:
            self._gaps[gap["start"]] = gap
            if gap["end"] == gap["start"]:
                del self._gaps[gap["start"]]  # what was late has come
                continue
            self._duration = max(self._duration, gap["end"] or gap["start"])
        for name, items in update.ended.items():
            self._intervals.setdefault(name, []).extend(items)
        if not update.num_segments:
            return
        missing = 0
        if self._start is None:
            self._start = update.start
        else:
            missing = round((update.start - self._end) / self.segment_seconds)
        self._end, self._duration = update.end, max(self._duration, update.end)
        self._num_segments += update.num_segments
        for name, value in update.values.items():
            if isinstance(value, list):
                filler = [] if "timestamps" in update.values else [None] * missing
                self._values.setdefault(name, []).extend([*filler, *value])
            elif value is None:
                self._values[name] = None

    @property
    def has_started(self) -> bool:
        """Whether there was an update."""
        return self._last is not None

    def result(self) -> dict[str, Any]:
        """
        Return the result so far, in which intervals that have not ended end with the last segment.

        Raises:
            CaeAvError: There was no update.
        """
        if self._last is None:
            raise CaeAvError("there is no result yet; expected at least one update of the stream")
        found: dict[str, list[dict[str, Any]]] = {name: list(items) for name, items in self._intervals.items()}
        for name, items in self._last.ongoing.items():
            found[name] = [*found.get(name, []), *items]
        start = 0.0 if self._start is None else self._start
        return {
            "file": self._last.file,
            "duration": self._duration,
            "has_audio": self._last.has_audio,
            "analyzed": {"start": start, "end": max(start, self._end), "segments": self._num_segments},
            **{name: sorted(items, key=_order) for name, items in found.items()},
            **{name: list(value) if isinstance(value, list) else value for name, value in self._values.items()},
            "gaps": [self._gaps[begin] for begin in sorted(self._gaps)],
        }
