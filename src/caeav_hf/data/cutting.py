"""
Lossless cutting of a clip from a longer video, without decoding it.

Packets are copied from the last key frame before the clip to its end. The piece is therefore somewhat longer than the
clip, whose position in it is returned.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from caeav_hf.errors import MediaError
from caeav_hf.media.containers import MediaFile, audio_stream, packets_of, start_time, video_stream
from caeav_hf.media.guard import guarded
from caeav_hf.media.memory import keep


# Minimum number of seconds to copy before the clip and after its end: decoded sound is exact only some packets after
# the first one, and packets are not ordered by time.
_MARGIN = 1.0


class Piece(NamedTuple):
    """A media file that contains a clip: its bytes and suffix, and the clip's start and end in seconds."""

    content: bytes
    suffix: str
    start: float
    end: float


def cut(path: Path, start: float, end: float) -> Piece | None:
    """
    Cut the part from `start` to `end` (seconds after the first frame) out of a video with sound. The piece is an mp4
    file if the video is one, which keeps timestamps exact, otherwise Matroska, with timestamps in milliseconds.

    Returns:
        The piece, or `None` if there are no packets or they cannot be copied into such a file.

    Raises:
        MediaError: The file cannot be read.
    """
    return _cut(MediaFile.of(path, None), start, end)


@guarded(Piece, seconds=lambda media, start, end: end)
def _cut(media: MediaFile, start: float, end: float) -> Piece | None:
    with media.open() as source:
        video, audio = video_stream(source, media.name), audio_stream(source, media.name)
        origin = start_time(video, source)
        packets = _packets(source, media.name, [video, audio], origin + start, origin + end)
        first = next((packet.pts for packet in packets if packet.stream is video and packet.is_keyframe), None)
        if first is None:
            return None
        is_mp4 = "mp4" in source.format.name
        # Packets before the key frame cannot be decoded or placed in time.
        zero = first * video.time_base
        packets = [packet for packet in packets if packet.pts * packet.time_base >= zero]
        content = _copied(packets, [video, audio], zero, "mp4" if is_mp4 else "matroska")
    if content is None:
        return None
    shift = float(zero) - origin
    return Piece(content, ".mp4" if is_mp4 else ".mkv", start - shift, end - shift)


def _packets(source: Any, name: str, streams: list[Any], begin: float, end: float) -> list[Any]:
    """Return the packets of the streams from the last key frame before `begin` until both are well past `end`."""
    video = streams[0]
    # Seeking is inexact in some containers; those are read from their start.
    if begin > _MARGIN:
        try:
            source.seek(int((begin - _MARGIN) / video.time_base), stream=video)
        except av.FFmpegError as error:
            raise MediaError(f"{name}: seeking to {begin} s failed ({error})") from error
    packets: list[Any] = []
    running = {stream.index for stream in streams}
    for stream, packet in packets_of(source, streams, source.name):
        if packet is None or packet.pts is None:
            continue
        if packet.pts * packet.time_base > end + _MARGIN:
            running.discard(stream.index)
            if not running:
                break
        else:
            keep(packet.size)
            packets.append(packet)
    return packets


def _complete_order(packets: list[Any]) -> None:
    """Give a decoding time to packets that have none, as happens to the first ones after seeking in Matroska."""
    following: dict[int, int] = {}
    for packet in reversed(packets):
        index = packet.stream.index
        if packet.dts is None:
            packet.dts = min(packet.pts, following.get(index, packet.pts + 1) - 1)
        following[index] = packet.dts


def _copied(packets: list[Any], streams: list[Any], zero: Fraction, container_format: str) -> bytes | None:
    """Return a file of these packets, whose times begin at `zero`, or `None` if the format does not support them."""
    file = io.BytesIO()
    # Write no creation time or random values, so that equal pieces have equal bytes.
    options = {"fflags": "+bitexact"}
    if container_format == "mp4":
        # Unit in which an mp4 file stores the delay of its sound.
        options["movie_timescale"] = str(streams[1].time_base.denominator)
    _complete_order(packets)
    try:
        with av.open(file, "w", format=container_format, options=options) as target:
            copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
            for stream in streams:
                copies[stream.index].time_base = stream.time_base
            for packet in packets:
                ticks = round(zero / packet.time_base)
                packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    except (av.FFmpegError, ValueError):
        return None
    return file.getvalue()
