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
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from caeav_hf.errors import DataError

from ...data.builder import BuildReport, ClipBuilderConfig, Entry
from ...data.media_files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Query
from ...data.schema import SPLITS, understanding_features
from ..segmentation.builder import AVSBENCH_SPLITS, AvsBenchAnnotation, AvsBenchBuilder, read_meta_data


DESCRIPTIONS = "descriptions.json"


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

    Files are checked as those of AVSBench. Arguments as in [`RaSsuConfig`].
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
        lines = read_meta_data(annotations / "meta_data.csv", "ra_ssu", report)
        path = annotations / DESCRIPTIONS
        descriptions = read_descriptions(path, report)
        entries: dict[str, list[Entry]] = {split: [] for split in SPLITS}
        for line in lines:
            if line.name not in descriptions:
                raise DataError(f"{path}: has no descriptions of {line.name}; expected one text for each second")
            entries[AVSBENCH_SPLITS[line.split]].append(self._described(line, descriptions[line.name]))
        return entries

    def _described(self, line: AvsBenchAnnotation, texts: list[str | None]) -> Entry:
        name, seconds = line.name, range(1, len(texts) + 1)
        row: dict[str, Any] = {
            "video_id": name,
            "category": line.category,
            "mask_frames": list(range(len(texts))),
            "descriptions": texts,
        }

        def images(*folders: str) -> tuple[Query, ...]:
            return tuple(
                Query(names=tuple(f"{folder}/{name}_{second}" for folder in folders), suffixes=IMAGE_SUFFIXES)
                for second in seconds
            )

        masks = images(f"gt_masks/{line.split}/{name}", f"gt_masks/{name}")
        if self.config.from_videos:
            return Entry({"media": Query(names=(f"videos/{name}", name)), "masks": masks}, name, row)
        audio = Query(names=(f"audio_wav/{line.split}/{name}", f"audio_wav/{name}"), suffixes=AUDIO_SUFFIXES)
        return Entry({"frames": images(f"visual_frames/{name}"), "audio": audio, "masks": masks}, name, row)


def read_descriptions(path: Path, report: BuildReport) -> dict[str, list[str | None]]:
    """
    Read a file of descriptions, and add it to the report.

    Raises:
        DataError: It cannot be read, or has something other than a list of texts and nulls for each name.
    """
    try:
        content = path.read_bytes()
        values = json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected lists of texts by name, got a {type(values).__name__}")
    for name, texts in values.items():
        is_right = isinstance(texts, list) and texts and all(text is None or isinstance(text, str) for text in texts)
        if not is_right:
            raise DataError(f"{path}: expected a list of texts and nulls for {name}, one for each second")
    report.files[path.name] = {"clips": len(values), "sha256": hashlib.sha256(content).hexdigest()}
    return values
