"""
Open media files as PyAV containers, choose their streams, and read and decode their packets.

Streams. FFmpeg chooses the best one: the default stream first, then the one with more data. Cover pictures are no
video.

Broken files. A file that cannot be opened raises [`~errors.MediaError`]; a packet that cannot be decoded is skipped;
a file that breaks off ends the reading.
"""

import errno
import io
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, Any

import av
import numpy as np

from ..errors import CaeAvError, MediaError
from .bounds import Pace, limit_sound, limit_video, probings
from .boxes import check_headers
from .memory import is_short
from .remote import check_characters, fetch, is_address, local_path, without_password


# Not that of Transformers, which would take a decoding worker seconds to import.
logger = logging.getLogger(__name__)

MediaSource = str | os.PathLike | bytes | IO[bytes] | Mapping[str, Any]
"""
A path or address (see `media.remote`), the bytes of a file, an open binary file, or a mapping with `"bytes"` and
`"path"` as `datasets` has it.
"""

# A jump in the sound's timestamps of more than this (seconds, just under one AAC packet at 48 kHz) is a gap.
AUDIO_JITTER = 0.02
# Seconds by which seeking aims earlier than wanted: decoders of sound need some packets before they are exact.
SEEK_MARGIN = 0.5

# Metadata need not be UTF-8, and none of it is read here. PyAV 19 no longer has the option, and takes any bytes.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# Demuxers that read one self-contained file. Playlists and scripts (hls, concat, dash, sdp, ...) are left out because
# they make FFmpeg open files and addresses other than the given one.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ogg,wav,w64,aiff,au,caf,mp3,aac,flac,ac3,"
    "eac3,amr,dts,mxf,nut,dv,rm,wv,tta,ape"
)
# Addresses that streams are read from, and the formats and protocols that these need in turn.
STREAM_PROTOCOLS = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp")
_STREAM_FORMATS = "hls,rtsp,rtp,mpjpeg"
_PROTOCOLS = f"{','.join(STREAM_PROTOCOLS)},tls,crypto,httpproxy"
_EXPECTED = "expected a media file with a video and an audio stream, such as mp4, mkv, webm, mov or avi"


def source_name(source: MediaSource) -> str:
    """Return the name of a source in error messages: its path, that of its file object, or its number of bytes."""
    if isinstance(source, Mapping):
        path = source.get("path")
        return without_password(str(path)) if path else source_name(source.get("bytes") or b"")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, str | os.PathLike):
        return without_password(os.fsdecode(os.fspath(source)))
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def reusable(source: MediaSource) -> MediaSource:
    """Return a source that can be opened more than once: remote files are fetched, pipes are read into memory."""
    content = _content_of(source)
    if isinstance(content, str | os.PathLike):
        path = os.fsdecode(os.fspath(content))
        return fetch(path) if _is_remote(path) else source
    return io.BytesIO(content.read()) if hasattr(content, "read") and _is_pipe(content) else source


def _content_of(source: MediaSource) -> Any:
    if isinstance(source, Mapping):
        return source.get("path") if source.get("bytes") is None else source["bytes"]
    return source


def _is_remote(path: str) -> bool:
    return is_address(path) and not path.lower().startswith("file:/")


def _is_pipe(file: Any) -> bool:
    """Return whether a file object can be read only once."""
    seekable = getattr(file, "seekable", None)
    return not hasattr(file, "seek") or (seekable is not None and not seekable())


