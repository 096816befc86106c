"""
Base class of the builders, which convert annotation files and a media folder to Parquet shards.

A builder reads its annotations into [`Entry`] rows, which describe the media files that they need. The base class
finds (`media_files`) and checks (`checks`) every file, lists missing and broken ones by reason in `report.json`, and
writes the other rows (`store`):

    <out>/data/<split>-00000-of-00001.parquet ...    <out>/report.json    <out>/README.md (the data set card)

`datasets.load_dataset(<out>)` reads that folder, also with `streaming=True`. Running an interrupted build again
continues it. The builders are `GeneratorBasedBuilder` subclasses, so `download_and_prepare` and `as_dataset` also
work. Media are read in workers with limits of memory and time (`media.guard`).
"""

import dataclasses
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
from tqdm import tqdm

from caeav_hf.errors import DataError
from caeav_hf.hub import check_name, upload
from caeav_hf.media.guard import guarded_decoding

from ..files import make_folder, read_bytes, write_json, write_text
from .caption_file import read_captions
from .card import card_text_of
from .checks import ClipFiles, MediaChecker, MediaPart, Notes, UnusableError
from .cutting import cut
from .media_files import Query
from .store import Shard, claim, write_shards


_MAX_EXAMPLES = 20
_SHARD_BYTES = 500_000_000
# Approximate size of row groups, which limits the memory of streaming readers and of the writer.
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 1_000
# Version of the format, part of every shard's fingerprint, so that shards of an older format are not reused.
_FORM = 1


@dataclass(frozen=True)
class Entry:
    """
    A row before its media files are found.

    Args:
        media: Query, or queries, of the files of each media column.
        clip_id: Name of the clip in the caption file, where a clip that is a whole file may also have the file's name.
        row: Columns from the annotations.
    """

    media: Mapping[str, Query | tuple[Query, ...]]
    clip_id: str
    row: Mapping[str, Any]


_MediaValue = tuple[dict[str, Any], float | None, float | None]
"""A file as stored in a row, and the start and end of the clip in seconds, or None."""


@dataclass(frozen=True)
class Checked:
    """
    A row whose files have been found and checked.

    Args:
        entry: The row.
        files: File, or files, of each media column, without optional files that are missing or broken.
        notes: Notes for the report.
        losses: Optional files that are missing or broken, for the report.
    """

    entry: Entry
    files: ClipFiles
    notes: Notes = ()
    losses: Notes = ()

    @property
    def parts(self) -> list[MediaPart]:
        """All files of the row."""
        return [part for files in self.files.values() for part in ([files] if isinstance(files, MediaPart) else files)]


class Tally:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self._items: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        self._items.setdefault(reason, []).append(example)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def as_dict(self) -> dict[str, Any]:
        return {
            reason: {"count": len(examples), "examples": examples[:_MAX_EXAMPLES]}
            for reason, examples in sorted(self._items.items())
        }


