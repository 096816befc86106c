"""
Skip the frames of a video that neither are wanted nor are needed to decode wanted ones.

The frame on show at an instant is the one with the latest timestamp that is not later. Timestamps of frames are those
of their packets, and packets are stored at most a few places away from the order of their timestamps: looking a few
packets ahead tells which frames are wanted before any of them is decoded. Of the others, the decoder does not get
those that no frame refers to, about half of what an H.264 encoder writes with its usual settings. Nothing refers
across an IDR picture, so neither does it get the packets before it, back to the last wanted frame. The decoded frames
stay the same bit for bit. At the first sign of damage everything is decoded instead.

The decoder could leave out such frames by itself (`skip_frame`), but each would occupy one of its threads until the
threads of the frames before are done.
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
# Packets, and their bytes, that wait for the next IDR picture at most; more are decoded without knowing it.
_MOST_WAITING, _MOST_WAITING_BYTES = 4000, 32e6
# Types of H.264's NAL units: those of a picture's slices, and of them that of an IDR picture.
_SLICES, _IDR_SLICE = range(1, 6), 5
# Bits of a NAL unit's first byte: those of its type, and those that are set in what other pictures may refer to.
_TYPE_BITS, _REFERENCE_BITS = 0b00011111, 0b01100000
# What a NAL unit begins with, where its length is not given.
_START_CODE = b"\0\0\1"
# Codecs whose packets say which frames no other refers to.
_CODECS = ("h264",)


class UnevenTimestampsError(Exception):
    """The decoded frames are not those that the timestamps of the packets announced."""


class FrameSkipper:
    """
    Passes on the packets of a container, of its video stream only those that must be decoded.

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
        Yield the packets in their order, without those that need not be decoded.

        Raises:
            UnevenTimestampsError: A packet has no timestamp, or one twice or far out of order, or is damaged.
        """
        # Packets without a wanted frame since the last one with it or the last IDR picture.
        waiting: list[tuple[Any, Any, float | None]] = []
        num_bytes = 0
        for stream, packet, time in self._with_lookahead(packets):
            is_wanted = time is not None and self._is_wanted(time)
            if time is not None and self._is_idr(packet):
                yield from ((other, held) for other, held, of_frame in waiting if of_frame is None)
                waiting, num_bytes = [], 0
            waiting.append((stream, packet, time))
            num_bytes += 0 if packet is None else packet.size
            if is_wanted or len(waiting) > _MOST_WAITING or num_bytes > _MOST_WAITING_BYTES:
                yield from self._released(waiting, is_wanted)
                waiting, num_bytes = [], 0
        yield from self._released(waiting, False)

    def _with_lookahead(self, packets: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, float | None]]:
        """Yield the packets and their times in their order, each once the times of the next ones are known."""
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
                yield held.popleft()
        yield from held

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

    def _released(
        self, packets: list[tuple[Any, Any, float | None]], last_is_wanted: bool
    ) -> Iterator[tuple[Any, Any]]:
        """Yield packets that hold no wanted frame, except perhaps the last one."""
        for number, (stream, packet, time) in enumerate(packets, 1):
            is_wanted = last_is_wanted and number == len(packets)
            if time is None or is_wanted or self._is_reference(packet):
                yield stream, packet

    def _is_idr(self, packet: Any) -> bool:
        """Return whether a packet holds an IDR picture, which and after which no frame refers to an earlier one."""
        if not packet.is_keyframe:
            return False
        types = (unit & _TYPE_BITS for unit in self._units(packet) or ())
        return next(filter(_SLICES.__contains__, types), None) == _IDR_SLICE

    def _is_reference(self, packet: Any) -> bool:
        """Return whether other frames may refer to that of a packet, or its units cannot be told apart."""
        units = self._units(packet)
        return not units or any(unit & _REFERENCE_BITS for unit in units)

    def _units(self, packet: Any) -> list[int] | None:
        """Return the first bytes of a packet's NAL units, or None if their lengths are not those of the packet."""
        data, header, units = bytes(packet), self.stream.codec_context.extradata or b"", []
        if len(header) > 4 and header[0] == 1:
            # As in mp4, each unit follows its length, of as many bytes as the header says.
            length_bytes, place = (header[4] & 3) + 1, 0
            while place + length_bytes < len(data):
                units.append(data[place + length_bytes])
                place += length_bytes + int.from_bytes(data[place : place + length_bytes], "big")
            return units if place == len(data) else None
        place = data.find(_START_CODE)
        while 0 <= place < len(data) - len(_START_CODE):
            units.append(data[place + len(_START_CODE)])
            place = data.find(_START_CODE, place + len(_START_CODE))
        return units

    def _is_wanted(self, time: float) -> bool:
        """Return whether the frame of a packet is, or may be, on show at a target, by the packets known so far."""
        place = bisect_right(self._times, time)
        until = self._times[place] if place < len(self._times) else math.inf
        if place == 1 or time >= self.targets[-1] - _EPSILON:
            return True
        following = bisect_left(self.targets, time - _EPSILON)
        return self.targets[following] < until + _EPSILON
