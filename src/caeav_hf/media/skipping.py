"""
Which packets of a video need not be decoded in full, because no frame that is wanted depends on them.

The frame on show at an instant is the one with the latest timestamp that is not later. Timestamps of frames are those
of their packets, and packets are stored at most a few places away from the order of their timestamps: looking a few
packets ahead tells which frames are wanted before any of them is decoded. Of the others, the decoder leaves out those
that no frame refers to, about half of what an H.264 encoder with its usual settings writes; what is decoded is not
changed by that. At the first sign of damage everything is decoded instead.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from .containers import in_seconds


# Packets looked ahead; H.264 moves a frame by 16 places at most. Looking less far only leaves out less.
_LOOKAHEAD = 16
# Two instants that are closer are the same one, rounded differently ...
_SAME = 1e-6
# ... and a frame that is this close to being on show is decoded, to be on the safe side.
_EPSILON = 1e-5
# Decoders whose word on what is not referred to can be relied on.
_CODECS = ("h264",)


class UnevenTimestampsError(Exception):
    """The frames were not those that the timestamps of the packets announced."""


class FrameSkipper:
    """
    Hands on the packets of a container and tells the decoder of its video stream, before each packet, whether its
    frame may be left out.

    Args:
        stream: The video stream.
        targets: Instants in seconds, ascending, whose frames are wanted. All frames after the last are decoded, since
            it takes one to know that the last wanted one is complete.
    """

    def __init__(self, stream: Any, targets: list[float]) -> None:
        self.stream = stream
        self.targets = targets
        self._times: list[float] = []

    @staticmethod
    def suits(stream: Any) -> bool:
        """Whether the stream's decoder can leave out frames."""
        return stream.codec_context.name in _CODECS

    def packets(self, packets: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """
        The packets, in their order, of which some are held back until those ahead are known.

        Raises:
            UnevenTimestampsError: A packet has no timestamp, or one twice, or is damaged.
        """
        held: deque[tuple[Any, Any, float | None]] = deque()
        ahead = 0
        for stream, packet in packets:
            time = None
            if stream.index == self.stream.index and packet is not None and packet.size:
                time = None if packet.is_corrupt else in_seconds(packet.pts, packet.time_base)
                self._add(time)
                ahead += 1
            held.append((stream, packet, time))
            while ahead > _LOOKAHEAD:
                ahead -= held[0][2] is not None
                yield self._released(held)
        while held:
            yield self._released(held)

    def check_decoded(self, frames: list[Any] | None) -> None:
        """
        Raises:
            UnevenTimestampsError: A packet gave no `frames` (None) since it is damaged, or some are damaged: what
                decoders make of these may depend on all frames before.
        """
        if frames is None or any(frame.is_corrupt for frame in frames):
            raise UnevenTimestampsError

    def check(self, first_time: float | None, times: Iterable[float]) -> None:
        """
        Raises:
            UnevenTimestampsError: `first_time`, of the first frame, or `times`, of those taken for the first targets,
                are others than those of the packets: something could not be decoded.
        """
        if not self._times or first_time is None or abs(first_time - self._times[0]) > _SAME:
            raise UnevenTimestampsError
        for target, time in zip(self.targets, times, strict=False):
            shown = bisect_right(self._times, target + _SAME) - 1
            if abs(self._times[max(shown, 0)] - time) > _SAME:
                raise UnevenTimestampsError

    def _add(self, time: float | None) -> None:
        if time is None:
            raise UnevenTimestampsError
        place = bisect_left(self._times, time)
        if place < len(self._times) and self._times[place] == time:
            raise UnevenTimestampsError
        self._times.insert(place, time)

    def _released(self, held: deque[tuple[Any, Any, float | None]]) -> tuple[Any, Any]:
        stream, packet, time = held.popleft()
        if time is not None:
            self.stream.codec_context.skip_frame = "DEFAULT" if self._is_wanted(time) else "NONREF"
        return stream, packet

    def _is_wanted(self, time: float) -> bool:
        """Whether the frame of a packet is on show at a target, as far as the packets so far tell, or may be."""
        place = bisect_right(self._times, time)
        until = self._times[place] if place < len(self._times) else math.inf
        if place == 1 or time >= self.targets[-1] - _EPSILON:
            return True
        following = bisect_left(self.targets, time - _EPSILON)
        return self.targets[following] < until + _EPSILON
