"""Build what the loop needs from a recipe: accelerator, model, processor, data sets and caption features."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, LoggerType

from ..data import CaeAvDataset
from ..data.streaming import StreamedClips
from ..errors import CaeAvError, last_line, reading, shown
from ..hub import check_model, read_config
from ..processing import CaeAvProcessor, build_question_tokenizer, clean_caption
from ..task import Task, get_task
from ..towers.frozen import is_adapted
from ..towers.lora import tower_lora_config
from .augmentation import Augmentation, AugmentedClips
from .caption_features import open_store
from .captions import CaptionFeatures
from .recipe import AUGMENTATIONS, Recipe
from .run_folder import without_progress_bars


Clips = CaeAvDataset | StreamedClips

# Bytes to which PyTorch aligns the tensors that it allocates on the CPU.
_ALIGNMENT = 64


def build_accelerator(recipe: Recipe, run_folder: Path | None = None) -> Accelerator:
    """
    Build the accelerator of a run, or of an evaluation if there is no run folder.

    Raises:
        CaeAvError: The device does not support the precision, or a tracker or a compiler is not installed.
    """
    if run_folder is not None:
        _check_trackers(recipe.report_to)
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            dynamo_backend=recipe.torch_compile,
            log_with=recipe.report_to or None if run_folder is not None else None,
            project_dir=None if run_folder is None else str(run_folder / "trackers"),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # The cache would keep half-precision weights beyond their layer, until the end of the forward pass.
                AutocastKwargs(cache_enabled=not recipe.gradient_checkpointing),
            ],
        )
    except (ValueError, ImportError) as error:
        raise CaeAvError(
            f"`mixed_precision` {recipe.mixed_precision}, `torch_compile` {recipe.torch_compile}, "
            f"`report_to` {recipe.report_to}: {error}"
        ) from error
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would silently compute in float32.
        raise CaeAvError("`mixed_precision` fp16 needs a GPU; on a CPU use bf16 or no")
    return accelerator


def _check_trackers(names: Sequence[str]) -> None:
    """
    Raise for unknown trackers and those that are not installed, which Accelerate only logs and skips.

    Raises:
        CaeAvError: There is no such tracker, or it is not installed.
    """
    known = [str(name) for name in LoggerType]
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise CaeAvError(f"`report_to`: unknown tracker {name!r}; expected some of {', '.join(known)}")
        if name != "all" and name not in available:
            raise CaeAvError(
                f"`report_to`: {name} is not installed; `pip install {name}`, or choose among "
                f"{', '.join(available) or 'none'}"
            )


def may_leave_parameters_out(model: Any, data: Clips) -> bool:
    """
    Return whether a step may leave trained parameters unused, for which DDP has to search in every step, at a cost.
    """
    config = model.config
    if config.is_official or model.has_idle_parameters:
        # The authors' encoders keep a layer that is only used to copy its weights from.
        return True
    columns = [f"{side}_caption" for side in get_task(config.task, config.interaction).captions]
    has_all = all(name in data.features and all(data.column(name)) for name in columns)
    return config.reads_captions and not has_all


def find_task(recipe: Recipe, model: str | Path | None = None) -> Task:
    """
    Return the record of a recipe's task, with the method of a saved model, by default of the one to start from, or
    else of the recipe.

    Raises:
        CaeAvError: There is no such model.
    """
    model = recipe.model if model is None else model
    return get_task(recipe.task, recipe.method if model is None else read_config(model).interaction)


def build_model(recipe: Recipe, class_names: list[str] | None = None, question_tokenizer: Any = None) -> Any:
    """
    Build the model to train: from `recipe.model`, else from a preset on the towers that the recipe names, else (toy
    size) on the toy towers of the package. With `lora_rank`, LoRA is added to its towers.

    Args:
        class_names: Names of the classes, for tasks that have any.
        question_tokenizer: Tokenizer of the questions, for tasks that have any.

    Raises:
        CaeAvError: No model or towers are named, something cannot be loaded, or `model_config` is invalid.
    """
    model = _build_model(recipe, class_names, question_tokenizer)
    if recipe.lora_rank:
        model.add_lora(
            tower_lora_config(recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_towers, model)
        )
    return model


def _build_model(recipe: Recipe, class_names: list[str] | None, question_tokenizer: Any) -> Any:
    task = find_task(recipe)
    labels: dict[str, Any] = {}
    if class_names is not None:
        labels = {
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: number for number, name in enumerate(class_names)},
        }
    if question_tokenizer is not None:
        labels["question_vocab_size"] = len(question_tokenizer)
    for key in recipe.model_config:
        if key not in task.config_class.__dataclass_fields__:
            raise CaeAvError(f"recipe value 'model_config': {task.config_class.__name__} has no field {key!r}")
    try:
        if recipe.model is not None:
            config = task.config_class.from_pretrained(recipe.model, task=recipe.task, **recipe.model_config, **labels)
            config.validate()  # `from_pretrained` does not validate the values that override those of the file
            if recipe.method not in (None, config.interaction):
                raise CaeAvError(
                    f"recipe value 'method' must be that of {recipe.model}, {config.interaction!r}, got "
                    f"{recipe.method!r}"
                )
            # A head for other classes is initialized again; all other weights are loaded.
            with without_progress_bars():
                model = task.model_class.from_pretrained(recipe.model, config=config, ignore_mismatched_sizes=True)
            return aligned(model)
        values = {**({} if recipe.method is None else {"method": recipe.method}), **recipe.model_config}
        needed = task.model_class.needed_towers(recipe.task, recipe.size, **values)
        towers: dict[str, str | Path | None] = {kind: getattr(recipe, f"{kind}_tower") for kind in needed}
        if recipe.size == "toy" and not any(towers.values()):
            towers = dict(task.model_class.packaged_towers(recipe.task, **values))
        towers = {kind: towers[kind] if is_needed else None for kind, is_needed in needed.items()}
        if missing := [f"{kind}_tower" for kind, is_needed in needed.items() if is_needed and towers[kind] is None]:
            raise CaeAvError(
                f"recipe values {', '.join(missing)} are missing; expected a model to start from (model) or the "
                f"pretrained towers ({', '.join(f'{kind}_tower' for kind in needed)})"
            )
        return task.model_class.from_backbones(**towers, task=recipe.task, size=recipe.size, **values, **labels)
    except (CaeAvError, ImportError, MemoryError):
        raise
    except Exception as error:  # the values may be of any type and size
        source = recipe.model or f"preset {recipe.task}, {recipe.size}"
        raise CaeAvError(
            f"{source}: no model can be built with model_config {shown(recipe.model_config)}: {last_line(error)}"
        ) from error


def aligned(model: Any) -> Any:
    """
    Copy unaligned CPU tensors to addresses aligned like those that PyTorch allocates.

    Loaded tensors are mapped at their offset in the file. At unaligned addresses, some processors multiply matrices in
    another order with other rounding, so that a resumed run would not equal an uninterrupted one bit for bit.

    Returns:
        `model`.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def load_trained_model(model_class: Any, folder: str | Path) -> Any:
    """
    Load a model from the folder of a checkpoint, with [`aligned`] tensors.

    Raises:
        CaeAvError: There is no model of this class.
    """
    check_model(folder)
    with reading(folder, f"a {model_class.__name__}"), without_progress_bars():
        return aligned(model_class.from_pretrained(folder))


