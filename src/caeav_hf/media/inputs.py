"""
Convert clips and sounds given as objects: arrays, images, and the torchcodec decoders that `datasets` makes of rows.

Frames carry no times: each is the one on show at the middle of its segment, so frame t belongs to the seconds from
`t * segment_seconds` on. Callers thin out frames of another rate first (`frames[12::25]` at 25 frames per second).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from ..errors import CaeAvError
from .clip import Clip
from .containers import source_name
from .remote import is_address
from .segments import FrameSampling, sample_times


# Maximum channels of a sound; a longer axis is that of its samples.
_MOST_CHANNELS = 8
# Distance by which floats may exceed [0, 1], as after resizing.
_FLOAT_SLACK = 1e-3


def is_frames(value: Any) -> bool:
    """Return whether a value is one clip's frames: an array, or a list of images or of arrays (H, W, 3)."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Image.Image) or _is_array(item, 3) for item in value)
    return isinstance(value, np.ndarray | torch.Tensor)


def as_frames(frames: Any, name: str) -> np.ndarray:
    """
    Convert frames to the form of [`~media.clip.Clip`].

    Args:
        frames: (T, H, W, 3) or (T, 3, H, W), array or tensor, uint8 or floats in [0, 1], which are rounded to the 256
            levels of a video; or a list of PIL images, or of such arrays without T, of one size.
        name: Name of the clip in error messages.

    Returns:
        (T, H, W, 3) uint8.

    Raises:
        CaeAvError: The frames have another shape, type or range, or a shape that fits both layouts.
    """
    if isinstance(frames, list | tuple):
        images = [
            np.asarray(frame.convert("RGB")) if isinstance(frame, Image.Image) else _as_numpy(frame)
            for frame in frames
        ]
        if len(shapes := {image.shape for image in images}) > 1:
            raise CaeAvError(f"{name}: its frames are of the shapes {sorted(shapes)}; expected one size")
        array = np.stack(images)
    else:
        array = _as_numpy(frames)
    expected = "expected (T, H, W, 3) or (T, 3, H, W)"
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]) or not array.size:
        raise CaeAvError(f"{name} has frames of shape {array.shape}; {expected}")
    if array.shape[1] == array.shape[3] == 3:
        raise CaeAvError(f"{name} has frames of shape {array.shape}, which fits both layouts; {expected}, not both")
    if array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise CaeAvError(f"{name} has frames of {array.dtype}; expected uint8, or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):  # also where there are NaN
        raise CaeAvError(f"{name} has frames of floats from {low:g} to {high:g}; expected floats in [0, 1], or uint8")
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def as_waveform(sound: Any, name: str, *, sampling_rate: int | None, wanted: int) -> np.ndarray:
    """
    Convert a sound to a mono waveform at rate `wanted`. Channels are averaged; other rates are resampled by FFmpeg.

    Args:
        sound: (samples,), (channels, samples) or (samples, channels), up to 8 channels, array or tensor: floats in
            [-1, 1], int16 or int32.
        name: Name of the sound in error messages.
        sampling_rate: Samples per second of `sound`. There is no default, since a wrong guess would change the pitch.
        wanted: Samples per second of the result.

    Returns:
        (samples,) float32.

    Raises:
        CaeAvError: The sound has another shape or type, is not finite, or its rate is missing.
    """
    array = _as_numpy(sound)
    if sampling_rate is None:
        raise CaeAvError(f"no `sampling_rate` was given for {name}; expected the samples a second of the waveform")
    if isinstance(sampling_rate, bool) or int(sampling_rate) != sampling_rate or sampling_rate < 1:
        raise CaeAvError(f"`sampling_rate` must be a positive whole number, got {sampling_rate!r}")
    expected = "expected (samples,), or (channels, samples) or (samples, channels) with up to 8 channels"
    if array.ndim not in (1, 2) or not array.size:
        raise CaeAvError(f"{name} has shape {array.shape}; {expected}, several sounds as a list")
    if array.dtype in (np.int16, np.int32):
        array = array.astype(np.float64) / 2.0 ** (8 * array.dtype.itemsize - 1)
    elif not np.issubdtype(array.dtype, np.floating):
        raise CaeAvError(f"{name} holds {array.dtype}; expected floats in [-1, 1], int16 or int32")
    if array.ndim == 2:
        few = [axis for axis in (0, 1) if array.shape[axis] <= _MOST_CHANNELS]
        if len(few) != 1:
            raise CaeAvError(f"{name} has shape {array.shape}, of which no axis is clearly its channels; {expected}")
        array = array.mean(axis=few[0], dtype=np.float64)
    array = array.astype(np.float32, copy=False)
    if sampling_rate == wanted:
        return array
    if not np.isfinite(array).all():
        raise CaeAvError(f"{name} holds values that are not finite; expected floats in [-1, 1]")
    return _resample(array, int(sampling_rate), wanted)


def is_video_decoder(value: Any) -> bool:
    """Return whether a value decodes video like torchcodec's `VideoDecoder`."""
    return hasattr(value, "get_frames_played_at")


def is_audio_decoder(value: Any) -> bool:
    """Return whether a value decodes sound like torchcodec's `AudioDecoder`."""
    return hasattr(value, "get_all_samples")


def undecoded(value: Any) -> Any:
    """
    Return the stored file behind a decoder of a `datasets` row, so that it is decoded like any other file; the value
    itself if that file is unknown or the value is no decoder.
    """
    stored = getattr(value, "_hf_encoded", None) if is_video_decoder(value) or is_audio_decoder(value) else None
    if not isinstance(stored, Mapping):
        return value
    path = stored.get("path")
    readable = isinstance(path, str) and "::" not in path and (is_address(path) or os.path.isfile(path))
    return dict(stored) if stored.get("bytes") is not None or readable else value


def decoder_name(decoder: Any) -> str | None:
    """Return the path of a decoder's file if `datasets` recorded it, else None."""
    path = getattr(getattr(decoder, "metadata", None), "path", None)
    return path if isinstance(path, str) else None


def clip_of_decoder(
    decoder: Any,
    *,
    num_segments: int | None,
    sampling_rate: int,
    segment_seconds: float,
    frame_sampling: FrameSampling,
    name: str,
) -> Clip:
    """
    Read the segments of a clip from torchcodec's `VideoDecoder`, or an object with its `metadata` and
    `get_frames_played_at`. The clip has no sound: its waveform is empty.

    Args:
        num_segments: Maximum number of segments; None for all.
    """
    metadata = decoder.metadata
    begin, end = float(metadata.begin_stream_seconds or 0.0), float(metadata.end_stream_seconds)
    times = sample_times(end - begin, num_segments, segment_seconds, frame_sampling)
    batch = decoder.get_frames_played_at(seconds=[begin + time for time in times])
    frames = as_frames(batch.data, name)
    return Clip(
        frames=frames,
        waveform=np.zeros(0, np.float32),
        frame_times=np.asarray(batch.pts_seconds, dtype=np.float64) - begin,
        duration=end - begin,
        frame_rate=float(getattr(metadata, "average_fps", None) or 0.0),
        size=(frames.shape[1], frames.shape[2]),
        name=name,
        sampling_rate=sampling_rate,
        has_audio=False,
    )


def sound_name(sound: Any, default: str) -> str:
    """Return the name of a sound in error messages."""
    if is_audio_decoder(sound):
        return decoder_name(sound) or default
    return default if isinstance(sound, np.ndarray | torch.Tensor | Mapping) else source_name(sound)


def _resample(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform)[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=wanted)
    pieces = [piece.to_ndarray()[0] for given in (frame, None) for piece in resampler.resample(given)]
    resampled = np.zeros(max(1, round(len(waveform) * wanted / rate)), np.float32)
    sound = np.concatenate(pieces)[: len(resampled)] if pieces else resampled
    resampled[: len(sound)] = sound
    return resampled


def _is_array(value: Any, ndim: int) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim == ndim


def _as_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = np.asarray(value)
    return value
