"""Recipes: all values of a training run in one flat YAML file, each also a command-line flag."""

import argparse
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import CaeAvError, reading, shown
from ..task import get_task


RECIPES = Path(__file__).parent / "recipes"

# Recipe values of [`Augmentation`], and how each is written when it is off.
_OFF = {
    **dict.fromkeys(("flip_frames", "spec_augment", "mixup"), "false"),
    **dict.fromkeys(("rand_augment", "crop_area"), "null"),
    **dict.fromkeys(("erasing", "sound_mixing"), "0"),
}
AUGMENTATIONS = tuple(_OFF)

# Most processes, batches, seeds and columns that a file may ask for.
_MOST = {"num_workers": 1024, "prefetch_factor": 1024, "seed": 2**32 - 1, "lora_rank": 4096}
# Most bytes and values of a recipe file.
_MOST_BYTES = 100_000
_MOST_VALUES = 100_000


def _value(default: Any, text: str) -> Any:
    """Return a recipe field with its default and its line in `train.py --help`."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """
    All values of a run. `training/recipes/<preset>.yaml` has those of a preset, with the source of each.

    An epoch is one pass over the training split, a step one update of the optimizer, a batch the clips of one forward
    pass on one process; a step takes `accumulation_steps` batches on every process.
    """

    task: str = _value("ave", "task, which determines model, metric and kind of data set")
    size: str = _value("full", "size of a model built from a preset: full or toy")
    method: str | None = _value(None, "method whose preset is used, such as dg_sct or ssuformer (default: the task's)")
    model: str | None = _value(None, "model folder or Hub id to start from (default: a preset on the towers below)")
    vision_tower: str | None = _value(None, "weights of the frozen visual tower: a file, a folder or a Hub id")
    audio_tower: str | None = _value(None, "weights of the frozen audio tower: a file, a folder or a Hub id")
    text_tower: str | None = _value(None, "weights of the frozen text tower: a file, a folder or a Hub id")
    region_tower: str | None = _value(None, "weights of the frozen tower of masked frames (SSUFormer): as above")
    model_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "changes to the model configuration, as KEY=VALUE ..."}
    )

    lora_rank: int = _value(0, "rank of LoRA on the frozen towers, trained together with the adapters; 0 for none")
    lora_alpha: float = _value(16.0, "LoRA is scaled by alpha / rank")
    lora_dropout: float = _value(0.0, "dropout before LoRA")
    lora_towers: list[str] = field(
        default_factory=lambda: ["vision", "audio"],
        metadata={"help": "towers with LoRA, among vision, audio and text"},
    )

    data: str | None = _value(None, "data set: folder written by a builder of dataset_scripts/, or Hub id")
    train_split: str = _value("train", "split to train on")
    eval_split: str = _value("validation", "split to evaluate on after each epoch")
    shots: int | None = _value(None, "train on only the first clips of each class, this many (default: all clips)")
    use_captions: bool = _value(True, "use the captions of the data set, if it has any")
    cache_dir: str | None = _value(None, "folder to cache processed clips, so that each is decoded once; grows large")
    tower_cache: str | None = _value(
        None, "folder to store what the towers compute before the first trained layer, so that they read a clip once"
    )
    streaming: bool = _value(False, "stream the rows of the data set instead of copying them to a cache")
    shuffle_buffer: int = _value(128, "size of the buffer from which streaming draws the next clips at random")
    num_workers: int = _value(0, "number of worker processes that decode clips")
    prefetch_factor: int = _value(2, "batches that each worker keeps ready")
    flip_frames: bool = _value(False, "mirror half of the training clips, with their masks")
    spec_augment: bool = _value(False, "blank stripes of time and frequency in the sound of training clips")
    mixup: bool = _value(False, "mix the sound of training clips with that of others")
    rand_augment: str | None = _value(
        None, "change the frames of training clips by random operations of this policy of timm, such as rand-m7-n4"
    )
    crop_area: float | None = _value(
        None, "crop the frames of training clips at random to a part of at least this share of their area"
    )
    erasing: float = _value(0.0, "probability of blanking a random rectangle of the frames of a training clip")
    sound_mixing: float = _value(0.0, "probability of mixing another sound into a training clip, segment by segment")

    output_dir: str | None = _value(None, "run folder: recipe, history, curves, checkpoints")
    seed: int = _value(0, "seed of the initial weights, the order of the clips and dropout")
    epochs: int = _value(50, "passes over the training split; 0 evaluates and saves the initial model")
    max_steps: int | None = _value(None, "stop after this many steps, even inside an epoch")
    batch_size: int = _value(2, "clips per batch on each process")
    eval_batch_size: int = _value(2, "clips per batch in evaluation on each process")
    accumulation_steps: int = _value(4, "batches per step")
    mixed_precision: str = _value("no", "no, fp16 or bf16")
    gradient_checkpointing: bool = _value(False, "recompute each layer in the backward pass, which saves memory")
    torch_compile: str | None = _value(None, "backend of torch.compile to train with, such as inductor")
    optimizer_in_backward: bool = _value(
        False, "update each parameter within the backward pass, which saves the memory of the gradients"
    )
    shard_towers: bool = _value(False, "with FSDP, also shard the frozen towers")

    learning_rate: float = _value(5e-4, "learning rate of Adam in the first epochs")
    head_learning_rate: float | None = _value(None, "that of the task head (default: the same)")
    adam_beta1: float = _value(0.9, "decay of Adam's mean of gradients")
    adam_beta2: float = _value(0.999, "decay of Adam's mean of squared gradients")
    weight_decay: float = _value(0.0, "weight decay of Adam")
    lr_decay_factor: float = _value(0.65, "the learning rate is multiplied by this ...")
    lr_decay_epochs: int = _value(3, "... every this many epochs")
    lr_decays: int | None = _value(None, "... at most this many times (default: to the end)")
    min_learning_rate: float | None = _value(
        None, "lower the learning rate along a cosine to this, at each step, instead of in steps of epochs"
    )
    lr_warmup_epochs: int = _value(0, "with min_learning_rate: epochs in which the learning rate first grows from 0")
    max_grad_norm: float | None = _value(None, "clip the gradient to this norm")
    entropy_warmup_epochs: int = _value(5, "epochs during which the weight of the selection entropy (gamma) is 0")
    entropy_ramp_epochs: int = _value(5, "epochs after the warm-up in which gamma grows to its full value")

    save_steps: int | None = _value(None, "also write a checkpoint every this many steps")
    average_from_epoch: int | None = _value(
        None,
        "also save the mean of the weights at the end of this epoch and of all later ones, as checkpoints/average",
    )
    patience: int | None = _value(None, "stop after this many evaluations without improvement")
    max_skipped_steps: int = _value(
        25, "fail after this many steps in a row with a loss or gradient that is not finite"
    )
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "trackers of Accelerate: tensorboard, wandb, ..., or all"}
    )

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "eval_batch_size",
            "accumulation_steps",
            "lr_decay_epochs",
            "prefetch_factor",
            "shuffle_buffer",
        ):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("max_steps", "save_steps", "patience", "shots", "lr_decays", "average_from_epoch"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1, or null", value)
        for name in (
            *("epochs", "num_workers", "entropy_warmup_epochs", "entropy_ramp_epochs", "weight_decay", "seed"),
            "lora_rank",
        ):
            _require(getattr(self, name) >= 0, name, "not negative", getattr(self, name))
        for name, most in _MOST.items():
            _require(getattr(self, name) <= most, name, f"at most {most:,}", getattr(self, name))
        for name in ("learning_rate", "lr_decay_factor", "max_skipped_steps", "lora_alpha"):
            _require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        for name in ("erasing", "sound_mixing"):
            _require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name))
        area = self.crop_area
        _require(area is None or 0 < area <= 1, "crop_area", "in (0, 1], or null", area)
        _require(
            not (self.mixup and self.sound_mixing),
            "sound_mixing",
            "0 with mixup, another way of mixing",
            self.sound_mixing,
        )
        for name in ("adam_beta1", "adam_beta2", "lora_dropout"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        head_rate = self.head_learning_rate
        _require(head_rate is None or head_rate > 0, "head_learning_rate", "positive, or null", head_rate)
        lowest = self.min_learning_rate
        _require(lowest is None or lowest >= 0, "min_learning_rate", "not negative, or null", lowest)
        _require(
            self.lr_warmup_epochs == 0 or (lowest is not None and 0 < self.lr_warmup_epochs < self.epochs),
            "lr_warmup_epochs",
            "0, or with min_learning_rate less than epochs",
            self.lr_warmup_epochs,
        )
        grad_norm = self.max_grad_norm
        _require(grad_norm is None or grad_norm > 0, "max_grad_norm", "positive, or null", grad_norm)
        _require(self.size in ("full", "toy"), "size", "full or toy", self.size)
        precision = self.mixed_precision
        _require(precision in ("no", "fp16", "bf16"), "mixed_precision", "no, fp16 or bf16", precision)
        if self.torch_compile is not None:
            expected = "false with torch_compile, which saves memory in its own way"
            _require(not self.gradient_checkpointing, "gradient_checkpointing", expected, self.gradient_checkpointing)
        if self.optimizer_in_backward:
            expected = "{} with optimizer_in_backward, which never has all gradients at once"
            _require(self.accumulation_steps == 1, "accumulation_steps", expected.format(1), self.accumulation_steps)
            _require(grad_norm is None, "max_grad_norm", expected.format("null"), grad_norm)
            _require(precision != "fp16", "mixed_precision", expected.format("no or bf16"), precision)
        if self.tower_cache is not None:
            switched_on = [name for name in AUGMENTATIONS if getattr(self, name)]
            expected = "null with augmentation ({}), which changes each clip in every epoch"
            _require(not switched_on, "tower_cache", expected.format(", ".join(switched_on)), self.tower_cache)
            expected = "null with torch_compile, whose graph reads no files"
            _require(self.torch_compile is None, "tower_cache", expected, self.tower_cache)
        if self.streaming:
            _require(self.shots is None, "shots", "null with streaming, which reads every row", self.shots)
            for name in ("mixup", "sound_mixing"):
                value = getattr(self, name)
                expected = f"{_OFF[name]} with streaming, which has no random access to other clips"
                _require(not value, name, expected, value)
        _check_switches(self.task, {name: getattr(self, name) for name in AUGMENTATIONS})

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, in the order of the fields."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to_yaml(self) -> str:
        """Return the recipe as YAML text, which [`load_recipe`] reads back to an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _check_switches(task: str, switches: Mapping[str, Any]) -> None:
    """
    Raises:
        CaeAvError: An augmentation that is on would invalidate the labels of the task.
    """
    unfit = dict(get_task(task).unfit_augmentation)
    if "mixup" in unfit:
        unfit["sound_mixing"] = unfit["mixup"]
    for name, reason in unfit.items():
        if switches[name]:
            raise CaeAvError(f"recipe value {name!r} must be {_OFF[name]} for task {task}, where {reason}")


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise CaeAvError(f"recipe value {name!r} must be {expected}, got {shown(value)}")


