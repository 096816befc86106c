"""Data sets: builders that write Parquet, and the PyTorch data set and collator that read it."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from ..tasks.event_localization.builder import AveBuilder
    from ..tasks.question_answering.builder import MusicAvqaBuilder
    from ..tasks.segmentation.builder import AvsBenchBuilder
    from ..tasks.sound_source_understanding.builder import RaSsuBuilder
    from ..tasks.video_parsing.builder import LlpBuilder
    from .builder import BuildReport, ClipBuilder
    from .collator import CaeAvCollator
    from .datasets import CaeAvDataset
    from .prepare import prepare_clips


__all__ = [
    "AveBuilder",
    "AvsBenchBuilder",
    "BuildReport",
    "CaeAvCollator",
    "CaeAvDataset",
    "ClipBuilder",
    "LlpBuilder",
    "MusicAvqaBuilder",
    "RaSsuBuilder",
    "prepare_clips",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "..tasks.event_localization.builder": ("AveBuilder",),
        "..tasks.segmentation.builder": ("AvsBenchBuilder",),
        "..tasks.sound_source_understanding.builder": ("RaSsuBuilder",),
        ".builder": ("BuildReport", "ClipBuilder"),
        ".collator": ("CaeAvCollator",),
        ".datasets": ("CaeAvDataset",),
        "..tasks.video_parsing.builder": ("LlpBuilder",),
        "..tasks.question_answering.builder": ("MusicAvqaBuilder",),
        ".prepare": ("prepare_clips",),
    },
)
