"""Rows of event localization."""

import torch

from ...constants import IGNORED_LABEL
from ...data.rows import Row, RowForm


class EventRows(RowForm):
    """A video file, and a label for each segment."""

    columns = ("video_id", "media", "segment_labels")

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        # Cut or pad the labels to T, and ignore segments without a frame.
        expected = torch.full((len(frame_mask),), IGNORED_LABEL)
        given = torch.tensor(row["segment_labels"][: len(expected)])
        expected[: len(given)] = given
        return {"labels": expected.masked_fill(~frame_mask, IGNORED_LABEL)}
