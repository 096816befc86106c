"""Class names of the public data sets, in the order their published labels use."""

from .tasks.event_localization.labels import AVE_CATEGORIES
from .tasks.question_answering.labels import MUSIC_AVQA_ANSWERS, MUSIC_AVQA_QUESTION_WORDS
from .tasks.video_parsing.labels import LLP_CATEGORIES


__all__ = ["AVE_CATEGORIES", "LLP_CATEGORIES", "MUSIC_AVQA_ANSWERS", "MUSIC_AVQA_QUESTION_WORDS"]
