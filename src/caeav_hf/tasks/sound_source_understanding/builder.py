"""
Builder of f-Music and f-Lifescene: a mask of what sounds, and a sentence on it, for each second of a clip.

No files of these sets are public yet. Until they are, this reads a layout of this package, close to AVSBench's:

    meta_data.csv               name, category, split (train, val or test)
    descriptions.json           {name: [a text for each second]}: "" where nothing sounds, null where not annotated
    visual_frames/<name>/<name>_<1..T>.png, or videos/<name>.mp4
    gt_masks/<split>/<name>/<name>_<1..T>.png
    audio_wav/<split>/<name>.wav

The media folders may be anywhere in the media folder; frames and masks may also be jpg.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets

from caeav_hf.errors import DataError
from caeav_hf.media.segments import count_segments

from ...data.builder import BuildReport, Checked, ClipBuilderConfig, Entry, ensure_unique
from ...data.checks import MediaPart, UnusableError
from ...data.media_files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Query
from ...data.schema import SPLITS, understanding_features
from ...files import parse_json, read_bytes
from ..segmentation.builder import AVSBENCH_SPLITS, AvsBenchAnnotation, AvsBenchBuilder, read_meta_data


DESCRIPTIONS = "descriptions.json"

_COLUMNS = ("name", "category", "split")
# Files are looked for in each second.
_MOST_SECONDS = 10_000

# Seconds by which a video may be longer than its descriptions: encoders and cuts at key frames round up.
_ROUNDING = 1.0


@dataclass
class RaSsuConfig(ClipBuilderConfig):
    """
    Options of the builder.

    Args:
        from_videos: Whether rows take frames and sound from `videos/<name>.mp4` or `<name>.mp4` in the media folder.
    """

    from_videos: bool = False


class RaSsuBuilder(AvsBenchBuilder):
    """
    f-Music or f-Lifescene, or another set in this layout.

    Files are checked as those of AVSBench. A clip with more or fewer seconds than descriptions is skipped, since it is
    not known which of them belong together. Arguments as in [`RaSsuConfig`].
    """

    BUILDER_CONFIG_CLASS = RaSsuConfig
    pretty_name = "Sound source understanding (RA-SSU)"
    task_categories: ClassVar[tuple[str, ...]] = ("image-segmentation", "image-to-text")
    card_text = (
        "Clips with one frame per second, a mask of all that is heard and seen in it, and a description of that: an "
        "empty one where nothing sounds, null where it is not annotated. `mask_frames` has the numbers, from 0, of "
        "the frames that `masks` belong to. The task is that of f-Music and f-Lifescene (Sun et al., RA-SSU)."
    )

    def row_features(self, annotations: Path) -> datasets.Features:
        return understanding_features()

    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        lines = read_meta_data(annotations / "meta_data.csv", _COLUMNS, report)
        path = annotations / DESCRIPTIONS
        descriptions = read_descriptions(path, report)
        splits: dict[str, list[str]] = {}
        entries: dict[str, list[Entry]] = {split: [] for split in SPLITS}
        for line in lines:
            if line.name not in descriptions:
                raise DataError(f"{path}: has no descriptions of {line.name}; expected one text for each second")
            splits.setdefault(line.name, []).append(line.split)
            entries[AVSBENCH_SPLITS[line.split]].append(self._described(line, descriptions[line.name]))
        if unlisted := [name for name in descriptions if name not in splits]:
            raise DataError(f"{path}: has descriptions of {unlisted[0]}, which meta_data.csv does not list")
        for name, in_splits in splits.items():
            if len(in_splits) > 1:
                report.notes.add("video_in_several_rows", f"{name} ({', '.join(in_splits)})")
        return entries

    def check(self, entry: Entry) -> Checked:
        expected = len(entry.row["descriptions"])
        queries = entry.media.get("frames")
        if isinstance(queries, tuple):
            *frames, beyond = queries
            for match in self.media.find(beyond):
                raise UnusableError("descriptions_of_another_length", f"{match.file} ({expected} descriptions)")
            return super().check(replace(entry, media={**entry.media, "frames": tuple(frames)}))
        checked = super().check(entry)
        video = checked.files["media"]
        assert isinstance(video, MediaPart)
        seconds = self.media.probe(video.file).duration
        if seconds is not None and (count_segments(seconds) < expected or seconds >= expected + _ROUNDING):
            raise UnusableError(
                "descriptions_of_another_length", f"{video.file} ({seconds:g} s, {expected} descriptions)"
            )
        return checked

    def _described(self, line: AvsBenchAnnotation, texts: list[str | None]) -> Entry:
        name = line.name
        row: dict[str, Any] = {
            "video_id": name,
            "category": line.category,
            "mask_frames": list(range(len(texts))),
            "descriptions": texts,
        }

        def images(count: int, *folders: str) -> tuple[Query, ...]:
            return tuple(
                Query(names=tuple(f"{folder}/{name}_{second}" for folder in folders), suffixes=IMAGE_SUFFIXES)
                for second in range(1, count + 1)
            )

        masks = images(len(texts), f"gt_masks/{line.split}/{name}", f"gt_masks/{name}")
        if self.config.from_videos:
            return Entry({"media": Query(names=(f"videos/{name}", name)), "masks": masks}, name, row)
        audio = Query(names=(f"audio_wav/{line.split}/{name}", f"audio_wav/{name}"), suffixes=AUDIO_SUFFIXES)
        # There should be no frame beyond the last one described, which is looked for too.
        frames = images(len(texts) + 1, f"visual_frames/{name}")
        return Entry({"frames": frames, "audio": audio, "masks": masks}, name, row)


def read_descriptions(path: Path, report: BuildReport) -> dict[str, list[str | None]]:
    """
    Read a file of descriptions, and add it to the report.

    Raises:
        DataError: It cannot be read, has a name twice, or something other than a list of texts and nulls for a name.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        ensure_unique((name for name, _ in pairs), path)
        return dict(pairs)

    content = read_bytes(path, "annotation file")
    try:
        values = parse_json(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected lists of texts by name, got a {type(values).__name__}")
    for name, texts in values.items():
        is_right = isinstance(texts, list) and texts and all(text is None or isinstance(text, str) for text in texts)
        if not is_right or len(texts) > _MOST_SECONDS:
            raise DataError(
                f"{path}: expected a list of at most {_MOST_SECONDS} texts and nulls for {name}, one for each second"
            )
    report.files[path.name] = {"clips": len(values), "sha256": hashlib.sha256(content).hexdigest()}
    return values
