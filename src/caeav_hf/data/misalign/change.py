"""What a misalignment does to the segments of a clip, and how labels follow."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


Row = Mapping[str, Any]

# Columns of a row's clip.
MEDIA_COLUMNS = ("media", "frames", "audio")

# Share of a segment that a sound has to fill to be heard in it: half, up to rounding.
HEARD_SHARE = 0.5 - 1e-9


@dataclass(frozen=True)
class Change:
    """
    What each segment of a changed clip shows and sounds, in segments of the original clip.

    Args:
        kind: Name of the kind.
        picture: (T,) segment whose picture is shown.
        sound: (T,) segments whose sound is heard, each with the share of the segment that it fills. The shares add up
            to less than 1 where silence or a foreign sound takes their place.
        foreign: (T,) whether the same segment of `donor` is heard, alone or in addition.
        donor: Row of the clip that the foreign sound is from.
        rotation: (T,) degrees by which the picture is turned counterclockwise.
    """

    kind: str
    picture: tuple[int, ...]
    sound: tuple[Mapping[int, float], ...]
    foreign: tuple[bool, ...] = ()
    donor: Row | None = None
    rotation: tuple[float, ...] = ()

    @property
    def moves_sound(self) -> bool:
        """Whether some segment sounds otherwise than in the original clip, noise not counted."""
        return any(self.foreign) or any(dict(s) != {t: 1.0} for t, s in enumerate(self.sound))

    @property
    def moves_picture(self) -> bool:
        """Whether some segment shows the picture of another one."""
        return self.picture != tuple(range(len(self.picture)))

    def heard_share(self, segment: int, originals: Sequence[bool]) -> float:
        """Return the share of a segment that is filled by the sound of those original segments that are true."""
        return sum(
            share for source, share in self.sound[segment].items() if source < len(originals) and originals[source]
        )

    def is_heard(self, segment: int, originals: Sequence[bool]) -> bool:
        """Return whether sound of those original segments that are true fills at least half of a segment."""
        return self.heard_share(segment, originals) >= HEARD_SHARE


class LabelCorrection:
    """
    How a task's rows follow a [`Change`]. This class keeps all labels; tasks whose labels depend on what is seen or
    heard override `corrected`.

    Args:
        features: Columns of the rows and their types.
    """

    # Number of segments of a clip.
    num_segments: ClassVar[int] = 10

    def __init__(self, features: Mapping[str, Any]) -> None:
        self.features = features

    def name(self, row: Row) -> str:
        """Return the name of the row's clip. Rows about the same clip have the same name and are changed alike."""
        return row["video_id"]

    def segments(self, row: Row) -> int:
        """Return the number of the clip's segments."""
        return self.num_segments

    def classes(self, row: Row) -> frozenset[Any] | None:
        """Return the classes that are seen or heard in the clip, or `None` if the row does not say."""
        return None

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        """Return the columns whose values change. What can no longer be known is given as an ignored label."""
        return {}


def generator(seed: int, kind: str, level: int, clip: str, purpose: str) -> np.random.Generator:
    """Return the random generator of a clip, which is the same in every process and for every order of rows."""
    digest = hashlib.sha256(json.dumps([seed, kind, level, clip, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
