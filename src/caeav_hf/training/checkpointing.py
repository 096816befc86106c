"""
Checkpoints that stay intact if the process is killed at any moment.

```
checkpoints/
  frozen-1f2e3d4c5b6a7980.safetensors   the towers, written once and hard-linked into every checkpoint
  step-00000500/                        a model folder: config, weights, processor ...
    training_state/                     ... and the state to resume from: optimizer.pt, loop.json, random-0.pt
  last -> step-00000500                 links, replaced atomically
  best -> step-00000500
  average/                              a model folder with the mean of the weights of several epochs, if asked for
```

A checkpoint is written under a temporary name and renamed when it is complete, so a folder called `step-...` is always
complete. Only the newest and the best one are kept.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from ..errors import CaeAvError, reading
from ..files import make_folder, writing
from ..towers.checkpoint_files import load_saved
from ..towers.frozen import trained_names
from .run_folder import without_progress_bars
from .sharding import bare, full_state_dicts, load_optimizer_state
from .state import LoopState, random_state, set_random_state


TRAINED_FILE = "model-00001-of-00002.safetensors"
FROZEN_FILE = "model-00002-of-00002.safetensors"
STATE_FOLDER = "training_state"


class CheckpointStore:
    """The `checkpoints` folder of a run. Every process has a store; only the main process writes model files."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.frozen_file: Path | None = None
        # Mean of the trained weights at the ends of epochs; only the main process has it.
        self.average: dict[str, torch.Tensor] = {}
        if accelerator.is_main_process:
            make_folder(folder)
            # Left by a run that was killed while it wrote or removed a checkpoint.
            for leftover in folder.glob(".partial-*"):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
        accelerator.wait_for_everyone()

    def save(
        self,
        model: nn.Module,
        processor: Any,
        optimizer: Any,
        state: LoopState,
        name: str,
        is_averaged: bool = False,
    ) -> Path:
        """
        Write a checkpoint called `name` (see `new_name`), link `last` to it and `best` to `state.best_checkpoint`, and
        remove all others. With `is_averaged` its weights are the last of `state.averaged_epochs` whose mean is kept.
        All processes must call it.

        Returns:
            The folder of the checkpoint.
        """
        with writing(self.folder):
            return self._save(model, processor, optimizer, state, name, is_averaged)

    def _save(
        self, model: nn.Module, processor: Any, optimizer: Any, state: LoopState, name: str, is_averaged: bool
    ) -> Path:
        partial = self.folder / ".partial-checkpoint"
        bare_model = bare(model, self.accelerator)
        # What is divided among processes takes all of them to come together.
        weights, optimizer_state = full_state_dicts(bare_model, optimizer.optimizer)
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / STATE_FOLDER).mkdir(parents=True)
            with without_progress_bars():
                self._save_model(bare_model, weights, partial)
            processor.save_pretrained(partial)
            if is_averaged:
                self._include(weights, trained_names(bare_model), state.averaged_epochs)
            scaler = getattr(self.accelerator, "scaler", None)
            training = {"optimizer": optimizer_state, "scaler": None if scaler is None else scaler.state_dict()}
            if self.average:
                training["average"] = self.average
            torch.save(training, partial / STATE_FOLDER / "optimizer.pt")
            (partial / STATE_FOLDER / "loop.json").write_text(json.dumps(state.to_dict(), indent=1), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        torch.save(random_state(), partial / STATE_FOLDER / f"random-{self.accelerator.process_index}.pt")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _flush(partial)
            os.rename(partial, self.folder / name)
            self._link("last", name)
            self.link_best(state)
            for folder in sorted(self.folder.glob("step-*")):
                if folder.name not in (name, state.best_checkpoint):
                    self._remove(folder)
                elif folder.name != name and (folder / STATE_FOLDER).exists():
                    # The best model is for inference; its optimizer state, twice its size, is no longer needed.
                    self._remove(folder / STATE_FOLDER)
        self.accelerator.wait_for_everyone()
        return self.folder / name

    def save_average(self, model: nn.Module, processor: Any, optimizer: Any) -> Path:
        """
        Write the model with the mean of its weights at the ends of epochs. All processes must call it.

        Returns:
            The folder, `average`.
        """
        partial, folder = self.folder / ".partial-average", self.folder / "average"
        bare_model = bare(model, self.accelerator)
        weights, _ = full_state_dicts(bare_model, optimizer.optimizer)
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            averaged = {name: tensor.to(weights[name].dtype) for name, tensor in self.average.items()}
            with without_progress_bars():
                self._save_model(bare_model, {**weights, **averaged}, partial)
            processor.save_pretrained(partial)
            _flush(partial)
            if folder.exists():
                self._remove(folder)
            os.rename(partial, folder)
        self.accelerator.wait_for_everyone()
        return folder

    def _include(self, weights: dict[str, torch.Tensor], names: set[str], count: int) -> None:
        """Include weights in the mean as the last of `count`; what is not a floating-point number is theirs."""
        for name in names & weights.keys():
            tensor = weights[name].detach().cpu()
            if tensor.is_floating_point() and count > 1:
                before = self.average[name]
                self.average[name] = before + (tensor.to(before.dtype) - before) / count
            else:
                self.average[name] = tensor.float() if tensor.dtype.itemsize < 4 else tensor.clone()

    def keep_frozen(self, model: nn.Module) -> Path:
        """
        Write the frozen weights of `model`. Later checkpoints link this file and ignore the frozen weights in memory,
        which may be moved or cast by then. All processes must call it.

        Returns:
            The file: tensors by their names in the state dict of `model`.
        """
        trained = trained_names(model)
        frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in trained}
        if self.accelerator.is_main_process:
            with writing(self.folder):
                self._write_frozen(frozen)
        self.accelerator.wait_for_everyone()
        self.frozen_file = self._frozen_path(frozen)
        return self.frozen_file

    def new_name(self, step: int) -> str:
        """Return an unused checkpoint name for this step; an epoch can end on a step that already has a checkpoint."""
        name, number = f"step-{step:08d}", 1
        while (self.folder / name).exists():
            number += 1
            name = f"step-{step:08d}-{number}"
        return name

    def link_best(self, state: LoopState) -> None:
        """Link `best` to the best checkpoint of `state`; a kill between two renames may have prevented that."""
        if state.best_checkpoint is not None and (self.folder / state.best_checkpoint).is_dir():
            self._link("best", state.best_checkpoint)

    def _save_model(self, model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
        trained = trained_names(model)
        if trained.issuperset(weights):
            model.save_pretrained(folder, state_dict=weights)
            return
        # For `from_pretrained` this is an ordinary model in two shards. The frozen shard is the same in every
        # checkpoint, so all of them share one file.
        model.save_pretrained(folder, state_dict={name: weights[name] for name in weights if name in trained})
        os.rename(folder / "model.safetensors", folder / TRAINED_FILE)
        frozen = {name: tensor for name, tensor in weights.items() if name not in trained}
        frozen_file = self.frozen_file or self._write_frozen(frozen)
        _hard_link(frozen_file, folder / FROZEN_FILE)
        index = {
            "metadata": {"total_size": sum((folder / name).stat().st_size for name in (TRAINED_FILE, FROZEN_FILE))},
            "weight_map": {name: TRAINED_FILE if name in trained else FROZEN_FILE for name in weights},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _write_frozen(self, frozen: dict[str, torch.Tensor]) -> Path:
        path = self._frozen_path(frozen)
        if not path.exists():
            partial = self.folder / f".partial-{path.name}"
            save_file({name: tensor.contiguous() for name, tensor in frozen.items()}, partial, {"format": "pt"})
            os.replace(partial, path)
        return path

    def _frozen_path(self, frozen: dict[str, torch.Tensor]) -> Path:
        return self.folder / f"frozen-{_signature(frozen)}.safetensors"

    def _link(self, link: str, target: str) -> None:
        temporary = self.folder / f".partial-{link}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, self.folder / link)

    def _remove(self, folder: Path) -> None:
        """Remove a folder, renaming it first so that no half-removed folder keeps its name."""
        doomed = self.folder / f".partial-removed-{folder.parent.name}-{folder.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def _signature(tensors: dict[str, torch.Tensor]) -> str:
    """Return a short hash of the names, shapes and dtypes of weights and of a sample of their values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().reshape(-1)
        sample = tensor[:: max(1, tensor.numel() // 64)].to(device="cpu", dtype=torch.float64)
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _hard_link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _flush(folder: Path) -> None:
    """Flush every file of the folder to disk, so that after a power cut the renamed folder is complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def find_checkpoint(path: str | Path) -> Path:
    """
    Return the checkpoint to resume from: `path` itself, or the last one of the run folder `path`.

    Raises:
        CaeAvError: There is no training state.
    """
    path = Path(path)
    for candidate in (path, path / "checkpoints" / "last"):
        if (candidate / STATE_FOLDER / "loop.json").is_file():
            return candidate.resolve()
    raise CaeAvError(
        f"{path}: no checkpoint to resume from; expected a run folder with checkpoints/last, or a checkpoint folder "
        f"with {STATE_FOLDER}/ (the best checkpoint keeps none once a newer one exists)"
    )


def read_loop_state(checkpoint: Path) -> LoopState:
    """Read the loop's counters from a checkpoint folder."""
    path = checkpoint / STATE_FOLDER / "loop.json"
    with reading(path, "a training state"):
        return LoopState.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))


def restore_training_state(
    checkpoint: Path, model: nn.Module, optimizer: Any, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """
    Load the optimizer, the loss scaler and this process's random generators from a checkpoint folder.

    Returns:
        The mean of the weights of earlier epochs, if the run takes one.

    Raises:
        CaeAvError: A file is missing or broken, or belongs to a model with other trained parameters.
    """
    folder = checkpoint / STATE_FOLDER
    with reading(folder, "a training state"):
        saved = load_saved(folder / "optimizer.pt")
        load_optimizer_state(bare(model, accelerator), optimizer.optimizer, saved["optimizer"])
        scaler = getattr(accelerator, "scaler", None)
        if scaler is not None and saved["scaler"] is not None:
            scaler.load_state_dict(saved["scaler"])
        # With more processes than before, the additional ones keep the generators they were seeded with.
        random_file = folder / f"random-{accelerator.process_index}.pt"
        if random_file.exists():
            set_random_state(load_saved(random_file))
        return saved.get("average", {})
