"""Labels of video parsing in misaligned clips."""

from collections.abc import Sequence
from typing import Any

from ...data.misalign.change import Change, LabelCorrection, Row
from ...data.schema import LLP_NUM_SEGMENTS


class ParsingCorrection(LabelCorrection):
    """
    What is heard and what is seen move separately. A class is heard in a segment if its sound fills at least half of
    it, and seen if the picture shows it; the clip's classes are those that are heard or seen. Of clips without labels
    of segments nothing more is known, and they keep their classes.
    """

    num_segments = LLP_NUM_SEGMENTS

    def name(self, row: Row) -> str:
        return row["filename"]  # clips may be parts of one video

    def segments(self, row: Row) -> int:
        given = row["audio_segment_labels"] or row["visual_segment_labels"]
        return len(given) if given else self.num_segments

    def classes(self, row: Row) -> frozenset[Any]:
        return frozenset(row["event_labels"])

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        heard, seen = row["audio_segment_labels"], row["visual_segment_labels"]
        if heard is not None:
            heard = columns["audio_segment_labels"] = _heard(heard, change)
        if seen is not None:
            seen = columns["visual_segment_labels"] = _shown(seen, change)
        if heard is not None and seen is not None:
            columns["event_labels"] = sorted({label for labels in (*heard, *seen) for label in labels})
        if row["visual_3d"] is not None:  # features of the picture
            columns["visual_3d"] = _shown(row["visual_3d"], change)
        return columns


def _heard(heard: Sequence[Sequence[int]], change: Change) -> list[list[int]] | None:
    """Return the classes that are heard in each segment; `None` if those of the foreign sound are unknown."""
    foreign = None
    if change.donor is not None and any(change.foreign):
        foreign = change.donor["audio_segment_labels"]
        if foreign is None:
            return None
    classes = {label for labels in heard for label in labels}
    corrected = []
    for segment in range(len(heard)):
        labels = {label for label in classes if change.is_heard(segment, [label in other for other in heard])}
        if foreign is not None and change.foreign[segment] and segment < len(foreign):
            labels.update(foreign[segment])
        corrected.append(sorted(labels))
    return corrected


def _shown(values: Sequence[Any], change: Change) -> list[Any]:
    """Return the values of the segments whose pictures are shown."""
    moved = [values[shown] for shown in change.picture if shown < len(values)]
    return [*moved, *values[len(moved) :]]
