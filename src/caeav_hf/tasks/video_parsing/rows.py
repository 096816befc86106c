"""Rows of video parsing."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import torch

from ...constants import IGNORED_LABEL
from ...data.rows import ColumnType, Row, RowForm
from ...errors import DataError, MediaError


class ParsingRows(RowForm):
    """A video file, the classes of the clip, and those heard and seen in each segment if known."""

    columns = ("video_id", "media", "event_labels", "audio_segment_labels", "visual_segment_labels", "visual_3d")
    types: ClassVar[Mapping[str, ColumnType]] = {
        "event_labels": [int],
        "audio_segment_labels": [[int]],
        "visual_segment_labels": [[int]],
        "visual_3d": [[float]],
    }

    def __init__(
        self, processor: Any, mask_size: int | None = None, features: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(processor, mask_size, features)
        labels = getattr((features or {}).get("event_labels"), "feature", None)
        if not isinstance(labels, datasets.ClassLabel):
            raise DataError(f"the column `event_labels` must be a list of class labels, got {labels}")
        self.num_classes = labels.num_classes

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        targets = {"labels": self._multi_hot([row["event_labels"]])[0]}
        for modality in ("audio", "visual"):
            expected = torch.full((len(frame_mask), self.num_classes), float(IGNORED_LABEL))
            given = row[f"{modality}_segment_labels"]
            if given is not None:
                given = given[: len(frame_mask)]
                expected[: len(given)] = self._multi_hot(given)
            targets[f"{modality}_labels"] = expected.masked_fill(~frame_mask[:, None], IGNORED_LABEL)
        if row["visual_3d"] is not None:
            targets["visual_3d_features"] = _visual_3d_features(row, frame_mask)
        return targets

    def _multi_hot(self, classes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (n, classes) float32, 1 for the classes in each of n lists."""
        hot = torch.zeros(len(classes), self.num_classes)
        for row, present in zip(hot, classes, strict=True):
            if not all(0 <= label < self.num_classes for label in present):
                raise DataError(f"has the classes {present}; expected numbers from 0 to {self.num_classes - 1}")
            row[list(present)] = 1.0
        return hot


def _visual_3d_features(row: Row, frame_mask: torch.Tensor) -> torch.Tensor:
    """Return 3D features (T, size) float32, zero where there is no frame."""
    given, count = torch.tensor(row["visual_3d"], dtype=torch.float32), int(frame_mask.sum())
    if given.ndim != 2 or len(given) < count:
        raise MediaError(
            f"{row['video_id']}: its `visual_3d` has the shape {tuple(given.shape)}; expected a feature for each of "
            f"its {count} segments"
        )
    features = given.new_zeros(len(frame_mask), given.shape[1])
    features[frame_mask] = given[:count]
    return features
