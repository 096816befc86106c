"""Reads the reference cases of tests/fixtures/golden and renames their parameters, which have the authors' names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn


GOLDEN = Path(__file__).parent / "fixtures" / "golden"


class GoldenCase:
    """One file: `state`, `inputs`, `outputs` by name, and the options it was made with."""

    def __init__(self, name: str):
        self.state: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        kinds = {"state": self.state, "input": self.inputs, "output": self.outputs}
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            self.options = file.metadata()
            for key in file.keys():  # noqa: SIM118 - not a dict
                kind, _, rest = key.partition(".")
                kinds[kind][rest] = file.get_tensor(key)

    def split_attention_projections(self) -> None:
        """`in_proj_weight` and `in_proj_bias` stack queries, keys and values."""
        for key in [key for key in self.state if ".in_proj_" in key]:
            base, _, kind = key.partition(".in_proj_")
            for name, part in zip(("query", "key", "value"), self.state.pop(key).chunk(3), strict=True):
                self.state[f"{base}.{name}.{kind}"] = part

    def load_into(self, module: nn.Module, rules: Mapping[str, str | Callable], ignore: str = r"^$") -> None:
        """
        Load the state into `module`; every parameter must be given and every given one used.

        Args:
            module: Takes the state.
            rules: Regular expression to replacement, each applied to the whole name in turn.
            ignore: Regular expression of the authors' names that the module has no use for.
        """
        renamed = {}
        expected = module.state_dict()
        for key, value in self.state.items():
            if re.search(ignore, key):
                continue
            for pattern, replacement in rules.items():
                key = re.sub(pattern, replacement, key)
            # The authors write linear maps as 1x1 convolutions, and scalars now with, now without a dimension.
            renamed[key] = value.view(expected[key].shape) if key in expected else value
        module.load_state_dict(renamed)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Largest absolute difference at most `tolerance`, relative to the largest value where that is above 1."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    difference = float((actual.detach() - expected).abs().max())
    assert difference <= tolerance * scale, f"differs by {difference:.2e} at scale {scale:.2g}"
