"""
Preparation of a data set: decode every clip once, so that training reads stored frames and sound.

The output folder has the layout of a builder's, with the rows of `data.prepared`:

    <out>/data/<split>-00000-of-00009.parquet ...    <out>/report.json    <out>/README.md

Each shard (`data.store`) has a fixed share of the clips and records which of them failed. An interrupted run continues
after its last complete shard; the data set can be read once all shards are complete. Clips are read in workers with
limits of memory and time (`media.guard`).
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from caeav_hf.errors import DataError, MediaError
from caeav_hf.media.guard import guarded_decoding
from caeav_hf.task import get_task

from ..files import make_folder, write_json, write_text
from .card import front_matter
from .images import read_mask
from .items import row_errors
from .prepared import (
    MEDIA_COLUMNS,
    PREPARED,
    QUESTION_COLUMNS,
    QUESTIONS,
    ImageFormat,
    encode_clip,
    prepared_features,
    settings_text,
)
from .rows import RowForm, check_types, task_of_rows
from .schema import SPLITS
from .shards import find_shards, load_rows
from .store import Shard, claim, keep_settings, write_shards


# Clips per shard, the most that an interrupted run has to repeat.
_SHARD_CLIPS = 128
# Clips per row group, which a streaming reader keeps in memory: about 30 MB.
_GROUP_CLIPS = 16

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass
class PreparedSplit:
    """
    Result of preparing a split.

    Attributes:
        clips: Number of clips.
        rows: Number of written rows, or of questions if rows contain several.
        shards: Fingerprint of each shard.
        failed: Clips that could not be decoded, with the reasons.
    """

    clips: int = 0
    rows: int = 0
    shards: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def prepare_clips(
    folder: str | os.PathLike,
    processor: Any,
    out_dir: str | os.PathLike,
    *,
    task: str | None = None,
    image_format: ImageFormat = "jpeg",
    num_proc: int = 1,
    shard_clips: int = _SHARD_CLIPS,
) -> dict[str, PreparedSplit]:
    """
    Decode every clip of a builder's folder and write a folder of prepared rows, which [`CaeAvDataset`] and
    `train.py --streaming` read. An interrupted run can be continued by running it again. Clips that cannot be decoded
    are listed in `report.json` and omitted.

    Args:
        folder: Folder written by a builder.
        processor: A [`CaeAvProcessor`]; training needs one with the same segments, sampling rate and size.
        out_dir: Folder to write.
        task: Task of the processor's model, which the data set must be for.
        image_format: `"png"` stores the resized frames losslessly; `"jpeg"`, quality 95, takes less space.
        num_proc: Number of clips to decode in parallel.
        shard_clips: Number of clips per shard.

    Returns:
        The result of each split.

    Raises:
        DataError: There is no such folder; it is for another task or already prepared; `out_dir` was prepared with
            other settings, or another process is writing to it; or no clip could be decoded.
    """
    source, out = Path(folder), Path(out_dir)
    if image_format not in ("png", "jpeg"):
        raise DataError(f"`image_format` must be 'png' or 'jpeg', got {image_format!r}")
    if num_proc < 1 or shard_clips < 1:
        raise DataError(f"`num_proc` and `shard_clips` must be at least 1, got {num_proc} and {shard_clips}")
    splits = [split for split in SPLITS if list((source / "data").glob(f"{split}-*.parquet"))]
    if not splits:
        raise DataError(f"{source}: expected a builder's folder with Parquet files in {source / 'data'}")
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: expected another folder than that of the data set")
    make_folder(out)
    settings = settings_text(processor, image_format)
    works = [_Split(source, split, processor, task, settings) for split in splits]
    report = {work.name: PreparedSplit(clips=len(work.clips)) for work in works}

    def finish(shards: Mapping[str, list[Shard]]) -> None:
        for split, parts in shards.items():
            report[split].shards = [shard.fingerprint for shard in parts]
            report[split].rows = sum(shard.note["rows"] for shard in parts)
            report[split].failed = {name: why for shard in parts for name, why in shard.note["failed"].items()}
        write_json(out / "report.json", _report_dict(source, settings, report))
        if not any(part.rows for part in report.values()):
            reason = next(iter(report[splits[0]].failed.values()), "it has no rows")
            raise DataError(f"{source}: no clip could be prepared, e.g. {reason} (see {out / 'report.json'})")
        (out / "README.md").unlink(missing_ok=True)

    with claim(out):
        keep_settings(out, json.loads(settings), results="data/*.parquet")
        with (
            guarded_decoding(),
            ThreadPoolExecutor(num_proc) as pool,
            tqdm(total=sum(len(work.clips) for work in works), desc="Preparing", unit="clip") as bar,
        ):
            shards = {work.name: work.shards(pool, 2 * num_proc, shard_clips, image_format, bar) for work in works}
            write_shards(
                out,
                [shard for parts in shards.values() for shard in parts],
                1,
                partial(finish, shards),
                # JPEG and 32-bit sound do not compress further; PNGs are stored uncompressed for zstd.
                compression={"frames.list.element.bytes": "zstd" if image_format == "png" else "none"},
                use_dictionary=[PREPARED],
                write_statistics=False,
            )
        finish(shards)
        write_text(out / "README.md", _card(source, out, json.loads(settings), report))
    return report


class _Split:
    """The clips of a split and their shards."""

    def __init__(self, source: Path, name: str, processor: Any, task: str | None, settings: str) -> None:
        self.source, self.name, self.processor = source, name, processor
        self.rows = load_rows(source, name)
        if PREPARED in self.rows.column_names:
            raise DataError(f"{source}: is prepared already; expected what a builder wrote")
        columns = self.rows.column_names
        if task is not None and get_task(task).label_column not in (None, *columns):
            raise DataError(f"{source}: is a data set for {task_of_rows(columns).name}; the model is for {task}")
        self.task = task_of_rows(columns, task, f"{source}:")
        # Masks are stored unchanged, so their size in training does not matter.
        check_types(self.task.row_form, self.rows.features, f"{source}:")
        with row_errors({}, f"{source}:"):
            self.form: RowForm = self.task.row_form(processor, 1, self.rows.features)
        self.features = prepared_features(self.rows.features)
        self.clips = self._clips()
        self._content = _digest_files(find_shards(source, name))
        self._settings = settings

    def _clips(self) -> list[list[int]]:
        """Return the row indices of each clip."""
        if not self.task.shares_clips:
            return [[number] for number in range(len(self.rows))]
        # Several clips may have the same name, such as parts of one video, so compare all columns of the clip.
        of_clip = [c for c in self.rows.column_names if c not in (*QUESTION_COLUMNS, *MEDIA_COLUMNS)]
        clips: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows.select_columns(of_clip)):
            clips.setdefault(json.dumps(row, sort_keys=True, default=str), []).append(number)
        return list(clips.values())

    def shards(
        self, pool: ThreadPoolExecutor, ahead: int, shard_clips: int, image_format: ImageFormat, bar: tqdm
    ) -> list[Shard]:
        """Return the shards of the clips, which are decoded with at most `ahead` pending."""
        shares = [self.clips[start : start + shard_clips] for start in range(0, len(self.clips), shard_clips)] or [[]]
        shards = []
        for number, share in enumerate(shares):
            note: dict[str, Any] = {}
            tables = partial(self._tables, share, note, pool, ahead, image_format, bar)
            name = f"{self.name}-{number:05d}-of-{len(shares):05d}.parquet"
            shards.append(Shard(name, self._identity(share), self.features.arrow_schema, tables, note))
        return shards

    def _identity(self, share: list[list[int]]) -> str:
        """Return the fingerprint of a shard's sources; files are represented by size and modification time."""
        numbers = [clip[0] for clip in share]
        digest = hashlib.sha256(json.dumps([self._settings, self._content, share]).encode())
        columns = [c for c in ("media", "frames", "audio", "masks") if c in self.rows.column_names]
        if share and not _is_embedded(self.rows.select_columns(columns)[numbers[0]]):
            for row in self.rows.select_columns(columns).select(numbers):
                digest.update(json.dumps([_file_state(path) for path in _paths(row)]).encode())
        return digest.hexdigest()

    def _tables(
        self,
        share: list[list[int]],
        note: dict[str, Any],
        pool: ThreadPoolExecutor,
        ahead: int,
        image_format: ImageFormat,
        bar: tqdm,
    ) -> Iterator[pa.Table]:
        """Yield the row groups of a shard, and add its number of rows and the failed clips to `note`."""

        def make(rows: list[dict[str, Any]]) -> dict[str, Any] | MediaError:
            try:
                with row_errors(rows[0], f"{self.source}:"):
                    return self._prepared_row(rows, image_format)
            except MediaError as error:
                return error

        note |= {"rows": 0, "failed": {}}
        rows = ([self._row(number) for number in clip] for clip in share)
        names = iter(self.rows.select_columns("video_id").select([clip[0] for clip in share])["video_id"])
        made = _in_order(pool, make, rows, ahead)
        while group := list(islice(made, _GROUP_CLIPS)):
            kept = []
            for name, row in zip(names, group, strict=False):
                bar.update()
                if isinstance(row, MediaError):
                    note["failed"][name] = str(row)
                    continue
                kept.append(row)
                note["rows"] += len(row.get(QUESTIONS, [None]))
            if kept:
                yield pa.Table.from_pylist(kept, schema=self.features.arrow_schema)

    def _row(self, number: int) -> dict[str, Any]:
        try:
            return self.rows[number]
        except ValueError as error:  # a text that is not UTF-8, or not of its type
            raise DataError(f"{self.source}: row {number} cannot be read ({error})") from error

    def _prepared_row(self, rows: list[dict[str, Any]], image_format: ImageFormat) -> dict[str, Any]:
        """Return the prepared row of a clip, given its rows."""
        row = rows[0]
        frames, waveform = self.form.load(row)
        prepared = {**row, **encode_clip(frames, waveform, self.processor, image_format)}
        if "media_start" in row:  # Prepared frames and sound contain only the clip.
            prepared |= {"media_start": None, "media_end": None}
        if "masks" in row:
            prepared["masks"] = [_embedded_mask(mask) for mask in row["masks"]]
        if self.task.shares_clips:
            prepared[QUESTIONS] = [{name: one[name] for name in QUESTION_COLUMNS if name in one} for one in rows]
        return {name: prepared[name] for name in self.features}


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], ahead: int
) -> Iterator[Out]:
    """Map in parallel and yield the results in order, with at most `ahead` pending items."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _media(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for value in row.values():
        yield from filter(None, value if isinstance(value, list) else [value])


def _is_embedded(row: Mapping[str, Any]) -> bool:
    return any(media["bytes"] is not None for media in _media(row))


def _paths(row: Mapping[str, Any]) -> list[str]:
    return [media["path"] for media in _media(row) if media["path"]]


def _file_state(path: str) -> list[Any]:
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # or a NUL in the path
        return [path, None]
    return [path, state.st_size, state.st_mtime_ns]


def _embedded_mask(mask: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mask with its bytes; raises a `MediaError` if it cannot be read."""
    read_mask(mask)
    content, path = mask["bytes"], mask["path"]
    name = None if path is None else Path(path).name
    return {"bytes": Path(path).read_bytes() if content is None else content, "path": name}


