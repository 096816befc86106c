"""Progress of a run: the loop's counters, and the state of all random generators."""

import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError, shown


@dataclass
class LoopState:
    """
    Counters of the loop, saved as JSON beside the weights.

    `clips_done` is the number of clips of the running epoch that all processes together have used, in the epoch's
    order, so a run can resume on any number of processes. `loss_totals` (sum over clips and number of clips of each
    loss), `dropped_clips` and `skipped_steps` also belong to the running epoch, so that a resumed epoch reports the
    same values. `averaged_epochs` is the number of epochs whose weights are averaged. `order` holds the values that
    the order of the clips depends on besides the epoch.
    """

    epoch: int = 0
    clips_done: int = 0
    step: int = 0
    loss_totals: dict[str, list[float]] = field(default_factory=dict)
    dropped_clips: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_value: float | None = None
    best_checkpoint: str | None = None
    evaluations_since_best: int = 0
    averaged_epochs: int = 0
    order: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "LoopState":
        """
        Build the state from the output of `to_dict`.

        Raises:
            CaeAvError: The values are from another version or of another type; `source` names their file in the
                message.
        """
        try:
            state = cls(**values)
        except TypeError as error:
            raise CaeAvError(f"{source}: not a training state of this version: {error}") from error
        for item in fields(cls):
            value, default = getattr(state, item.name), getattr(cls(), item.name)
            is_fine = type(value) is type(default)
            if default is None:
                kinds = (str,) if item.name == "best_checkpoint" else (int, float)
                is_fine = value is None or (isinstance(value, kinds) and not isinstance(value, bool))
            if not is_fine or (isinstance(default, int) and not 0 <= value < 2**63):
                raise CaeAvError(f"{source}: not a training state: {item.name!r} is {shown(value)}")
        if state.best_checkpoint is not None and Path(state.best_checkpoint).name != state.best_checkpoint:
            raise CaeAvError(
                f"{source}: 'best_checkpoint' must name a folder beside, got {shown(state.best_checkpoint)}"
            )
        return state


def random_state() -> dict[str, Any]:
    """Return the state of the generators of Python, NumPy and PyTorch, in types that load with `weights_only=True`."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    Restore the generators to a state returned by `random_state`. Those of CUDA devices are restored only if the number
    of devices is the same.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
