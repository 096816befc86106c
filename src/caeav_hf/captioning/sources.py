"""Find the clips to caption: rows of a builder's folder, or media files in a folder, in a list or given directly."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..constants import MEDIA_SUFFIXES
from ..errors import DataError, MediaError
from ..files import read_bytes
from .material import ClipMaterial
from .settings import CaptionSettings


_ROW_COLUMNS = ("video_id", "media", "media_start", "media_end", "frames", "audio")
# Row groups cached in memory; several threads read clips, nearly in order.
_GROUPS_KEPT = 4


@dataclass(frozen=True, eq=False)
class CaptionClip:
    """
    A clip to caption.

    Args:
        clip: Its name in the caption file.
        file: Its file, or its row's name, for messages.
        load: Decodes the model's input.
    """

    clip: str
    file: str
    load: Callable[[CaptionSettings], ClipMaterial]


def find_clips(dataset: str | Path | Sequence[str | Path]) -> list[CaptionClip]:
    """
    List the clips of a data set, each once.

    Args:
        dataset: A builder's folder (with `data/*.parquet`), a folder with media files at any depth, a text file with
            one path per line (relative to the text file), a media file, or a list of media files. A file's clip is
            named after the file, without suffix.

    Raises:
        DataError: The data set cannot be read, has no clips, or has two files of the same name.
    """
    paths = [Path(dataset)] if isinstance(dataset, str | Path) else [Path(path) for path in dataset]
    if len(paths) == 1 and os.path.isdir(paths[0]):
        shards = sorted((paths[0] / "data").glob("*.parquet"))
        if shards:
            return _row_clips(shards)
        files = sorted(path for path in paths[0].rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES)
    elif len(paths) == 1 and paths[0].suffix.lower() == ".txt":
        files = _listed_files(paths[0])
    else:
        files = paths
        if folders := [path for path in paths if os.path.isdir(path)]:
            raise DataError(f"{folders[0]}: is a folder; expected media files, or a single folder")
    if not files:
        raise DataError(
            f"{paths[0] if paths else 'the data set'}: no clips; expected a builder's folder, or media files "
            f"({', '.join(MEDIA_SUFFIXES)})"
        )
    clips: dict[str, CaptionClip] = {}
    listed = "" if files is paths or os.path.isdir(paths[0]) else f"{paths[0]}: "
    for file in files:
        if file.stem in clips:
            raise DataError(
                f"{listed}{file}: has the same name as {clips[file.stem].file}; expected a name per clip, since "
                "captions are stored by name"
            )
        clips[file.stem] = CaptionClip(file.stem, str(file), _FileLoader(file))
    return list(clips.values())


@dataclass(frozen=True)
class _FileLoader:
    file: Path

    def __call__(self, settings: CaptionSettings) -> ClipMaterial:
        return ClipMaterial.from_file(self.file, settings)


def _listed_files(path: Path) -> list[Path]:
    try:
        lines = read_bytes(path, "list of clips").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a UTF-8 text file with one clip path per line ({error})") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


class _Rows:
    """Reads single rows of Parquet shards, from several threads, with a small cache of row groups."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: Path, group: int, index: int) -> dict[str, Any]:
        """Read the media columns of one row."""
        with self._lock:
            table = self._groups.pop((shard, group), None)
            if table is None:
                try:
                    with pq.ParquetFile(shard) as file:
                        columns = [name for name in _ROW_COLUMNS if name in file.schema_arrow.names]
                        table = file.read_row_group(group, columns=columns)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise DataError(f"{shard}: cannot be read as Parquet ({error})") from error
            self._groups[shard, group] = table
            while len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        try:
            return table.slice(index, 1).to_pylist()[0]
        except ValueError as error:  # a text that is not UTF-8
            raise DataError(f"{shard}: row {index} of group {group} cannot be read ({error})") from error


@dataclass(frozen=True)
class _RowLoader:
    rows: _Rows
    shard: Path
    group: int
    index: int

    def __call__(self, settings: CaptionSettings) -> ClipMaterial:
        row = self.rows.read(self.shard, self.group, self.index)
        try:
            return ClipMaterial.from_row(row, settings)
        except MediaError as error:
            raise MediaError(f"{self.shard}: {error}") from error


def _row_clips(shards: Sequence[Path]) -> list[CaptionClip]:
    """List the clips of a builder's rows; rows of the same clip (with different questions, say) give one."""
    # Only here, since `datasets` takes a second to load.
    from ..data.rows import check_schema

    rows = _Rows()
    clips: dict[str, CaptionClip] = {}
    for shard in shards:
        try:
            with pq.ParquetFile(shard) as file:
                names = file.schema_arrow.names
                if "video_id" not in names or "media" not in names:
                    raise DataError(f"{shard}: expected rows with the columns video_id and media, got {names}")
                check_schema(file.schema_arrow, f"{shard}:")
                for group in range(file.num_row_groups):
                    # Only the paths: the whole column holds the bytes of every clip.
                    columns = [name for name in ("video_id", "filename", "media_start") if name in names]
                    table = file.read_row_group(group, columns=[*columns, "media.path"])
                    for index, row in enumerate(table.to_pylist()):
                        path = (row["media"] or {}).get("path")
                        # A file with a start is a longer video, which may hold several clips.
                        if path and row.get("media_start") is None:
                            clip = Path(path).stem
                        else:
                            clip = row.get("filename") or row["video_id"]
                        if not isinstance(clip, str):
                            raise DataError(f"{shard}: row {index} of group {group} has no `video_id`")
                        loader = _RowLoader(rows, shard, group, index)
                        clips.setdefault(clip, CaptionClip(clip, path or row["video_id"], loader))
        except DataError:
            raise
        # Texts that are not UTF-8 are ValueErrors; columns of other types lead to the others.
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(f"{shard}: cannot be read as the rows of a builder ({error})") from error
    if not clips:
        raise DataError(f"{shards[0].parent}: the shards have no rows")
    return list(clips.values())