class MediaFile:
    """A media source that can be opened repeatedly as a PyAV container; every failure is a MediaError."""

    def __init__(self, target: str | IO[bytes], name: str):
        self.target = target
        self.name = name

    @classmethod
    def of(cls, source: MediaSource, name: str | None) -> "MediaFile":
        """Return the file of a source, called `name` in errors; by default that of [`source_name`]."""
        name = name or source_name(source)
        content = _content_of(source)
        if isinstance(source, Mapping) and content is None:
            raise MediaError(f"{name}: neither bytes nor a path; expected a mapping with `bytes` or `path`")
        if isinstance(content, bytes | bytearray | memoryview):
            if not len(content):
                raise MediaError(f"{name}: empty; {_EXPECTED}")
            return cls(io.BytesIO(content), name)
        if isinstance(content, str | os.PathLike):
            path = os.fsdecode(os.fspath(content))
            return cls(fetch(path) if _is_remote(path) else _checked_path(path, name), name)
        return cls(_checked_file(content, name), name)

    @classmethod
    def of_stream(cls, source: MediaSource, name: str | None) -> "MediaFile":
        """
        Return the file of a source that is read once, in order: files, pipes, and addresses that FFmpeg itself reads
        while they run (see `STREAM_PROTOCOLS`), which are not fetched first.
        """
        name = name or source_name(source)
        content = _content_of(source)
        if isinstance(content, str | os.PathLike):
            path = os.fsdecode(os.fspath(content))
            if is_address(path) and path.partition("://")[0].lower() in STREAM_PROTOCOLS:
                check_characters(path)
                return cls(path, name)
            if stat.S_ISFIFO(_mode_of(path)):
                return cls(f"file:{path}", name)
        elif hasattr(content, "read") and not isinstance(content, io.TextIOBase) and _is_pipe(content):
            return cls(content, name)
        return cls.of(source, name)

    @property
    def is_address(self) -> bool:
        """Whether FFmpeg itself reads from an address, rather than from a file or an object."""
        return isinstance(self.target, str) and not self.target.startswith("file:")

    @property
    def is_pipe(self) -> bool:
        """Whether the content can be read only once."""
        if isinstance(self.target, str):
            return stat.S_ISFIFO(_mode_of(self.target.removeprefix("file:")))
        return _is_pipe(self.target)

    @contextmanager
    def open(self, timeout: float | None = None) -> Iterator[Any]:
        """
        Open the container at its beginning; it is closed at the end of the `with`.

        Args:
            timeout: Seconds to wait for an address, to open it and for each read; `None` for no limit.
        """
        # The formats of streams open further addresses, but no files.
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        if self.is_address:
            options = {"format_whitelist": f"{_FORMATS},{_STREAM_FORMATS}", "protocol_whitelist": _PROTOCOLS}
        how: dict[str, Any] = {"timeout": timeout} if self.is_address and timeout is not None else {}
        try:
            self._check_headers()
            # FFmpeg decodes a frame of each stream as it opens a file: the more streams, the smaller the frames.
            for probing in probings(is_once=self.is_address or self.is_pipe):
                if not isinstance(self.target, str) and not self.is_pipe:
                    self.target.seek(0)
                try:
                    container = av.open(
                        self.target,
                        mode="r",
                        options=probing.decoder_options,
                        container_options={**options, **probing.options},
                        **_METADATA,
                        **how,
                    )
                except av.FFmpegError as error:
                    # What FFmpeg says, too, of more streams than it is allowed to open.
                    if error.errno != errno.ENOMEM:
                        raise
                    if probing.is_last:
                        raise MediaError(
                            f"{self.name}: takes more memory than there is, or {probing.too_many}; {_EXPECTED}"
                        ) from error
                    continue
                with container, _idle_at_the_end(container):
                    if len(container.streams) <= probing.streams:
                        yield container
                        return
            raise MediaError(f"{self.name}: {probing.too_many}; {_EXPECTED}")
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if getattr(error, "errno", None) == errno.EINVAL:
                # FFmpeg's only message for a format that is not allowed.
                reason = "its format is not one that holds a clip"
            raise MediaError(f"{self.name}: cannot be read as media ({reason}); {_EXPECTED}") from error

    def _check_headers(self) -> None:
        if not isinstance(self.target, str):
            if not self.is_pipe:
                self.target.seek(0)
                check_headers(self.target, self.name)
        elif not self.is_address and not self.is_pipe:
            with open(self.target.removeprefix("file:"), "rb", buffering=0) as file:
                check_headers(file, self.name)


@contextmanager
def _idle_at_the_end(container: Any) -> Iterator[None]:
    """
    Wait for the threads of a container's decoders before it is closed.

    PyAV keeps Python's lock while it frees a decoder, which waits for its threads. Where somebody has turned FFmpeg's
    log on (`av.logging.set_level`), a thread that finds an error waits for that lock in turn.
    """
    try:
        yield
    finally:
        for stream in container.streams:
            if stream.codec_context is not None:
                stream.codec_context.flush_buffers()


def _mode_of(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):  # or a NUL in the path
        return 0


def _checked_path(path: str, name: str) -> str:
    if is_address(path):
        path = local_path(path)
    if os.path.isdir(path):
        raise MediaError(f"{name}: is a directory; {_EXPECTED}")
    if not os.path.exists(path):
        raise MediaError(f"{name}: no such file; {_EXPECTED}")
    if stat.S_ISCHR(_mode_of(path)) or stat.S_ISBLK(_mode_of(path)):
        raise MediaError(f"{name}: is a device; {_EXPECTED}")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise MediaError(f"{name}: empty file; {_EXPECTED}")
    # The prefix keeps FFmpeg from reading a file's name as a protocol ("concat:...", "pipe:0").
    return f"file:{path}"


def _checked_file(source: Any, name: str) -> IO[bytes]:
    if isinstance(source, io.TextIOBase):
        raise MediaError(f"{name}: opened as text; expected a file opened in binary mode")
    if not hasattr(source, "read"):
        raise CaeAvError(
            f"{type(source).__name__} is no media source; expected a path, bytes, a binary file object or a mapping "
            "with `bytes` or `path`"
        )
    if _is_pipe(source):
        # Pipes and sockets: most containers need seeking.
        return io.BytesIO(source.read())
    return source


