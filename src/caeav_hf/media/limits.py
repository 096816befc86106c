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
        frames_mb: Megabytes of the frames of one clip; larger frames are scaled down as they are decoded.
        streams: Streams of a file.
        duration: Seconds of a file, by its timestamps.
        packet_rate: Packets of one stream per second of it, on average.
    """

    memory_mb: float = 1500
    seconds: float = 10
    frames_mb: float = 256
    streams: float = 100
    duration: float = 360_000
    packet_rate: float = 10_000

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
