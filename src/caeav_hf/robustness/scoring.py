"""Score models on every kind and level of misalignment. Continues where it was stopped."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tqdm import tqdm
from transformers.utils import logging

from ..constants import MISALIGNMENT
from ..data import CaeAvCollator, CaeAvDataset
from ..data.misalign import KINDS, LEVELS, misalign
from ..data.misalign.apply import segment_places
from ..data.schema import clip_features
from ..data.shards import find_shards, load_rows, local_folder
from ..devices import default_device
from ..errors import CaeAvError, DataError
from ..files import scratch_folder
from ..hub import check_model, read_config, short_name
from ..media.segments import is_spread
from ..task import Task, get_task
from ..training.batches import clip_loader
from ..training.build import build_processor, check_classes, load_trained_model
from ..training.evaluation import score_batch
from ..training.export import best_checkpoint
from ..training.order import ordered_batches
from .records import Record, StackedSums, read_fingerprint


logger = logging.get_logger(__name__)

# The unchanged set.
CLEAN = ("clean", 0)
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ScoringOptions:
    """
    How models are scored.

    Args:
        split: Split of the data set.
        kinds: Kinds of misalignment, or their families, `misalignment` and `correlated`; by default all.
        levels: Levels of each, by default all.
        seed: Seed of the misalignment.
        batch_size: Clips per batch.
        device: `cpu`, `cuda`, `cuda:1`, ...; by default the first accelerator, else the CPU.
        mixed_precision: `no`, `fp16` or `bf16`.
        num_workers: Worker processes that decode clips.
        cache_dir: Folder to cache processed clips; see [`CaeAvDataset`].
        models_at_a_time: Models in memory at a time; by default all, so that each clip is decoded once for all.
        show_progress: Whether to show a progress bar.
    """

    split: str = "test"
    kinds: Sequence[str] | None = None
    levels: Sequence[int] | None = None
    seed: int = 0
    batch_size: int = 8
    device: str | None = None
    mixed_precision: str = "no"
    num_workers: int = 0
    cache_dir: str | Path | None = None
    models_at_a_time: int | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "models_at_a_time"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise CaeAvError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.mixed_precision not in PRECISIONS:
            raise CaeAvError(f"`mixed_precision` must be one of {', '.join(PRECISIONS)}, got {self.mixed_precision!r}")
        known = [*dict.fromkeys(kind.family for kind in KINDS.values()), *KINDS]
        if unknown := [kind for kind in self.kinds or () if kind not in known]:
            raise CaeAvError(f"`kinds` must be some of {', '.join(known)}, got {unknown[0]!r}")
        if unknown_levels := [level for level in self.levels or () if level not in LEVELS]:
            raise CaeAvError(f"`levels` must be some of {', '.join(map(str, LEVELS))}, got {unknown_levels[0]}")

    @property
    def chosen_kinds(self) -> tuple[str, ...]:
        """The kinds in the order of `KINDS`."""
        return tuple(
            name for name, kind in KINDS.items() if self.kinds is None or {name, kind.family} & set(self.kinds)
        )

    @property
    def chosen_levels(self) -> tuple[int, ...]:
        """The levels in ascending order."""
        return tuple(level for level in LEVELS if self.levels is None or level in self.levels)

    def conditions(self) -> list[tuple[str, int]]:
        """Return the pairs of kind and level to score, the unchanged set first."""
        return [CLEAN, *((kind, level) for kind in self.chosen_kinds for level in self.chosen_levels)]


@dataclass(frozen=True)
class Scored:
    """
    Models with their records.

    Args:
        models: The models in the order given.
        kinds: The kinds that were scored.
        levels: The levels that were scored.
        not_applicable: The kinds that the rows do not allow, with the reasons.
        num_clips: Number of clips in the split.
        data: The data set.
        seed: Seed of the misalignment.
    """

    models: "list[ScoredModel]"
    kinds: tuple[str, ...]
    levels: tuple[int, ...]
    not_applicable: dict[str, str]
    num_clips: int
    data: str
    seed: int


@dataclass(frozen=True)
class ScoredModel:
    """
    A model folder and its records.

    Args:
        name: The model as the caller gave it.
        folder: Folder of the model or of its best checkpoint.
        task: The record of its task and method.
        records: Folder of its records.
        fingerprint: What its records depend on besides the condition.
    """

    name: str
    folder: Path
    task: Task
    records: Path
    fingerprint: Mapping[str, Any]

    def path(self, condition: tuple[str, int]) -> Path:
        """Return the file of a condition's record."""
        kind, level = condition
        return self.records / (f"{kind}-{level}.safetensors" if level else f"{kind}.safetensors")

    def fingerprint_of(self, condition: tuple[str, int], seed: int) -> dict[str, Any]:
        """Return what identifies the record of a condition."""
        kind, level = condition
        setting = {} if condition == CLEAN else {"seed": seed, "setting": KINDS[kind].levels[level - 1]}
        return {**self.fingerprint, "kind": kind, "level": level, **setting}

    def load(self, condition: tuple[str, int]) -> Record:
        """Read the record of a condition."""
        return Record.load(self.path(condition))


