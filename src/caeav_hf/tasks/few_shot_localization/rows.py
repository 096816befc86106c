"""Rows of few-shot learning: those of event localization and of video parsing, with classes of frames or of clips."""

import torch

from ...data.rows import Row, RowForm


class EventClassRows(RowForm):
    """A video file of AVE, and the class of its event."""

    columns = ("video_id", "media", "label")

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor(row["label"])}


class ParsingClassRows(RowForm):
    """A video file of LLP, and the first of its classes in their order, which the authors test on."""

    columns = ("video_id", "media", "event_labels")

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor(min(row["event_labels"]))}
