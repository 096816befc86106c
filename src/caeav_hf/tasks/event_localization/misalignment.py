"""Labels of event localization in misaligned clips."""

from typing import Any

from ...data.misalign.change import Change, LabelCorrection, Row


class EventCorrection(LabelCorrection):
    """
    A segment keeps the label of its picture if that event is also heard in at least half of it; else it becomes
    background. Nothing is known about what is seen or heard outside the events, so no event can arise there.
    """

    def segments(self, row: Row) -> int:
        return len(row["segment_labels"])

    def classes(self, row: Row) -> frozenset[Any]:
        return frozenset([row["label"]])

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        labels, background = row["segment_labels"], self.features["label"].num_classes
        donor = None if change.donor is None else change.donor["segment_labels"]
        corrected = []
        for segment, shown in enumerate(change.picture):
            label = labels[shown]
            is_event = [other == label for other in labels]
            is_heard = change.is_heard(segment, is_event)
            if donor is not None and change.foreign[segment] and segment < len(donor):
                is_heard |= donor[segment] == label
            corrected.append(label if label != background and is_heard else background)
        return {"segment_labels": corrected}
