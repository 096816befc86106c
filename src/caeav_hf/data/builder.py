"""
From annotation files and a media folder to Parquet shards: what the builders of all data sets share.

A builder reads its annotations into [`Entry`] rows, each naming the media files that it needs. Here every file is
looked up and checked, what is missing or broken is counted by reason and named in `report.json`, and the rest is
written:

    <out>/data/<split>-00000-of-00001.parquet ...    <out>/report.json    <out>/README.md (the data set card)

`datasets.load_dataset(<out>)` reads that folder, also with `streaming=True`. The builders are `GeneratorBasedBuilder`
subclasses, so `download_and_prepare` and `as_dataset` work as well.
"""

import argparse
import dataclasses
import hashlib
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from caeav_hf.errors import DataError, MediaError
from caeav_hf.processing.media import MediaInfo, probe

from .caption_file import read_captions
from .files import write_json, write_text


SPLITS = ("train", "validation", "test")

_MAX_EXAMPLES = 20
_SHARD_BYTES = 500_000_000
# Rows are written in groups of about this size, so that streaming readers and writers hold little in memory.
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 1_000


@dataclass(frozen=True)
class Entry:
    """
    One row before its media is looked up.

    Args:
        media: For each column with media its file, or its files, by their names in the media folder.
        clip_id: Name of the clip in the caption file.
        row: The columns that follow from the annotations.
    """

    media: Mapping[str, str | tuple[str, ...]]
    clip_id: str
    row: Mapping[str, Any]

    @property
    def files(self) -> list[str]:
        """Names of all of its files."""
        return [file for files in self.media.values() for file in ([files] if isinstance(files, str) else files)]


class UnusableError(Exception):
    """A row that cannot be used: why, in a word for the report, and the file at fault."""

    def __init__(self, reason: str, file: str):
        super().__init__(reason, file)
        self.reason = reason
        self.file = file


@dataclass(frozen=True)
class Checked:
    """
    What is left of a row after its files were looked at.

    Args:
        entry: The row, without files that it can do without.
        notes: Reasons and examples of things worth knowing.
        losses: Likewise, of things that were missing or broken and that the row does without.
    """

    entry: Entry
    notes: tuple[tuple[str, str], ...] = ()
    losses: tuple[tuple[str, str], ...] = ()


