"""
Memory and time of decoding files that claim or hold far more than they should.

    python benchmarks/bombs.py --seed 0 --out bombs.json

Makes small files of every kind of `BOMBS`, and a normal clip to compare with, and reads each with `load_clip` (ten
segments, from the beginning and spread), `load_audio`, `probe` and `read_segments`, images with `read_frame` and
`read_mask`. Each call runs in a process of its own, ended at 6 GB or after 30 s. Printed are the memory beyond the
result, that is, the peak less the memory before and that of the result itself, and the processor time. `--only` takes
names of kinds or their beginnings; `--folder` keeps the files, and uses those that are there; `--guarded` decodes in
workers, whose own memory, 40 MB when they begin, then counts.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import signal
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from machine import peak_memory, processor_name, reset_peak_memory

from caeav_hf.data.images import read_frame, read_mask
from caeav_hf.errors import CaeAvError
from caeav_hf.media.clip import load_clip, probe
from caeav_hf.media.guard import guarded_decoding
from caeav_hf.media.limits import DecodingLimits
from caeav_hf.media.segment_stream import read_segments
from caeav_hf.media.sound import load_audio


RATE = 16_000
MOST_BYTES, MOST_SECONDS = 6_000_000_000, 30
# A busy machine gives a process only a share of its time.
_CLOCK = 10 * MOST_SECONDS
_TICKS = Fraction(1, 90_000)

Bomb = Callable[[Path, np.random.Generator], None]
BOMBS: dict[str, tuple[str, Bomb]] = {}
"""Suffix and writer of each kind of file."""


def _bomb(name: str, suffix: str) -> Callable[[Bomb], Bomb]:
    def add(write: Bomb) -> Bomb:
        BOMBS[name] = (suffix, write)
        return write

    return add


# Parts of files


def _encoded(
    codec: str, size: tuple[int, int], count: int, pix_fmt: str = "yuv420p", **options: str
) -> tuple[list[bytes], Any]:
    """Return `count` packets of a grey picture of (width, height), and their stream to use as a template."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov" if codec == "png" else "matroska") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        frame = av.VideoFrame(*size, pix_fmt)
        for plane in frame.planes:
            np.frombuffer(plane, np.uint8)[:] = 128
        for number in range(count):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    source = av.open(file)
    return [bytes(packet) for packet in source.demux() if packet.size], (source, source.streams[0])


def _muxed(
    path: Path,
    packets: Iterator[tuple[bytes, int, bool]],
    template: Any,
    step: int = 3600,
    sound: float = 10.0,
    **options: str,
) -> None:
    """Write packets (bytes, ticks, whether a key frame) and a tone of some seconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream_from_template(template[1])
        stream.time_base = _TICKS
        _add_sound(container, sound)
        for content, ticks, is_key in packets:
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, _TICKS
            packet.pts = packet.dts = ticks
            packet.duration, packet.is_keyframe = step, is_key
            container.mux(packet)


def _add_sound(container: Any, seconds: float) -> None:
    if not seconds:
        return
    sound = container.add_stream("aac", rate=RATE, layout="mono")
    samples = (0.3 * np.sin(np.arange(round(seconds * RATE)) / 6)).astype(np.float32)
    for begin in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024].copy(), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


def _still(path: Path, codec: str, size: tuple[int, int], count: int, **options: str) -> None:
    """Write `count` equal pictures at one per second."""
    packets, template = _encoded(codec, size, count, **options)
    _muxed(path, ((packet, 90_000 * n, n == 0) for n, packet in enumerate(packets)), template, 90_000)


def _repeated(
    path: Path, size: tuple[int, int], count: int, rate: int, ticks: Callable[[int], int] | None = None
) -> None:
    """Write `count` pictures of H.264; all but one in 250 only repeat the one before."""
    options = {"preset": "ultrafast", "tune": "zerolatency", "g": "250", "x264-params": "scenecut=0"}
    packets, template = _encoded("libx264", size, 250, **options)
    step = 90_000 // rate
    place = ticks or (lambda n: n * step)
    _muxed(path, ((packets[n % 250], place(n), n % 250 == 0) for n in range(count)), template, step)


def _normal(path: Path, size: tuple[int, int] = (1280, 720), seconds: int = 10, rate: int = 25) -> None:
    generator = np.random.default_rng(0)
    scene = generator.integers(0, 256, (size[1] // 8, size[0] // 8 + seconds * rate, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        _add_sound(container, seconds)
        for number in range(seconds * rate):
            picture = scene[:, number : number + size[0] // 8].repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _find(data: bytes, kind: bytes, start: int = 0) -> tuple[int, int]:
    """Return the place of a box of an mp4 and its length."""
    place = data.index(kind, start) - 4
    return place, struct.unpack(">I", data[place : place + 4])[0]


def _with_boxes(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the `moov` box, which is at the end of the file."""
    data = path.read_bytes()
    place, length = _find(data, b"moov")
    path.write_bytes(data[:place] + change(data[place : place + length]) + data[place + length :])


