"""
The kinds of misalignment and corruption, and what their five levels mean; imports no library.

The first family takes sound and picture apart, or disturbs one of them. The second is that of AVRobustBench
(Maharana et al., NeurIPS 2025, arXiv 2506.00358): fifteen corruptions of sound and picture together, with the
severities of its program where these can be taken over (see `pictures` and `sounds`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


# Severities; level 0 changes nothing.
LEVELS = (1, 2, 3, 4, 5)

MISALIGNMENT = "misalignment"
CORRELATED = "correlated"


@dataclass(frozen=True)
class Kind:
    """
    What can be done to a clip.

    Args:
        name: Name in rows, folders and results.
        title: Title of figures.
        family: `"misalignment"` or `"correlated"`.
        levels: Its strength at levels 1 to 5.
        unit: What these numbers are.
        modalities: What it changes: `"audio"`, `"visual"` or `"caption"`.
    """

    name: str
    title: str
    family: str
    levels: tuple[float, float, float, float, float]
    unit: str
    modalities: tuple[str, ...]

    def strength(self, level: int) -> float:
        """Return its strength at a level from 1 to 5, in `unit`."""
        return self.levels[level - 1]


_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
_OF_SEGMENTS = "share of the clip's segments"
_OF_CLIPS = "share of the clips"
_SNR = "signal-to-noise ratio in dB"

_ALL = (
    Kind("delay", "Delayed sound", MISALIGNMENT, (0.2, 0.5, 1.0, 2.0, 5.0), "seconds", ("audio",)),
    Kind("mute", "Silence", MISALIGNMENT, _SHARES, _OF_SEGMENTS, ("audio",)),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ALL})
"""All kinds by name."""
