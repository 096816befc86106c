"""
Graded test sets in which sound and picture disagree, or are corrupted together, from any built data set.

`kinds` lists what can be done to a clip, at five levels each. `plan` decides how a kind changes each clip of a data
set and corrects the labels (`change`) without decoding anything; the rows record it in their column `misalignment`.
`apply` changes decoded frames and sound, with `pictures` and `sounds`. `folder` writes such data sets.
"""

from typing import TYPE_CHECKING

from ...lazy import lazy_names


if TYPE_CHECKING:
    from .folder import MisalignedFolder, write_misaligned
    from .kinds import KINDS, LEVELS, Kind
    from .plan import misalign


__all__ = ["KINDS", "LEVELS", "Kind", "MisalignedFolder", "misalign", "write_misaligned"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".folder": ("MisalignedFolder", "write_misaligned"),
        ".kinds": ("KINDS", "LEVELS", "Kind"),
        ".plan": ("misalign",),
    },
)
