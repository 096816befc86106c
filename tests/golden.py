"""Reading of the reference cases in tests/fixtures/golden, whose parameters have the authors' names."""

import copy
import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from caeav_hf.towers.renaming import Rules, reason_to_ignore, rename, split


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

    def load_into(self, module: nn.Module, rules: Rules, ignored: Rules | None = None) -> None:
        """
        Load the state into `module`; every parameter must be given and every given one used.

        Args:
            module: Takes the state.
            rules: What becomes of the authors' names; see `conversion.key_map` and `towers.renaming`.
            ignored: Which of them the module has no use for, and why.
        """
        renamed = {}
        expected = module.state_dict()
        for old_key, stacked in self.state.items():
            if reason_to_ignore(old_key, ignored or {}) is not None:
                continue
            for key, value in split(rename(old_key, rules), stacked):
                # The authors use 1x1 convolutions as linear maps, and scalars with or without a dimension.
                renamed[key] = value.view(expected[key].shape) if key in expected else value
        module.load_state_dict(renamed)


def numbers_in(text: str) -> dict:
    return json.loads(text.replace("'", '"').replace("(", "[").replace(")", "]"))


def part(case: GoldenCase, prefix: str) -> GoldenCase:
    """Return the tensors of one module of a case."""
    found = copy.copy(case)
    found.state = {k.removeprefix(prefix): v for k, v in case.state.items() if k.startswith(prefix)}
    return found


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that no difference exceeds `tolerance`, relative to the largest value if that is above 1."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    difference = float((actual.detach() - expected).abs().max())
    assert difference <= tolerance * scale, f"differs by {difference:.2e} at scale {scale:.2g}"
