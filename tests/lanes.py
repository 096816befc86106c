"""Choice of the variants of a test that are not marked slow."""

from collections.abc import Iterable
from typing import Any

import pytest


# The published methods besides CAE-AV, whose tests run for these too.
METHODS = ("dg_sct", "lavish", "stg_cma")


def slow_after(num_quick: int, values: Iterable[Any]) -> list[Any]:
    """Return the values of one argument of `parametrize`; all but the first `num_quick` are marked slow."""
    return [
        value if index < num_quick else pytest.param(value, marks=pytest.mark.slow)
        for index, value in enumerate(values)
    ]
