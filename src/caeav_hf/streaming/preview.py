"""Small versions of long videos, to draw: read once more, in little memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..media.bounds import check_result
from ..media.clip import Clip
from ..media.limits import DecodingLimits
from ..media.segment_stream import Segment, read_segments


# Height of the frames in pixels, and pairs of the lowest and the highest sample per segment.
_HEIGHT, _PEAKS = 80, 20


def preview(source: Any, processor: Any) -> Clip:
    """
    Read a long video as a clip of small frames, with the peaks of its sound instead of the sound. Segments in a gap
    are black and silent.

    Args:
        source: A file, see [`~media.segment_stream.read_segments`].
        processor: The model's processor.

    Raises:
        MediaError: The source cannot be read.
    """
    frames: list[np.ndarray] = []
    times: list[float] = []
    peaks: list[np.ndarray] = []
    has_audio, seconds, limits = False, processor.segment_seconds, DecodingLimits.from_environment()
    for item in read_segments(source, segment_seconds=seconds, sampling_rate=processor.sampling_rate):
        if not isinstance(item, Segment):
            continue
        height, width = item.image.shape[:2]
        small = Image.fromarray(item.image).resize((max(1, round(width * _HEIGHT / height)), _HEIGHT))
        check_result(item.index * small.width * small.height * 3, str(source), limits)
        while frames and len(frames) < item.index:
            frames.append(np.zeros_like(frames[-1]))
            times.append(len(times) * seconds)
            peaks.append(np.zeros_like(peaks[-1]))
        frames.append(np.asarray(small))
        times.append(item.time)
        parts = np.array_split(item.sound, _PEAKS)
        peaks.append(np.array([value for part in parts for value in (part.min(initial=0), part.max(initial=0))]))
        has_audio = item.has_audio
    return Clip(
        frames=np.stack(frames),
        waveform=np.concatenate(peaks).astype(np.float32),
        frame_times=np.array(times),
        duration=len(frames) * seconds,
        frame_rate=0.0,
        size=frames[0].shape[:2],
        name=str(source),
        sampling_rate=round(2 * _PEAKS / seconds),
        has_audio=has_audio,
    )


def segments_at(source: Any, processor: Any, starts: Sequence[float]) -> Clip:
    """
    Read single segments of a video as a clip of their frames, without sound.

    Args:
        source: A file.
        processor: The model's processor.
        starts: Seconds at which the segments begin.

    Raises:
        MediaError: The source cannot be read.
    """
    clips = [processor.load_clip(source, num_segments=1, start=start, with_audio=False) for start in starts]
    return Clip(
        frames=np.concatenate([clip.frames for clip in clips]),
        waveform=np.zeros(0, np.float32),
        frame_times=np.concatenate([start + clip.frame_times for start, clip in zip(starts, clips, strict=True)]),
        duration=len(clips) * processor.segment_seconds,
        frame_rate=0.0,
        size=clips[0].size,
        name=clips[0].name,
        sampling_rate=processor.sampling_rate,
        has_audio=False,
    )
