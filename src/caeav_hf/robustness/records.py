"""
Stored scores of one model under one condition: the sums of the metric for each item, and the agreement of its
segments. From them any number of resamples is scored without running the model again.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import CaeAvError, last_line
from ..files import atomic_write, make_folder
from ..task import Task


@dataclass(frozen=True)
class StackedSums:
    """
    The sums of a metric for many items, stacked field by field. The name of a field within a field has a dot,
    `masks.frames`.

    Args:
        columns: One array (n, ...) per field; for a field that is a `Counter`, (n, keys).
        keys: The keys of the fields that are counters.
        kind: Class of the metric's sums.
        parts: Classes of the fields that are sums themselves; `None` for those that are `None` for every item, since
            the model does not predict what they score.
    """

    columns: dict[str, np.ndarray]
    keys: dict[str, list[str]]
    kind: type
    parts: dict[str, type | None] = field(default_factory=dict)

    @classmethod
    def stack(cls, sums: Sequence[Any], task: Task) -> "StackedSums":
        """
        Stack the results of [`Task.sums`].

        Raises:
            CaeAvError: They are not dataclasses of numbers, arrays and counters whose fields add up one by one.
        """
        kind = type(sums[0])
        expected = f"the metric of task {task.name!r} returns {kind.__name__}; expected a dataclass whose fields are "
        expected += "numbers, arrays, counters or such dataclasses, and whose sum adds them field by field, so that "
        expected += "clips can be resampled"
        if not is_dataclass(kind):
            raise CaeAvError(expected)
        columns: dict[str, np.ndarray] = {}
        keys: dict[str, list[str]] = {}
        parts: dict[str, type | None] = {}
        for name, values in _flat_values(sums, parts).items():
            if isinstance(values[0], Counter):
                keys[name] = sorted({key for value in values for key in value})
                values = [[value[key] for key in keys[name]] for value in values]
            try:
                column = np.asarray(values)
            except ValueError as error:
                raise CaeAvError(expected) from error
            if column.dtype.kind not in "buif":
                raise CaeAvError(expected)
            columns[name] = column.astype(np.float64)
        stacked = cls(columns, keys, kind, parts)
        try:
            scores = task.scores(sums)
        except CaeAvError:  # nothing counts
            return stacked
        found = task.scores(stacked.totals(np.ones((1, len(sums)))))
        if found.keys() != scores.keys() or not np.allclose([found[name] for name in scores], list(scores.values())):
            raise CaeAvError(expected)
        return stacked

    def totals(self, weights: np.ndarray) -> list[Any]:
        """Return the weighted sum over all items for each row of `weights` (resamples, n), as the metric's objects."""
        added = {name: np.tensordot(weights, column, axes=1) for name, column in self.columns.items()}
        return [
            self._build(self.kind, dict(zip(added, rows, strict=True))) for rows in zip(*added.values(), strict=True)
        ]

    def _build(self, kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
        """Return the metric's object, or the part of it whose fields begin with `prefix`."""
        arguments = {}
        for own in (item.name for item in fields(kind)):
            name = prefix + own
            if name in self.parts:
                part = self.parts[name]
                arguments[own] = None if part is None else self._build(part, values, f"{name}.")
            elif name in self.keys:
                counts = zip(self.keys[name], values[name].tolist(), strict=True)
                arguments[own] = Counter({key: count for key, count in counts if count})
            else:
                arguments[own] = values[name]
        return kind(**arguments)

    def by_clip(self, clips: np.ndarray, num_clips: int) -> "StackedSums":
        """Add up the items of each clip: `clips` (n,) are their numbers, below `num_clips`."""
        columns = {}
        for name, column in self.columns.items():
            columns[name] = np.zeros((num_clips, *column.shape[1:]))
            np.add.at(columns[name], clips, column)
        return replace(self, columns=columns)


def _flat_values(items: Sequence[Any], parts: dict[str, type | None], prefix: str = "") -> dict[str, list[Any]]:
    """Return the values of each field, those of fields that are dataclasses field by field; `parts` takes these."""
    values: dict[str, list[Any]] = {}
    for own in (item.name for item in fields(items[0])):
        name, found = prefix + own, [getattr(item, own) for item in items]
        if all(value is None for value in found):
            parts[name] = None
        elif is_dataclass(kind := type(found[0])) and all(type(value) is kind for value in found):
            parts[name] = kind
            values |= _flat_values(found, parts, f"{name}.")
        else:
            values[name] = found
    return values


@dataclass(frozen=True)
class Record:
    """
    Scores of one model under one condition, in the order of the rows.

    Args:
        rows: (n,) int64, indices of the rows that were scored; clips that cannot be decoded are left out.
        clips: (n,) int64, number of each row's clip; rows about the same clip have the same.
        sums: The metric's sums of each row.
        affected: (n, segments) int8: 1 for misaligned segments, 0 for others, -1 where the clip has no segment.
        agreement: (n, stages, segments) float32, agreement of the segments; `None` if the model has none.
    """

    rows: np.ndarray
    clips: np.ndarray
    sums: StackedSums
    affected: np.ndarray
    agreement: np.ndarray | None

    def save(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Write the record, atomically, with what identifies its condition."""
        arrays = {"rows": self.rows, "clips": self.clips, "affected": self.affected}
        if self.agreement is not None:
            arrays["agreement"] = self.agreement
        arrays |= {f"sums.{name}": column for name, column in self.sums.columns.items()}
        sums = {
            "class": _name(self.sums.kind),
            "keys": self.sums.keys,
            "parts": {name: kind and _name(kind) for name, kind in self.sums.parts.items()},
        }
        metadata = {"fingerprint": json.dumps(fingerprint, sort_keys=True), "sums": json.dumps(sums)}
        make_folder(path.parent)
        with atomic_write(path) as partial_path:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial_path, metadata)

    @classmethod
    def load(cls, path: Path) -> "Record":
        """
        Read a record. The metric must have been imported.

        Raises:
            CaeAvError: The file cannot be read, or belongs to another metric.
        """
        try:
            return cls._load(path)
        except CaeAvError:
            raise
        except Exception as error:  # of any kind, since the file describes the metric
            raise CaeAvError(
                f"{path}: cannot be read ({last_line(error)}); remove it to score its condition again"
            ) from error

    @classmethod
    def _load(cls, path: Path) -> "Record":
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads((file.metadata() or {})["sums"])
        columns = {
            column.removeprefix("sums."): array for column, array in arrays.items() if column.startswith("sums.")
        }
        kind = _find(described["class"])
        parts = {name: found and _find(found) for name, found in described.get("parts", {}).items()}
        try:
            names = _names(kind, parts)
        except TypeError:  # one of them is not a dataclass
            names = None
        if names is None or sorted(names) != sorted(columns):
            name = described["class"][1]
            raise CaeAvError(f"{path}: was scored by another metric, {name}; remove it to score its condition again")
        assert isinstance(kind, type)
        # Sorted by name in the file.
        sums = StackedSums({name: columns[name] for name in names}, described["keys"], kind, parts)
        rows, clips = arrays["rows"], arrays["clips"]
        if {array.shape[:1] for array in arrays.values()} != {(len(rows),)}:
            raise CaeAvError(f"{path}: its arrays differ in length; remove it to score its condition again")
        if any(array.ndim != 1 or array.dtype.kind != "i" for array in (rows, clips)):
            raise CaeAvError(
                f"{path}: `rows` and `clips` must be whole numbers; remove it to score its condition again"
            )
        sums.totals(np.ones((1, len(rows))))  # fails if a column has another shape than the metric's
        return cls(rows, clips, sums, arrays["affected"], arrays.get("agreement"))


def _name(kind: type) -> list[str]:
    return [kind.__module__, kind.__qualname__]


def _find(name: Sequence[str]) -> Any:
    """Return a class by its module and name, among the loaded modules: a file must not decide what is imported."""
    module, own = name
    return getattr(sys.modules.get(module), own, None)


def _names(kind: Any, parts: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the columns that a class and its parts have."""
    names = []
    for name in (prefix + item.name for item in fields(kind)):
        if name not in parts:
            names.append(name)
        elif parts[name] is not None:
            names += _names(parts[name], parts, f"{name}.")
    return names


def read_fingerprint(path: Path) -> dict[str, Any]:
    """
    Return what identifies the condition of a stored record.

    Raises:
        CaeAvError: The file cannot be read.
    """
    try:
        with safe_open(path, "np") as file:
            return json.loads((file.metadata() or {})["fingerprint"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CaeAvError(
            f"{path}: cannot be read ({last_line(error)}); remove it to score its condition again"
        ) from error