def score_models(
    models: Sequence[str | Path], data: str | Path, out: str | Path, options: ScoringOptions | None = None
) -> Scored:
    """
    Score models on the unchanged split and on each kind and level of misalignment.

    Each result is stored as soon as it exists, in `out/scores/<model>/<kind>-<level>.safetensors`, and not computed
    again. Clips that cannot be decoded are left out.

    Args:
        models: Model folders, run folders (whose best checkpoints are used) or names on the Hub, all of one task.
        data: Folder written by a builder, or such a data set on the Hub.
        out: Folder for the results.
        options: How to score.

    Returns:
        The models with their records.

    Raises:
        CaeAvError: There is no such model or data set, they do not fit, no kind can be made of the rows, or `out`
            holds scores with another data set, split, seed or precision.
    """
    options = options or ScoringOptions()
    if not models:
        raise CaeAvError("expected at least one model")
    folder = local_folder(str(data))
    rows = load_rows(folder, options.split)
    identity = {
        "data": data_digest(folder, options.split, rows),
        "split": options.split,
        "mixed_precision": options.mixed_precision,
    }
    scored = [_open(model, Path(out), identity) for model in models]
    if len(names := sorted({model.task.name for model in scored})) > 1:
        raise CaeAvError(f"expected models of one task, got models of {', '.join(names)}")
    conditions = options.conditions()
    for model in scored:
        for condition in conditions:
            _check_record(model, condition, options.seed)
    sets, not_applicable = _changed_sets(scored, rows, options)
    kinds = tuple(kind for kind in options.chosen_kinds if kind not in not_applicable)
    if not kinds:
        raise CaeAvError(f"{data}: {next(iter(not_applicable.values()))}")
    conditions = [condition for condition in conditions if condition[0] not in not_applicable]
    # A model that is given twice is scored once.
    missing = [
        list({model.records: model for model in scored if not model.path(condition).exists()}.values())
        for condition in conditions
    ]
    distinct = list({model.records: model for of_condition in missing for model in of_condition}.values())
    size = options.models_at_a_time or max(1, len(distinct))
    total = sum(map(len, missing))
    with tqdm(total=total, desc="scoring", unit="set", disable=not (options.show_progress and total)) as progress:
        for start in range(0, len(distinct), size):
            _score_group(distinct[start : start + size], sets, str(data), options, progress)
    clips = len(set(rows["video_id"])) if scored[0].task.shares_clips else len(rows)
    return Scored(scored, kinds, options.chosen_levels, not_applicable, clips, str(data), options.seed)


def _changed_sets(
    models: Sequence[ScoredModel], rows: datasets.Dataset, options: ScoringOptions
) -> tuple[dict[tuple[str, int], datasets.Dataset], dict[str, str]]:
    """
    Return the rows of each condition that some model has not been scored on, the unchanged ones first; and the kinds
    that cannot be made of the rows, with the reasons.
    """
    sets, reasons = {CLEAN: rows}, {}
    for kind, level in options.conditions()[1:]:
        if kind in reasons or all(model.path((kind, level)).exists() for model in models):
            continue
        try:
            sets[kind, level] = misalign(rows, kind=kind, level=level, seed=options.seed, task=models[0].task.name)
        except DataError as error:
            reasons[kind] = str(error)
    return {condition: changed for condition, changed in sets.items() if condition[0] not in reasons}, reasons


