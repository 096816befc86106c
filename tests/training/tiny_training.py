"""A tiny model with everything the training loop has to handle: a frozen tower, dropout, batch norm."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from caeav_hf.errors import DataError
from caeav_hf.modeling.collectives import batch_mean
from caeav_hf.task import Target, Task
from caeav_hf.training.loop import Trainer
from caeav_hf.training.recipe import Recipe
from caeav_hf.training.run_folder import RunFolder


class TinyConfig(PreTrainedConfig):
    model_type = "caeav_tiny_test"

    def __init__(self, dropout=0.5, batch_norm=True, **kwargs):
        self.dropout = dropout
        self.batch_norm = batch_norm
        super().__init__(**kwargs)


@dataclass
class TinyOutput(ModelOutput):
    logits: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.tower = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.adapter = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8) if config.batch_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(8, 1)
        self.loss_weights = {"caption": 0.1, "alignment": 0.05, "entropy": 0.5}
        self.seen_entropy_weights: list[float] = []
        self.post_init()
        self.tower.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        model.tower.requires_grad_(False)  # loading creates new parameters, which are not frozen
        return model

    def train(self, mode=True):
        super().train(mode)
        self.tower.eval()
        return self

    def start_epoch(self, epoch):
        self.epoch = epoch

    def forward(self, features, labels=None):
        frames = self.tower(features.flatten(0, 1))
        hidden = self.dropout(torch.relu(self.norm(self.adapter(frames))))
        logits = self.head(hidden).view(features.shape[:2]).mean(1)
        if labels is None:
            return TinyOutput(logits=logits)
        self.seen_entropy_weights.append(self.loss_weights["entropy"])
        fit = batch_mean((logits - labels).square().sum(), len(labels))
        entropy = batch_mean(logits.square().sum(), len(labels))
        loss = fit + self.loss_weights["entropy"] * entropy
        return TinyOutput(logits=logits, loss=loss, loss_dict={"fit": fit, "entropy": entropy})


class TinyProcessor:
    def save_pretrained(self, folder):
        (Path(folder) / "processor_config.json").write_text(json.dumps({"tiny": True}))


class TinyData(torch.utils.data.Dataset):
    """Random clips; those in `broken` are replaced by the next one; `read` lists the requested clips."""

    def __init__(self, num_clips=12, broken=(), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(num_clips, 3, 4, generator=generator)
        self.labels = self.features.mean(1).sum(1)
        self.broken = set(broken)
        self.read = []

    def __len__(self):
        return len(self.features)

    def __getitem__(self, index):
        self.read.append(index)
        found = next_readable(index, len(self), self.broken)
        item = {"features": self.features[found], "labels": self.labels[found]}
        return item if found == index else {**item, "replaces": index}


def next_readable(index, count, broken):
    """Return the first clip from `index` on that can be decoded, like [`CaeAvDataset`]."""
    try:
        return next(number for number in (*range(index, count), *range(index)) if number not in broken)
    except StopIteration:
        raise DataError(f"none of the {count} clips can be decoded") from None


def collate(clips):
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0] if name != "replaces"}


@dataclass(frozen=True)
class TinySums:
    error: float
    clips: int

    def __add__(self, other):
        return TinySums(self.error + other.error, self.clips + other.clips)

    def scores(self):
        return {"error": self.error / self.clips}


def clip_sums(outputs, inputs):
    return [TinySums(float(error), 1) for error in (outputs.logits - inputs["labels"]).abs().double()]


TINY = Task(
    name="tiny",
    model=TinyModel,
    rows=None,
    metric=clip_sums,
    targets={"labels": Target(reader="loss")},
    label_column="labels",
    best_metric="error",
    higher_is_better=False,
)


def tiny_recipe(**values):
    defaults = {"epochs": 3, "accumulation_steps": 2, "learning_rate": 0.01, "entropy_warmup_epochs": 1}
    return Recipe(**{**defaults, **values})


def tiny_model(seed=0, **config):
    torch.manual_seed(seed)
    return TinyModel(TinyConfig(**config))


def tiny_trainer(folder, recipe, *, train=None, test=None, model=None, resume=None):
    """Return a trainer in `folder`, seeded like a run."""
    AcceleratorState._reset_state()  # it is global and keeps the last precision
    is_fp16 = recipe.mixed_precision == "fp16"
    precision = "no" if is_fp16 else recipe.mixed_precision
    accelerator = Accelerator(cpu=True, mixed_precision=precision, dynamo_backend=recipe.torch_compile or "no")
    if is_fp16:
        # Accelerate only sets this up on GPUs.
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=8)
    run = RunFolder(folder)
    run.refuse_overwriting(resumed=resume is not None)
    run.start(recipe, accelerator)
    model = tiny_model() if model is None else model
    torch.manual_seed(recipe.seed)
    train = TinyData() if train is None else train
    test = TinyData(5, seed=1) if test is None else test
    return Trainer(recipe, TINY, model, TinyProcessor(), train, test, collate, accelerator, run)


def run_program(name, folder):
    """Run a program of this folder, which writes its output to `folder`."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(name)), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder
