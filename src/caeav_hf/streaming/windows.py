"""
Overlapping windows on an absolute grid, and the mean of their scores.

Windows of `size` segments begin at multiples of `stride` segments after the source's time zero, wherever reading
starts. A segment's score is the mean over all windows that contain it, weighted by a triangle over the segment's place
in the window: 1 for the first and the last, most in the middle, where a model sees as much before as after. Which
windows contain a segment, and with which weights, depends on the grid alone. So a stream that starts later has the
same scores from `size - 1` segments after its start on; only there are windows cut at the start. Two recordings of
one scene that begin a multiple of `stride` segments apart have the same windows; with a stride of 1, any whole number.

Only the first and the last window of a run of segments may be shorter than `size`, by less than `stride` (or if the
whole run is). A run of `size` segments that begins on the grid is one window, whose scores are those of a clip.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CaeAvError
from ..media.segment_stream import Segment


@dataclass(frozen=True, eq=False)
class Window:
    """
    Segments that the model processes together.

    Attributes:
        start: Place on the grid at which the window begins.
        segments: The segments, consecutive; the first is later than `start` if the source begins inside the window.
    """

    start: int
    segments: list[Segment]

    @property
    def first(self) -> int:
        """Index of the first segment."""
        return self.segments[0].index


class WindowCutter:
    """
    Cuts runs of consecutive segments into windows. It holds the segments of one window.

    Args:
        size: Segments of a window.
        stride: Segments from the beginning of a window to that of the next one.

    Raises:
        CaeAvError: `stride` is not between 1 and `size`.
    """

    def __init__(self, size: int, stride: int) -> None:
        if not 1 <= stride <= size:
            raise CaeAvError(f"`stride` must be from 1 to the {size} segments of a window, got {stride}")
        self.size, self.stride = size, stride
        # Index after the last segment of the run; `None` between runs.
        self.end: int | None = None
        self._held: deque[Segment] = deque()
        self._start = 0
        self._covered = 0

    def push(self, segment: Segment) -> Window | None:
        """Add the next segment of the run; return the window that it completes, if any."""
        if self.end is None:
            self._start = segment.index // self.stride * self.stride
            self._covered = segment.index
        self._held.append(segment)
        self.end = segment.index + 1
        return self._cut() if segment.index == self._start + self.size - 1 else None

    def close(self) -> Window | None:
        """End the run; return the window of its last segments, if these are not in a window yet."""
        window = self._cut() if self.end is not None and self.end > self._covered else None
        self._held.clear()
        self.end = None
        return window

    def _cut(self) -> Window:
        window = Window(self._start, list(self._held))
        self._covered = self._held[-1].index + 1
        self._start += self.stride
        while self._held and self._held[0].index < self._start:
            self._held.popleft()
        return window


class ScoreJoiner:
    """Collects the scores of windows and returns their means for segments that no later window contains."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._sums: dict[int, dict[str, np.ndarray]] = {}
        self._weights: dict[int, float] = {}
        self._chosen: dict[int, tuple[float, dict[str, Any]]] = {}

    def add(self, start: int, first: int, scores: dict[str, Any]) -> None:
        """
        Add a window.

        Args:
            start: Its place on the grid.
            first: Index of its first segment.
            scores: Arrays (T, ...), which are averaged, and lists of T items, where the item with the most weight
                wins, and the earlier window's if two have the same.
        """
        arrays = {name: values for name, values in scores.items() if not isinstance(values, list)}
        lists = {name: values for name, values in scores.items() if isinstance(values, list)}
        for number in range(len(next(iter(scores.values())))):
            index = first + number
            place = index - start
            weight = float(min(place + 1, self.size - place))
            sums = self._sums.setdefault(index, {})
            for name, values in arrays.items():
                # In double precision, so that the mean over one window is exactly its score.
                weighted = weight * np.asarray(values[number], dtype=np.float64)
                sums[name] = sums[name] + weighted if name in sums else weighted
            self._weights[index] = self._weights.get(index, 0.0) + weight
            if index not in self._chosen or weight > self._chosen[index][0]:
                self._chosen[index] = (weight, {name: values[number] for name, values in lists.items()})

    def take(self, until: int) -> tuple[int, dict[str, Any]] | None:
        """Return the first index and the joined scores of all segments before an index; `None` without any."""
        ready = sorted(index for index in self._weights if index < until)
        if not ready:
            return None
        segments = [(self._sums.pop(index), self._weights.pop(index), self._chosen.pop(index)[1]) for index in ready]
        sums, _, chosen = segments[0]
        joined: dict[str, Any] = {
            name: np.stack([part[name] / weight for part, weight, _ in segments]) for name in sums
        }
        return ready[0], {**joined, **{name: [items[name] for *_, items in segments] for name in chosen}}
