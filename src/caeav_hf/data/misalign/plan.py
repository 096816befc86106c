"""Decide what a kind does to each clip of a data set, and correct the labels. Nothing is decoded or copied."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from caeav_hf.constants import MISALIGNMENT, PREPARED
from caeav_hf.errors import DataError

from ..rows import task_of_rows
from .change import MEDIA_COLUMNS, Change, LabelCorrection, Row, generator
from .kinds import KINDS, LEVELS, Kind


logger = logging.get_logger(__name__)

# Columns that a foreign sound is read from.
_SOUND_COLUMNS = ("media", "media_start", "media_end", "audio")
_CAPTIONS = ("visual_caption", "audio_caption")


def misalignment_feature() -> dict[str, Any]:
    """
    Return the type of the column `misalignment`.

    - `kind`, `level`, `seed`: as given to [`misalign`]; `clip`: name of the clip, which the draws depend on too.
    - `affected_segments`: for each segment, whether its sound and its picture no longer belong together.
    - `delay`: seconds by which the sound is late, negative if it is early.
    - `picture`: for each segment, the segment whose picture is shown; empty if each shows its own.
    - `rotation`: degrees by which each segment's picture is turned counterclockwise; empty if none is.
    - `captions`: columns of the captions that were replaced.
    - `donor`: the clip that foreign sound comes from: its name, its row, and its files unless the rows contain them.
    - `source`: data set, split and row that the clip is read from, in a data set that refers to another one.
    """
    file = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    return {
        "kind": datasets.Value("string"),
        "level": datasets.Value("int64"),
        "seed": datasets.Value("int64"),
        "clip": datasets.Value("string"),
        "affected_segments": datasets.Sequence(datasets.Value("bool")),
        "delay": datasets.Value("float64"),
        "picture": datasets.Sequence(datasets.Value("int64")),
        "rotation": datasets.Sequence(datasets.Value("float64")),
        "captions": datasets.Sequence(datasets.Value("string")),
        "donor": {
            "clip": datasets.Value("string"),
            "row": datasets.Value("int64"),
            "media": file,
            "media_start": datasets.Value("float64"),
            "media_end": datasets.Value("float64"),
            "audio": file,
        },
        "source": {
            "data": datasets.Value("string"),
            "split": datasets.Value("string"),
            "row": datasets.Value("int64"),
        },
    }


def misalign(
    rows: datasets.Dataset, kind: str, level: int, seed: int = 0, task: str | None = None
) -> datasets.Dataset:
    """
    Misalign or corrupt the clips of a data set.

    What happens to a clip depends only on the arguments, the clip's name and, for foreign sounds and captions, the
    other clips among `rows`; not on their order. Nothing is decoded: the rows record what is done to them in their
    column `misalignment` (see [`misalignment_feature`]), and it is done whenever they are decoded. Labels are
    corrected as the task defines (see docs/robustness.md).

    Args:
        rows: Rows of one split, as [`~data.shards.load_rows`] reads them.
        kind: One of [`KINDS`].
        level: Severity, from 1 to 5; at 0 clips and labels stay as they are.
        seed: Random seed.
        task: Task of the rows; by default the one whose column of labels they have.

    Returns:
        The rows with the additional column, for [`CaeAvDataset`] and all that reads it.

    Raises:
        DataError: There is no such kind or level, or it cannot be made of these rows: they are prepared or misaligned
            already, have no captions, or none of them has another clip to take a sound from.
    """
    if kind not in KINDS:
        raise DataError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    if level not in (0, *LEVELS):
        raise DataError(f"`level` must be a whole number from 0 to {LEVELS[-1]}, got {level!r}")
    if PREPARED in rows.column_names:
        raise DataError("`rows` are prepared; misalign the data set that they were prepared from")
    if MISALIGNMENT in rows.column_names:
        raise DataError("`rows` are misaligned already; start from the original ones")
    if not len(rows):
        raise DataError("`rows` is empty; expected at least one row")
    correction = correction_of(task, rows.features)
    planner = _Planner(rows, KINDS[kind], level, seed, correction)
    records, changed = planner.plan()
    features = datasets.Features(
        {**{name: rows.features[name] for name in changed}, MISALIGNMENT: misalignment_feature()}
    )
    added = datasets.Dataset.from_dict({**changed, MISALIGNMENT: records}, features=features)
    kept = rows.remove_columns(list(changed))
    together = datasets.concatenate_datasets([kept, added], axis=1) if kept.column_names else added
    together = together.select_columns([*rows.column_names, MISALIGNMENT])
    if planner.is_embedded and any(record["donor"] for record in records):
        # The bytes of foreign sounds are looked up when a row is read, rather than copied.
        together = together.with_transform(_ForeignSounds(planner.sounds))
    return together


def correction_of(task: str | None, features: Mapping[str, Any]) -> LabelCorrection:
    """
    Return how the labels of rows with these columns follow a change.

    Raises:
        DataError: The rows are of no task, or their task does not define it.
    """
    record = task_of_rows(list(features), task)
    if record.misalignment is None:
        raise DataError(
            f"task {record.name} does not say how its labels follow a misalignment; expected a `LabelCorrection` as "
            "`misalignment` in its record"
        )
    return record.label_correction(features)


def is_embedded(rows: datasets.Dataset) -> bool:
    """Return whether rows contain their clips, rather than the paths of these."""
    row = rows.select_columns([name for name in _SOUND_COLUMNS if name in rows.column_names])[0]
    return any(isinstance(value, Mapping) and value["bytes"] is not None for value in row.values())


@dataclass
class _Clip:
    """A clip: its rows by number, the labels of one of them, and the classes of all."""

    name: str
    rows: list[int]
    labels: Row
    classes: frozenset[Any] | None
    num_segments: int

    @property
    def video(self) -> str:
        """The video that the clip is a part of."""
        return self.labels["video_id"]


@dataclass
class _Plan:
    """What is done to a clip, as in the column `misalignment`, and what that does to its segments."""

    affected: list[bool]
    delay: float = 0.0
    picture: list[int] | None = None
    silent: list[bool] | None = None
    foreign: list[bool] | None = None
    rotation: list[float] | None = None
    donor: _Clip | None = None
    captions: dict[str, Any] | None = None

    def change(self, kind: Kind) -> Change:
        count = len(self.affected)
        silent = self.silent or [False] * count
        return Change(
            kind=kind.name,
            picture=tuple(self.picture or range(count)),
            sound=tuple({} if silent[t] else _shares(t, self.delay, count) for t in range(count)),
            foreign=tuple(self.foreign or [False] * count),
            donor=None if self.donor is None else self.donor.labels,
            rotation=tuple(self.rotation or ()),
        )


class _Planner:
    """The clips of a data set and what a kind does to each."""

    def __init__(self, rows: datasets.Dataset, kind: Kind, level: int, seed: int, correction: LabelCorrection) -> None:
        self.kind, self.level, self.seed, self.correction = kind, level, seed, correction
        self.labels = [
            dict(row) for row in rows.select_columns([c for c in rows.column_names if c not in MEDIA_COLUMNS])
        ]
        self.sounds = rows.select_columns([c for c in _SOUND_COLUMNS if c in rows.column_names])
        self.is_embedded = is_embedded(rows)
        # By name, so that draws do not depend on the order of the rows.
        self.clips = sorted(self._clips(), key=lambda clip: clip.name)

    def _clips(self) -> list[_Clip]:
        numbers: dict[str, list[int]] = {}
        for number, row in enumerate(self.labels):
            numbers.setdefault(self.correction.name(row), []).append(number)
        clips = []
        for name, of_clip in numbers.items():
            rows = [self.labels[number] for number in of_clip]
            if len(rows) > 1:  # its first row in an order that does not depend on theirs
                first = min(range(len(rows)), key=lambda i: json.dumps(rows[i], sort_keys=True, default=repr))
                of_clip.insert(0, of_clip.pop(first))
            classes = [self.correction.classes(row) for row in rows]
            known = None if None in classes else frozenset().union(*(c for c in classes if c is not None))
            labels = self.labels[of_clip[0]]
            clips.append(_Clip(name, of_clip, labels, known, self.correction.segments(labels)))
        return clips

    def plan(self) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """Return the column `misalignment`, and the values of all columns of which some change."""
        records: list[dict[str, Any]] = [{}] * len(self.labels)
        changes: list[dict[str, Any]] = [{}] * len(self.labels)
        plans: dict[str, _Plan] = {}
        if self.level:
            make = _PLANS.get(self.kind.name, _keep)
            plans = {clip.name: plan for clip in self.clips if (plan := make(self, clip)) is not None}
            if not plans:
                raise DataError(f"`kind` {self.kind.name} cannot be made of these rows: {_LACKING[self.kind.name]}")
            if missing := len(self.clips) - len(plans):
                logger.warning(
                    f"{self.kind.name}: {missing} of {len(self.clips)} clips are unchanged, as no other clip fits"
                )
        for clip in self.clips:
            plan = plans.get(clip.name)
            record = self._record(clip, plan or _Plan([False] * clip.num_segments))
            for number in clip.rows:
                records[number] = record
                if plan is not None:
                    corrected = self.correction.corrected(self.labels[number], plan.change(self.kind))
                    changes[number] = {**corrected, **(plan.captions or {})}
        columns = dict.fromkeys(name for change in changes for name in change)
        changed = {
            name: [change.get(name, row[name]) for row, change in zip(self.labels, changes, strict=True)]
            for name in columns
        }
        return records, changed

    def _record(self, clip: _Clip, plan: _Plan) -> dict[str, Any]:
        return {
            "kind": self.kind.name,
            "level": self.level,
            "seed": self.seed,
            "clip": clip.name,
            "affected_segments": plan.affected,
            "delay": plan.delay,
            "picture": plan.picture or [],
            "rotation": plan.rotation or [],
            "captions": list(plan.captions or ()),
            "donor": None if plan.donor is None else self._donor(plan.donor),
            "source": None,
        }

    def _donor(self, donor: _Clip) -> dict[str, Any]:
        number = donor.rows[0]
        empty = dict.fromkeys(_SOUND_COLUMNS)
        files = {} if self.is_embedded else self.sounds[number]
        return {"clip": donor.name, "row": number, **empty, **files}

    def rng(self, clip: _Clip) -> np.random.Generator:
        return generator(self.seed, self.kind.name, self.level, clip.name, "plan")

    @property
    def strength(self) -> float:
        return self.kind.strength(self.level)

    @cached_property
    def chosen(self) -> set[str]:
        """Names of the clips whose captions are changed, the kind's share of those that have any."""
        names = [clip.name for clip in self.clips if _has_captions(clip)]
        draws = {name: generator(self.seed, self.kind.name, self.level, name, "choice").random() for name in names}
        return set(sorted(names, key=draws.__getitem__)[: round(self.strength * len(names))])

    def draw_donor(
        self, rng: np.random.Generator, clip: _Clip, same_class: bool, with_captions: bool = False
    ) -> _Clip | None:
        """
        Draw a clip that shares a class with another one, or that shares none with it. If the rows name no classes, any
        other clip may be drawn as one of another class, and none as one of the same.
        """
        for number in rng.permutation(len(self.clips)):
            other = self.clips[number]
            if clip.classes is None or other.classes is None:
                fits = not same_class
            else:
                fits = bool(clip.classes & other.classes) == same_class
            if fits and other.video != clip.video and (_has_captions(other) or not with_captions):
                return other
        return None