def undo_loading(model: Any, processor: Any, folder: Path) -> None:
    """
    Remove from the configurations of a model and its processor what loading them from a folder added, so that they are
    saved as they are there.
    """
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in type(model.config).sub_configs:
        if (part := getattr(model.config, name, None)) is not None:
            part.dtype = (stored.get(name) or {}).get("dtype")
    tokenizer, path = getattr(processor, "tokenizer", None), folder / "tokenizer_config.json"
    if tokenizer is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for name in set(tokenizer.init_kwargs) - set(stored):
            del tokenizer.init_kwargs[name]


def build_processor(model: Any, folder: str | Path | None = None, question_tokenizer: Any = None) -> CaeAvProcessor:
    """Load the processor saved in a model folder, or build one from the model's configuration."""
    if folder is not None and (Path(folder) / "processor_config.json").is_file():
        with reading(folder, "a processor"):
            processor = CaeAvProcessor.from_pretrained(folder)
        processor.id2label = dict(model.config.id2label)
        return processor
    return CaeAvProcessor.from_config(model.config, question_tokenizer=question_tokenizer)


def load_split(
    recipe: Recipe,
    split: str,
    processor: Any,
    accelerator: Accelerator | None = None,
    *,
    shuffle: bool = False,
    shots: int | None = None,
) -> Clips:
    """
    Load a split of `recipe.data`. With streaming it is the share of this process, shuffled if `shuffle`. With `shots`
    it has only the first clips of each class, at most this many.

    Raises:
        CaeAvError: No data set is named, it has no such split, or it is for another task.
    """
    options: dict[str, Any] = {
        "split": split,
        "use_captions": recipe.use_captions,
        "task": recipe.task,
        # Without a processor only the rows are read: there are no clips to cache, and masks may have any size.
        "cache_dir": None if processor is None else recipe.cache_dir,
        "mask_size": 1 if processor is None else None,
    }
    data: Clips
    if recipe.streaming:
        if accelerator is not None:
            options |= {
                "process_index": accelerator.process_index,
                "num_processes": accelerator.num_processes,
            }
        if shuffle:
            options |= {"shuffle_buffer": recipe.shuffle_buffer, "seed": recipe.seed}
        data = StreamedClips(_data_folder(recipe), processor, **options)
    else:
        data = CaeAvDataset(_data_folder(recipe), processor, **options)
    if shots is not None:
        column = get_task(recipe.task).class_column
        if column is None:
            raise CaeAvError(f"recipe value 'shots' must be null for task {recipe.task}, which has no classes")
        assert isinstance(data, CaeAvDataset)
        rows = data.rows.select(first_of_each_class(data.column(column), shots))
        data = CaeAvDataset(rows, processor, **{**options, "split": None})
    if not len(data):
        raise CaeAvError(f"{recipe.data}: split {split!r} has no clips")
    return data


