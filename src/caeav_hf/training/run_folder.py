"""The folder of a run: its recipe, versions, history and checkpoints."""

import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from .. import __version__
from ..errors import CaeAvError
from ..files import make_folder, write_text
from .recipe import Recipe


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Disable Transformers' progress bars for loading and saving, which would break up the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return the versions and devices that the numbers of a run may depend on."""
    packages = ("torchvision", "transformers", "accelerate", "datasets", "timm", "open_clip_torch", "av")
    device = accelerator.device
    return {
        "caeav_hf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


# Least time between two drawings of a running run, in seconds. A drawing takes half a second, which may be longer than
# an epoch on a small data set.
DRAWING_INTERVAL = 30.0


class RunFolder:
    """
    `recipe.yaml`, `environment.json`, `history.jsonl` (one line per evaluation), `curves.png` and `checkpoints/`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._drawn = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def refuse_overwriting(self, *, resumed: bool) -> None:
        """
        Raises:
            CaeAvError: The folder already holds a run and this one does not resume it.
        """
        if not resumed and (self.checkpoints / "last").exists():
            raise CaeAvError(
                f"{self.path}: already holds a run; resume it with --resume {self.path}, or choose another output_dir"
            )

    def start(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Create the folder and write recipe and environment, on the main process."""
        if accelerator.is_main_process:
            make_folder(self.path)
            write_text(self.path / "recipe.yaml", recipe.to_yaml())
            write_text(self.path / "environment.json", json.dumps(environment(accelerator), indent=2) + "\n")
        accelerator.wait_for_everyone()

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write `history.jsonl` from all records so far, and draw the curves if that is long ago."""
        write_text(self.path / "history.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        if time.monotonic() - self._drawn >= DRAWING_INTERVAL:
            self.draw_curves(history)

    def draw_curves(self, history: list[dict[str, Any]]) -> None:
        """Draw `curves.png` from all records so far."""
        # Imported here since matplotlib takes a second to import.
        from ..visualization import plot_curves

        plot_curves(history, path=self.path / "curves.png")
        self._drawn = time.monotonic()
