"""What pipelines find in the segments of a stream, before runs of segments become intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..processing.intervals import agreement_of_scores


class Found(NamedTuple):
    """
    Something that holds in a segment; consecutive segments with the same become one interval.

    Attributes:
        name: Key of the result's list of such intervals.
        entries: Entries of the interval besides its times and its score.
        score_name: Key of its score, the mean over its segments; `None` if it has none.
    """

    name: str
    entries: tuple[tuple[str, Any], ...]
    score_name: str | None = "score"


@dataclass(frozen=True)
class SegmentResults:
    """
    The results of consecutive segments.

    Attributes:
        values: Entries of the result with one item per segment.
        found: What holds in each segment, with its score.
        names: Names of all lists of intervals that the task has.
    """

    values: dict[str, Any]
    found: Sequence[dict[Found, float | None]]
    names: Sequence[str] = field(default=("intervals",))


def with_agreement(results: SegmentResults, scores: dict[str, Any]) -> SegmentResults:
    """Return results with the agreement of sound and picture and, if it is calibrated, with misaligned segments."""
    agreement, is_calibrated = agreement_of_scores(scores)
    if agreement is None:
        return SegmentResults({**results.values, "agreement": None, "misaligned": None}, results.found, results.names)
    values = {**results.values, "agreement": [float(value) for value in agreement]}
    if not is_calibrated:
        return SegmentResults({**values, "misaligned": None}, results.found, results.names)
    misaligned = Found("misaligned", (), "agreement")
    found = [
        {**holds, misaligned: value} if value < 0.5 else holds
        for holds, value in zip(results.found, values["agreement"], strict=True)
    ]
    return SegmentResults(values, found, (*results.names, "misaligned"))


def label_entries(label: str, label_id: int) -> tuple[tuple[str, Any], ...]:
    """Return the entries of an interval with a class."""
    return (("label", label), ("label_id", label_id))