class _ForeignSounds:
    """
    Transform of a data set that adds the bytes of foreign sounds to rows that are read with their clips.

    Args:
        sounds: The rows of the original data set, with the columns that sound is read from.
    """

    def __init__(self, sounds: datasets.Dataset) -> None:
        self.sounds = sounds

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # Single columns, such as the misalignments of all rows, are returned as they are.
        if MISALIGNMENT not in batch or not set(batch) & set(MEDIA_COLUMNS):
            return batch
        return {**batch, MISALIGNMENT: [self._with_sound(record) for record in batch[MISALIGNMENT]]}

    def _with_sound(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["donor"] is None:
            return record
        return {**record, "donor": {**record["donor"], **self.sounds[record["donor"]["row"]]}}


def _has_captions(clip: _Clip) -> bool:
    return all(clip.labels.get(name) for name in _CAPTIONS)


def _shares(segment: int, delay: float, count: int) -> dict[int, float]:
    """Return the segments whose sound is heard in a segment if all sound is late by `delay` segments, with shares."""
    first = math.floor(segment - delay)
    later = segment - delay - first
    shares = {first: 1.0 - later, first + 1: later}
    return {source: share for source, share in shares.items() if share > 1e-9 and 0 <= source < count}


def _stretch(rng: np.random.Generator, count: int, share: float) -> list[bool]:
    """Draw a run of a share of `count` segments, at least one, and return for each segment whether it is in it."""
    length = max(1, round(share * count))
    start = int(rng.integers(0, count - length + 1))
    return [start <= segment < start + length for segment in range(count)]


# What each kind does to a clip: (planner, clip) -> plan, or `None` if it cannot be done to this clip.


def _keep(planner: _Planner, clip: _Clip) -> _Plan:
    """Sound and picture still belong together: noise, and corruptions of both."""
    return _Plan([False] * clip.num_segments)


def _delay(planner: _Planner, clip: _Clip) -> _Plan:
    sign = 1 if planner.rng(clip).random() < 0.5 else -1
    return _Plan([True] * clip.num_segments, delay=sign * planner.strength)


def _mute(planner: _Planner, clip: _Clip) -> _Plan:
    silent = _stretch(planner.rng(clip), clip.num_segments, planner.strength)
    return _Plan(silent, silent=silent)


def _swap(planner: _Planner, clip: _Clip, same_class: bool) -> _Plan | None:
    rng = planner.rng(clip)
    foreign = _stretch(rng, clip.num_segments, planner.strength)
    donor = planner.draw_donor(rng, clip, same_class)
    return None if donor is None else _Plan(foreign, silent=foreign, foreign=foreign, donor=donor)


def _off_screen(planner: _Planner, clip: _Clip) -> _Plan | None:
    donor = planner.draw_donor(planner.rng(clip), clip, same_class=False)
    everywhere = [True] * clip.num_segments
    return None if donor is None else _Plan(everywhere, foreign=everywhere, donor=donor)


def _cut(planner: _Planner, clip: _Clip) -> _Plan | None:
    count = clip.num_segments
    if count < 2:
        return None
    rng = planner.rng(clip)
    cut = _stretch(rng, count, planner.strength)
    # From far away in the clip, which continues at its beginning.
    step = int(rng.integers(math.ceil(count / 3), max(math.ceil(count / 3), 2 * count // 3) + 1))
    return _Plan(cut, picture=[(t + step) % count if is_cut else t for t, is_cut in enumerate(cut)])


def _interference(planner: _Planner, clip: _Clip) -> _Plan:
    # AVRobustBench turns each picture by whole degrees, at most so many.
    most = 6 * planner.level + 5
    degrees = planner.rng(clip).integers(-most, most + 1, clip.num_segments)
    return _Plan([False] * clip.num_segments, rotation=degrees.astype(float).tolist())


def _caption(planner: _Planner, clip: _Clip, make: Callable[[np.random.Generator, Row], Row]) -> _Plan | None:
    """Change the captions of a share of the clips; `make` does so, given another clip's row."""
    if not planner.chosen:
        return None
    plan = _keep(planner, clip)
    if clip.name in planner.chosen:
        rng = planner.rng(clip)
        donor = planner.draw_donor(rng, clip, same_class=False, with_captions=True)
        if donor is None:
            return None
        plan.captions = dict(make(rng, donor.labels))
    return plan


def _no_caption(planner: _Planner, clip: _Clip) -> _Plan | None:
    if not planner.chosen:
        return None
    plan = _keep(planner, clip)
    plan.captions = dict.fromkeys(_CAPTIONS) if clip.name in planner.chosen else {}
    return plan


def _foreign(rng: np.random.Generator, other: Row) -> Row:
    return {name: other[name] for name in _CAPTIONS}


def _contradictory(rng: np.random.Generator, other: Row) -> Row:
    """Return one of another clip's captions, which contradicts the own one that stays."""
    replaced = _CAPTIONS[int(rng.integers(2))]
    return {replaced: other[replaced]}


_PLANS: dict[str, Callable[[_Planner, _Clip], _Plan | None]] = {
    "delay": _delay,
    "swap_other_class": partial(_swap, same_class=False),
    "swap_same_class": partial(_swap, same_class=True),
    "off_screen": _off_screen,
    "mute": _mute,
    "cut": _cut,
    "caption_foreign": partial(_caption, make=_foreign),
    "caption_empty": _no_caption,
    "caption_contradictory": partial(_caption, make=_contradictory),
    "interference": _interference,
}

# Why a kind can be made of no clip.
_LACKING = {
    "swap_other_class": "it needs clips of at least two classes",
    "swap_same_class": "it needs two clips of one class, and rows that name classes",
    "off_screen": "it needs clips of at least two classes",
    "cut": "it needs clips of at least two segments",
    "caption_foreign": "it needs clips of at least two classes that have captions",
    "caption_empty": "they have no captions",
    "caption_contradictory": "it needs clips of at least two classes that have captions",
}