def best_stream(container: Any, kind: str) -> Any:
    """Return FFmpeg's best stream of a kind, or None; a cover picture is not a video."""
    streams = [
        stream
        for stream in getattr(container.streams, kind)
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def video_stream(container: Any, name: str) -> Any:
    """Return the video stream to read; raise a MediaError if there is none that can be decoded."""
    stream = best_stream(container, "video")
    if stream is None:
        raise MediaError(f"{name}: no video stream; {_EXPECTED}")
    return with_decoder(stream, name)


def audio_stream(container: Any, name: str) -> Any:
    """Return the audio stream to read; raise a MediaError if there is none that can be decoded."""
    stream = best_stream(container, "audio")
    if stream is None:
        raise MediaError(f"{name}: no audio stream; {_EXPECTED}")
    limit_sound(with_decoder(stream, name), name)
    return stream


def video_decoder(container: Any, name: str, num_threads: int) -> Any:
    """Do as [`video_stream`], and set up the decoder; `num_threads` is 0 to let FFmpeg choose."""
    stream = video_stream(container, name)
    limit_video(stream, name, num_threads)
    return stream


def with_decoder(stream: Any, name: str) -> Any:
    """Return the stream; raise a MediaError if it cannot be decoded."""
    if stream.codec_context is None:
        raise MediaError(f"{name}: FFmpeg has no decoder for its {stream.type} stream; expected a common codec")
    return stream


def in_seconds(ticks: int | None, time_base: Any) -> float | None:
    """Convert a timestamp to seconds; None if it or its unit is missing, as in damaged files."""
    if ticks is None or not time_base:
        return None
    # Rounded once, as a product of fractions would be, but ten times faster.
    return ticks * time_base.numerator / time_base.denominator


def start_time(stream: Any, container: Any) -> float:
    """Return the first timestamp of a stream in seconds."""
    start = in_seconds(stream.start_time, stream.time_base)
    return (container.start_time or 0) / av.time_base if start is None else start


def frame_rate_of(stream: Any) -> float:
    """Return the average frames per second of a video stream; 0 if the file does not state it."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def announced_end(stream: Any, container: Any) -> float | None:
    """Return the seconds after the stream's time zero at which it ends by its header, or None."""
    end = in_seconds(stream.duration, stream.time_base)
    return in_seconds(container.duration, Fraction(1, av.time_base)) if end is None else end


def packets_of(
    container: Any, streams: list[Any], name: str, errors: list[Exception] | None = None
) -> Iterator[tuple[Any, Any]]:
    """
    Yield streams and their packets in the order of the file. If it breaks off, the last packet of each is None, and
    the error is added to `errors`.

    Args:
        name: Name of the file in errors.

    Raises:
        MediaError: There are more packets than the time of their stream allows (see `media.bounds`). With `errors`,
            the file breaks off there.
    """
    packets = container.demux(*streams)
    paces = {stream.index: Pace(stream, name) for stream in streams}
    while True:
        error: Exception | None = None
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:
            # PyAV knows only the streams of the header; a packet of another one ends its iteration, but not the file.
            packets = container.demux(*streams)
            continue
        except (av.FFmpegError, OSError) as broken:
            error = broken
        else:
            error = paces[packet.stream.index].add(packet) if packet.size else None
        if error is not None:
            if errors is not None:
                errors.append(error)
            elif isinstance(error, MediaError):
                raise error
            logger.debug(f"demuxing ended early: {error}")
            # The demuxer cannot continue, but the frames that the decoders still hold are good.
            yield from ((stream, None) for stream in streams)
            return
        yield packet.stream, packet


def decode_packet(stream: Any, packet: Any) -> list[Any]:
    """Return the frames of a packet, none if it is damaged; of None, those that the decoder still holds."""
    return try_packet(stream, packet) or []


def try_packet(stream: Any, packet: Any) -> list[Any] | None:
    """Do as [`decode_packet`], but return None if the packet is damaged."""
    try:
        return stream.decode(packet)
    except (av.FFmpegError, ValueError) as error:  # the second in PyAV 19, once its decoder could not be opened
        if isinstance(error, MemoryError):
            raise
        if is_short(8 * getattr(stream, "width", 0) * getattr(stream, "height", 0)):
            raise MemoryError(f"packet of stream {stream.index}") from error
        logger.debug(f"packet of stream {stream.index} skipped: {error}")
        return None


def upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """
    Rotate and mirror an image (h, w, 3) by the frame's display matrix, to the nearest right angle. The matrix maps
    the stored pixel (p, q) to (a * p + c * q, b * p + d * q), x to the right and y down.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5]
    if abs(int(b)) > abs(int(a)):
        image, flip_x, flip_y = image.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
