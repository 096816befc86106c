"""Base class of the rows of all tasks, which reads their clips; targets are defined by each task."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch

from caeav_hf.errors import DataError, MediaError
from caeav_hf.media.segments import is_spread
from caeav_hf.media.sound import delay_sound, load_audio, spread_sound
from caeav_hf.task import Task, get_task, tasks

from .images import read_frame
from .misalign.apply import apply_change, change_digest, change_of, donor_file, with_media
from .prepared import PREPARED, check_settings, decode_clip
from .schema import media_part


Row = Mapping[str, Any]

ColumnType = Any
"""`str`, `int`, `float`, `FILE` for bytes with a path, or a list of one of these."""

FILE = dict[str, Any]

_TYPES: Mapping[str, ColumnType] = {
    "video_id": str,
    "media": FILE,
    "frames": [FILE],
    "audio": FILE,
    "masks": [FILE],
    "media_start": float,
    "media_end": float,
    "visual_caption": str,
    "audio_caption": str,
    PREPARED: str,
}
_TYPE_NAMES = {str: "text", int: "whole numbers", float: "numbers", FILE: "{bytes, path}"}


class RowForm(ABC):
    """
    Format of a task's rows.

    Args:
        processor: A [`CaeAvProcessor`], or None if only the columns matter.
        mask_size: Side of the masks, if there are any.
        features: Types of the columns, which name the classes.
    """

    # Required columns.
    columns: ClassVar[tuple[str, ...]]
    # Types of the task's own columns, see `check_types`.
    types: ClassVar[Mapping[str, ColumnType]] = {}

    def __init__(
        self, processor: Any, mask_size: int | None = None, features: Mapping[str, Any] | None = None
    ) -> None:
        self.processor = processor
        # Settings of prepared clips that have been checked.
        self._prepared: str | None = None

    def load(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """
        Decode a row's clip to frames (n, H, W, 3) uint8, one per segment, and waveform (samples of n segments,)
        float32, misaligned if the row says so.

        Raises:
            MediaError: The clip, or a foreign sound in it, cannot be decoded.
        """
        row, change = with_media(row), change_of(row)
        delay = 0.0 if change is None else change["delay"]
        if row["media"] is None:
            frames, waveform = self._load_frames(row, delay)
        else:
            # One thread, since the workers of a loader decode several clips in parallel.
            start, end = media_part(row)
            clip = self.processor.load_clip(row["media"], start=start, end=end, num_threads=1, sound_delay=delay)
            frames, waveform = clip.frames, clip.waveform
        return (frames, waveform) if change is None else apply_change(change, frames, waveform, self.processor)

    def _load_frames(self, row: Row, sound_delay: float) -> tuple[np.ndarray, np.ndarray]:
        """Decode a row with `frames`, one per segment, and `audio` instead of a video file."""
        if not row.get("frames") or row.get("audio") is None:
            raise MediaError(f"{row['video_id']}: has no `media`; expected `frames` and `audio` instead")
        frames = [read_frame(frame) for frame in row["frames"][: self.processor.num_frames]]
        if len(sizes := {frame.shape[:2] for frame in frames}) > 1:
            raise MediaError(f"{row['video_id']}: its frames are of the sizes {sorted(sizes)}; expected one size")
        rate, seconds = self.processor.sampling_rate, self.processor.segment_seconds
        delay = round(sound_delay * rate)
        if is_spread(self.processor.frame_sampling):
            sound = load_audio(row["audio"], sampling_rate=rate)
            waveform = spread_sound(
                delay_sound(sound, delay),
                num_segments=len(frames),
                segment_seconds=seconds,
                sampling_rate=rate,
                seconds=len(sound) / rate,
                frame_sampling=self.processor.frame_sampling,
            )
        else:
            sound = load_audio(row["audio"], sampling_rate=rate, end=len(frames) * seconds)
            # Fill up sound that ends early with silence, as for a video file.
            waveform = np.zeros(len(frames) * round(seconds * rate), np.float32)
            waveform[: len(sound)] = sound[: len(waveform)]
            waveform = delay_sound(waveform, delay)
        return np.stack(frames), waveform

    def process(self, row: Row) -> Mapping[str, torch.Tensor]:
        """
        Return the processor's tensors of the row's clip, as a batch of one.

        Raises:
            MediaError: The clip cannot be decoded.
            DataError: The clip was prepared for another processor.
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
        """Return a digest of all files that `process` reads, and of what a misalignment does to them."""
        row, change = with_media(row), change_of(row)
        if row["media"] is not None:
            digest, part = _content_digest(row["media"]), media_part(row)
            if part != (0.0, None):
                digest = hashlib.sha256(f"{digest} {part}".encode()).hexdigest()
        elif row.get("frames") is None:
            raise MediaError(f"{row['video_id']}: has no `media`; expected `frames` and `audio` instead")
        else:
            files = [*row["frames"], *([] if row.get("audio") is None else [row["audio"]])]
            digest = hashlib.sha256("".join(map(_content_digest, files)).encode()).hexdigest()
        if change is None:
            return digest
        donor = donor_file(change)
        foreign = "" if donor is None else _content_digest(donor)
        return hashlib.sha256(f"{digest} {change_digest(change, foreign)}".encode()).hexdigest()

    @abstractmethod
    def targets(self, row: Row, frame_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Return `labels` and other targets of the task for the processor's T segments, of which those in `frame_mask`
        (T,) are real.
        """


def task_of_rows(column_names: Sequence[str], name: str | None = None, source: str = "`rows`:") -> Task:
    """
    Return the task of rows with these columns.

    Args:
        column_names: The columns.
        name: The task's name; by default that of the task whose `label_column` is among the columns.
        source: Name of the rows in errors.

    Raises:
        DataError: A column is missing.
    """
    if name is None:
        found = [task for task in tasks().values() if task.label_column in column_names]
        if not found:
            known = ", ".join(
                dict.fromkeys(f"{task.label_column!r}" for task in tasks().values() if task.label_column)
            )
            raise DataError(f"{source} has no column of labels; expected one of {known} among {list(column_names)}")
        # Rows of one task may have the label column of another one among more columns.
        task = max(found, key=lambda one: len(one.row_form.columns))
    else:
        task = get_task(name)
    if missing := [column for column in task.row_form.columns if column not in column_names]:
        raise DataError(
            f"{source} has no column {', '.join(missing)}, which task {task.name} needs; it has "
            f"{', '.join(column_names)}"
        )
    return task


def check_types(form: type[RowForm], features: Mapping[str, Any], source: str) -> None:
    """
    Check the types of the columns that a task reads, before any row is read. Columns without any value have no type.

    Raises:
        DataError: A column is of another type.
    """
    read = [name for name in {**_TYPES, **form.types} if name in features]
    check_schema(datasets.Features({name: features[name] for name in read}).arrow_schema, source, form.types)


def check_schema(schema: pa.Schema, source: str, types: Mapping[str, ColumnType] | None = None) -> None:
    """
    Do as [`check_types`] for the columns of clips in a file, and for further ones.

    Raises:
        DataError: A column is of another type.
    """
    for name, expected in {**_TYPES, **(types or {})}.items():
        for number in schema.get_all_field_indices(name):
            found = schema.field(number).type
            if not _fits(found, expected):
                raise DataError(f"{source} the column `{name}` has the type {found}; expected {_type_name(expected)}")


def _fits(found: pa.DataType, expected: ColumnType) -> bool:
    kinds = pa.types
    if kinds.is_dictionary(found):
        found = found.value_type
    if kinds.is_null(found):
        return True
    if isinstance(expected, list):
        is_list = kinds.is_list(found) or kinds.is_large_list(found) or kinds.is_fixed_size_list(found)
        return is_list and _fits(found.value_type, expected[0])
    if expected is FILE:
        if not kinds.is_struct(found):
            return False
        types = {found.field(number).name: found.field(number).type for number in range(found.num_fields)}
        return {"bytes", "path"} <= set(types) and _is_bytes(types["bytes"]) and _fits(types["path"], str)
    if expected is str:
        return kinds.is_string(found) or kinds.is_large_string(found) or kinds.is_string_view(found)
    return kinds.is_integer(found) or (expected is float and kinds.is_floating(found))


def _is_bytes(found: pa.DataType) -> bool:
    return any(
        check(found)
        for check in (
            pa.types.is_null,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
        )
    )


def _type_name(expected: ColumnType) -> str:
    return f"lists of {_type_name(expected[0])}" if isinstance(expected, list) else _TYPE_NAMES[expected]


def _content_digest(media: Mapping[str, Any]) -> str:
    content = media["bytes"]
    if content is None and not media["path"]:
        raise MediaError("a row has a file without bytes and without a path; expected one of them")
    if content is None:
        try:
            content = Path(media["path"]).read_bytes()
        except OSError as error:
            raise MediaError(f"{media['path']}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(content).hexdigest()
