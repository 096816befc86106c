"""
Limits of decoding, which hold whatever a file claims or holds.

Each is an environment variable, `CAEAV_DECODING_` and the name of the field in capitals: `CAEAV_DECODING_MEMORY_MB`.
"""

import os
from dataclasses import dataclass, fields

from ..errors import CaeAvError


_PREFIX = "CAEAV_DECODING_"


@dataclass(frozen=True)
class DecodingLimits:
    """
    Limits of decoding one file.

    Attributes:
        memory_mb: Megabytes of memory beyond the result. They limit the size of frames: a decoder holds several.
        seconds: Seconds beyond those that the result needs.
        result_mb: Megabytes of the frames and the sound of one clip.
        frame_megapixels: Megapixels of a returned frame; a larger one is scaled down as it is decoded. The default
            keeps 4K (4096 x 2160).
        megapixel_rate: Megapixels per second of a video, on average. The default is 8K (7680 x 4320) at 60 frames.
        frame_rate: Frames per second of a video, on average.
        packet_rate: Packets per second of a stream of sound, on average.
        sampling_rate: Samples per second of a stream of sound.
        channels: Channels of a stream of sound.
        streams: Streams of a file.
        duration: Seconds of a file, by its timestamps.
    """

    memory_mb: float = 1500
    seconds: float = 10
    result_mb: float = 4096
    frame_megapixels: float = 9
    megapixel_rate: float = 2000
    frame_rate: float = 2000
    packet_rate: float = 20_000
    sampling_rate: float = 1_000_000
    channels: float = 64
    streams: float = 100
    duration: float = 360_000

    @classmethod
    def from_environment(cls) -> "DecodingLimits":
        """
        Return the limits that the environment sets.

        Raises:
            CaeAvError: A variable is not a positive number.
        """
        defaults = cls()
        names = [field.name for field in fields(cls)]
        return cls(**{name: positive_setting(variable(name), getattr(defaults, name)) for name in names})


def variable(name: str) -> str:
    """Return the environment variable of a field of [`DecodingLimits`]."""
    return _PREFIX + name.upper()


def positive_setting(name: str, default: float) -> float:
    """
    Return the value of an environment variable.

    Raises:
        CaeAvError: It is not a positive number.
    """
    text = os.environ.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise CaeAvError(f"the environment variable {name} is {text!r}; expected a positive number")
    return value
