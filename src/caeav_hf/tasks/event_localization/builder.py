"""
Builder of AVE: audio-visual event localization in clips of ten seconds.

Files as published: `trainSet.txt`, `valSet.txt`, `testSet.txt` (and `Annotations.txt`, which holds all of them below a
header), one line `Category&VideoID&Quality&StartTime&EndTime` an annotated clip, and `<VideoID>.mp4`. The clips are of
AudioSet. Its files of segments say which ten seconds of a video a clip is, which AVE's own do not: they have one line
`YTID, start_seconds, end_seconds, positive_labels` a clip.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import datasets

from caeav_hf.errors import DataError

from ...data.builder import (
    BuildReport,
    ClipBuilder,
    ClipBuilderConfig,
    Entry,
    read_class_names,
    read_lines,
)
from ...data.media_files import Query
from ...data.schema import AVE_NUM_SEGMENTS, SPLITS, event_localization_features, event_segment_labels
from .labels import AVE_CATEGORIES


AVE_HEADER = "Category&VideoID&Quality&StartTime&EndTime"
AVE_SPLIT_FILES = dict(zip(SPLITS, ("trainSet.txt", "valSet.txt", "testSet.txt"), strict=True))
AVE_ALL_FILE = "Annotations.txt"
AVE_CATEGORIES_FILE = "categories.txt"


class AveAnnotation(NamedTuple):
    """One line: a clip and the second [start, end) of its event."""

    category: str
    video_id: str
    quality: str
    start: int
    end: int


@dataclass
class AveConfig(ClipBuilderConfig):
    """
    Options of the builder.

    Args:
        clip_times: Files of AudioSet's segments. With them a video that is there in full length, `<VideoID>.mp4`, is
            as good as its clip.
    """

    clip_times: Sequence[str] = ()


class AveBuilder(ClipBuilder):
    """
    AVE, 28 classes and background, or another set in its layout whose names `categories.txt` in the annotation folder
    lists, one per line, in the order of the labels.

    The published files have peculiarities, which are kept and counted in the report: videos annotated with several
    categories (one row each), videos in several splits, and an event of no length (all of its segments are
    background). Lines that are not of the published form are errors. Arguments as in [`AveConfig`].
    """

    BUILDER_CONFIG_CLASS = AveConfig
    VERSION = datasets.Version("1.0.0")
    pretty_name = "Audio-visual event localization (AVE layout)"
    task_categories: ClassVar[tuple[str, ...]] = ("video-classification",)
    card_text = (
        "Clips of ten seconds with one annotated audio-visual event each: an object that can be seen and heard in the "
        "seconds [start, end). `segment_labels` has one label per second, the class inside the event and background, "
        "the label after the last class, elsewhere. The layout is that of AVE (Tian et al., Audio-Visual Event "
        "Localization in Unconstrained Videos, ECCV 2018)."
    )

    def row_features(self, annotations: Path) -> datasets.Features:
        return event_localization_features(read_categories(annotations))

    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        categories = read_categories(annotations)
        lines = {s: read_annotations(annotations / name, categories, report) for s, name in AVE_SPLIT_FILES.items()}
        _note_peculiarities(lines, report)
        if (annotations / AVE_ALL_FILE).is_file():
            everything = set(read_annotations(annotations / AVE_ALL_FILE, categories, report))
            divided = {line for split in lines.values() for line in split}
            for reason, odd in (("in_no_split", everything - divided), ("in_split_only", divided - everything)):
                for line in sorted(odd):
                    report.notes.add(reason, "&".join(map(str, line)))
        times = read_clip_times(self.config.clip_times, report)
        return {split: [_entry(line, categories, times) for line in of_split] for split, of_split in lines.items()}


def read_categories(annotations: Path) -> tuple[str, ...]:
    """Return the class names: those in the folder's `categories.txt`, or AVE's if it has none."""
    return read_class_names(annotations / AVE_CATEGORIES_FILE, AVE_CATEGORIES)


def read_annotations(path: Path, categories: tuple[str, ...], report: BuildReport) -> list[AveAnnotation]:
    """
    Read an annotation file, with or without a header.

    Raises:
        DataError: A line is not of the form above, names an unknown category or no possible file name, has times that
            are not whole seconds with 0 <= start <= end <= 10, or repeats a clip's category. The message begins with
            the file and the line's number.
    """
    annotations: dict[tuple[str, str], tuple[int, AveAnnotation]] = {}
    for number, line in read_lines(path, report):
        where = f"{path}:{number}"
        if number == 1 and line == AVE_HEADER:
            report.files[path.name]["lines"] -= 1
            continue
        parts = line.split("&")
        if len(parts) != 5:
            raise DataError(f"{where}: expected {AVE_HEADER}, got {line!r}")
        category, video_id, quality, *times = parts
        if category not in categories:
            raise DataError(f"{where}: unknown category {category!r}; expected one of {', '.join(categories)}")
        if not video_id or video_id != Path(video_id).name:
            raise DataError(f"{where}: expected a video's name, got {video_id!r}")
        if not all(re.fullmatch(r"\d{1,9}", time, re.ASCII) for time in times):
            raise DataError(f"{where}: expected times in whole seconds, got {times[0]!r} and {times[1]!r}")
        start, end = map(int, times)
        if not start <= end <= AVE_NUM_SEGMENTS:
            raise DataError(f"{where}: expected 0 <= start <= end <= {AVE_NUM_SEGMENTS}, got {start} and {end}")
        first = annotations.setdefault(
            (video_id, category), (number, AveAnnotation(category, video_id, quality, start, end))
        )
        if first[0] != number:
            raise DataError(f"{where}: {video_id} has its {category!r} in line {first[0]} already")
    return [annotation for _, annotation in annotations.values()]


def read_clip_times(paths: Sequence[str], report: BuildReport) -> dict[str, tuple[float, float]]:
    """
    Read AudioSet's segment files and return the seconds of each video's clip.

    Raises:
        DataError: A line is not of the form above, or a video has other seconds already. The message begins with the
            file and the line's number.
    """
    times: dict[str, tuple[float, float]] = {}
    for path in map(Path, paths):
        for number, line in read_lines(path, report):
            if line.startswith("#"):
                report.files[path.name]["lines"] -= 1
                continue
            where = f"{path}:{number}"
            video_id, *seconds = (cell.strip() for cell in line.split(",")[:3])
            try:
                start, end = map(float, seconds)
            except ValueError as error:
                raise DataError(
                    f"{where}: expected YTID, start_seconds, end_seconds, positive_labels, got {line!r}"
                ) from error
            if not 0 <= start < end < float("inf"):
                raise DataError(f"{where}: expected 0 <= start < end, got {start:g} and {end:g}")
            if times.setdefault(video_id, (start, end)) != (start, end):
                raise DataError(f"{where}: {video_id} has the seconds {times[video_id]} already, got {(start, end)}")
    return times


def _entry(line: AveAnnotation, categories: tuple[str, ...], times: Mapping[str, tuple[float, float]]) -> Entry:
    label = categories.index(line.category)
    query = Query(
        video_id=line.video_id,
        times=times.get(line.video_id),
        clip_seconds=AVE_NUM_SEGMENTS,
        num_frames=AVE_NUM_SEGMENTS,
    )
    return Entry(
        media={"media": query},
        clip_id=line.video_id,
        row={
            "video_id": line.video_id,
            "category": line.category,
            "label": label,
            "start": line.start,
            "end": line.end,
            "quality": line.quality,
            "segment_labels": event_segment_labels(label, line.start, line.end, AVE_NUM_SEGMENTS, len(categories)),
        },
    )


def _note_peculiarities(lines: dict[str, list[AveAnnotation]], report: BuildReport) -> None:
    splits: dict[str, dict[str, None]] = {}
    for split, annotations in lines.items():
        counts: dict[str, int] = {}
        for line in annotations:
            counts[line.video_id] = counts.get(line.video_id, 0) + 1
            splits.setdefault(line.video_id, {})[split] = None
            if line.start == line.end:
                report.notes.add("event_of_no_length", line.video_id)
        for video_id, count in counts.items():
            if count > 1:
                report.notes.add("video_with_several_categories", video_id)
    for video_id, names in splits.items():
        if len(names) > 1:
            report.notes.add("video_in_several_splits", f"{video_id} ({', '.join(names)})")