class Tally:
    """Counts things by reason and keeps the first few of each as examples."""

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
    What a builder found: annotation files, splits (annotated = written + skipped; what written rows do without is
    lost), and things worth knowing.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotated: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, Tally] = field(default_factory=dict)
    lost: dict[str, Tally] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    notes: Tally = field(default_factory=Tally)

    @property
    def written(self) -> dict[str, int]:
        """Rows of each split that could be used."""
        return {split: count - len(self.skipped[split]) for split, count in self.annotated.items()}

    def as_dict(self) -> dict[str, Any]:
        """The report as it goes into `report.json`."""
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
        embed_media: Whether rows hold the bytes of their clip instead of its absolute path.
        strict: Whether a missing or broken file is an error.
        num_proc: Files that are checked at the same time.
    """

    annotations: str | None = None
    media: str | None = None
    captions: str | None = None
    embed_media: bool = False
    strict: bool = False
    num_proc: int = 1


class ClipBuilder(datasets.GeneratorBasedBuilder):
    """
    Base of the builders. A data set gives its name, `card_text`, `read_entries`, `row_features`, and, if its media is
    not one video file with sound a row, `check`.

    ```python
    >>> AveBuilder(annotations="annotations", media="media").build("out")
    ```

    Raises:
        DataError: A folder or file is missing or not of the published form; no clip is left; or, with `strict`, some
            file of a clip is missing or broken.
    """

    BUILDER_CONFIG_CLASS = ClipBuilderConfig
    pretty_name: ClassVar[str]
    task_categories: ClassVar[tuple[str, ...]]
    card_text: ClassVar[str]

    @abstractmethod
    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        """Reads the annotation files: the rows of each split, in the order of the files."""

    @abstractmethod
    def row_features(self, annotations: Path) -> datasets.Features:
        """The columns of the rows."""

    def check(self, entry: Entry) -> Checked:
        """
        Looks at the files of a row; called by several threads.

        Raises:
            UnusableError: The row cannot be used.
        """
        for file in entry.files:
            self.check_video(file)
        return Checked(entry)

    def check_video(self, file: str) -> MediaInfo:
        """What the header of a video file with sound says; raises an [`UnusableError`] if it is none."""
        info = self.probe(file)
        if not info.has_video:
            raise UnusableError("no_video_stream", file)
        if not info.has_audio:
            raise UnusableError("no_audio_stream", file)
        return info

    def probe(self, file: str) -> MediaInfo:
        """What the header of a media file says; raises an [`UnusableError`] if there is none."""
        path = self.media_path(file)
        if not path.is_file():
            raise UnusableError("missing", file)
        try:
            return probe(path)
        except MediaError as error:
            raise UnusableError("unreadable", file) from error

    def media_path(self, file: str) -> Path:
        """Where a file of the media folder is."""
        return Path(self.config.media) / file

    def build(self, out_dir: str | Path, max_shard_bytes: int = _SHARD_BYTES) -> BuildReport:
        """
        Writes Parquet shards, report and card into a folder; earlier shards of this layout in it are replaced.

        Args:
            out_dir: Folder to write; made where it does not exist.
            max_shard_bytes: Size at which a shard is closed, counting embedded media; rows are never divided.
        """
        out = Path(out_dir)
        data = out / "data"
        data.mkdir(parents=True, exist_ok=True)
        report, entries = self._usable_entries()
        plans = {split: _divide(rows, self._media_bytes, max_shard_bytes) for split, rows in entries.items()}
        report.shards = {split: len(shards) for split, shards in plans.items()}
        write_json(out / "report.json", self._report(report))
        self._refuse_if_unusable(report, out / "report.json")

        captions = self._read_captions()
        partial_paths = []
        with tqdm(total=sum(map(len, entries.values())), desc="Writing shards", unit="row") as bar:
            for split, shards in plans.items():
                for number, rows in enumerate(shards):
                    path = data / f"{split}-{number:05d}-of-{len(shards):05d}.parquet.part"
                    self._write_shard(path, rows, captions, bar)
                    partial_paths.append(path)
        # Only now do complete shards take the place of an earlier build's.
        for path in data.iterdir():
            if re.fullmatch(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet", path.name):
                path.unlink()
        fingerprint = _digest(partial_paths)
        for path in partial_paths:
            path.replace(path.with_suffix(""))
        write_text(out / "README.md", self._card(report, fingerprint))
        return report

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.card_text, features=self.row_features(self._annotations))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        report, entries = self._usable_entries()
        self._refuse_if_unusable(report, None)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"entries": rows})
            for split, rows in entries.items()
            if rows
        ]

    def _generate_examples(self, entries: Sequence[Entry]) -> Iterator[tuple[int, dict[str, Any]]]:
        captions = self._read_captions()
        for index, entry in enumerate(entries):
            yield index, self._row(entry, captions)

    @property
    def _annotations(self) -> Path:
        return _folder(self.config.annotations, "annotations")

    def _media_bytes(self, entry: Entry) -> int:
        return sum(self.media_path(file).stat().st_size for file in entry.files) if self.config.embed_media else 0

    def _usable_entries(self) -> tuple[BuildReport, dict[str, list[Entry]]]:
        """Reads the annotations and keeps the rows whose media can be used."""
        report = BuildReport()
        _folder(self.config.media, "media")
        entries = self.read_entries(self._annotations, report)
        captions = self._read_captions()
        usable: dict[str, list[Entry]] = {}
        total = sum(map(len, entries.values()))
        # Threads do: reading files is waiting for the disk, and decoding them runs outside Python's lock.
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
                    usable[split].append(checked.entry)
                    for tally, found in ((report.notes, checked.notes), (lost, checked.losses)):
                        for reason, example in found:
                            tally.add(reason, example)
                    caption = captions.get(checked.entry.clip_id, {})
                    if self.config.captions and not (caption.get("visual") and caption.get("audio")):
                        report.notes.add("without_both_captions", checked.entry.clip_id)
        return report, usable

    def _checked(self, entry: Entry) -> Checked | UnusableError:
        try:
            return self.check(entry)
        except UnusableError as error:
            return error

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

    def _row(self, entry: Entry, captions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
        caption = captions.get(entry.clip_id, {})
        return {
            **entry.row,
            **{
                column: self._media_value(files) if isinstance(files, str) else list(map(self._media_value, files))
                for column, files in entry.media.items()
            },
            "visual_caption": caption.get("visual") or None,
            "audio_caption": caption.get("audio") or None,
        }

    def _media_value(self, file: str) -> dict[str, Any]:
        path = self.media_path(file)
        if self.config.embed_media:
            return {"path": path.name, "bytes": path.read_bytes()}
        return {"path": str(path.resolve()), "bytes": None}

    def _write_shard(
        self, path: Path, entries: Sequence[Entry], captions: Mapping[str, Mapping[str, str | None]], bar: tqdm
    ) -> None:
        schema = self.info.features.arrow_schema
        with pq.ParquetWriter(path, schema) as writer:
            for group in _divide(entries, self._media_bytes, _GROUP_BYTES, _GROUP_ROWS):
                writer.write_table(
                    pa.Table.from_pylist([self._row(entry, captions) for entry in group], schema=schema)
                )
                bar.update(len(group))

    def _report(self, report: BuildReport) -> dict[str, Any]:
        # All options, those of the data set's own included, except the number of threads, which changes nothing.
        of_datasets = {f.name for f in dataclasses.fields(datasets.BuilderConfig)} | {"num_proc"}
        names = [f.name for f in dataclasses.fields(self.config) if f.name not in of_datasets]
        options = {name: _plain(getattr(self.config, name)) for name in names}
        return {"builder": self.name, **options, **report.as_dict()}

    def _card(self, report: BuildReport, fingerprint: str) -> str:
        counts = {split: count for split, count in report.written.items() if count}
        header = {
            "pretty_name": self.pretty_name,
            "task_categories": list(self.task_categories),
            "tags": ["audio-visual", "video", "audio"],
            "configs": [
                {
                    "config_name": "default",
                    # `load_dataset` caches a local folder by its name and this header alone. Without something in it
                    # that changes with the rows, it would go on giving those of an earlier build.
                    "description": f"Rows with fingerprint {fingerprint}.",
                    "data_files": [{"split": split, "path": f"data/{split}-*"} for split in counts],
                }
            ],
        }
        table = "\n".join(
            f"| {split} | {report.annotated[split]} | {report.written[split]} | {len(report.skipped[split])} |"
            for split in report.annotated
        )
        columns = "\n".join(f"- `{name}`: {_describe(feature)}" for name, feature in self.info.features.items())
        clips = "are embedded in the shards" if self.config.embed_media else "are referred to by their absolute paths"
        return (
            f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n"
            f"# {self.pretty_name}\n\n{self.card_text}\n\n"
            f"Written by the `{self.name}` builder of caeav-hf. The clips {clips}.\n\n"
            f"| split | annotated rows | rows here | skipped |\n|---|---|---|---|\n{table}\n\n"
            "Skipped rows lack a usable clip; `report.json` counts them by reason and names examples.\n\n"
            f"## Columns\n\n{columns}\n\n"
            "## Use\n\n```python\nimport datasets\n\n"
            f'rows = datasets.load_dataset("path/to/this/folder", split="{next(iter(counts))}")\n```\n'
        )


def run_builder(
    builder_class: type[ClipBuilder],
    arguments: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """
    The command line of a builder: parses the arguments, builds, prints what was written.

    Args:
        builder_class: The builder.
        arguments: In place of the command line.
        add_options: Adds options of the builder's own configuration.
    """
    parser = argparse.ArgumentParser(description=f"Writes {builder_class.pretty_name} as Parquet shards.")
    parser.add_argument("--annotations", required=True, metavar="DIR", help="folder with the annotation files")
    parser.add_argument("--media", required=True, metavar="DIR", help="folder with the clips")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--captions", metavar="FILE", help="caption file: Parquet, or JSON")
    parser.add_argument("--embed-media", action="store_true", help="store the clips' bytes instead of their paths")
    parser.add_argument("--strict", action="store_true", help="fail if anything of a clip is missing or broken")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="rows to check at the same time")
    if add_options is not None:
        add_options(parser)
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        report = builder_class(**options).build(out)
    except DataError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for split, written in report.written.items():
        lost = len(report.lost[split])
        besides = f", which lack {lost} files" if lost else ""
        print(f"{split}: {written} of {report.annotated[split]} rows in {report.shards[split]} shards{besides}")


def read_lines(path: Path, report: BuildReport) -> list[tuple[int, str]]:
    """
    The lines of an annotation file that are not blank, with their numbers from 1; the file is noted in the report.

    Raises:
        DataError: The file is missing or not UTF-8.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    report.files[path.name] = {"lines": len(numbered), "sha256": hashlib.sha256(content).hexdigest()}
    return numbered


