"""Which seconds of a clip its segments cover, and at which instants they show their frames."""

import math
from typing import Literal

import numpy as np

from ..errors import CaeAvError


FrameSampling = Literal["consecutive", "spread", "spread_to_ends"]
"""
Whether segments follow each other from the clip's beginning, or lie around the middles of equal parts of it. With
`"spread_to_ends"` only their frames do; their sound begins at equal distances, see [`spaced_starts`].
"""
FRAME_SAMPLINGS: tuple[FrameSampling, ...] = ("consecutive", "spread", "spread_to_ends")

# Share of a segment that must follow the last whole segment to count as one more: encoders round durations up to whole
# frames (10.02 s), and a tenth of a second shows and sounds like nothing.
SEGMENT_REST = 0.1
# Seconds between the end of the last of windows that are spaced over a clip and its own end, in STG-CMA's code.
_SPACED_REST = 0.1
# Timestamps come in ticks of the stream's time base; two that mean the same instant may differ by rounding.
TIME_EPSILON = 1e-6


def count_segments(duration: float, segment_seconds: float = 1.0, num_segments: int | None = None) -> int:
    """
    Return the number of real segments in `duration` seconds: one for every started `segment_seconds`, at least 1 and
    at most `num_segments`. A rest below a tenth of a segment is rounding, not a segment: 10.02 s are ten segments of
    one second, 9.95 s too, 10.3 s are eleven and 0.3 s are one.
    """
    # The epsilon keeps 1.1 s, which is 1.1000000000000001, at one segment.
    count = max(1, math.ceil(duration / segment_seconds - SEGMENT_REST - TIME_EPSILON))
    return count if num_segments is None else min(count, num_segments)


def sample_times(
    duration: float, num_segments: int | None, segment_seconds: float, frame_sampling: FrameSampling
) -> list[float]:
    """
    Return the seconds at which the segments of a clip show their frame, as in [`~media.clip.load_clip`].

    Args:
        duration: Seconds of the clip.
        num_segments: Maximum number of segments, or, if they are spread, their exact number. None for all.
    """
    count = count_segments(duration, segment_seconds, None if is_spread(frame_sampling) else num_segments)
    if is_spread(frame_sampling):
        return middles_of_parts(count if num_segments is None else num_segments, duration)
    # A middle beyond the end, possible for a short rest, moves to just before the end.
    return [min((t + 0.5) * segment_seconds, duration - 2 * TIME_EPSILON) for t in range(count)]


def is_spread(frame_sampling: FrameSampling) -> bool:
    """Return whether segments lie evenly over the whole clip."""
    return frame_sampling != "consecutive"


def spaced_starts(count: int, samples: int, window_seconds: float, sampling_rate: int) -> list[int]:
    """
    Return the first samples of `count` windows of `window_seconds` over a sound of `samples`, at equal distances: the
    first at its beginning, the last so that it ends a tenth of a second before the sound does. In a shorter sound all
    are 0.
    """
    last = max(0.0, samples - sampling_rate * (window_seconds + _SPACED_REST))
    return np.linspace(0, last, count).astype(int).tolist()


def middles_of_parts(count: int, seconds: float) -> list[float]:
    """Return the seconds at the middles of `count` equal parts of `seconds`."""
    return [(part + 0.5) * seconds / count for part in range(count)]


def check_range(start: float, end: float | None, sampling_rate: int) -> None:
    """Raise a [`~errors.CaeAvError`] unless 0 <= `start` < `end` and `sampling_rate` is positive."""
    if sampling_rate < 1:
        raise CaeAvError(f"`sampling_rate` must be positive, got {sampling_rate}")
    if not 0 <= start < math.inf:
        raise CaeAvError(f"`start` must be a time of 0 s or later, got {start}")
    if end is not None and not end > start:
        raise CaeAvError(f"`end` must be later than `start`, got {start} to {end}")
