"""Rows of segmentation."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from ...constants import IGNORED_LABEL
from ...data.images import read_mask
from ...data.rows import ColumnType, Row, RowForm
from ...errors import DataError


class SegmentationRows(RowForm):
    """Frames and sound, or a video file, and masks of some frames."""

    columns: ClassVar[tuple[str, ...]] = ("video_id", "frames", "audio", "media", "masks", "mask_frames")
    types: ClassVar[Mapping[str, ColumnType]] = {"mask_frames": [int]}

    def __init__(
        self, processor: Any, mask_size: int | None = None, features: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(processor, mask_size, features)
        size = getattr(processor, "mask_size", None) if mask_size is None else mask_size
        if processor is not None and not size:
            raise DataError(
                "the rows have masks, but their size is not known; expected a processor with a `mask_size`, as one "
                "made for a model of segmentation has, or the argument `mask_size`"
            )
        self.mask_size = int(size or 0)

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        size = self.mask_size
        labels = torch.full((len(frame_mask), size, size), IGNORED_LABEL, dtype=torch.int8)
        for frame, source in zip(row["mask_frames"], row["masks"], strict=True):
            if 0 <= frame < len(frame_mask) and frame_mask[frame]:
                labels[frame] = torch.from_numpy(_resize(read_mask(source).pixels, size))
        return {"labels": labels}


def _resize(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask (height, width) to (size, size) by the nearest pixel to each pixel's centre."""
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in mask.shape)
    return mask[rows[:, None], columns]
