"""Input of a captioning model: a few frames of a clip in temporal order, and its whole sound."""

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image

from ..data.images import read_frame
from ..errors import MediaError
from ..media.clip import Clip, load_clip, probe
from ..media.sound import load_audio
from .settings import CaptionSettings


_JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class ClipMaterial:
    """
    Frames and sound of a clip to caption.

    Args:
        name: Name of the clip in messages.
        frames: Each (H, W, 3) uint8 RGB, in temporal order.
        waveform: (samples,) float32 in [-1, 1], mono.
        sampling_rate: Samples per second of the waveform.
    """

    name: str
    frames: tuple[np.ndarray, ...]
    waveform: np.ndarray
    sampling_rate: int

    @classmethod
    def from_file(
        cls, source: Any, settings: CaptionSettings, start: float = 0.0, end: float | None = None
    ) -> "ClipMaterial":
        """
        Decode a media file, or the part from `start` to `end` (seconds) of it, but at most `settings.max_seconds`: up
        to `settings.max_frames` frames, from the middles of equal parts and at most one per second, and all of its
        sound.

        Raises:
            MediaError: The file cannot be decoded.
        """
        duration, seconds = probe(source).duration, settings.max_seconds
        if end is not None:
            seconds = min(seconds, end - start)
        if duration is not None and duration > start:
            seconds = min(seconds, duration - start)
        count = max(1, min(settings.max_frames, round(seconds)))
        clip = load_clip(
            source,
            num_segments=count,
            segment_seconds=seconds / count,
            sampling_rate=settings.sampling_rate,
            start=start,
            end=start + seconds,
            num_threads=1,
        )
        return cls.from_clip(clip, settings)

    @classmethod
    def from_clip(cls, clip: Clip, settings: CaptionSettings) -> "ClipMaterial":
        """
        Take evenly spaced frames and the sound of a decoded clip.

        Raises:
            MediaError: The clip has no frames or no sound.
        """
        return cls._of(clip.name, list(clip.frames), clip.waveform, clip.sampling_rate, settings)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], settings: CaptionSettings) -> "ClipMaterial":
        """
        Decode a row of a prepared data set: its `media`, or its `frames` and `audio`.

        Raises:
            MediaError: A column is missing or cannot be decoded.
        """
        if row.get("media") is not None:
            # The schema imports `datasets`, which takes a second; pipelines, which caption files, do not need it.
            from ..data.schema import media_part

            start, end = media_part(row)
            return cls.from_file(row["media"], settings, start, end)
        name = row["video_id"]
        if not row.get("frames") or row.get("audio") is None:
            raise MediaError(f"{name}: has no `media`; expected `frames` and `audio` instead")
        frames = [read_frame(frame) for frame in row["frames"]]
        sound = load_audio(row["audio"], sampling_rate=settings.sampling_rate, end=settings.max_seconds)
        return cls._of(name, frames, sound, settings.sampling_rate, settings)

    @classmethod
    def _of(
        cls, name: str, frames: Sequence[np.ndarray], waveform: np.ndarray, rate: int, settings: CaptionSettings
    ) -> "ClipMaterial":
        if not len(frames) or not waveform.size:
            raise MediaError(f"{name}: {len(frames)} frames and {waveform.size} samples; expected some of both")
        count = min(len(frames), settings.max_frames)
        # The middles of equal parts, as in `load_clip`.
        chosen = [frames[(2 * part + 1) * len(frames) // (2 * count)] for part in range(count)]
        sound = resample(waveform[: round(settings.max_seconds * rate)], rate, settings.sampling_rate)
        small = tuple(shrink(frame, settings.frame_size) for frame in chosen)
        return cls(name, small, sound, settings.sampling_rate)


def material_of(source: Any, settings: CaptionSettings) -> ClipMaterial:
    """Return the material of a media file or of a decoded [`~processing.Clip`]."""
    if isinstance(source, ClipMaterial):
        return source
    if isinstance(source, Clip):
        return ClipMaterial.from_clip(source, settings)
    return ClipMaterial.from_file(source, settings)


def shrink(frame: np.ndarray, side: int) -> np.ndarray:
    """Shrink a frame until its longer side has at most `side` pixels; smaller frames are kept."""
    height, width = frame.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return np.ascontiguousarray(frame)
    size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC))


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resample a mono waveform (samples,) to another rate, as float32."""
    if rate == target:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None], dtype=np.float32), "flt", "mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target)
    parts = [piece.to_ndarray()[0] for given in (frame, None) for piece in resampler.resample(given)]
    return np.concatenate(parts)


def jpeg_bytes(frame: np.ndarray) -> bytes:
    """Encode a frame (H, W, 3) uint8 as JPEG."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def wav_bytes(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Encode a mono waveform as WAV with 16-bit samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sampling_rate)
        out.writeframes((np.clip(waveform, -1, 1) * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def to_base64(content: bytes) -> str:
    """Encode bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


def data_url(content: bytes, kind: str) -> str:
    """Encode bytes as a `data:` URL of a media type."""
    return f"data:{kind};base64,{to_base64(content)}"
