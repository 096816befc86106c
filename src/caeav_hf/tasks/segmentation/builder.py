"""
Builder of AVSBench: audio-visual segmentation in clips of five seconds, with one source (S4) or several (MS3).

Files as published, with a mask and a frame for each second (in S4's training split a mask for the first alone):

    s4    s4_meta_data.csv: name, length, category, split
          visual_frames/<split>/<category>/<name>/<name>_<1..5>.png, gt_masks/ likewise
          audio_wav/<split>/<category>/<name>.wav
    ms3   ms3_meta_data.csv: name, split
          visual_frames/<name>/<name>.mp4_<1..5>.png, gt_masks/<split>/<name>/<name>_<1..5>.png
          audio_wav/<split>/<name>.wav

where <split> is train, val or test. These folders may be anywhere in the media folder; frames and masks may also be
jpg, and in folders without the split and the category.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import datasets

from caeav_hf.errors import DataError, MediaError
from caeav_hf.media.segments import count_segments

from ...data.builder import BuildReport, Checked, ClipBuilder, ClipBuilderConfig, Entry, read_lines
from ...data.checks import ClipFiles, MediaPart, UnusableError
from ...data.images import read_mask
from ...data.media_files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Query
from ...data.schema import AVSBENCH_NUM_SEGMENTS, SPLITS, segmentation_features


SETTINGS = ("s4", "ms3")
AVSBENCH_SPLITS = {"train": "train", "val": "validation", "test": "test"}

COLUMNS = {"s4": ("name", "category", "split"), "ms3": ("name", "split")}


class AvsBenchAnnotation(NamedTuple):
    """One line: a clip, its category (None in MS3) and its split as the files name it."""

    name: str
    category: str | None
    split: str


@dataclass
class AvsBenchConfig(ClipBuilderConfig):
    """
    Options of the builder.

    Args:
        setting: `"s4"` or `"ms3"`.
        from_videos: Whether rows take frames and sound from `videos/<name>.mp4` or `<name>.mp4` in the media folder.
    """

    setting: str | None = None
    from_videos: bool = False


class AvsBenchBuilder(ClipBuilder):
    """
    AVSBench's S4 or MS3, or another set in the layout of one of them.

    A row needs all of its frames and its sound; else it is skipped. Masks that are missing or broken are counted as
    lost and the row does without them, unless none is left. The report's notes count what is unusual but usable: masks
    that are empty (nothing that sounds is seen), that have a palette, or that are of another size than their frame,
    which covers the same view (compared with frame files, not with videos), and sound that ends early, which is filled
    up with silence. Arguments as in [`AvsBenchConfig`].
    """

    BUILDER_CONFIG_CLASS = AvsBenchConfig
    VERSION = datasets.Version("1.0.0")
    pretty_name = "Audio-visual segmentation (AVSBench layout)"
    task_categories: ClassVar[tuple[str, ...]] = ("image-segmentation", "video-classification")
    card_text = (
        "Clips of five seconds, one frame per second, with masks of the objects that sound: a nonzero pixel "
        "shows something that is heard in that second. `mask_frames` has the numbers, from 0, of the frames that "
        "`masks` belong to. The layout is that of AVSBench (Zhou et al., Audio-Visual Segmentation, ECCV 2022), with "
        "one source per clip (S4, where `category` names it) or several (MS3)."
    )

    def row_features(self, annotations: Path) -> datasets.Features:
        return segmentation_features()

    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        setting = self.config.setting
        if setting not in SETTINGS:
            raise DataError(f"`setting` must be one of {', '.join(SETTINGS)}, got {setting!r}")
        lines = read_meta_data(annotations / f"{setting}_meta_data.csv", COLUMNS[setting], report)
        splits: dict[str, list[str]] = {}
        entries: dict[str, list[Entry]] = {split: [] for split in SPLITS}
        for line in lines:
            splits.setdefault(line.name, []).append(line.split)
            entries[AVSBENCH_SPLITS[line.split]].append(self._entry(line))
        for name, in_splits in splits.items():
            if len(in_splits) > 1:
                report.notes.add("video_in_several_rows", f"{name} ({', '.join(in_splits)})")
        return entries

    def check(self, entry: Entry) -> Checked:
        files: ClipFiles
        notes: list[tuple[str, str]] = []
        frame_size = None
        if self.config.from_videos:
            found, notes_on_video = self.media.find_clip(_one(entry.media["media"]))
            files, notes = dict(found), list(notes_on_video)
        else:
            frames = [self._find(query, "missing_frame") for query in _several(entry.media["frames"])]
            frame_size = self.media.check_images(frames)
            audio = self._find(_one(entry.media["audio"]), "missing_audio")
            seconds = self.media.check_sound(audio).duration
            files = {"frames": tuple(map(MediaPart, frames)), "audio": MediaPart(audio)}
            if seconds is not None and count_segments(seconds) < len(frames):
                notes.append(("sound_ends_early", audio))
        masks, losses = [], []
        for frame, query in zip(entry.row["mask_frames"], _several(entry.media["masks"]), strict=True):
            try:
                file = self._find(query, "missing_mask")
                mask = read_mask(self.media.path(file))
            except UnusableError as error:
                losses.append((error.reason, error.file))
                continue
            except MediaError:
                losses.append(("unreadable_mask", file))
                continue
            masks.append((frame, MediaPart(file)))
            if frame_size is not None and mask.pixels.shape != frame_size:
                sizes = (f"{width}x{height}" for height, width in (mask.pixels.shape, frame_size))
                notes.append(("mask_of_another_size", f"{file} ({', its frame '.join(sizes)})"))
            if mask.has_palette:
                notes.append(("palette_mask", file))
            if not mask.pixels.any():
                notes.append(("empty_mask", file))
        if not masks:
            raise UnusableError("no_mask", _several(entry.media["masks"])[0].expected)
        left = replace(entry, row={**entry.row, "mask_frames": [frame for frame, _ in masks]})
        files["masks"] = tuple(part for _, part in masks)
        return Checked(left, files, tuple(notes), tuple(losses))

    def _find(self, query: Query, reason: str) -> str:
        """Return the best matching file; raises an [`UnusableError`] if there is none."""
        for match in self.media.find(query):
            return match.file
        raise UnusableError(reason, query.expected)

    def _entry(self, line: AvsBenchAnnotation) -> Entry:
        name = line.name
        place = line.split if line.category is None else f"{line.split}/{line.category}"
        only_first = line.category is not None and line.split == "train"
        mask_frames = list(range(1 if only_first else AVSBENCH_NUM_SEGMENTS))

        def image(folder: str, number: int, is_published_so: str) -> Query:
            names = [f"{folder}/{is_published_so}_{number}"]
            names += [f"{folder}/{p}{name}/{name}{s}_{number}" for p in (f"{place}/", "") for s in ("", ".mp4")]
            return Query(names=tuple(dict.fromkeys(names)), suffixes=IMAGE_SUFFIXES)

        masks = tuple(image("gt_masks", frame + 1, f"{place}/{name}/{name}") for frame in mask_frames)
        row = {"video_id": name, "category": line.category, "mask_frames": mask_frames}
        if self.config.from_videos:
            video = Query(names=(f"videos/{name}", name))
            return Entry({"media": video, "masks": masks}, name, row)
        prefix = f"{name}/{name}.mp4" if line.category is None else f"{place}/{name}/{name}"
        frames = tuple(image("visual_frames", number + 1, prefix) for number in range(AVSBENCH_NUM_SEGMENTS))
        audio = Query(names=(f"audio_wav/{place}/{name}", f"audio_wav/{name}"), suffixes=AUDIO_SUFFIXES)
        return Entry({"frames": frames, "audio": audio, "masks": masks}, name, row)


def read_meta_data(path: Path, columns: Sequence[str], report: BuildReport) -> list[AvsBenchAnnotation]:
    """
    Read a csv file, whose `columns` are found by the names in its header; other columns are ignored.

    Raises:
        DataError: A column is missing, a line lacks a value, names no possible file or an unknown split, or is there
            twice. The message begins with the file and the line's number.
    """
    lines = [(number, _cells(line, f"{path}:{number}")) for number, line in read_lines(path, report)]
    header = lines[0][1] if lines else []
    if missing := [column for column in columns if column not in header]:
        raise DataError(f"{path}: expected a header with {', '.join(columns)}; there is no {', '.join(missing)}")
    report.files[path.name]["lines"] -= 1
    annotations: dict[AvsBenchAnnotation, int] = {}
    for number, cells in lines[1:]:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: expected {len(header)} values ({', '.join(header)}), got {len(cells)}")
        values = dict(zip(header, cells, strict=True))
        for column in columns:
            if values[column] in ("", ".", "..") or values[column] != Path(values[column]).name:
                raise DataError(f"{where}: expected a {column}, got {values[column]!r}")
        if values["split"] not in AVSBENCH_SPLITS:
            raise DataError(f"{where}: unknown split {values['split']!r}; expected {', '.join(AVSBENCH_SPLITS)}")
        category = values["category"] if "category" in columns else None
        annotation = AvsBenchAnnotation(values["name"], category, values["split"])
        if (first := annotations.setdefault(annotation, number)) != number:
            raise DataError(f"{where}: {annotation.name} is in line {first} already")
    return list(annotations)


def _one(query: Query | tuple[Query, ...]) -> Query:
    assert isinstance(query, Query)
    return query


def _several(queries: Query | tuple[Query, ...]) -> tuple[Query, ...]:
    assert isinstance(queries, tuple)
    return queries


def _cells(line: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise DataError(f"{where}: expected values with commas between them ({error})") from error