def _replaced(moov: bytes, path: tuple[bytes, ...], new: bytes) -> bytes:
    """Replace the first box at a path below `moov` by another, and mend the lengths of those around it."""
    start, around = 0, []
    for kind in path:
        place, length = _find(moov, kind, start)
        around.append(place)
        start = place + 8
    moov = moov[:place] + new + moov[place + length :]
    for outer in (0, *around[:-1]):
        size = struct.unpack(">I", moov[outer : outer + 4])[0] + len(new) - length
        moov = moov[:outer] + struct.pack(">I", size) + moov[outer + 4 :]
    return moov


def _png(width: int, height: int, depth: int, colour: int, rows: int) -> bytes:
    """Return a black PNG, of whose pixels only the first `rows` rows are there."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    row = bytes(1 + width * channels * depth // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(768))] if colour == 3 else []
    chunks += [(b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _wav(rate: int, channels: int, bits: int, content: bytes, claimed: int | None = None) -> bytes:
    align = channels * bits // 8
    head = struct.pack("<HHIIHH", 1, channels, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    size = len(content) if claimed is None else claimed
    riff = min(size + 36, 0xFFFFFFFF)
    return (
        b"RIFF"
        + struct.pack("<I", riff)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", size)
        + content
    )


# Normal


@_bomb("normal 720p", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _normal(path)


# Frame sizes


@_bomb("h264 8000x8000", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "libx264", (8000, 8000), 12, preset="ultrafast", tune="zerolatency")


@_bomb("h264 8000x8000, 16 references", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    params = "ref=16:scenecut=0:force-cfr=1:level=62:threads=1:sliced-threads=0:rc-lookahead=0:bframes=0"
    _still(path, "libx264", (8000, 8000), 18, preset="ultrafast", **{"x264-params": params})


@_bomb("h264 7680x4320", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "libx264", (7680, 4320), 12, preset="ultrafast", tune="zerolatency")


@_bomb("h264 cropped from 8000x8000 to 64x64", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    crop = {"x264-params": "crop-rect=0,0,7936,7936"}
    _still(path, "libx264", (8000, 8000), 12, preset="ultrafast", tune="zerolatency", **crop)


@_bomb("hevc 8192x8192", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    params = {"x265-params": "log-level=0:frame-threads=1:bframes=0:rc-lookahead=0", "preset": "ultrafast"}
    _still(path, "libx265", (8192, 8192), 4, **params)


@_bomb("vp9 8192x8192", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "libvpx-vp9", (8192, 8192), 4, deadline="realtime", **{"cpu-used": "8", "lag-in-frames": "0"})


@_bomb("png 15000x15000", ".mov")
def _(path: Path, generator: np.random.Generator) -> None:
    packet, template = _png(15_000, 15_000, 8, 2, 15_000), _encoded("png", (64, 64), 1, pix_fmt="rgb24")[1]
    _muxed(path, ((packet, 90_000 * n, True) for n in range(3)), template, 90_000)


@_bomb("png claims 16000x16000, 16 bit", ".mov")
def _(path: Path, generator: np.random.Generator) -> None:
    packet, template = _png(16_000, 16_000, 16, 6, 4), _encoded("png", (64, 64), 1, pix_fmt="rgb24")[1]
    _muxed(path, ((packet, 90_000 * n, True) for n in range(12)), template, 90_000)


@_bomb("ffv1 8000x8000, 16 bit", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("ffv1", (8000, 8000), 1, pix_fmt="gbrp16le")
    _muxed(path, ((packets[0], 90_000 * n, True) for n in range(3)), template, 90_000)


@_bomb("mjpeg claims 16000x16000", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    place = packets[0].index(b"\xff\xc0") + 5
    packet = packets[0][:place] + struct.pack(">HH", 16_000, 16_000) + packets[0][place + 4 :]
    _muxed(path, ((packet, 90_000 * n, True) for n in range(12)), template, 90_000)


@_bomb("mjpeg grows to 8000x8000", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    small, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    large = _encoded("mjpeg", (8000, 8000), 1, pix_fmt="yuvj420p")[0]
    _muxed(path, (((small if n < 2 else large)[0], 90_000 * n, True) for n in range(5)), template, 90_000)


# Rates


@_bomb("64x64 at 10,000 frames a second", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (64, 64), 200_000, 10_000)


@_bomb("4K at 2,000 frames a second", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (3840, 2160), 20_000, 2000)


@_bomb("4K, all at one time", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (3840, 2160), 20_000, 90, ticks=lambda n: n // 100)


@_bomb("600,000 packets of one sample", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    with av.open(str(path), "w") as container:
        video = container.add_stream_from_template(template[1])
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for n in range(2):
            packet = av.Packet(packets[0])
            packet.stream, packet.time_base, packet.pts, packet.dts = video, _TICKS, 900_000 * n, 900_000 * n
            packet.is_keyframe = True
            container.mux(packet)
        for n in range(600_000):
            packet = av.Packet(b"\0\1")
            packet.stream, packet.time_base, packet.pts, packet.dts = sound, Fraction(1, RATE), n // 4, n // 4
            container.mux(packet)


# Streams


@_bomb("120 streams of 4000x4000", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("libx264", (4000, 4000), 1, preset="ultrafast", tune="zerolatency")
    with av.open(str(path), "w") as container:
        streams = [container.add_stream_from_template(template[1]) for _ in range(120)]
        _add_sound(container, 1)
        for stream in streams:
            packet = av.Packet(packets[0])
            packet.stream, packet.time_base, packet.is_keyframe = stream, _TICKS, True
            packet.pts = packet.dts = 0
            container.mux(packet)


@_bomb("3,000 tracks", ".mov")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "mjpeg", (64, 64), 10, pix_fmt="yuvj420p")

    def cloned(moov: bytes) -> bytes:
        place, length = _find(moov, b"trak")
        moov = moov[:place] + moov[place : place + length] * 3000 + moov[place + length :]
        return struct.pack(">I", len(moov)) + moov[4:]

    _with_boxes(path, cloned)


@_bomb("4,000 streams in a transport stream", ".ts")
def _(path: Path, generator: np.random.Generator) -> None:
    counters: dict[int, int] = {}

    def packet(pid: int, content: bytes, begins: bool = True) -> bytes:
        count = counters[pid] = (counters.get(pid, -1) + 1) % 16
        head = struct.pack(">BHB", 0x47, pid | (0x4000 if begins else 0), 0x10 | count)
        return (head + content).ljust(188, b"\xff")

    def section(pid: int, table: int, number: int, body: bytes) -> bytes:
        content = struct.pack(">BHHBBB", table, 0xB000 | (len(body) + 9), number, 0xC1, 0, 0) + body
        crc = 0xFFFFFFFF
        for byte in content:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
        content = b"\0" + content + struct.pack(">I", crc)
        return b"".join(packet(pid, content[k : k + 184], k == 0) for k in range(0, len(content), 184))

    programs = range(1, 21)
    tables = section(0, 0, 1, b"".join(struct.pack(">HH", n, 0xE000 | (16 + n)) for n in programs))
    for n in programs:
        streams = [100 + 200 * (n - 1) + k for k in range(200)]
        kinds = b"".join(struct.pack(">BHH", 0x1B, 0xE000 | pid, 0xF000) for pid in streams)
        tables += section(16 + n, 2, n, struct.pack(">HH", 0xE000 | streams[0], 0xF000) + kinds)
    pictures = b""
    h264 = b"".join(_encoded("libx264", (32, 32), 1, preset="ultrafast")[0])
    for pid in range(100, 4100):
        stamp = b"\x21\x00\x07\xd8\x61"
        content = b"\0\0\1\xe0\0\0\x80\x80\x05" + stamp + b"\0\0\0\1" + h264[:160]
        pictures += packet(pid, content)
    path.write_bytes((tables + pictures) * 3)


@_bomb("1,000 chained streams", ".ogg")
def _(path: Path, generator: np.random.Generator) -> None:
    whole = b""
    part = path.with_suffix(".part.ogg")
    for number in range(1000):
        with av.open(str(part), "w", format="ogg", options={"serial_offset": str(number)}) as container:
            sound = container.add_stream("flac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        whole += part.read_bytes()
    part.unlink()
    path.write_bytes(whole)


# Times


@_bomb("a frame after 31 years", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    times = [*range(5), 10**9]
    _muxed(path, ((packets[0], 90_000 * second, True) for second in times), template, 90_000, sound=5)


@_bomb("a beginning before 31 years", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    times = [0, *(10**9 + second for second in range(10))]
    _muxed(path, ((packets[0], 90_000 * second, True) for second in times), template, 90_000, sound=5)


@_bomb("frames of 11 days", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "mjpeg", (640, 480), 3, pix_fmt="yuvj420p")
    times = _box(b"stts", struct.pack(">IIII", 0, 1, 3, 0xFFFFFFF))
    _with_boxes(path, lambda moov: _replaced(moov, (b"trak", b"mdia", b"minf", b"stbl", b"stts"), times))


@_bomb("two seconds, 60 times", ".ts")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (64, 64), 50, 25)
    path.write_bytes(path.read_bytes() * 60)


@_bomb("sound that jumps by an hour each packet", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for n in range(5000):
            packet = av.Packet(bytes(640))
            packet.stream, packet.time_base, packet.pts, packet.dts = sound, Fraction(1, 1), 3500 * n, 3500 * n
            container.mux(packet)


@_bomb("200,000 entries of an edit list", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (64, 64), 1000, 100)
    entries = b"".join(struct.pack(">IIHH", 1, int(at), 1, 0) for at in generator.integers(0, 900_000, 200_000))
    edits = _box(b"edts", _box(b"elst", struct.pack(">II", 0, 200_000), entries))
    _with_boxes(path, lambda moov: _replaced(moov, (b"trak", b"edts"), edits))


@_bomb("endless edits of a long track", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _repeated(path, (64, 64), 1000, 100)
    entries = struct.pack(">IIHH", 0xFFFFFFFF, 0, 1, 0) * 5000
    edits = _box(b"edts", _box(b"elst", struct.pack(">II", 0, 5000), entries))
    _with_boxes(path, lambda moov: _replaced(moov, (b"trak", b"edts"), edits))


# Tables


@_bomb("a table of 4 billion samples", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    _still(path, "mjpeg", (64, 64), 10, pix_fmt="yuvj420p")
    table = (b"trak", b"mdia", b"minf", b"stbl")
    sizes = _box(b"stsz", struct.pack(">III", 0, 1, 0xFFFFFFF0))
    chunks = _box(b"stsc", struct.pack(">IIIII", 0, 1, 1, 80_000_000, 1))
    _with_boxes(path, lambda moov: _replaced(moov, (*table, b"stsz"), sizes))
    _with_boxes(path, lambda moov: _replaced(moov, (*table, b"stsc"), chunks))


@_bomb("a fragment of 80 million samples", ".mp4")
def _(path: Path, generator: np.random.Generator) -> None:
    packets, template = _encoded("mjpeg", (64, 64), 1, pix_fmt="yuvj420p")
    written = ((packets[0], 90_000 * n, True) for n in range(10))
    _muxed(path, written, template, 90_000, sound=0, movflags="frag_keyframe+empty_moov")
    data = path.read_bytes()
    place, length = _find(data, b"trun")
    run = struct.pack(">I4sII", 16, b"trun", 0, 80_000_000).ljust(length, b"\0")
    path.write_bytes(data[:place] + struct.pack(">I", length) + run[4:] + data[place + length :])


@_bomb("a compressed header of 1.5 GB", ".mov")
def _(path: Path, generator: np.random.Generator) -> None:
    packer, size = zlib.compressobj(9), 1_500_000_000
    content = packer.compress(struct.pack(">I4sI4s", size, b"moov", size - 8, b"free"))
    content += b"".join(packer.compress(bytes(1_000_000)) for _ in range(size // 1_000_000 - 1)) + packer.flush()
    packed = _box(b"cmov", _box(b"dcom", b"zlib"), _box(b"cmvd", struct.pack(">I", size), content))
    path.write_bytes(_box(b"ftyp", b"qt  \0\0\0\0qt  ") + _box(b"moov", packed))


# Sound


@_bomb("silence of an hour, 8 channels of 655,350 Hz", ".mkv")
def _(path: Path, generator: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("flac", rate=655_350, layout="7.1", options={"frame_size": "65535"})
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8 * 65_535), np.int16), "s16", "7.1")
        frame.sample_rate, frame.time_base, frame.pts = 655_350, Fraction(1, 655_350), 0
        sound.codec_context.open()
        content = bytes((sound.encode(frame) + sound.encode(None))[0])
        for n in range(36_000):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = sound, Fraction(1, 10), n, n
            container.mux(packet)


@_bomb("silence of 30 hours", ".ogg")
def _(path: Path, generator: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libopus", rate=48_000, layout="mono")
        sound.codec_context.open()
        for n in range(900_000):
            packet = av.Packet(b"\xfb\x06")  # six frames of 20 ms without content
            packet.stream, packet.time_base = sound, Fraction(1, 48_000)
            packet.pts = packet.dts = 5760 * n
            packet.duration = 5760
            container.mux(packet)


@_bomb("wav of 2 GHz", ".wav")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_wav(2**31 - 1, 1, 16, bytes(1_000_000)))


@_bomb("wav of 1 Hz", ".wav")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_wav(1, 1, 8, bytes(1_000_000)))


@_bomb("wav of 1,000 channels", ".wav")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_wav(48_000, 1000, 16, bytes(2_000_000)))


@_bomb("wav that claims 4 GB", ".wav")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_wav(RATE, 1, 16, bytes(100_000), 0xFFFFFFF0))


# Images


@_bomb("image of 13000x13000, 16 bit", ".png")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_png(13_000, 13_000, 16, 6, 13_000))


@_bomb("image of 30000x30000", ".png")
def _(path: Path, generator: np.random.Generator) -> None:
    path.write_bytes(_png(30_000, 30_000, 8, 3, 30_000))


# Measuring


def _load_clip(path: Path, **how: Any) -> Any:
    return load_clip(path, num_segments=10, sampling_rate=RATE, on_missing_audio="silence", **how)


def _read_segments(path: Path) -> Any:
    """Read the whole file segment by segment, keeping none."""
    last = None
    for last in read_segments(path, segment_seconds=1.0, sampling_rate=RATE):  # noqa: B007
        pass
    return last


CALLS: dict[str, Callable[[Path], Any]] = {
    "load_clip": _load_clip,
    "spread": lambda path: _load_clip(path, frame_sampling="spread"),
    "load_audio": lambda path: load_audio(path, sampling_rate=RATE),
    "probe": probe,
    "read_segments": _read_segments,
}
IMAGE_CALLS: dict[str, Callable[[Path], Any]] = {"read_frame": read_frame, "read_mask": read_mask}


def _bytes_of(result: Any) -> int:
    arrays = result if isinstance(result, np.ndarray) else None
    if arrays is not None:
        return arrays.nbytes
    return sum(getattr(getattr(result, name, None), "nbytes", 0) for name in ("frames", "waveform", "pixels", "image"))


def _described(result: Any) -> str:
    if isinstance(result, np.ndarray):
        return f"{result.shape} {result.dtype}"
    if hasattr(result, "frames"):
        return f"{len(result.frames)} frames of {result.size[1]}x{result.size[0]}"
    return type(result).__name__


def _peak_of_children() -> float:
    """Return the peak memory of this process' children in GB."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    running = [0.0]
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            lines = Path(f"/proc/{child}/status").read_text().splitlines()
            running += [int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")]
    return max(ended, *running)


def _processor_seconds() -> float:
    """Return the processor time of this process and of its children, running ones included."""
    total = sum(os.times()[:4])
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _in_child(call: Callable[[Path], Any], path: Path, guarded: bool, connection: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = round(_processor_seconds())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + MOST_SECONDS, spent + MOST_SECONDS))
    reset_peak_memory("cpu")
    before, begin = peak_memory("cpu"), _processor_seconds()
    try:
        with guarded_decoding() if guarded else nullcontext():
            result = call(path)
        outcome, size = _described(result), _bytes_of(result)
    except CaeAvError as error:
        outcome, size = f"error: {str(error).removeprefix(str(path)).removeprefix(': ')}", 0
    except BaseException as error:
        outcome, size = f"RAW {type(error).__name__}: {error}", 0
    seconds = _processor_seconds() - begin
    # What a worker sends back is in this process only.
    memory = (_peak_of_children() if guarded else peak_memory("cpu") - before) - size / 1e9
    connection.send((outcome, memory, seconds))
    connection.close()
    os._exit(0)


