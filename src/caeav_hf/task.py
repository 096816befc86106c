"""
A task: one record of the model, data, metric and pipeline that belong together, and the registry of all records.

A record names what is slow to import as `"module:name"` and imports it when it is first asked for, so that a command
line can list the tasks without loading PyTorch. The tasks of this package are the folders of `caeav_hf.tasks`; a task
of your own is added by [`register_task`] (docs/extending.md shows one).
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import add
from typing import Any, Literal

from .constants import IGNORED_LABEL
from .errors import CaeAvError


# The axis of a target that has one entry for each segment of its clip.
FRAMES = "frames"


@dataclass(frozen=True)
class Target:
    """
    What a batch holds of each clip besides frames, sound and captions: labels, or an input of the task's head.

    Args:
        padding: What shorter clips are padded with, at the end of their tensor's first axis.
        axis: What the first axis of a clip's tensor runs along. `"frames"` is the clip's segments, of which there must
            then be as many; another name says whose lengths are the same in an exported graph. `None` for tensors
            that have one size in all clips.
        reader: Who reads it: the `"model"` always, its `"loss"` in training, or the `"metric"` alone.
        is_image: Whether its last axis is the width of the frame, so that it is mirrored with the frames.
        shares_clip: Whether several items of a batch, each with a target of its own, may be about one clip. The clip
            is then in the batch once, and `clip_index` says which items are about it.
    """

    padding: float = IGNORED_LABEL
    axis: str | None = None
    reader: Literal["model", "loss", "metric"] = "metric"
    is_image: bool = False
    shares_clip: bool = False


@dataclass(frozen=True)
class Card:
    """
    What the model card of a trained model says about its task.

    Args:
        title: The task in words.
        hub_task: What the Hub files it under.
        example: What a pipeline is called with, as Python code.
        metric_note: Explains the scores, in Markdown.
        knowledge: What of its training data a model is limited to.
        has_space: Whether the Space of `model_cards/space` can show such a model.
    """

    title: str = "audio-visual learning"
    hub_task: str = "video-classification"
    example: str = '"clip.mp4"'
    metric_note: str = ""
    knowledge: str = "classes"
    has_space: bool = False


@dataclass(frozen=True)
class Task:
    """
    Everything that the package knows about a task.

    Classes and functions are given as they are or as `"module:name"`.

    Args:
        name: What configurations and recipes call it.
        model: The model class, a [`CaeAvPreTrainedModel`] with a head.
        rows: The [`~data.rows.RowForm`] that makes the targets of a row.
        metric: A function of the model's output and its inputs, which include `targets` and `row_columns`. Returns for
            each clip of the batch an object that is small, on the CPU, and adds up by `+`; its `scores()` returns
            numbers by name, as [`Task.scores`] describes.
        targets: What a batch holds besides clips and captions, by name.
        label_column: Column of the data set with the labels, by which data sets of the task are recognised.
        best_metric: The score by which a checkpoint is the best.
        higher_is_better: Whether a higher one is better.
        class_column: Column whose feature names the classes of the model; `None` for a task without classes.
        row_columns: Columns whose values the metric finds among the inputs, as lists with one value a clip.
        preset: Fields of [`CaeAvConfig`] that differ from their defaults.
        question_words: The words of the questions that a head reads as `question_ids`, unless a tokenizer is given;
            `None` for a task without questions.
        unfit_augmentation: Switches of a recipe's augmentation that would make labels wrong, and why.
        results: Module with `post_process(processor, outputs, **options)`, which turns outputs into results.
        pipeline, pipeline_name: Pipeline class, and the name under which Transformers knows it.
        prediction: The [`~cli.outputs.Output`] that writes what `caeav predict` finds.
        card: What model cards say.

    Raises:
        CaeAvError: Only one of `pipeline` and `pipeline_name` is given.
    """

    name: str
    model: Any
    rows: Any
    metric: Any
    targets: Mapping[str, Target]
    label_column: str
    best_metric: str
    higher_is_better: bool = True
    class_column: str | None = None
    row_columns: tuple[str, ...] = ()
    preset: Mapping[str, Any] = field(default_factory=dict)
    question_words: tuple[str, ...] | None = None
    unfit_augmentation: Mapping[str, str] = field(default_factory=dict)
    results: Any = None
    pipeline: Any = None
    pipeline_name: str | None = None
    prediction: Any = "caeav_hf.cli.outputs:JsonOutput"
    card: Card = Card()

    def __post_init__(self) -> None:
        if (self.pipeline is None) != (self.pipeline_name is None):
            raise CaeAvError(f"task {self.name!r} needs both `pipeline` and `pipeline_name` or neither")

    @property
    def model_class(self) -> Any:
        """The class of its models."""
        return _load(self.model)

    @property
    def model_name(self) -> str:
        """The name of this class, which is not imported for it."""
        return _name_of(self.model)

    @property
    def row_form(self) -> Any:
        """The form of its rows."""
        return _load(self.rows)

    @property
    def result_module(self) -> Any:
        """The module that turns outputs into results."""
        return _load(self.results)

    @property
    def pipeline_class(self) -> Any:
        """The class of its pipeline, `None` without one."""
        return _load(self.pipeline)

    @property
    def pipeline_class_name(self) -> str:
        """The name of this class, which is not imported for it."""
        return _name_of(self.pipeline)

    @property
    def prediction_class(self) -> Any:
        """What writes the results of `caeav predict`."""
        return _load(self.prediction)

    @property
    def shares_clips(self) -> bool:
        """Whether several rows may be about one clip."""
        return any(target.shares_clip for target in self.targets.values())

    def inputs_in_training(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model reads in training."""
        return {name: value for name, value in inputs.items() if self._reader(name) != "metric"}

    def inputs_in_evaluation(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model reads in evaluation, where no loss is computed."""
        return {name: value for name, value in inputs.items() if self._reader(name) == "model"}

    def _reader(self, name: str) -> str:
        return self.targets[name].reader if name in self.targets else "model"

    def sums(self, outputs: Any, inputs: Mapping[str, Any]) -> list[Any]:
        """What the metric needs of each clip of a batch: small objects that add up by `+`."""
        return _load(self.metric)(outputs, inputs)

    def scores(self, sums: Sequence[Any]) -> dict[str, float]:
        """
        Return the metrics over clips from the sums of each: a metric is computed once over all clips, on however many
        processes they were scored.

        Nested scores are joined by slashes, `{"segment": {"type": 50.0}}` as `segment/type`; those that are `None`,
        since no clip has what they measure, are left out.
        """
        return _flat(reduce(add, sums).scores())

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the best metric beats the best so far; a tie does not, and a NaN never does."""
        if best is None:
            return value == value
        return value > best if self.higher_is_better else value < best


_REGISTERED: dict[str, Task] = {}
_FOLLOWERS: list[Callable[[Task], None]] = []


def register_task(task: Task, exist_ok: bool = False) -> None:
    """
    Make a task known under its name, to configurations, recipes, data sets and pipelines.

    Where the record names classes of the module that registers it, call this after they are defined.

    Args:
        task: The task.
        exist_ok: Whether it may replace a task of that name.

    Raises:
        CaeAvError: There is a task of that name.
    """
    if task.name in tasks() and not exist_ok:
        raise CaeAvError(f"there is a task {task.name!r} already; expected another name, or `exist_ok=True`")
    _REGISTERED[task.name] = task
    for follower in _FOLLOWERS:
        follower(task)


def tasks() -> dict[str, Task]:
    """Return all tasks by name: those of this package, then those that were registered."""
    return {**_built_in(), **_REGISTERED}


def get_task(name: str) -> Task:
    """
    Return the task of a name.

    Raises:
        CaeAvError: There is no such task; the message lists those there are.
    """
    known = tasks()
    if name not in known:
        raise CaeAvError(
            f"`task` must be one of {', '.join(known)}, got {name!r}; a task of your own is known once the module "
            "that registers it has been imported"
        )
    return known[name]


def follow_tasks(follower: Callable[[Task], None]) -> None:
    """Call a function with every task, now and whenever one is registered. Following again changes nothing."""
    if follower not in _FOLLOWERS:
        _FOLLOWERS.append(follower)
        for task in tasks().values():
            follower(task)


@cache
def _built_in() -> dict[str, Task]:
    """The tasks of this package, which are found by their folders: no module here names one."""
    package = importlib.import_module(f"{__package__}.tasks")
    folders = [module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{folder}.task") for folder in folders]
    return {task.name: task for module in modules for task in module.TASKS}


def _load(reference: Any) -> Any:
    """What `"module:name"` or `"module"` stands for; anything else is itself."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name) if name else loaded


def _name_of(reference: Any) -> str:
    return reference.partition(":")[2] if isinstance(reference, str) else reference.__name__


def _flat(scores: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = float(value)
    return flat
