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

_DIGITAL = (40.0, 30.0, 20.0, 10.0, 0.0)
_AMBIENT = (20.0, 15.0, 10.0, 5.0, 0.0)

_ALL = (
    Kind("delay", "Delayed sound", MISALIGNMENT, (0.2, 0.5, 1.0, 2.0, 5.0), "seconds", ("audio",)),
    Kind("swap_other_class", "Sound of another class", MISALIGNMENT, _SHARES, _OF_SEGMENTS, ("audio",)),
    Kind("swap_same_class", "Other sound of the class", MISALIGNMENT, _SHARES, _OF_SEGMENTS, ("audio",)),
    Kind("off_screen", "Off-screen sound", MISALIGNMENT, (20.0, 10.0, 5.0, 0.0, -5.0), _SNR, ("audio",)),
    Kind("mute", "Silence", MISALIGNMENT, _SHARES, _OF_SEGMENTS, ("audio",)),
    Kind("cut", "Picture of another moment", MISALIGNMENT, _SHARES, _OF_SEGMENTS, ("visual",)),
    Kind("audio_noise", "Noise", MISALIGNMENT, (20.0, 10.0, 5.0, 0.0, -5.0), _SNR, ("audio",)),
    Kind("blur", "Blur", MISALIGNMENT, (1.0, 2.0, 3.0, 4.0, 6.0), "pixels of a side of 224", ("visual",)),
    Kind("occlusion", "Occlusion", MISALIGNMENT, (0.1, 0.2, 0.3, 0.4, 0.5), "share of the picture", ("visual",)),
    Kind("low_light", "Low light", MISALIGNMENT, (1.0, 2.0, 3.0, 4.0, 5.0), "stops of exposure", ("visual",)),
    Kind("caption_foreign", "Captions of another clip", MISALIGNMENT, _SHARES, _OF_CLIPS, ("caption",)),
    Kind("caption_empty", "No captions", MISALIGNMENT, _SHARES, _OF_CLIPS, ("caption",)),
    Kind("caption_contradictory", "Contradictory captions", MISALIGNMENT, _SHARES, _OF_CLIPS, ("caption",)),
    *(
        Kind(name, title, CORRELATED, levels, unit, ("audio", "visual"))
        for name, title, levels, unit in (
            ("gaussian", "Gaussian noise", _DIGITAL, _SNR),
            ("impulse", "Impulse noise", _DIGITAL, _SNR),
            ("shot", "Shot noise", _DIGITAL, _SNR),
            ("speckle", "Speckle noise", _DIGITAL, _SNR),
            ("compression", "Compression", (8000.0, 6000.0, 4000.0, 2000.0, 1000.0), "cut-off frequency in Hz"),
            ("snow", "Snow", _AMBIENT, _SNR),
            ("frost", "Frost", _AMBIENT, _SNR),
            ("spatter", "Spatter", _AMBIENT, _SNR),
            ("wind", "Wind", _AMBIENT, _SNR),
            ("rain", "Rain", _AMBIENT, _SNR),
            ("underwater", "Underwater", _AMBIENT, _SNR),
            ("concert", "Concert", _AMBIENT, _SNR),
            ("smoke", "Smoke", _AMBIENT, _SNR),
            ("crowd", "Crowd", _AMBIENT, _SNR),
            ("interference", "Interference", (0.1, 0.2, 0.3, 0.4, 0.5), "share of the sound that is silent"),
        )
    ),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ALL})
"""All kinds by name."""
