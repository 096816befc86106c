"""Read the clips of misaligned rows, and do to their frames and sound what the rows say."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from caeav_hf.constants import MISALIGNMENT
from caeav_hf.errors import DataError, MediaError

from ..schema import media_part
from ..shards import load_rows
from .change import MEDIA_COLUMNS, Row, generator
from .kinds import KINDS, Kind


def with_media(row: Row) -> Row:
    """
    Return the row with its clip, which rows of a misaligned folder look up in the data set that they were made from.

    Raises:
        DataError: That data set is gone or has other rows now.
    """
    record = row.get(MISALIGNMENT)
    source = None if record is None else record["source"]
    if source is None or any(row.get(column) for column in MEDIA_COLUMNS):
        return row
    original = _source_row(source, source["row"])
    if original["video_id"] != row["video_id"]:
        raise DataError(
            f"{source['data']}: row {source['row']} of {source['split']} is {original['video_id']} where "
            f"{row['video_id']} was misaligned; misalign the data set again"
        )
    return {**row, **{column: original[column] for column in MEDIA_COLUMNS if column in original}}


def change_of(row: Row) -> Mapping[str, Any] | None:
    """Return what is to be done to the row's frames and sound, or `None`."""
    record = row.get(MISALIGNMENT)
    if record is None or not record["level"]:
        return None
    return record if set(_kind(record).modalities) & {"audio", "visual"} else None


def change_digest(record: Mapping[str, Any], donor_content: str) -> str:
    """Return a digest of what is done to a clip, given that of the files of the foreign sound."""
    donor = record["donor"] and [donor_content, *map(str, media_part(record["donor"]))]
    values = {name: value for name, value in record.items() if name not in ("donor", "source")}
    return hashlib.sha256(json.dumps([values, donor], sort_keys=True).encode()).hexdigest()


def donor_file(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """
    Return the file of a foreign sound, or `None` if there is none.

    Raises:
        MediaError: The file is unknown.
    """
    donor = record["donor"]
    if donor is None:
        return None
    file = donor["media"] or donor["audio"]
    if file is None and record["source"] is not None:
        original = _source_row(record["source"], donor["row"])
        file = original["media"] or original.get("audio")
    if file is None or (file["bytes"] is None and file["path"] is None):
        raise MediaError(f"{donor['clip']}: has no file to take a foreign sound from")
    return file


def apply_change(
    record: Mapping[str, Any], frames: np.ndarray, waveform: np.ndarray, processor: Any
) -> tuple[np.ndarray, np.ndarray]:
    """
    Do to a decoded clip what its row says, except a delay, which the decoder has to know.

    Args:
        record: Value of the column `misalignment`.
        frames: (n, H, W, 3) uint8, one per segment.
        waveform: (samples of n segments,) float32.
        processor: A [`CaeAvProcessor`], for its segments and sampling rate.

    Returns:
        Frames and waveform, of the same shapes and types; those given are not written to.

    Raises:
        MediaError: The foreign sound cannot be decoded.
    """
    kind = _kind(record)
    places = _places(len(record["affected_segments"]), len(frames), processor.frame_sampling == "spread")
    apply = _APPLIED.get(kind.name)
    return (frames, waveform) if apply is None else apply(_Clip(record, kind, places, processor), frames, waveform)


class _Clip:
    """What is done to one decoded clip."""

    def __init__(self, record: Mapping[str, Any], kind: Kind, places: np.ndarray, processor: Any) -> None:
        self.record, self.kind, self.places, self.processor = record, kind, places, processor
        self.strength = kind.strength(record["level"])
        self.rng = generator(record["seed"], kind.name, record["level"], record["clip"], "clip")

    def affected_samples(self, waveform: np.ndarray) -> np.ndarray:
        """Return which samples lie in affected segments, (samples,) bool."""
        affected = np.append(self.record["affected_segments"], False).astype(bool)[self.places]
        return np.repeat(affected, len(waveform) // len(affected))


def _places(count: int, decoded: int, is_spread: bool) -> np.ndarray:
    """
    Return which of `count` segments each of `decoded` ones is, (decoded,) int, or -1 for none. They are the first
    ones, or, if segments are spread over the clip, those around the same times.
    """
    segments = np.arange(decoded)
    if is_spread:
        return (2 * segments + 1) * count // (2 * decoded)
    return np.where(segments < count, segments, -1)


def _kind(record: Mapping[str, Any]) -> Kind:
    if record["kind"] not in KINDS:
        raise DataError(
            f"`misalignment` names the unknown kind {record['kind']!r}; expected one of {', '.join(KINDS)}"
        )
    return KINDS[record["kind"]]


@lru_cache(maxsize=4)
def _source_rows(data: str, split: str) -> datasets.Dataset:
    return load_rows(Path(data), split)


def _source_row(source: Mapping[str, Any], number: int) -> Row:
    rows = _source_rows(source["data"], source["split"])
    if number >= len(rows):
        raise DataError(
            f"{source['data']}: {source['split']} has {len(rows)} rows, no row {number} that was misaligned; misalign "
            "the data set again"
        )
    return rows[number]


def _mute(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames, np.where(clip.affected_samples(waveform), np.float32(0), waveform)


# (clip, frames, waveform) -> frames, waveform
_APPLIED = {"mute": _mute}
