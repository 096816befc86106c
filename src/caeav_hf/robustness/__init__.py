"""
How much models lose when sound and picture disagree: scores on graded test sets, with intervals and comparisons.

`scoring` runs the models, `records` stores what the metric returns for each clip, `statistics` defines the measures,
and `report` summarizes them.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .measure import measure_robustness, write_report
    from .scoring import ScoringOptions, score_models


__all__ = ["ScoringOptions", "measure_robustness", "score_models", "write_report"]

__getattr__, __dir__ = lazy_names(
    __name__, {".measure": ("measure_robustness", "write_report"), ".scoring": ("ScoringOptions", "score_models")}
)