def first_of_each_class(labels: Sequence[Any], shots: int) -> list[int]:
    """
    Return the positions of the first clips of each class, at most `shots` of each, in order.

    Args:
        labels: The class of each clip, or its list of classes, of which only clips of one class count.
        shots: Number of clips of a class.
    """
    counts: Counter[int] = Counter()
    chosen = []
    for position, label in enumerate(labels):
        classes = label if isinstance(label, list) else [label]
        if len(classes) == 1 and counts[classes[0]] < shots:
            counts[classes[0]] += 1
            chosen.append(position)
    return chosen


def augmented(data: Clips, recipe: Recipe) -> Clips | AugmentedClips:
    """Return the training clips with the augmentation that the recipe switches on."""
    switches = {name: getattr(recipe, name) for name in AUGMENTATIONS}
    if not any(switches.values()):
        return data
    images = tuple(name for name, target in get_task(recipe.task).targets.items() if target.is_image)
    return AugmentedClips(data, Augmentation(**switches, seed=recipe.seed, images=images))


def class_names(data: Clips, task: Task) -> list[str] | None:
    """Return the class names of a data set in the order of their labels; `None` for a task without classes."""
    if task.class_column is None:
        return None
    feature = data.features.get(task.class_column)
    # If clips have several classes, the feature is a list of class labels.
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is None:
        raise CaeAvError(f"the column `{task.class_column}` of the rows is {feature}; expected class labels")
    return list(names)


def read_class_names(recipe: Recipe) -> list[str] | None:
    """Return the class names of the training split; `None` for a task without classes."""
    task = get_task(recipe.task)
    if task.class_column is None:
        return None
    return class_names(load_split(recipe, recipe.train_split, None), task)


def read_question_tokenizer(recipe: Recipe) -> Any:
    """
    Build the tokenizer of the words in the training questions; `None` for a task without questions, or if training
    starts from a model, which has its own.
    """
    if get_task(recipe.task).question_words is None or recipe.model is not None:
        return None
    return build_question_tokenizer(load_split(recipe, recipe.train_split, None).column("question"))


def _data_folder(recipe: Recipe) -> str:
    if recipe.data is None:
        raise CaeAvError("recipe value 'data' is missing; expected a folder written by a builder of dataset_scripts/")
    return recipe.data


def check_classes(data: Clips, task: Task, model: Any, source: str) -> None:
    """
    Raises:
        CaeAvError: The classes of the data set are not those of the model.
    """
    names, expected = class_names(data, task), [model.config.id2label[n] for n in range(model.config.num_labels)]
    if names is not None and names != expected:
        raise CaeAvError(f"{source}: has the classes {', '.join(names)}; the model expects {', '.join(expected)}")


def read_captions(
    model: Any, processor: Any, splits: list[Clips], *, folder: Path | None = None, show_progress: bool
) -> CaptionFeatures:
    """
    Return the features of every caption of these splits, loaded from the folder of the data set if they are stored for
    this model's text tower, else computed. For a text tower that is trained, there are none.
    """
    text_tower = model.base_model.text_tower
    if not model.config.reads_captions or text_tower is None or is_adapted(text_tower):
        splits = []
    sides = get_task(model.config.task, model.config.interaction).captions
    texts = dict.fromkeys(text for data in splits for text in _captions(data, sides))
    captions = dict(zip(texts, caption_token_ids(list(texts), processor), strict=True))
    store = open_store(folder, model) if captions else None
    known = {}
    if store is not None:
        cleaned = {ids: clean_caption(text) for text, ids in captions.items()}
        known = {ids: store[text] for ids, text in cleaned.items() if text in store}
        # Damaged features are computed again.
        text, keeps_padding = model.config.text_config, model.config.is_official
        shapes = {ids: (text.context_length if keeps_padding else len(ids), text.hidden_size) for ids in known}
        known = {ids: values for ids, values in known.items() if values.shape == shapes[ids]}
    return CaptionFeatures(
        model.base_model,
        captions.values(),
        context_length=model.config.text_config.context_length,
        keep_padding=model.config.is_official,
        known=known,
        show_progress=show_progress,
    )


def caption_token_ids(texts: list[str], processor: Any) -> list[tuple[int, ...]]:
    """Return the token ids of captions without padding."""
    if not texts:
        return []
    inputs = processor(visual_captions=texts, audio_captions=texts)
    ids, mask = inputs["visual_caption_ids"], inputs["visual_caption_mask"].to(torch.bool)
    return [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]


def _captions(data: Clips, sides: Sequence[str]) -> Iterator[str]:
    for side in sides:
        if f"{side}_caption" in data.features:
            yield from filter(None, data.column(f"{side}_caption"))
