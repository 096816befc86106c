"""
Check the headers of mp4 and mov files before FFmpeg reads them.

FFmpeg believes how many samples a fragment has, repeats its index as often as an edit list says, and unpacks
compressed headers of any size: a few kilobytes may take gigabytes and minutes.
"""

import os
import re
import struct
from collections.abc import Iterator
from typing import IO

from ..errors import MediaError
from .limits import DecodingLimits, variable


# Headers are all but the media: FFmpeg takes a file for an mp4 if its first box is one of these.
_FIRST_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid")
_HEADERS = (b"moov", b"moof")
_TABLES = re.compile(rb"elst|trun|cmvd")
# Boxes at the top of a file, and bytes of a header, that are looked at.
_MOST_BOXES, _MOST_BYTES = 50_000, 256_000_000
# Entries of an edit list, and bytes of an unpacked header.
_MOST_EDITS, _MOST_UNPACKED = 10_000, 64_000_000


def check_headers(file: IO[bytes], name: str) -> None:
    """
    Check a file, at its beginning, if it is an mp4 or mov; other files pass.

    Raises:
        MediaError: A table claims more than the file can hold, or than the limits allow.
    """
    file.seek(0, os.SEEK_END)
    size = file.tell()
    limits, claimed = DecodingLimits.from_environment(), 0
    for header in _headers(file, size):
        scale = _timescale(header)
        for match in _TABLES.finditer(header):
            start = match.start() - 4
            length = int.from_bytes(header[start : start + 4], "big") if start >= 0 else 0
            box = header[start : start + length]
            if length < 16 or len(box) < length:
                continue  # no box, but text
            if match[0] == b"elst":
                _check_edits(box, scale, name, limits)
            elif match[0] == b"cmvd" and (unpacked := int.from_bytes(box[8:12], "big")) > _MOST_UNPACKED:
                raise MediaError(
                    f"{name}: its compressed header claims {unpacked / 1e6:.0f} MB; expected at most "
                    f"{_MOST_UNPACKED / 1e6:.0f}"
                )
            elif match[0] == b"trun":
                claimed += int.from_bytes(box[12:16], "big")
        if claimed > size:
            raise MediaError(f"{name}: its fragments claim {claimed} samples; expected fewer than its {size} bytes")


def _headers(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the boxes at the top of a file that may have tables."""
    place = 0
    for number in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8 or (not number and head[4:8] not in _FIRST_BOXES):
            return
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif not length:
            length = size - place
        if length < 8:
            return
        if head[4:8] in _HEADERS:
            file.seek(place)
            yield file.read(min(length, _MOST_BYTES))
        place += length


def _timescale(header: bytes) -> int:
    """Return the ticks per second of a `moov` box."""
    place = header.find(b"mvhd")
    if place < 0:
        return 1
    start = place + (24 if header[place + 4 : place + 5] == b"\1" else 16)
    return int.from_bytes(header[start : start + 4], "big") or 1


def _check_edits(box: bytes, scale: int, name: str, limits: DecodingLimits) -> None:
    form = ">QqHH" if box[8] == 1 else ">IiHH"
    count = (len(box) - 16) // struct.calcsize(form)
    if count > _MOST_EDITS:
        raise MediaError(f"{name}: has an edit list of {count} entries; expected at most {_MOST_EDITS}")
    edits = struct.iter_unpack(form, box[16 : 16 + count * struct.calcsize(form)])
    seconds = sum(duration for duration, *_ in edits) / scale
    if count > 1 and seconds > limits.duration:
        raise MediaError(
            f"{name}: has an edit list of {seconds:.0f} s; expected at most {limits.duration:.0f} s "
            f"({variable('duration')})"
        )
