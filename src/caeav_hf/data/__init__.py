"""Data sets: builders that write Parquet, the torch data set and collator that read it, and the toy corpus."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .ave import AveBuilder
    from .avsbench import AvsBenchBuilder
    from .builder import BuildReport, ClipBuilder
    from .collator import CaeAvCollator
    from .datasets import CaeAvDataset
    from .llp import LlpBuilder
    from .music_avqa import MusicAvqaBuilder
    from .prepare import prepare_clips
    from .stream import CaeAvStream


__all__ = [
    "AveBuilder",
    "AvsBenchBuilder",
    "BuildReport",
    "CaeAvCollator",
    "CaeAvDataset",
    "CaeAvStream",
    "ClipBuilder",
    "LlpBuilder",
    "MusicAvqaBuilder",
    "prepare_clips",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".ave": ("AveBuilder",),
        ".avsbench": ("AvsBenchBuilder",),
        ".builder": ("BuildReport", "ClipBuilder"),
        ".collator": ("CaeAvCollator",),
        ".datasets": ("CaeAvDataset",),
        ".llp": ("LlpBuilder",),
        ".music_avqa": ("MusicAvqaBuilder",),
        ".prepare": ("prepare_clips",),
        ".stream": ("CaeAvStream",),
    },
)
