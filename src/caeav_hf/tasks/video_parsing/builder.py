"""
Builder of LLP (Look, Listen and Parse): audio-visual video parsing of clips of ten seconds.

Files as published, with tabs between their columns and a header:

    AVVP_train.csv, AVVP_val_pd.csv, AVVP_test_pd.csv    filename, event_labels: the classes of a clip, with commas
    AVVP_eval_audio.csv, AVVP_eval_visual.csv            filename, onset, offset, event_labels: what is heard, or seen,
                                                         in the seconds [onset, offset) of a validation or test clip
    AVVP_dataset_full.csv                                all clips, as in the first three; need not be there

A filename is `<VideoID>_<start>_<end>`, the seconds of the video that the clip was cut from. The clip itself is
`<filename>.mp4` or `<VideoID>.mp4`, ten seconds long; or `<VideoID>.mp4` is the video in full length.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets

from caeav_hf.errors import DataError

from ...data.builder import (
    BuildReport,
    Checked,
    ClipBuilder,
    ClipBuilderConfig,
    Entry,
    read_class_names,
    read_lines,
)
from ...data.checks import UnusableError
from ...data.media_files import Query
from ...data.schema import LLP_NUM_SEGMENTS, SPLITS, video_parsing_features
from .labels import LLP_CATEGORIES
from .visual_3d import feature_shape, find_features, read_features


LLP_SPLIT_FILES = dict(zip(SPLITS, ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv"), strict=True))
LLP_EVENT_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
LLP_ALL_FILE = "AVVP_dataset_full.csv"
LLP_CATEGORIES_FILE = "categories.txt"

CLIP_HEADER = ("filename", "event_labels")
EVENT_HEADER = ("filename", "onset", "offset", "event_labels")

_FILENAME = re.compile(r"(?P<video_id>.+)_(?P<start>\d+(\.\d+)?)_(?P<end>\d+(\.\d+)?)", re.ASCII)


class LlpClip(NamedTuple):
    """A line of a split: a clip and its classes, in the order of the line."""

    filename: str
    labels: tuple[int, ...]


class LlpEvent(NamedTuple):
    """A line of an event file: a class in the seconds [onset, offset) of a clip."""

    filename: str
    onset: int
    offset: int
    label: int


@dataclass
class LlpConfig(ClipBuilderConfig):
    """
    Options of the builder.

    Args:
        visual_3d: Folder with a file of features of each clip, named as the clip may be, as
            [`~data.visual_3d.extract_folder`] writes them or `.npy`; or None for rows without.
    """

    visual_3d: str | None = None


class LlpBuilder(ClipBuilder):
    """
    LLP, 25 classes, or another set in its layout whose names `categories.txt` in the annotation folder lists, one per
    line, in the order of the labels.

    In the caption file a clip is called `<VideoID>_<start>_<end>`, or as its media file, without the suffix. Training
    rows know the classes of the clip only; their `audio_segment_labels` and `visual_segment_labels` are null.

    The published files have peculiarities, which are kept and counted in the report: events of a clip that no split
    has (misspelt names), events that end when or before they begin (no second has them), events of one class that
    overlap (their union counts), a class that is listed twice, and clips whose classes are not those of their events.
    Lines that are not of the published form are errors. Arguments as in [`LlpConfig`].
    """

    BUILDER_CONFIG_CLASS = LlpConfig
    VERSION = datasets.Version("1.0.0")
    pretty_name = "Audio-visual video parsing (LLP layout)"
    task_categories: ClassVar[tuple[str, ...]] = ("video-classification",)
    card_text = (
        "Clips of ten seconds with the classes of what is heard or seen in them (`event_labels`), and, for validation "
        "and test, lists of the classes that are heard (`audio_segment_labels`) and seen (`visual_segment_labels`) in "
        "each second; for training these are null. The layout is that of LLP (Tian et al., Unified Multisensory "
        "Perception: Weakly-Supervised Audio-Visual Video Parsing, ECCV 2020)."
    )

    def row_features(self, annotations: Path) -> datasets.Features:
        return video_parsing_features(read_categories(annotations))

    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        if self.config.visual_3d is not None and not Path(self.config.visual_3d).is_dir():
            raise DataError(f"{self.config.visual_3d}: no such folder (`visual_3d`)")
        categories = read_categories(annotations)
        clips = {s: read_clips(annotations / name, categories, report) for s, name in LLP_SPLIT_FILES.items()}
        events = {m: read_events(annotations / name, categories, report) for m, name in LLP_EVENT_FILES.items()}
        evaluated = {clip.filename: clip for split in ("validation", "test") for clip in clips[split]}
        segments = {
            modality: _segment_labels(lines, evaluated, modality, report) for modality, lines in events.items()
        }
        _note_unlike_classes(evaluated, segments, categories, report)
        _note_splits(annotations / LLP_ALL_FILE, clips, categories, report)
        return {split: [_entry(clip, segments) for clip in lines] for split, lines in clips.items()}

    def check(self, entry: Entry) -> Checked:
        checked = super().check(entry)
        if self.config.visual_3d is not None:
            path = self._features_of(checked)
            if path is None:
                raise UnusableError("missing_visual_3d", f"{entry.row['filename']}.safetensors")
            try:
                feature_shape(path)
            except DataError as error:
                raise UnusableError("unreadable_visual_3d", path.name) from error
        return checked

    def _features_of(self, checked: Checked) -> Path | None:
        if self.config.visual_3d is None:
            return None
        filename, video_id = (checked.entry.row[name] for name in ("filename", "video_id"))
        if checked.parts[0].start is None:
            return find_features(self.config.visual_3d, (filename, video_id))
        # Features extracted from a full-length video are of its first seconds; the authors' arrays are of the clip.
        path = Path(self.config.visual_3d) / f"{video_id}.npy"
        return find_features(self.config.visual_3d, (filename,)) or (path if os.path.isfile(path) else None)

    def _row(self, checked: Checked, captions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
        path = self._features_of(checked)
        return {**super()._row(checked, captions), "visual_3d": None if path is None else read_features(path).tolist()}

    def _identity(self, checked: Checked, captions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
        path = self._features_of(checked)
        status = None if path is None else path.stat()
        features = None if status is None else [str(path), status.st_size, status.st_mtime_ns]
        return {**super()._identity(checked, captions), "visual_3d": features}


def read_categories(annotations: Path) -> tuple[str, ...]:
    """Return the class names: those in the folder's `categories.txt`, or LLP's if it has none."""
    return read_class_names(annotations / LLP_CATEGORIES_FILE, LLP_CATEGORIES)


def read_clips(path: Path, categories: Sequence[str], report: BuildReport) -> list[LlpClip]:
    """
    Read the clips of a split. A class that a line lists twice is noted in the report.

    Raises:
        DataError: A line is not of the form above, names an unknown class or no clip, or a clip that is there already.
            The message begins with the file and the line's number.
    """
    clips: dict[str, tuple[int, LlpClip]] = {}
    for number, (filename, names) in _read_table(path, CLIP_HEADER, report):
        where = f"{path}:{number}"
        if filename != Path(filename).name or not _FILENAME.fullmatch(filename):
            raise DataError(f"{where}: expected a clip's name <VideoID>_<start>_<end>, got {filename!r}")
        labels = _labels(names, categories, where)
        if len(labels) > len(set(labels)):
            report.notes.add("class_listed_twice", f"{filename} ({names})")
        first = clips.setdefault(filename, (number, LlpClip(filename, tuple(dict.fromkeys(labels)))))
        if first[0] != number:
            raise DataError(f"{where}: {filename} is in line {first[0]} already")
    return [clip for _, clip in clips.values()]


def read_events(path: Path, categories: Sequence[str], report: BuildReport) -> list[LlpEvent]:
    """
    Read the events that are heard, or seen. Any name of a clip is taken as it is, and an event may end before it
    begins.

    Raises:
        DataError: A line is not of the form above, names an unknown class, or has times that are not whole seconds of
            the clip. The message begins with the file and the line's number.
    """
    events = []
    for number, (filename, *times, names) in _read_table(path, EVENT_HEADER, report):
        where = f"{path}:{number}"
        if not all(re.fullmatch(r"\d{1,9}", time, re.ASCII) and int(time) <= LLP_NUM_SEGMENTS for time in times):
            raise DataError(
                f"{where}: expected onset and offset in whole seconds from 0 to {LLP_NUM_SEGMENTS}, "
                f"got {times[0]!r} and {times[1]!r}"
            )
        onset, offset = map(int, times)
        events += [LlpEvent(filename, onset, offset, label) for label in _labels(names, categories, where)]
    return events


def _read_table(path: Path, header: tuple[str, ...], report: BuildReport) -> list[tuple[int, list[str]]]:
    """Return the lines below the header, with their numbers, split into columns."""
    lines = [(number, [cell.strip() for cell in line.split("\t")]) for number, line in read_lines(path, report)]
    columns = ", ".join(header)
    if not lines or tuple(lines[0][1]) != header:
        raise DataError(f"{path}: expected a header with {columns}, separated by tabs")
    for number, cells in lines:
        if len(cells) != len(header) or not all(cells):
            raise DataError(f"{path}:{number}: expected {columns}, separated by tabs, got {cells}")
    report.files[path.name]["lines"] -= 1
    return lines[1:]


def _labels(names: str, categories: Sequence[str], where: str) -> list[int]:
    labels = []
    for name in names.split(","):
        if name not in categories:
            raise DataError(f"{where}: unknown class {name!r}; expected some of {', '.join(categories)}")
        labels.append(categories.index(name))
    return labels


def _segment_labels(
    events: Sequence[LlpEvent], clips: Mapping[str, LlpClip], modality: str, report: BuildReport
) -> dict[str, list[list[int]]]:
    """Return for each clip with events the classes of each second, ascending; record irregularities in the report."""
    segments: dict[str, list[set[int]]] = {}
    for event in events:
        example = f"{event.filename} ({modality}, {event.onset} to {event.offset} s)"
        if event.filename not in clips:
            report.notes.add("event_of_a_clip_in_no_split", example)
            continue
        seconds = segments.setdefault(event.filename, [set() for _ in range(LLP_NUM_SEGMENTS)])
        if event.onset >= event.offset:
            kind = "event_of_no_length" if event.onset == event.offset else "event_that_ends_before_it_begins"
            report.notes.add(kind, example)
        span = seconds[event.onset : event.offset]
        if any(event.label in second for second in span):
            report.notes.add("event_that_overlaps_another_of_its_class", example)
        for second in span:
            second.add(event.label)
    return {filename: [sorted(second) for second in seconds] for filename, seconds in segments.items()}


def _note_unlike_classes(
    clips: Mapping[str, LlpClip],
    segments: Mapping[str, Mapping[str, list[list[int]]]],
    categories: Sequence[str],
    report: BuildReport,
) -> None:
    for filename, clip in clips.items():
        present = {label for by_clip in segments.values() for second in by_clip.get(filename, []) for label in second}
        if not any(filename in by_clip for by_clip in segments.values()):
            report.notes.add("clip_without_events", filename)
        elif present != set(clip.labels):
            listed, found = (",".join(categories[label] for label in sorted(s)) for s in (set(clip.labels), present))
            report.notes.add("clip_whose_events_have_other_classes", f"{filename} ({listed}; events: {found})")


def _note_splits(
    everything: Path, clips: Mapping[str, Sequence[LlpClip]], categories: Sequence[str], report: BuildReport
) -> None:
    splits: dict[str, list[str]] = {}
    for split, lines in clips.items():
        for clip in lines:
            splits.setdefault(clip.filename, []).append(split)
    for filename, names in splits.items():
        if len(names) > 1:
            report.notes.add("clip_in_several_splits", f"{filename} ({', '.join(names)})")
    if everything.is_file():
        # Irregularities of its lines were noted with the splits.
        unnoted = BuildReport()
        listed = set(read_clips(everything, categories, unnoted))
        report.files.update(unnoted.files)
        divided = {clip for lines in clips.values() for clip in lines}
        for reason, odd in (("in_no_split", listed - divided), ("in_split_only", divided - listed)):
            for clip in sorted(odd):
                report.notes.add(reason, clip.filename)


def _entry(clip: LlpClip, segments: Mapping[str, Mapping[str, list[list[int]]]]) -> Entry:
    match = _FILENAME.fullmatch(clip.filename)
    if match is None:  # `read_clips` lets no other name through
        raise DataError(f"{clip.filename}: expected a clip's name <VideoID>_<start>_<end>")
    times = (float(match["start"]), float(match["end"]))
    known = any(clip.filename in by_clip for by_clip in segments.values())
    nothing: list[list[int]] = [[] for _ in range(LLP_NUM_SEGMENTS)]
    return Entry(
        media={
            "media": Query(
                names=(clip.filename,),
                video_id=match["video_id"],
                times=times,
                clip_seconds=LLP_NUM_SEGMENTS,
                num_frames=LLP_NUM_SEGMENTS,
            )
        },
        clip_id=clip.filename,
        row={
            "video_id": match["video_id"],
            "filename": clip.filename,
            "start": times[0],
            "end": times[1],
            "event_labels": list(clip.labels),
            **{f"{m}_segment_labels": by.get(clip.filename, nothing) if known else None for m, by in segments.items()},
        },
    )
