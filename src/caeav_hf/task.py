"""
The record of a task, which names its model, data, metric and pipeline, and the registry of tasks.

A record refers to what is slow to import as `"module:name"` and imports it on first use, so that a command line can
list the tasks without loading PyTorch. The tasks of this package are the folders of `caeav_hf.tasks`; further tasks
are added by [`register_task`] (see docs/extending.md).
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from operator import add
from typing import Any, Literal

from .constants import IGNORED_LABEL, MODALITIES
from .errors import CaeAvError


# Axis of a target with one entry per segment of its clip.
FRAMES = "frames"


@dataclass(frozen=True)
class Target:
    """
    A tensor of each clip in a batch besides frames, sound and captions: labels, or an input of the task's head.

    Args:
        padding: Value that pads shorter tensors at the end of an axis.
        axis: Name of the first axis. `"frames"` has one entry per segment of the clip; axes with another common name
            have the same length in an exported graph. `None` for tensors of the same size in all clips.
        reader: Who reads it: the `"model"` always, its `"loss"` only in training, or only the `"metric"`.
        is_image: Whether the last axis is the width of the frame, so that it is mirrored with the frames.
        padded_axes: Number of leading axes along which tensors of a batch may differ in length.
        shares_clip: Whether several items of a batch, each with its own target, may refer to one clip. The batch then
            contains the clip once, and `clip_index` maps items to clips.
    """

    padding: float = IGNORED_LABEL
    axis: str | None = None
    reader: Literal["model", "loss", "metric"] = "metric"
    is_image: bool = False
    padded_axes: int = 1
    shares_clip: bool = False


@dataclass(frozen=True)
class Card:
    """
    Task-specific text of a trained model's card.

    Args:
        title: Name of the task.
        hub_task: The Hub's name of the task.
        example: Example input of the pipeline, as Python code.
        metric_note: Explanation of the scores, in Markdown.
        knowledge: What a model can only know from its training data.
        has_space: Whether `caeav push --space` makes a page for such a model.
        reads_captions: Whether such models read captions.
        captions: Example of the pipeline's arguments with captions, as Python code.
        caption_note: What the captions of such a model are.
    """

    title: str = "audio-visual learning"
    hub_task: str = "video-classification"
    example: str = '"clip.mp4"'
    metric_note: str = ""
    knowledge: str = "classes"
    has_space: bool = True
    reads_captions: bool = True
    captions: str = 'captions={"visual": "what is seen", "audio": "what is heard"}'
    caption_note: str = "Captions of the picture and the sound are optional."


@dataclass(frozen=True)
class Task:
    """
    Record of everything that belongs to a task.

    Classes and functions are given as objects or as `"module:name"`.

    Args:
        name: Name in configurations and recipes.
        model: The model class, a [`~modeling.pretrained.TowerPreTrainedModel`] with a head, such as a
            [`CaeAvPreTrainedModel`].
        config: The class of the model's configuration, a [`~configuration_base.TowersConfig`].
        methods: Methods whose models are classes of their own: by name, the fields of the record that differ, such as
            `model`, `config` and `preset`. Methods of [`~modeling.interaction`] need none.
        rows: The [`~data.rows.RowForm`] that builds the targets of a row.
        metric: Function of the model's output and its inputs, which include `targets` and `row_columns`. Returns one
            small object on the CPU per clip of the batch; these can be added, and `scores()` of their sum returns
            numbers by name, see [`Task.scores`].
        targets: Tensors of a batch besides clips and captions, by name.
        label_column: Column of the data set with the labels, by which data sets of the task are recognised; `None` if
            data sets of another task are used, so that the task must be named.
        best_metric: Score that selects the best checkpoint.
        higher_is_better: Whether higher values of this score are better.
        score_scale: What this score is measured in: 1 for shares, 100 for percent.
        class_column: Column whose feature names the classes of the model; `None` for a task without classes.
        metric_reads_processor: Whether `metric` takes the processor as its third argument, for example to decode ids.
        row_columns: Columns passed to the metric among the inputs, as lists with one value per clip.
        preset: Fields of the configuration that differ from their defaults. With `interaction`, it includes the preset
            of this method for the task, unless another method is requested.
        toy_preset: Fields in which a preset of size `"toy"` differs from that of other tasks.
        question_words: Default vocabulary of the questions that a head reads as `question_ids`; `None` for a task
            without questions.
        unfit_augmentation: Switches of a recipe's augmentation that would make labels wrong, with the reasons.
        results: Module with `post_process(processor, outputs, **options)`, which turns outputs into results.
        pipeline, pipeline_name: Pipeline class, and its name in Transformers.
        prediction: The [`~cli.outputs.Output`] that writes the results of `caeav predict`.
        view: The [`~app.views.View`] that presents results on the page of `caeav app` and of Spaces.
        card: Text of model cards.
        official: Facts about the authors' code of this task, which the official formulation follows, by name:
            `visual_adapter_gate` (`True` by default), whether experts of the visual stream have a learnable gate, and
            `skips_audio_blocks` (`False` by default), whether CAE-AV drops the output of the audio tower's blocks.
        captions: Captions that the models read, those of `"visual"`, `"audio"`, or both.
        misalignment: The [`~data.misalign.change.LabelCorrection`] that corrects the labels of misaligned clips;
            `None` if the task's data cannot be misaligned.

    Raises:
        CaeAvError: Only one of `pipeline` and `pipeline_name` is given.
    """

    name: str
    model: Any
    rows: Any
    metric: Any
    targets: Mapping[str, Target]
    label_column: str | None
    best_metric: str
    higher_is_better: bool = True
    score_scale: float = 1.0
    class_column: str | None = None
    row_columns: tuple[str, ...] = ()
    metric_reads_processor: bool = False
    preset: Mapping[str, Any] = field(default_factory=dict)
    toy_preset: Mapping[str, Any] = field(default_factory=dict)
    question_words: tuple[str, ...] | None = None
    unfit_augmentation: Mapping[str, str] = field(default_factory=dict)
    results: Any = None
    pipeline: Any = None
    pipeline_name: str | None = None
    prediction: Any = "caeav_hf.cli.outputs:JsonOutput"
    view: Any = "caeav_hf.app.views:View"
    card: Card = Card()
    official: Mapping[str, bool] = field(default_factory=dict)
    config: Any = "caeav_hf.configuration_cae_av:CaeAvConfig"
    misalignment: Any = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    captions: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        if (self.pipeline is None) != (self.pipeline_name is None):
            raise CaeAvError(f"task {self.name!r} needs both `pipeline` and `pipeline_name` or neither")

    def with_method(self, method: str | None) -> "Task":
        """Return the record with the fields that differ for a method; itself for any other method."""
        return replace(self, **self.methods[method]) if method is not None and method in self.methods else self

    def records(self) -> "list[Task]":
        """Return the record and those with each of its methods."""
        return [self, *map(self.with_method, self.methods)]

    @property
    def model_class(self) -> Any:
        """The model class."""
        return _load(self.model)

    @property
    def model_name(self) -> str:
        """The name of the model class, without importing it."""
        return _name_of(self.model)

    @property
    def config_class(self) -> Any:
        """The class of the model's configuration."""
        return _load(self.config)

    @property
    def config_name(self) -> str:
        """The name of this class, without importing it."""
        return _name_of(self.config)

    @property
    def row_form(self) -> Any:
        """The class that builds the targets of rows."""
        return _load(self.rows)

    @property
    def metric_function(self) -> Any:
        """The function that returns the metric's sums of each clip of a batch."""
        return _load(self.metric)

    @property
    def result_module(self) -> Any:
        """The module that turns outputs into results."""
        return _load(self.results)

    @property
    def label_correction(self) -> Any:
        """The class that corrects the labels of misaligned clips, or `None`."""
        return _load(self.misalignment)

    @property
    def pipeline_class(self) -> Any:
        """The pipeline class, or `None`."""
        return _load(self.pipeline)

    @property
    def pipeline_class_name(self) -> str:
        """The name of the pipeline class, without importing it."""
        return _name_of(self.pipeline)

    @property
    def prediction_class(self) -> Any:
        """The class that writes the results of `caeav predict`."""
        return _load(self.prediction)

    @property
    def view_class(self) -> Any:
        """The class that presents results on the page of `caeav app`."""
        return _load(self.view)

    @property
    def shares_clips(self) -> bool:
        """Whether several rows may refer to one clip."""
        return any(target.shares_clip for target in self.targets.values())

    def inputs_in_training(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a batch that the model reads in training."""
        return {name: value for name, value in inputs.items() if self._reader(name) != "metric"}

    def inputs_in_evaluation(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a batch that the model reads in evaluation, where no loss is computed."""
        return {name: value for name, value in inputs.items() if self._reader(name) == "model"}

    def _reader(self, name: str) -> str:
        return self.targets[name].reader if name in self.targets else "model"

    def sums(self, outputs: Any, inputs: Mapping[str, Any], processor: Any = None) -> list[Any]:
        """Return one small object per clip of a batch for the metric; these can be added."""
        return self.metric_function(outputs, inputs, *([processor] if self.metric_reads_processor else []))

    def scores(self, sums: Sequence[Any]) -> dict[str, float]:
        """
        Return the metrics over all clips, however many processes have scored them, from the sums of each clip.

        Names of nested scores are joined by slashes, `{"segment": {"type": 50.0}}` becomes `segment/type`. Scores that
        are `None`, because no clip has what they measure, are omitted.
        """
        return _flat(reduce(add, sums).scores())

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether a value of the best metric is better than the best so far; false for ties and NaN."""
        if best is None:
            return value == value
        return value > best if self.higher_is_better else value < best


_REGISTERED: dict[str, Task] = {}
_FOLLOWERS: list[Callable[[Task], None]] = []


def register_task(task: Task, exist_ok: bool = False) -> None:
    """
    Register a task under its name for configurations, recipes, data sets and pipelines.

    If the record refers to classes of the module that registers it, call this after their definition.

    Args:
        task: The task.
        exist_ok: Whether it may replace a task of the same name.

    Raises:
        CaeAvError: A task of this name exists.
    """
    if task.name in tasks() and not exist_ok:
        raise CaeAvError(f"there is a task {task.name!r} already; expected another name, or `exist_ok=True`")
    _REGISTERED[task.name] = task
    for follower in _FOLLOWERS:
        follower(task)


def tasks() -> dict[str, Task]:
    """Return all tasks by name: those of this package, then registered ones."""
    return {**_built_in(), **_REGISTERED}


def get_task(name: str, method: str | None = None) -> Task:
    """
    Return the task of a name, with the models of a method, see [`Task.with_method`].

    Raises:
        CaeAvError: There is no such task; the message lists the known ones.
    """
    known = tasks()
    if name not in known:
        raise CaeAvError(
            f"`task` must be one of {', '.join(known)}, got {name!r}; the module that registers another task must be "
            "imported first"
        )
    return known[name].with_method(method)


def follow_tasks(follower: Callable[[Task], None]) -> None:
    """Call a function for every known task, and later for each newly registered one; idempotent."""
    if follower not in _FOLLOWERS:
        _FOLLOWERS.append(follower)
        for task in tasks().values():
            follower(task)


@cache
def _built_in() -> dict[str, Task]:
    """Return the tasks of this package, which are found by their folders."""
    package = importlib.import_module(f"{__package__}.tasks")
    folders = [module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{folder}.task") for folder in folders]
    return {task.name: task for module in modules for task in module.TASKS}


def _load(reference: Any) -> Any:
    """Import what `"module:name"` or `"module"` refers to; return anything else unchanged."""
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
