"""Masks and descriptions of misaligned clips."""

from typing import Any

from ...data.misalign.change import HEARD_SHARE, Change, Row
from ..segmentation.misalignment import MaskCorrection


class UnderstandingCorrection(MaskCorrection):
    """
    Masks follow as those of clips with several sources do in segmentation, since a row's category need not name all of
    them.

    A segment in which no sound of the clip itself fills half of it is described as silent, by an empty text, or not at
    all where a foreign sound is heard. Otherwise the description of its picture holds if the sound is that of the same
    moment, or of another one with the same description; else it is null, which losses and scores leave out. It names
    what is seen and heard, so a sound from off the screen changes nothing.
    """

    def source(self, row: Row) -> Any | None:
        return None

    def segments(self, row: Row) -> int:
        return len(row["descriptions"] or ()) or self.num_segments

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        values = super().corrected(row, change)
        given = list(row["descriptions"] or ())
        described = [self._description(given, change, segment) for segment in range(len(given))]
        return values if described == given else {**values, "descriptions": described}

    def _description(self, given: list[str | None], change: Change, segment: int) -> str | None:
        """Return the description of a segment, or `None` if it is unknown; `given` are those of the original clip."""
        if segment >= len(change.picture):
            return given[segment]
        if not change.is_heard(segment, [True] * len(change.picture)):
            return None if any(change.foreign[segment : segment + 1]) else ""
        picture = change.picture[segment]
        shown = given[picture]
        heard = {source for source, share in change.sound[segment].items() if share >= HEARD_SHARE}
        if heard <= {picture}:
            return shown
        # Two silent moments say nothing of each other: what is heard in one may be in the picture of the other.
        return shown if shown and all(given[source] == shown for source in heard) else None
