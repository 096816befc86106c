"""
Folders of misaligned data sets, in the layout of a builder's:

    <out>/<kind>_<level>/data/<split>-00000-of-00001.parquet    <out>/<kind>_<level>/README.md

Their rows refer to the clips of the original data set, which therefore has to stay where it is: by the paths in its
rows or, if these contain the clips themselves, by the numbers of the rows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from tqdm import tqdm

from caeav_hf.constants import MISALIGNMENT
from caeav_hf.errors import DataError

from ...files import make_folder, write_text
from ..card import front_matter
from ..shards import find_shards, load_rows, local_folder
from ..store import Shard, claim, write_shards
from .change import MEDIA_COLUMNS
from .kinds import KINDS
from .plan import is_embedded, misalign


_GROUP_ROWS = 1_000
# Part of every fingerprint, so that folders of another version are written again.
_FORM = 1


@dataclass(frozen=True)
class MisalignedFolder:
    """
    A folder that was written, or the reason why it was not.

    Attributes:
        folder: The folder.
        rows: Number of rows of each split.
        problem: Why the kind cannot be made of the rows, or `None`.
    """

    folder: Path
    rows: Mapping[str, int]
    problem: str | None = None


def write_misaligned(
    data: str | os.PathLike,
    out_dir: str | os.PathLike,
    kinds: Iterable[str],
    levels: Iterable[int],
    *,
    splits: Sequence[str] = ("test",),
    seed: int = 0,
    task: str | None = None,
    num_proc: int = 1,
) -> list[MisalignedFolder]:
    """
    Write a data set for each kind and level. No media are copied, and the result does not depend on `num_proc`.

    Args:
        data: Folder written by a builder, or the name of such a data set on the Hub.
        out_dir: Folder of the data sets; each is called `<kind>_<level>`.
        kinds, levels: See [`misalign`].
        splits: Splits to read and to write. Foreign sounds are of the same split.
        seed, task: See [`misalign`].
        num_proc: Number of data sets that are made in parallel.

    Returns:
        The data sets, in the order of kinds and levels.

    Raises:
        DataError: A split is missing, or none of the data sets can be made.
    """
    levels = list(levels)
    pairs = [(kind, level) for kind in kinds for level in levels]
    out, source = Path(out_dir), os.path.abspath(data) if os.path.exists(data) else str(data)
    for split in splits:
        find_shards(local_folder(source), split)
    for kind, level in pairs:
        make_folder(out / f"{kind}_{level}")
    write = partial(_write, source, out, splits, seed, task)
    bar = partial(tqdm, total=len(pairs), desc="Misaligning", unit="set")
    if num_proc == 1:
        folders = list(bar(map(write, pairs)))
    else:
        with ProcessPoolExecutor(min(num_proc, len(pairs))) as pool:
            folders = list(bar(pool.map(write, pairs)))
    if problems := [folder.problem for folder in folders if folder.problem is not None]:
        for folder in folders:
            if folder.problem is not None and not any(folder.folder.glob("data/*.parquet")):
                (folder.folder / ".lock").unlink(missing_ok=True)
                folder.folder.rmdir()
        if len(problems) == len(folders):
            raise DataError(f"{source}: {problems[0]}")
    return folders


def _write(
    source: str, out: Path, splits: Sequence[str], seed: int, task: str | None, pair: tuple[str, int]
) -> MisalignedFolder:
    kind, level = pair
    folder = out / f"{kind}_{level}"
    shards, counts = [], {}
    for split in splits:
        rows = load_rows(Path(source), split)
        try:
            changed = misalign(rows, kind, level, seed, task)
        except DataError as error:
            return MisalignedFolder(folder, {}, problem=str(error))
        settings = [_FORM, source, split, kind, level, seed, task]
        shards.append(
            Shard(
                f"{split}-00000-of-00001.parquet",
                _fingerprint(settings, local_folder(source), split),
                changed.features.arrow_schema,
                partial(_tables, changed, source, split, is_embedded(rows)),
            )
        )
        counts[split] = len(rows)
    with claim(folder):
        write_shards(folder, shards, 1, lambda: (folder / "README.md").unlink(missing_ok=True))
        identity = hashlib.sha256("".join(shard.fingerprint for shard in shards).encode()).hexdigest()[:16]
        write_text(folder / "README.md", _card(folder, source, counts, kind, level, seed, identity))
    return MisalignedFolder(folder, counts)


def _tables(changed: datasets.Dataset, source: str, split: str, embedded: bool) -> Iterator[pa.Table]:
    """Yield the rows with their places in the source, and without its embedded clips."""
    nothing: dict[str, Any] = {"media": None, "frames": [], "audio": None}
    left_out = {name: nothing[name] for name in MEDIA_COLUMNS if embedded and name in changed.column_names}
    light = changed.with_format(None).remove_columns(list(left_out))
    firsts: dict[str, int] = {}
    for start in range(0, len(light), _GROUP_ROWS):
        group = []
        for number, row in enumerate(light.select(range(start, min(start + _GROUP_ROWS, len(light)))), start):
            # Rows about the same clip refer to the same row, so that it is decoded once for all.
            number = firsts.setdefault(row[MISALIGNMENT]["clip"], number)
            record = {**row[MISALIGNMENT], "source": {"data": source, "split": split, "row": number}}
            group.append({**row, **left_out, MISALIGNMENT: record})
        yield pa.Table.from_pylist(group, schema=changed.features.arrow_schema)


def _fingerprint(settings: list[Any], source: Path, split: str) -> str:
    """Return a fingerprint of the settings and of the files of the source, by size and modification time."""
    states = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in find_shards(source, split)]
    return hashlib.sha256(json.dumps([settings, states]).encode()).hexdigest()[:32]


def _card(
    folder: Path, source: str, counts: Mapping[str, int], kind: str, level: int, seed: int, fingerprint: str
) -> str:
    header = front_matter(folder, list(counts), fingerprint, tags=["audio-visual", "video", "audio", "caeav-hf"])
    what, name = KINDS[kind], Path(source).name
    strength = f"{what.strength(level):g} ({what.unit})" if level else "nothing is changed"
    rows = "\n".join(f"| {split} | {count} |" for split, count in counts.items())
    return (
        f"{header}\n# {name}: {what.title.lower()}, level {level}\n\n"
        f"The data set `{name}`, misaligned by `caeav misalign` of caeav-hf: kind `{kind}`, level {level} of 5, "
        f"{strength}, seed {seed}. The column `misalignment` says what is done to each clip when it is decoded, and "
        "labels are corrected accordingly. The clips are those of the original data set, to which the rows refer.\n\n"
        f"| split | rows |\n|---|---|\n{rows}\n"
    )