def measure(call: Callable[[Path], Any], path: Path, guarded: bool = False) -> tuple[str, float | None, float]:
    """Return the outcome of a call in a process of its own, and its memory (GB) and seconds beyond the result."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(call, path, guarded, sending))
    child.start()
    sending.close()
    found = None
    if receiving.poll(_CLOCK):
        with suppress(EOFError):
            found = receiving.recv()
    else:
        child.kill()
    child.join()
    if found is not None:
        return found
    if child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"ran for more than {MOST_SECONDS} s", None, MOST_SECONDS
    return f"ended by {child.exitcode}", None, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="kinds, or their beginnings")
    parser.add_argument("--calls", nargs="*", default=[*CALLS, *IMAGE_CALLS])
    parser.add_argument("--guarded", action="store_true", help="decode in workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    limits = DecodingLimits.from_environment()
    print(f"{processor_name()}; limits {limits.memory_mb:g} MB, {limits.seconds:g} s beyond the result")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, (suffix, write)) in enumerate(BOMBS.items()):
            if not name.startswith(tuple(options.only)):
                continue
            path = folder / f"{number:02} {name.replace('/', ' ')}{suffix}"
            if not path.exists():
                write(path, np.random.default_rng((options.seed, number)))
            size = path.stat().st_size
            print(f"\n{name} ({size / 1e3:.0f} kB)", flush=True)
            calls = IMAGE_CALLS if suffix == ".png" else CALLS
            for called in (called for called in calls if called in options.calls):
                outcome, memory, seconds = measure(calls[called], path, options.guarded)
                rows.append(
                    {"kind": name, "bytes": size, "call": called, "outcome": outcome, "gb": memory, "seconds": seconds}
                )
                shown = "-" if memory is None else f"{memory:+.2f} GB"
                is_over = memory is None or memory * 1000 > limits.memory_mb or seconds > limits.seconds
                print(
                    f"  {called:14} {shown:>9} {seconds:6.1f} s {'!' if is_over else ' '} {outcome[:150]}", flush=True
                )
    if options.out is not None:
        options.out.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