def read_class_names(path: Path, published: Sequence[str]) -> tuple[str, ...]:
    """
    Names of the classes, in the order of their labels: those in a file, one a line, or the published ones if there is
    no such file.

    Raises:
        DataError: The file is empty or has a name twice.
    """
    if not path.is_file():
        return tuple(published)
    names = tuple(line.strip() for _, line in read_lines(path, BuildReport()))
    if not names:
        raise DataError(f"{path}: expected the names of the classes, one a line")
    ensure_unique(names, path)
    return names


def ensure_unique(values: Iterable[str], path: Path) -> None:
    """Raises a DataError naming the file if a value occurs twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: {value!r} is there twice")
        seen.add(value)


def _divide(
    entries: Sequence[Entry], size: Callable[[Entry], int], max_bytes: int, max_entries: int | None = None
) -> list[list[Entry]]:
    """Cuts entries into lists in order, each closed before it would exceed `max_bytes` or `max_entries`."""
    parts: list[list[Entry]] = []
    filled = 0
    for entry in entries:
        entry_bytes = size(entry)
        if not parts or filled + entry_bytes > max_bytes or len(parts[-1]) == max_entries:
            parts.append([])
            filled = 0
        parts[-1].append(entry)
        filled += entry_bytes
    return parts


def _digest(paths: Sequence[Path]) -> str:
    """Stands for the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _folder(path: str | None, option: str) -> Path:
    if path is None:
        raise DataError(f"`{option}` must be a folder, got None")
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder (`{option}`)")
    return Path(path)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _describe(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"class label ({feature.num_classes} classes)"
    for kind, name in ((datasets.Video, "clip"), (datasets.Audio, "sound"), (datasets.Image, "image")):
        if isinstance(feature, kind):
            return f'{name}, `{{"path", "bytes"}}`, not decoded'
    return f"`{feature.dtype}`" if isinstance(feature, datasets.Value) else f"list of {_describe(feature.feature)}"