def _score_group(
    models: Sequence[ScoredModel],
    sets: Mapping[tuple[str, int], datasets.Dataset],
    data: str,
    options: ScoringOptions,
    progress: tqdm,
) -> None:
    """Score models that are in memory together."""
    device = default_device() if options.device is None else torch.device(options.device)
    task = models[0].task
    loaded, processors = {}, {}
    for model in models:
        network = load_trained_model(model.task.model_class, model.folder)
        processors[model.records] = build_processor(network, model.folder)
        loaded[model.records] = network.to(device).eval()
    # Models with the same processor read the same items.
    sharing: dict[str, list[ScoredModel]] = {}
    for model in models:
        sharing.setdefault(_processor_digest(processors[model.records]), []).append(model)
    for condition, rows in sets.items():
        for group in sharing.values():
            todo = [model for model in group if not model.path(condition).exists()]
            if not todo:
                continue
            progress.set_postfix_str(" ".join(map(str, condition)) if condition != CLEAN else "clean")
            clips = CaeAvDataset(rows, processors[todo[0].records], cache_dir=options.cache_dir, task=task.name)
            for model in todo:
                check_classes(clips, task, loaded[model.records], data)
            networks = [loaded[model.records] for model in todo]
            for model, record in zip(todo, _records(networks, clips, task, device, options), strict=True):
                record.save(model.path(condition), model.fingerprint_of(condition, options.seed))
                progress.update()


def _records(
    networks: Sequence[torch.nn.Module],
    clips: CaeAvDataset,
    task: Task,
    device: torch.device,
    options: ScoringOptions,
) -> list[Record]:
    """Score models on the same items, each of which is decoded once."""
    batches = ordered_batches(len(clips), options.batch_size, groups=clips.groups)
    loader = clip_loader(
        clips,
        batches,
        CaeAvCollator(targets=task.targets),
        num_workers=options.num_workers,
        pin_memory=device.type == "cuda",
    )
    columns = {name: clips.column(name) for name in task.row_columns}
    kept: list[int] = []
    sums: list[list[Any]] = [[] for _ in networks]
    agreements: list[list[np.ndarray]] = [[] for _ in networks]
    masks: list[np.ndarray] = []
    with torch.inference_mode(), _autocast(device, options.mixed_precision):
        for batch in loader:
            items = [place for place, is_replaced in enumerate(batch["replaced"]) if not is_replaced]
            kept += [batch["indices"][place] for place in items]
            clip_of_item = batch["inputs"].get("clip_index", torch.arange(len(batch["indices"])))[items]
            masks += list(batch["inputs"]["frame_mask"][clip_of_item].cpu().numpy())
            for number, network in enumerate(networks):
                outputs, found = score_batch(network, batch, task, columns, device, processor=clips.processor)
                sums[number] += [found[place] for place in items]
                if (stages := outputs.get("agreement")) is not None:
                    values = torch.stack([stage.float().cpu() for stage in stages], dim=1)
                    agreements[number] += list(values[clip_of_item].numpy())
    # Question answering reads the rows of a clip together.
    order = np.argsort(kept, kind="stable")
    numbers = np.arange(len(clips)) if clips.groups is None else np.asarray(clips.groups)
    affected = _affected(clips, masks, kept)
    return [
        Record(
            rows=np.asarray(kept, np.int64)[order],
            clips=numbers[np.asarray(kept)[order]].astype(np.int64),
            sums=StackedSums.stack([of_model[place] for place in order], task),
            affected=affected[order],
            agreement=_padded(of_segments, np.nan, np.float32)[order] if of_segments else None,
        )
        for of_model, of_segments in zip(sums, agreements, strict=True)
    ]


