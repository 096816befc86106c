"""What the rows of each task hold, and how inputs and labels are made of them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from caeav_hf.constants import IGNORED_LABEL
from caeav_hf.errors import DataError, MediaError
from caeav_hf.media.sound import load_audio, spread_sound

from .images import read_frame, read_mask
from .prepared import PREPARED, check_settings, decode_clip
from .schema import media_part


Row = Mapping[str, Any]


class RowForm(ABC):
    """
    The form of one task's rows.

    Args:
        processor: A [`CaeAvProcessor`], or None if only the columns matter.
        mask_size: Side of the masks, where there are any.
        features: The types of the columns, which name the classes.
    """

    columns: ClassVar[tuple[str, ...]]
    # The tasks that have such rows.
    tasks: ClassVar[tuple[str, ...]]
    # Whether several rows may be about one clip.
    shares_clips: ClassVar[bool] = False

    def __init__(
        self, processor: Any, mask_size: int | None = None, features: Mapping[str, Any] | None = None
    ) -> None:
        self.processor = processor
        # Settings of prepared clips that are known to be the processor's.
        self._prepared: str | None = None

    def load(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """
        Frames (n, H, W, 3) uint8, one a segment, and waveform (samples of n segments,) float32 of the row's clip.

        Raises:
            MediaError: It cannot be decoded.
        """
        if row["media"] is None:
            return self._load_frames(row)
        # One thread: several clips are decoded at the same time by the workers of a loader.
        start, end = media_part(row)
        clip = self.processor.load_clip(row["media"], start=start, end=end, num_threads=1)
        return clip.frames, clip.waveform

    def _load_frames(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """What `load` gives for a row with `frames`, one a segment, and `audio` in place of a video file."""
        if not row.get("frames") or row.get("audio") is None:
            raise MediaError(f"{row['video_id']}: has no `media`; expected `frames` and `audio` instead")
        frames = [read_frame(frame) for frame in row["frames"][: self.processor.num_frames]]
        if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
            raise MediaError(f"{row['video_id']}: its frames are of the sizes {sorted(sizes)}; expected one size")
        rate, seconds = self.processor.sampling_rate, self.processor.segment_seconds
        if self.processor.frame_sampling == "spread":
            sound = load_audio(row["audio"], sampling_rate=rate)
            waveform = spread_sound(
                sound,
                num_segments=len(frames),
                segment_seconds=seconds,
                sampling_rate=rate,
                seconds=len(sound) / rate,
            )
        else:
            sound = load_audio(row["audio"], sampling_rate=rate, end=len(frames) * seconds)
            # Sound that ends early is filled up with silence, as in a video file.
            waveform = np.zeros(len(frames) * round(seconds * rate), np.float32)
            waveform[: len(sound)] = sound[: len(waveform)]
        return np.stack(frames), waveform

    def process(self, row: Row) -> Mapping[str, torch.Tensor]:
        """
        The processor's tensors of the row's clip, as a batch of one.

        Raises:
            MediaError: It cannot be decoded.
            DataError: It was prepared for another processor.
        """
        if row.get(PREPARED) is None:
            frames, waveform = self.load(row)
        else:
            if row[PREPARED] != self._prepared:
                check_settings(row[PREPARED], self.processor, row["video_id"])
                self._prepared = row[PREPARED]
            frames, waveform = decode_clip(row)
        return self.processor(videos=[frames], audio=[waveform], sampling_rate=self.processor.sampling_rate)

    def digest(self, row: Row) -> str:
        """Stands for the content of everything that `process` reads."""
        if row["media"] is not None:
            content, part = _content_digest(row["media"]), media_part(row)
            return content if part == (0.0, None) else hashlib.sha256(f"{content} {part}".encode()).hexdigest()
        files = [*row["frames"], *([] if row["audio"] is None else [row["audio"]])]
        return hashlib.sha256("".join(map(_content_digest, files)).encode()).hexdigest()

    @abstractmethod
    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        `labels`, and what else the task's model takes besides the clip, for the T segments that the processor made, of
        which those in `frame_mask` (T,) are real.
        """


class EventRows(RowForm):
    """Event localization: a video file, and a label for each segment."""

    columns = ("video_id", "media", "segment_labels")
    tasks = ("ave",)

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        # Cut or padded to T, ignored where there is no frame.
        expected = torch.full((len(frame_mask),), IGNORED_LABEL)
        given = torch.tensor(row["segment_labels"][: len(expected)])
        expected[: len(given)] = given
        return {"labels": expected.masked_fill(~frame_mask, IGNORED_LABEL)}


class SegmentationRows(RowForm):
    """Segmentation: frames and sound, or a video file, and masks for some frames."""

    columns = ("video_id", "frames", "audio", "media", "masks", "mask_frames")
    tasks = ("avs_s4", "avs_ms3")

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
            if frame < len(frame_mask) and frame_mask[frame]:
                labels[frame] = torch.from_numpy(_resize(read_mask(source).pixels, size))
        return {"labels": labels}


class ParsingRows(RowForm):
    """Video parsing: a video file, the classes of the clip, and those heard and seen in each segment where known."""

    columns = ("video_id", "media", "event_labels", "audio_segment_labels", "visual_segment_labels", "visual_3d")
    tasks = ("avvp",)

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
        """(n, classes) float32: 1 for the classes of each of n lists."""
        hot = torch.zeros(len(classes), self.num_classes)
        for row, present in zip(hot, classes, strict=True):
            row[list(present)] = 1.0
        return hot


class QuestionRows(RowForm):
    """Question answering: a video file, a question about it and the number of its answer."""

    columns = ("video_id", "media", "question", "answer_label")
    tasks = ("avqa",)
    shares_clips = True

    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        label = row["answer_label"]
        question = self.processor.tokenize_questions([row["question"]])
        return {
            "labels": torch.tensor(IGNORED_LABEL if label is None else label),
            **{name: question[name][0] for name in ("question_ids", "question_mask")},
        }


def row_form(column_names: Sequence[str]) -> type[RowForm]:
    """The form of rows with these columns."""
    for column, form in _FORMS.items():
        if column in column_names:
            return form
    return EventRows


# Each task but the first by a column that it alone has.
_FORMS: dict[str, type[RowForm]] = {
    "masks": SegmentationRows,
    "visual_segment_labels": ParsingRows,
    "answer_label": QuestionRows,
}


def _visual_3d_features(row: Row, frame_mask: torch.Tensor) -> torch.Tensor:
    """(T, size) float32, zeros where there is no frame."""
    given, count = torch.tensor(row["visual_3d"], dtype=torch.float32), int(frame_mask.sum())
    if given.ndim != 2 or len(given) < count:
        raise MediaError(
            f"{row['video_id']}: its `visual_3d` has the shape {tuple(given.shape)}; expected a feature for each of "
            f"its {count} segments"
        )
    features = given.new_zeros(len(frame_mask), given.shape[1])
    features[frame_mask] = given[:count]
    return features


def _resize(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (height, width) at (size, size): each pixel takes that of the original at its own middle."""
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in mask.shape)
    return mask[rows[:, None], columns]


def _content_digest(media: Mapping[str, Any]) -> str:
    content = media["bytes"]
    if content is None:
        try:
            content = Path(media["path"]).read_bytes()
        except OSError as error:
            raise MediaError(f"{media['path']}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(content).hexdigest()