def available_recipes() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(task: str, size: str = "full", method: str | None = None) -> Path:
    """
    Return the recipe file of a task and size, for the task's own method or another.

    Raises:
        CaeAvError: There is no such recipe; the message lists those that exist.
    """
    name = "_".join([*([method] if method else []), task, *([size] if size != "full" else [])])
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        by = f" for method {method!r}" if method else ""
        known = ", ".join(available_recipes())
        raise CaeAvError(f"no recipe for task {task!r} in size {size!r}{by}; expected one of {known}")
    return path


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """
    Read a recipe file, with `overrides` of some values (typed or as text).

    Raises:
        CaeAvError: The file cannot be read, or a key or a value is invalid; the message names the file and the key.
    """
    path = Path(path)
    with reading(path, "a recipe"):
        # PyYAML reads some 20 kB a second.
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise CaeAvError(f"{path}: has {size:,} bytes; expected a recipe of at most {_MOST_BYTES:,}")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        count = _size(values, {})
    if count > _MOST_VALUES:
        raise CaeAvError(f"{path}: its aliases stand for more than {_MOST_VALUES:,} values; expected a recipe")
    if not isinstance(values, dict):
        raise CaeAvError(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    hints = typing.get_type_hints(Recipe)
    for key in values:
        if key not in hints:
            raise CaeAvError(f"{path}: unknown recipe key {shown(key)}; known keys are {', '.join(sorted(hints))}")
    try:
        recipe = Recipe(**{key: _coerce(key, value, hints[key]) for key, value in values.items()})
    except CaeAvError as error:
        raise CaeAvError(f"{path}: {error}") from error
    return override_recipe(recipe, overrides or {})


def _size(value: Any, sizes: dict[int, float]) -> float:
    """
    Return the number of values in a tree of YAML, each alias counted as what it stands for. A few hundred bytes of
    nested aliases stand for billions of values, and an alias within its own anchor for infinitely many.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf
        items = [*value, *value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(item, sizes) for item in items)
    return sizes[id(value)]


def override_recipe(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """
    Return the recipe with some values replaced; entries of `model_config` are merged.

    Raises:
        CaeAvError: A name is unknown, or a value has the wrong type or range.
    """
    hints = typing.get_type_hints(Recipe)
    changed: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in hints:
            raise CaeAvError(f"unknown recipe key {key!r}; known keys are {', '.join(sorted(hints))}")
        value = _coerce(key, value, hints[key])
        changed[key] = {**getattr(recipe, key), **value} if isinstance(value, dict) else value
    return replace(recipe, **changed)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Convert a YAML or command-line value to the type of its field: YAML reads 5e-4 as text and 1 as an integer."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and (value is None or value == "null"):
        return None
    kind = next(option for option in options if option is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is list:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return [item for item in items if item != "none"]
    elif origin is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    elif origin in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if origin is float or number.is_integer():
                return origin(number)
        except (TypeError, ValueError, OverflowError):
            pass
    elif isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
        return value
    raise CaeAvError(f"recipe value {name!r} must be {_EXPECTED[origin]}, got {shown(value)}")


_EXPECTED = {
    list: "a list of names",
    dict: "a mapping",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
}


class _KeyValues(argparse.Action):
    """Collects KEY=VALUE arguments into a dict; values are parsed as YAML, so numbers and booleans are typed."""

    def __call__(self, parser, namespace, values, option_string=None):
        collected = dict(getattr(namespace, self.dest, None) or {})
        for item in values:
            key, equals, text = item.partition("=")
            if not key or not equals:
                parser.error(f"{option_string} expects KEY=VALUE, got {item!r}")
            try:
                with reading(item, "KEY=VALUE"):
                    collected[key] = yaml.safe_load(text)
            except CaeAvError as error:
                parser.error(f"{option_string}: {error}")
        setattr(namespace, self.dest, collected)


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every recipe value (`--learning-rate` for `learning_rate`), unset if not given."""
    hints = typing.get_type_hints(Recipe)
    group = parser.add_argument_group("recipe values (each overrides the recipe file)")
    for item in fields(Recipe):
        flag = "--" + item.name.replace("_", "-")
        text = item.metadata["help"].replace("%", "%%")
        if hints[item.name] == dict[str, Any]:
            group.add_argument(
                flag, nargs="+", action=_KeyValues, default=argparse.SUPPRESS, metavar="KEY=VALUE", help=text
            )
        elif hints[item.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(flag, default=argparse.SUPPRESS, metavar=item.name.split("_")[-1].upper(), help=text)


def recipe_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe values that were given as flags."""
    names: Sequence[str] = [item.name for item in fields(Recipe)]
    return {name: value for name, value in vars(arguments).items() if name in names}
