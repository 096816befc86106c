"""Rows of few-shot learning: those of event localization and of video parsing, with classes of frames or of clips."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...data.rows import ColumnType, Row, RowForm


class EventClassRows(RowForm):
    """A video file of AVE, and the class of its event."""

    columns = ("video_id", "media", "label")
    types: ClassVar[Mapping[str, ColumnType]] = {"label": int}

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor(row["label"])}


class ParsingClassRows(RowForm):
    """A video file of LLP, and the first of its classes in their order, which the authors test on."""

    columns = ("video_id", "media", "event_labels")
    types: ClassVar[Mapping[str, ColumnType]] = {"event_labels": [int]}

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor(min(row["event_labels"]))}
