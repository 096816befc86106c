"""Read the clips of misaligned rows, and do to their frames and sound what the rows say."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from caeav_hf.constants import MISALIGNMENT
from caeav_hf.errors import DataError, MediaError
from caeav_hf.media.segments import is_spread
from caeav_hf.media.sound import load_audio, spread_sound

from ..schema import media_part
from ..shards import load_rows
from . import pictures, sounds
from .change import MEDIA_COLUMNS, Row, generator
from .kinds import CORRELATED, KINDS, Kind


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
        Frames (n, h, w, 3) uint8, which corruptions of detail reduce to a shorter side of 224 pixels, and waveform of
        the same length, float32. Those given are not written to.

    Raises:
        MediaError: The foreign sound cannot be decoded.
    """
    kind = _kind(record)
    has_no_donor = kind.name in _FOREIGN and record["donor"] is None  # no other clip fits
    if kind.name not in _APPLIED or has_no_donor:
        return frames, waveform
    return _APPLIED[kind.name](_Clip(record, kind, processor, len(frames)), frames, waveform)


class _Clip:
    """What is done to one decoded clip."""

    def __init__(self, record: Mapping[str, Any], kind: Kind, processor: Any, num_frames: int) -> None:
        self.record, self.kind, self.processor = record, kind, processor
        self.count = len(record["affected_segments"])
        self.is_spread = is_spread(processor.frame_sampling)
        # Which of the record's segments each decoded one is.
        self.places = segment_places(self.count, num_frames, self.is_spread)
        self.strength = kind.strength(record["level"])
        self.rng = generator(record["seed"], kind.name, record["level"], record["clip"], "clip")

    def values(self, name: str, otherwise: Any) -> np.ndarray:
        """Return a value of the record for each decoded segment, `otherwise` where the record has none."""
        return np.array([*self.record[name], otherwise])[self.places]

    def affected_samples(self, waveform: np.ndarray) -> np.ndarray:
        """Return which samples lie in affected segments, (samples,) bool."""
        affected = self.values("affected_segments", False)
        return np.repeat(affected, len(waveform) // len(affected))

    def shown(self, frames: np.ndarray) -> np.ndarray:
        """Return the index of the frame that each segment shows, (n,) int."""
        shown, own = self.values("picture", -1), np.arange(len(frames))
        # The decoded segment at the place of the one whose picture is shown; clips that end before it show their own.
        steps = np.round((shown - self.places) * len(frames) / self.count) if self.is_spread else shown - self.places
        moved = own + steps.astype(int)
        return np.where((shown >= 0) & (moved >= 0) & (moved < len(frames)), moved, own)

    def foreign_sound(self, waveform: np.ndarray) -> np.ndarray:
        """Return the sound of the donor's same segments, (samples,) float32; silence where it has ended."""
        file = donor_file(self.record)
        assert file is not None, "kinds with a foreign sound have a donor"
        start, end = media_part(self.record["donor"])
        rate, count = self.processor.sampling_rate, len(self.places)
        try:
            if self.is_spread:
                sound = load_audio(file, sampling_rate=rate, start=start, end=end)
                seconds = self.processor.segment_seconds
                return spread_sound(
                    sound,
                    num_segments=count,
                    segment_seconds=seconds,
                    sampling_rate=rate,
                    seconds=len(sound) / rate,
                    frame_sampling=self.processor.frame_sampling,
                )
            stop = start + len(waveform) / rate
            sound = load_audio(file, sampling_rate=rate, start=start, end=stop if end is None else min(stop, end))
        except MediaError as error:
            raise MediaError(f"{self.record['clip']}: its foreign sound cannot be read: {error}") from error
        foreign = np.zeros_like(waveform)
        foreign[: len(sound)] = sound[: len(waveform)]
        return foreign


def segment_places(count: int, decoded: int, is_spread: bool) -> np.ndarray:
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


# What kinds do to a decoded clip: (clip, frames, waveform) -> frames, waveform.


def _mute(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames, np.where(clip.affected_samples(waveform), np.float32(0), waveform)


def _swap(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames, np.where(clip.affected_samples(waveform), clip.foreign_sound(waveform), waveform)


def _off_screen(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames, sounds.mix(waveform, clip.foreign_sound(waveform), clip.strength)


def _cut(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames[clip.shown(frames)], waveform


def _audio_noise(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return frames, sounds.mix(waveform, sounds.white_noise(clip.rng, waveform), clip.strength)


def _blur(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pictures.blur(frames, clip.strength), waveform


def _occlusion(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pictures.occlude(clip.rng, frames, clip.strength), waveform


def _low_light(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pictures.darken(clip.rng, frames, clip.strength), waveform


def _corrupt(clip: _Clip, frames: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    level, name = clip.record["level"], clip.kind.name
    waveform = sounds.corrupt(name, clip.rng, waveform, clip.processor.sampling_rate, level)
    if name == "interference":
        return pictures.rotate(frames, clip.values("rotation", 0.0).tolist()), waveform
    return pictures.corrupt(name, clip.rng, frames, level), waveform


_Apply = Callable[[_Clip, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_FOREIGN = ("swap_other_class", "swap_same_class", "off_screen")
_APPLIED: dict[str, _Apply] = {
    "mute": _mute,
    "swap_other_class": _swap,
    "swap_same_class": _swap,
    "off_screen": _off_screen,
    "cut": _cut,
    "audio_noise": _audio_noise,
    "blur": _blur,
    "occlusion": _occlusion,
    "low_light": _low_light,
    **{kind.name: _corrupt for kind in KINDS.values() if kind.family == CORRELATED},
}
