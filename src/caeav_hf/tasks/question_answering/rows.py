"""Rows of question answering."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...constants import IGNORED_LABEL
from ...data.rows import ColumnType, Row, RowForm


class QuestionRows(RowForm):
    """A video file, a question about it, and the index of its answer."""

    columns = ("video_id", "media", "question", "answer_label")
    types: ClassVar[Mapping[str, ColumnType]] = {"question": str, "question_id": int, "answer_label": int}

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        label = row["answer_label"]
        question = self.processor.tokenize_questions([row["question"]])
        return {
            "labels": torch.tensor(IGNORED_LABEL if label is None else label),
            **{name: question[name][0] for name in ("question_ids", "question_mask")},
        }
