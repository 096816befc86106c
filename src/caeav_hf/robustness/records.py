"""
Stored scores of one model under one condition: the sums of the metric for each item, and the agreement of its
segments. From them any number of resamples is scored without running the model again.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import CaeAvError
from ..files import atomic_write
from ..task import Task


@dataclass(frozen=True)
class StackedSums:
    """
    The sums of a metric for many items, stacked field by field.

    Args:
        columns: One array (n, ...) per field; for a field that is a `Counter`, (n, keys).
        keys: The keys of the fields that are counters.
        kind: Class of the metric's sums.
    """

    columns: dict[str, np.ndarray]
    keys: dict[str, list[str]]
    kind: type

    @classmethod
    def stack(cls, sums: Sequence[Any], task: Task) -> "StackedSums":
        """
        Stack the results of [`Task.sums`].

        Raises:
            CaeAvError: They are not dataclasses of numbers, arrays and counters whose fields add up one by one.
        """
        kind = type(sums[0])
        expected = f"the metric of task {task.name!r} returns {kind.__name__}; expected a dataclass whose fields are "
        expected += (
            "numbers, arrays or counters, and whose sum adds them field by field, so that clips can be resampled"
        )
        if not is_dataclass(kind):
            raise CaeAvError(expected)
        columns, keys = {}, {}
        for name in (item.name for item in fields(kind)):
            values = [getattr(item, name) for item in sums]
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
        stacked = cls(columns, keys, kind)
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
            self.kind(
                **{
                    name: Counter(
                        {key: value for key, value in zip(self.keys[name], row.tolist(), strict=True) if value}
                    )
                    if name in self.keys
                    else row
                    for name, row in zip(added, rows, strict=True)
                }
            )
            for rows in zip(*added.values(), strict=True)
        ]

    def by_clip(self, clips: np.ndarray, num_clips: int) -> "StackedSums":
        """Add up the items of each clip: `clips` (n,) are their numbers, below `num_clips`."""
        columns = {}
        for name, column in self.columns.items():
            columns[name] = np.zeros((num_clips, *column.shape[1:]))
            np.add.at(columns[name], clips, column)
        return StackedSums(columns, self.keys, self.kind)


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
        kind = self.sums.kind
        metadata = {
            "fingerprint": json.dumps(fingerprint, sort_keys=True),
            "sums": json.dumps({"class": [kind.__module__, kind.__qualname__], "keys": self.sums.keys}),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
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
            with safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                described = json.loads((file.metadata() or {})["sums"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CaeAvError(f"{path}: cannot be read ({error}); remove it to score its condition again") from error
        # Looked up among the loaded modules: a file must not decide what is imported.
        module, name = described["class"]
        kind = getattr(sys.modules.get(module), name, None)
        columns = {
            column.removeprefix("sums."): array for column, array in arrays.items() if column.startswith("sums.")
        }
        if not is_dataclass(kind) or {item.name for item in fields(kind)} != columns.keys():
            raise CaeAvError(f"{path}: was scored by another metric, {name}; remove it to score its condition again")
        # Sorted by name in the file.
        columns = {item.name: columns[item.name] for item in fields(kind)}
        assert isinstance(kind, type)
        sums = StackedSums(columns, described["keys"], kind)
        return cls(arrays["rows"], arrays["clips"], sums, arrays["affected"], arrays.get("agreement"))


def read_fingerprint(path: Path) -> dict[str, Any]:
    """
    Return what identifies the condition of a stored record.

    Raises:
        CaeAvError: The file cannot be read.
    """
    try:
        with safe_open(path, "np") as file:
            return json.loads((file.metadata() or {})["fingerprint"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CaeAvError(f"{path}: cannot be read ({error}); remove it to score its condition again") from error