def _digest_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _report_dict(source: Path, settings: str, report: Mapping[str, PreparedSplit]) -> dict[str, Any]:
    return {
        "source": source.name,
        "settings": json.loads(settings),
        "splits": {
            split: {
                "clips": part.clips,
                "prepared": part.clips - len(part.failed),
                "rows": part.rows,
                "shards": len(part.shards),
                "failed": part.failed,
            }
            for split, part in report.items()
        },
    }


def _card(source: Path, out: Path, settings: Mapping[str, Any], report: Mapping[str, PreparedSplit]) -> str:
    identity = hashlib.sha256("".join(shard for part in report.values() for shard in part.shards).encode())
    header = front_matter(
        out,
        [split for split, part in report.items() if part.rows],
        identity.hexdigest()[:16],
        tags=["audio-visual", "video", "audio"],
    )
    table = "\n".join(f"| {split} | {part.clips - len(part.failed)} | {part.rows} |" for split, part in report.items())
    values = "\n".join(f"- `{name}`: {value}" for name, value in settings.items())
    name = source.resolve().name
    return (
        f"{header}\n# {name}, prepared\n\n"
        f"The data set `{name}` with its clips decoded by `caeav prepare` of caeav-hf: frames and sound for "
        "models with these settings.\n\n"
        f"{values}\n\n| split | clips | rows |\n|---|---|---|\n{table}\n"
    )
