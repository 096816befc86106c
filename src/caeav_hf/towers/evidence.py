"""What the tensors of a checkpoint say about the model, each with the key that says it."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CaeAvError


class Evidence:
    """
    Values that were read from tensors, and the keys they were read from.

    Args:
        state: The checkpoint.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state
        self.values: dict[str, Any] = {}
        self.keys: dict[str, str] = {}

    def find(self, pattern: str) -> str | None:
        """The first key, in natural order, in which a regular expression is found."""
        return min((key for key in self.state if re.search(pattern, key)), key=_natural, default=None)

    def shape(self, key: str) -> tuple[int, ...]:
        """
        The shape of a tensor.

        Raises:
            CaeAvError: There is none under this key.
        """
        if key not in self.state:
            raise CaeAvError(f"the checkpoint has no {key!r}, which every checkpoint of this kind has")
        return tuple(self.state[key].shape)

    def count(self, pattern: str) -> int:
        """How many different numbers the one group of a regular expression matches."""
        return len({found[1] for key in self.state if (found := re.match(pattern, key))})

    def tell(self, name: str, value: Any, key: str) -> None:
        """Note a value and the key that says it."""
        self.values[name] = value
        self.keys[name] = key

    def agree(self, what: str, given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
        """
        What the tensors say, completed by what was given.

        Args:
            what: What the values are called in messages.
            given: Values of the caller.
            known: Names that may be given.

        Raises:
            CaeAvError: A name is not known, or a given value contradicts a tensor.
        """
        if unknown := sorted(set(given) - known):
            raise CaeAvError(f"{what} {unknown[0]!r} is not known here; expected one of {', '.join(sorted(known))}")
        for name, value in given.items():
            if name not in self.values:
                continue
            found = self.values[name]
            if _plain(value) != _plain(found):
                raise CaeAvError(f"{what} {name!r} is {value!r}, but {self.keys[name]!r} says {found!r}")
        return {**{name: value for name, value in self.values.items() if name in known}, **given}


def _plain(value: Any) -> Any:
    """Flags are 0 and 1 in scripts, sequences tuples or lists."""
    if isinstance(value, list | tuple):
        return [int(item) for item in value]
    return int(value) if isinstance(value, bool) else value


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]