def _affected(clips: CaeAvDataset, masks: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Return which segments of the items are misaligned (1) or not (0), and which are not there (-1)."""
    affected = _padded([np.where(mask, 0, -1) for mask in masks], -1, np.int8)
    if MISALIGNMENT in clips.rows.column_names:
        described, spread = clips.column(MISALIGNMENT), is_spread(clips.processor.frame_sampling)
        for row, mask, index in zip(affected, masks, indices, strict=True):
            segments = np.asarray([*described[index]["affected_segments"], False])
            row[: mask.sum()] = segments[segment_places(len(segments) - 1, mask.sum(), spread)]
    return affected


def _padded(arrays: Sequence[np.ndarray], value: float, dtype: Any) -> np.ndarray:
    """Stack arrays (..., segments), whose last axis may differ."""
    longest = max(array.shape[-1] for array in arrays)
    padded = np.full((len(arrays), *arrays[0].shape[:-1], longest), value, dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[..., : array.shape[-1]] = array
    return padded


def _autocast(device: torch.device, precision: str) -> Any:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _open(name: str | Path, out: Path, identity: Mapping[str, Any]) -> ScoredModel:
    """
    Find a model and its records.

    Raises:
        CaeAvError: There is no such model.
    """
    folder = _model_folder(name)
    config = read_config(folder)
    task = get_task(config.task, config.interaction)
    # Import the class of the metric's sums, which records refer to.
    _ = task.metric_function
    digest = model_digest(folder)
    scores, slug = out / "scores", re.sub(r"[^\w.-]+", "_", short_name(name))
    records = scores / f"{slug}-{digest[:8]}"
    if not records.exists():
        for earlier in scores.glob(f"{slug}-{'[0-9a-f]' * 8}"):
            logger.warning(f"{name}: has changed since it was scored; its earlier scores stay in {earlier}")
    return ScoredModel(str(name), folder, task, records, {"task": task.name, "model": digest, **identity})


def _check_record(model: ScoredModel, condition: tuple[str, int], seed: int) -> None:
    """
    Raises:
        CaeAvError: The model's record of a condition was made under other settings.
    """
    path = model.path(condition)
    if not path.exists():
        return
    found, expected = read_fingerprint(path), model.fingerprint_of(condition, seed)
    changed = [name for name in expected if found.get(name) != expected[name]]
    if changed:
        name = changed[0]
        raise CaeAvError(
            f"{path}: was scored with {name} {found.get(name)!r}, not {expected[name]!r}; choose another --out, or "
            f"remove {path.parent}"
        )


def _model_folder(name: str | Path) -> Path:
    """Return the folder of a model, of the best checkpoint of a run, or of the download of a model on the Hub."""
    folder = best_checkpoint(name)
    check_model(folder)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CaeAvError(f"{name}: is not a folder, and cannot be downloaded from the Hub: {error}") from error


def model_digest(folder: Path) -> str:
    """Return a digest of the files of a model folder that affect its predictions."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt") and path.is_file()
    )
    files = [path for path in files if "training_state" not in path.relative_to(folder).parts]
    return _digest((str(path.relative_to(folder)), path) for path in files)


def data_digest(folder: Path, split: str, rows: datasets.Dataset) -> str:
    """
    Return a digest of a split: the content of its shards, and name, size and time of modification of the media files
    that its rows refer to.
    """
    shards = find_shards(folder, split)
    return _digest([(path.name, path) for path in shards], _media_files(rows))


def _media_files(rows: datasets.Dataset) -> Iterator[str]:
    """Yield a line for each file that rows refer to by its path."""
    names = [name for name in (*clip_features(), "masks") if name in rows.column_names]
    table = rows.select_columns(names).with_format("arrow")[:]
    for chunk in (chunk for name in names for chunk in table.column(name).chunks):
        media = pc.list_flatten(chunk) if pa.types.is_list(chunk.type) else chunk
        if not pa.types.is_struct(media.type):
            continue
        is_path = pc.and_(pc.is_null(pc.struct_field(media, "bytes")), pc.is_valid(pc.struct_field(media, "path")))
        for path in pc.struct_field(media, "path").filter(is_path).to_pylist():
            found = Path(path).stat() if Path(path).is_file() else None
            yield f"{path} {found and (found.st_size, found.st_mtime_ns)}"


def _digest(files: Iterable[tuple[str, Path]], more: Iterable[str] = ()) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    for text in more:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def _processor_digest(processor: Any) -> str:
    """Return a digest of everything that is saved with a processor."""
    with scratch_folder("caeav-processor-") as folder:
        processor.save_pretrained(folder)
        return _digest((path.name, path) for path in sorted(folder.rglob("*")) if path.is_file())
