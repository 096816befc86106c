"""
Pictures of what a model found in a clip and of how a training run went.

Everything is drawn on figures of its own, never through pyplot, so that calls from threads, servers and notebooks do
not meet in a global state, and no display is needed.
"""

from .answers import heated, plot_answers
from .contact_sheet import MAX_COLUMNS, plot_masks, tinted
from .curves import plot_curves
from .drawing import COLOURS
from .timeline import plot_event_timeline, plot_parsing_timeline


__all__ = [
    "COLOURS",
    "MAX_COLUMNS",
    "heated",
    "plot_answers",
    "plot_curves",
    "plot_event_timeline",
    "plot_masks",
    "plot_parsing_timeline",
    "tinted",
]
