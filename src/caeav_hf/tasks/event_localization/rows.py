"""Rows of event localization."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...constants import IGNORED_LABEL
from ...data.rows import ColumnType, Row, RowForm
from ...errors import DataError


class EventRows(RowForm):
    """A video file, and a label for each segment."""

    columns = ("video_id", "media", "segment_labels")
    types: ClassVar[Mapping[str, ColumnType]] = {"label": int, "segment_labels": [int]}

    def __init__(
        self, processor: Any, mask_size: int | None = None, features: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(processor, mask_size, features)
        # The label after the last class is background.
        self.background = getattr((features or {}).get("label"), "num_classes", None)

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        # Cut or pad the labels to T, and ignore segments without a frame.
        expected = torch.full((len(frame_mask),), IGNORED_LABEL)
        given = torch.tensor(row["segment_labels"][: len(expected)])
        most = torch.inf if self.background is None else self.background
        if not ((given >= 0) & (given <= most) | (given == IGNORED_LABEL)).all():
            raise DataError(f"{row['video_id']}: has the labels {given.tolist()}; expected them from 0 to {most}")
        expected[: len(given)] = given
        return {"labels": expected.masked_fill(~frame_mask, IGNORED_LABEL)}
