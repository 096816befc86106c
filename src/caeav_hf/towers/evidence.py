"""Values inferred from the tensors of a checkpoint, with the keys that they come from."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CaeAvError


class Evidence:
    """
    Values inferred from the tensors of a checkpoint, and the keys that they come from.

    Args:
        state: The checkpoint.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state
        self.values: dict[str, Any] = {}
        self.keys: dict[str, str] = {}

    def find(self, pattern: str) -> str | None:
        """Return the first key, in natural order, in which a regular expression is found."""
        return min((key for key in self.state if re.search(pattern, key)), key=_natural, default=None)

    def shape(self, key: str) -> tuple[int, ...]:
        """
        Return the shape of a tensor.

        Raises:
            CaeAvError: The checkpoint has no such key.
        """
        if key not in self.state:
            raise CaeAvError(f"the checkpoint has no {key!r}, which every checkpoint of this kind has")
        return tuple(self.state[key].shape)

    def count(self, pattern: str) -> int:
        """Return how many different values the only group of a regular expression matches."""
        return len({found[1] for key in self.state if (found := re.match(pattern, key))})

    def record(self, name: str, value: Any, key: str) -> None:
        """Record a value and the key that it comes from."""
        self.values[name] = value
        self.keys[name] = key

    def merge(self, label: str, given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
        """
        Return the recorded values, completed by the caller's.

        Args:
            label: Name of the caller's values in messages.
            given: Values of the caller.
            known: Names that the caller may use.

        Raises:
            CaeAvError: A name is unknown, or a given value contradicts a tensor.
        """
        if unknown := sorted(set(given) - known):
            raise CaeAvError(f"{label} {unknown[0]!r} is unknown; expected one of {', '.join(sorted(known))}")
        for name, value in given.items():
            if name not in self.values:
                continue
            found = self.values[name]
            if _plain(value) != _plain(found):
                raise CaeAvError(f"{label} {name!r} is {value!r}, but {self.keys[name]!r} says {found!r}")
        return {**{name: value for name, value in self.values.items() if name in known}, **given}


def _plain(value: Any) -> Any:
    """Make values comparable: flags are 0 and 1 in scripts, sequences are tuples or lists."""
    if isinstance(value, list | tuple):
        return [int(item) for item in value]
    return int(value) if isinstance(value, bool) else value


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]
