"""Rows of sound source understanding."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...data.rows import ColumnType, Row
from ..segmentation.rows import SegmentationRows


class UnderstandingRows(SegmentationRows):
    """
    Rows of segmentation with `descriptions`: one text per segment, empty where nothing sounds, null where it is not
    annotated.
    """

    columns = (*SegmentationRows.columns, "descriptions")
    types: ClassVar[Mapping[str, ColumnType]] = {**SegmentationRows.types, "descriptions": [str]}

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        texts = list(row["descriptions"] or ())[: len(frame_mask)]
        texts += [None] * (len(frame_mask) - len(texts))
        known = [text if is_real else None for text, is_real in zip(texts, frame_mask.tolist(), strict=True)]
        ids = self.processor.tokenize_descriptions([known])["description_ids"][0]
        return {**super().targets(row, frame_mask), "description_ids": ids}
