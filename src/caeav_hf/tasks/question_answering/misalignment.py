"""Answers about misaligned clips."""

from typing import Any

from ...data.misalign.change import Change, LabelCorrection, Row
from ...data.schema import MUSIC_AVQA_NUM_SEGMENTS


# What questions of each type ask about.
_MODALITIES = {"Audio": {"audio"}, "Visual": {"visual"}}


class AnswerCorrection(LabelCorrection):
    """
    Answers are known only to questions about what has not changed. Where sound has been moved, replaced, added or
    silenced these are questions about the picture, where pictures have been moved those about the sound; all other
    answers become unknown, and do not count.
    """

    num_segments = MUSIC_AVQA_NUM_SEGMENTS

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        asked = _MODALITIES.get(row["question_type"], {"audio", "visual"})
        changed = {
            name for name, has_moved in (("audio", change.moves_sound), ("visual", change.moves_picture)) if has_moved
        }
        return {"answer": None, "answer_label": None} if asked & changed else {}
