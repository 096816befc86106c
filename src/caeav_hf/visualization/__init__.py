"""
Draw what a model found in a clip, and the course of a training run.

Each picture is a separate figure, never drawn through pyplot, so calls from threads, servers and notebooks share no
global state and need no display.
"""

from .annotations import (
    Annotation,
    annotations_of,
    write_audacity,
    write_csv,
    write_eaf,
    write_srt,
    write_webvtt,
)
from .answers import heated, plot_answers
from .contact_sheet import MAX_COLUMNS, plot_masks, tinted
from .curves import plot_curves
from .drawing import COLOURS
from .labels import plot_labels
from .subtitles import write_subtitles
from .timeline import plot_description_timeline, plot_event_timeline, plot_parsing_timeline


__all__ = [
    "COLOURS",
    "MAX_COLUMNS",
    "Annotation",
    "annotations_of",
    "heated",
    "plot_answers",
    "plot_curves",
    "plot_description_timeline",
    "plot_event_timeline",
    "plot_labels",
    "plot_masks",
    "plot_parsing_timeline",
    "tinted",
    "write_audacity",
    "write_csv",
    "write_eaf",
    "write_srt",
    "write_subtitles",
    "write_webvtt",
]