@dataclass
class BuildReport:
    """
    Report of a build: annotation files, rows of each split (annotated = written + skipped), optional files that
    written rows lack (lost), and notes. `written_shards` does not count shards that existed already.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotated: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, Tally] = field(default_factory=dict)
    lost: dict[str, Tally] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    notes: Tally = field(default_factory=Tally)
    written_shards: int = 0

    @property
    def written(self) -> dict[str, int]:
        """Number of usable rows of each split."""
        return {split: count - len(self.skipped[split]) for split, count in self.annotated.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        return {
            "files": self.files,
            "splits": {
                split: {
                    "annotated": count,
                    "written": self.written[split],
                    "skipped": self.skipped[split].as_dict(),
                    "lost": self.lost[split].as_dict(),
                    "shards": self.shards.get(split, 0),
                }
                for split, count in self.annotated.items()
            },
            "notes": self.notes.as_dict(),
        }


@dataclass
class ClipBuilderConfig(datasets.BuilderConfig):
    """
    Options of a builder.

    Args:
        annotations: Folder with the annotation files.
        media: Folder with the media files.
        captions: Caption file, Parquet or JSON (see `caption_file`), or None.
        embed_media: Whether rows contain the bytes of their clip instead of its absolute path.
        strict: Whether a missing or broken file is an error.
        num_proc: Number of rows to check, and of shards to write, in parallel.
    """

    annotations: str | None = None
    media: str | None = None
    captions: str | None = None
    embed_media: bool = False
    strict: bool = False
    num_proc: int = 1


class ClipBuilder(datasets.GeneratorBasedBuilder):
    """
    Base class of the builders. A subclass defines its name, `card_text`, `read_entries` and `row_features`; and
    `check` unless the media of a row is one video file with sound.

    ```python
    >>> AveBuilder(annotations="annotations", media="media").build("out")
    ```

    Raises:
        DataError: A folder or file is missing or not in the published format; no clip is usable; or, with `strict`, a
            file of a clip is missing or broken.
    """

    BUILDER_CONFIG_CLASS = ClipBuilderConfig
    pretty_name: ClassVar[str]
    task_categories: ClassVar[tuple[str, ...]]
    card_text: ClassVar[str]
    media: MediaChecker

    @abstractmethod
    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        """Read the annotation files and return the rows of each split, in the order of the files."""

    @abstractmethod
    def row_features(self, annotations: Path) -> datasets.Features:
        """Return the columns of the rows."""

    def check(self, entry: Entry) -> Checked:
        """
        Find and check the files of a row; called by several threads.

        Raises:
            UnusableError: The row cannot be used.
        """
        query = entry.media["media"]
        if not isinstance(query, Query):
            raise TypeError("`media` is one file; override `check` for rows with other columns")
        files, notes = self.media.find_clip(query)
        return Checked(entry, files, notes)

    def build(self, out_dir: str | Path, max_shard_bytes: int = _SHARD_BYTES) -> BuildReport:
        """
        Write Parquet shards, report and card to a folder. Existing shards, of an interrupted or an earlier build, are
        kept if they belong to this build; the others are replaced all at once.

        Args:
            out_dir: Folder to write, created if necessary.
            max_shard_bytes: Maximum size of a shard, counting embedded media; rows are never split.

        Raises:
            DataError: See the class; or another process is writing to this folder.
        """
        out = Path(out_dir)
        make_folder(out)
        with claim(out), guarded_decoding():
            return self._build(out, max_shard_bytes)

    def _build(self, out: Path, max_shard_bytes: int) -> BuildReport:
        report, rows = self._usable_rows()
        plans = {split: _divide(checked, self._media_bytes, max_shard_bytes) for split, checked in rows.items()}
        report.shards = {split: len(shards) for split, shards in plans.items()}
        try:
            self._refuse_if_unusable(report, out / "report.json")
        except DataError:
            write_json(out / "report.json", self._report(report))
            raise

        captions = self._read_captions()
        schema = self.info.features.arrow_schema
        with tqdm(total=sum(map(len, rows.values())), desc="Writing shards", unit="row") as bar:

            def tables(checked: Sequence[Checked]) -> Iterator[pa.Table]:
                for group in _divide(checked, self._media_bytes, _GROUP_BYTES, _GROUP_ROWS):
                    yield pa.Table.from_pylist([self._row(c, captions) for c in group], schema=schema)
                    with bar.get_lock():
                        bar.update(len(group))

            shards = [
                Shard(
                    f"{split}-{number:05d}-of-{len(parts):05d}.parquet",
                    self._fingerprint(part, captions, schema),
                    schema,
                    partial(tables, part),
                )
                for split, parts in plans.items()
                for number, part in enumerate(parts)
            ]
            # Remove the old card before the shards are replaced, so that it never describes other shards.
            report.written_shards = write_shards(
                out, shards, self.config.num_proc, lambda: (out / "README.md").unlink(missing_ok=True)
            )
        write_json(out / "report.json", self._report(report))
        fingerprint = hashlib.sha256("".join(shard.fingerprint for shard in shards).encode()).hexdigest()[:16]
        write_text(out / "README.md", self._card(out, report, fingerprint))
        return report

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.card_text, features=self.row_features(self._annotations))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        with guarded_decoding():
            report, rows = self._usable_rows()
        self._refuse_if_unusable(report, None)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": checked})
            for split, checked in rows.items()
            if checked
        ]

    def _generate_examples(self, rows: Sequence[Checked]) -> Iterator[tuple[int, dict[str, Any]]]:
        captions = self._read_captions()
        with guarded_decoding():
            for index, checked in enumerate(rows):
                yield index, self._row(checked, captions)

    @property
    def _annotations(self) -> Path:
        return _folder(self.config.annotations, "annotations")

    def _media_bytes(self, checked: Checked) -> int:
        if not self.config.embed_media:
            return 0
        return sum(round(self.media.path(part.file).stat().st_size * part.share) for part in checked.parts)

    def _usable_rows(self) -> tuple[BuildReport, dict[str, list[Checked]]]:
        """Read the annotations and keep the rows with usable media."""
        report = BuildReport()
        self.media = MediaChecker(_folder(self.config.media, "media"))
        entries = self.read_entries(self._annotations, report)
        captions = self._read_captions()
        usable: dict[str, list[Checked]] = {}
        total = sum(map(len, entries.values()))
        # Threads suffice: reading waits for the disk, and decoding releases the GIL.
        with (
            ThreadPoolExecutor(max(1, self.config.num_proc)) as pool,
            tqdm(total=total, desc="Checking media", unit="row") as bar,
        ):
            for split, rows in entries.items():
                report.annotated[split], usable[split] = len(rows), []
                skipped, lost = report.skipped[split], report.lost[split] = Tally(), Tally()
                for checked in pool.map(self._checked, rows):
                    bar.update()
                    if isinstance(checked, UnusableError):
                        skipped.add(checked.reason, checked.file)
                        continue
                    usable[split].append(checked)
                    for tally, found in ((report.notes, checked.notes), (lost, checked.losses)):
                        for reason, example in found:
                            tally.add(reason, example)
                    caption = _caption(checked, captions)
                    if self.config.captions and not (caption.get("visual") and caption.get("audio")):
                        report.notes.add("without_both_captions", checked.entry.clip_id)
        return report, usable

    def _checked(self, entry: Entry) -> Checked | UnusableError:
        try:
            checked = self.check(entry)
        except UnusableError as error:
            return error
        for part in checked.parts:
            try:
                str(self.media.path(part.file)).encode()
            except UnicodeEncodeError:  # a column cannot hold such a name
                return UnusableError("name_is_not_unicode", part.file)
        return checked

    def _refuse_if_unusable(self, report: BuildReport, report_path: Path | None) -> None:
        skipped, annotated = sum(map(len, report.skipped.values())), sum(report.annotated.values())
        lost = sum(map(len, report.lost.values()))
        examples = "; ".join(
            f"{reason}: {item['examples'][0]}"
            for tally in (*report.skipped.values(), *report.lost.values())
            for reason, item in tally.as_dict().items()
        )
        where = f" (counted by reason in {report_path})" if report_path else ""
        if (skipped or lost) and self.config.strict:
            besides = f", and others lack {lost} files" if lost else ""
            raise DataError(
                f"{self.config.media}: {skipped} of {annotated} rows lack a usable clip{besides}, "
                f"e.g. {examples}{where}"
            )
        if skipped == annotated:
            raise DataError(
                f"{self.config.media}: no clip is usable of the {annotated} rows in {self.config.annotations}"
                + (f", e.g. {examples}{where}" if skipped else "")
            )

    def _read_captions(self) -> dict[str, dict[str, str | None]]:
        if self.config.captions is None:
            return {}
        return read_captions(self.config.captions)

    def _row(self, checked: Checked, captions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
        return self._columns(checked, captions, self._media_value)

    def _columns(
        self,
        checked: Checked,
        captions: Mapping[str, Mapping[str, str | None]],
        media_value: Callable[[MediaPart], _MediaValue],
    ) -> dict[str, Any]:
        caption = _caption(checked, captions)
        without: dict[str, Any] = {"media": None, "frames": [], "audio": None}
        columns = {**{c: value for c, value in without.items() if c in self.info.features}, **checked.entry.row}
        for column, files in checked.files.items():
            if isinstance(files, MediaPart):
                columns[column], start, end = media_value(files)
                if f"{column}_start" in self.info.features:
                    columns |= {f"{column}_start": start, f"{column}_end": end}
            else:
                columns[column] = [media_value(part)[0] for part in files]
        return {
            **columns,
            "visual_caption": caption.get("visual") or None,
            "audio_caption": caption.get("audio") or None,
        }

    def _media_value(self, part: MediaPart) -> _MediaValue:
        """Return a file as stored in a row, and the start and end of the clip in it."""
        path = self.media.path(part.file)
        if not self.config.embed_media:
            return {"path": str(path.resolve()), "bytes": None}, part.start, part.end
        if part.start is not None and part.end is not None:
            piece = cut(path, part.start, part.end)
            if piece is not None:
                name = f"{path.stem}_{part.start:g}_{part.end:g}{piece.suffix}"
                return {"path": name, "bytes": piece.content}, piece.start, piece.end
        return {"path": path.name, "bytes": path.read_bytes()}, part.start, part.end

    def _media_identity(self, part: MediaPart) -> _MediaValue:
        """Return an identity of [`_media_value`] without reading the file."""
        path = self.media.path(part.file)
        if not self.config.embed_media:
            return self._media_value(part)
        status = path.stat()
        return {"path": path.name, "bytes": [status.st_size, status.st_mtime_ns]}, part.start, part.end

    def _identity(self, checked: Checked, captions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
        """Return an identity of the row without reading its files."""
        return self._columns(checked, captions, self._media_identity)

    def _fingerprint(
        self, rows: Sequence[Checked], captions: Mapping[str, Mapping[str, str | None]], schema: pa.Schema
    ) -> str:
        """Return the fingerprint of a shard of these rows."""
        digest = hashlib.sha256(f"{_FORM} {schema.to_string(show_schema_metadata=True)}".encode())
        for checked in rows:
            digest.update(json.dumps(self._identity(checked, captions)).encode())
        return digest.hexdigest()[:32]

    def _report(self, report: BuildReport) -> dict[str, Any]:
        # All options of this package, except the number of threads, which does not affect the result.
        of_datasets = {f.name for f in dataclasses.fields(datasets.BuilderConfig)} | {"num_proc"}
        names = [f.name for f in dataclasses.fields(self.config) if f.name not in of_datasets]
        options = {name: _plain(getattr(self.config, name)) for name in names}
        return {"builder": self.name, **options, **report.as_dict()}

    def _card(self, out: Path, report: BuildReport, fingerprint: str) -> str:
        return card_text_of(
            out,
            builder=self.name,
            pretty_name=self.pretty_name,
            task_categories=self.task_categories,
            text=self.card_text,
            features=self.info.features,
            is_embedded=self.config.embed_media,
            annotated=report.annotated,
            written=report.written,
            skipped={split: tally.as_dict() for split, tally in report.skipped.items()},
            fingerprint=fingerprint,
        )


def ensure_can_push(repo_id: str, is_embedded: bool) -> None:
    """
    Check, before building, that the data set can be uploaded.

    Raises:
        CaeAvError: The name is not valid for a repository, or rows would refer to files on this machine.
    """
    check_name(repo_id)
    if not is_embedded:
        raise DataError("`push_to_hub` needs `embed_media`: without it rows refer to files on this machine")


def push_to_hub(folder: Path, repo_id: str, private: bool = False) -> str:
    """
    Upload a builder's data set with embedded media. One commit contains shards and card and deletes obsolete shards,
    so readers get the old or the new set. The report, which names folders of this machine, is not uploaded.

    Args:
        folder: Folder written by the builder.
        repo_id: Data set repository, created if necessary.
        private: Whether a new repository is private.

    Returns:
        The URL of the commit.

    Raises:
        CaeAvError: The Hub rejects the upload.
    """
    shards = ["data/*.parquet"]
    return upload(
        folder,
        repo_id,
        "dataset",
        "Upload the data set",
        private=private,
        only=["README.md", *shards],
        replacing=shards,
    )


def read_lines(path: Path, report: BuildReport) -> list[tuple[int, str]]:
    """
    Return the lines of an annotation file that are not blank, with their numbers from 1, and add it to the report.

    Raises:
        DataError: The file is missing, too large or not UTF-8.
    """
    content = read_bytes(path, "annotation file")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    report.files[path.name] = {"lines": len(numbered), "sha256": hashlib.sha256(content).hexdigest()}
    return numbered


def read_class_names(path: Path, published: Sequence[str]) -> tuple[str, ...]:
    """
    Return the names of the classes in the order of their labels: the lines of a file, or the published names if there
    is no such file.

    Raises:
        DataError: The file is empty or contains a name twice.
    """
    if not path.is_file():
        return tuple(published)
    names = tuple(line.strip() for _, line in read_lines(path, BuildReport()))
    if not names:
        raise DataError(f"{path}: expected the names of the classes, one per line")
    ensure_unique(names, path)
    return names


def ensure_unique(values: Iterable[str], path: Path) -> None:
    """Raise a `DataError` that names the file if a value occurs twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: {value!r} is there twice")
        seen.add(value)


def _caption(checked: Checked, captions: Mapping[str, Mapping[str, str | None]]) -> Mapping[str, str | None]:
    """Return a clip's captions by its name or, if it is a whole file or a folder of frames, by the file's name."""
    name, part = checked.entry.clip_id, checked.parts[0]
    if name not in captions and part.start is None:
        path = Path(part.file)
        name = path.stem if "media" in checked.files else path.parent.name
    return captions.get(name, {})


def _divide(
    rows: Sequence[Checked], size: Callable[[Checked], int], max_bytes: int, max_rows: int | None = None
) -> list[list[Checked]]:
    """Split rows, in order, into lists of at most `max_bytes` and `max_rows`."""
    parts: list[list[Checked]] = []
    filled = 0
    for row in rows:
        row_bytes = size(row)
        if not parts or filled + row_bytes > max_bytes or len(parts[-1]) == max_rows:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += row_bytes
    return parts


def _folder(path: str | None, option: str) -> Path:
    if path is None:
        raise DataError(f"`{option}` must be a folder, got None")
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder (`{option}`)")
    return Path(path)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
