"""
Skip the frames of a video that neither are wanted nor are needed to decode wanted ones.

The frame on show at an instant is the one with the latest timestamp that is not later. Timestamps of frames are those
of their packets, and packets are stored at most a few places away from the order of their timestamps: looking a few
packets ahead tells which frames are wanted before any of them is decoded. Of the others, the decoder skips those that
no frame refers to, about half of what an H.264 encoder writes with its usual settings; the decoded frames stay the
same bit for bit. At the first sign of damage everything is decoded instead.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from .containers import in_seconds


# Packets to look ahead; H.264 moves a frame by 16 places at most. A shorter look-ahead only skips fewer frames.
_LOOKAHEAD = 16
# A packet that is further away from the order of its timestamps shows damage.
_MOST_MOVED = 4 * _LOOKAHEAD
# Instants that are closer (seconds) are the same one, rounded differently ...
_SAME = 1e-6
# ... and to be safe, a frame this close to being displayed is decoded.
_EPSILON = 1e-5
# Decoders that reliably know which frames no other refers to.
_CODECS = ("h264",)


class UnevenTimestampsError(Exception):
    """The decoded frames are not those that the timestamps of the packets announced."""


class FrameSkipper:
    """
    Passes on the packets of a container and sets the decoder of its video stream, before each packet, to decode or
    skip its frame.

    Args:
        stream: The video stream.
        targets: Instants in seconds, ascending, whose frames are wanted. All frames after the last target are
            decoded, since only the next frame shows that the last wanted one is complete.
    """

    def __init__(self, stream: Any, targets: list[float]) -> None:
        self.stream = stream
        self.targets = targets
        self._times: list[float] = []

    @staticmethod
    def suits(stream: Any) -> bool:
        """Return whether the stream's decoder can skip frames."""
        return stream.codec_context.name in _CODECS

    def packets(self, packets: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """
        Yield the packets in their order, each once the timestamps of the next ones are known.

        Raises:
            UnevenTimestampsError: A packet has no timestamp, or one twice or far out of order, or is damaged.
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
        Check the frames of a packet for damage.

        Raises:
            UnevenTimestampsError: The packet could not be decoded (`frames` is None) or some frames are damaged: how
                decoders conceal damage may depend on all frames before.
        """
        if frames is None or any(frame.is_corrupt for frame in frames):
            raise UnevenTimestampsError

    def check(self, first_time: float | None, times: Iterable[float]) -> None:
        """
        Check the times of the decoded frames against those of the packets.

        Args:
            first_time: Time of the first decoded frame, or None.
            times: Times of the frames taken for the first targets.

        Raises:
            UnevenTimestampsError: They differ from those of the packets: something could not be decoded.
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
        is_twice = place < len(self._times) and self._times[place] == time
        if is_twice or len(self._times) - place > _MOST_MOVED:
            raise UnevenTimestampsError
        self._times.insert(place, time)

    def _released(self, held: deque[tuple[Any, Any, float | None]]) -> tuple[Any, Any]:
        stream, packet, time = held.popleft()
        if time is not None:
            self.stream.codec_context.skip_frame = "DEFAULT" if self._is_wanted(time) else "NONREF"
        return stream, packet

    def _is_wanted(self, time: float) -> bool:
        """Return whether the frame of a packet is, or may be, on show at a target, by the packets known so far."""
        place = bisect_right(self._times, time)
        until = self._times[place] if place < len(self._times) else math.inf
        if place == 1 or time >= self.targets[-1] - _EPSILON:
            return True
        following = bisect_left(self.targets, time - _EPSILON)
        return self.targets[following] < until + _EPSILON
