"""What the configurations of all models share: checks of fields, and the base class of those on frozen towers."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import GenerationConfig, PreTrainedConfig

from .errors import CaeAvError, reading, shown
from .remote_code import RegisteredPipelines, auto_map, custom_pipelines, write_stub
from .task import Task, get_task


# Keys that Transformers writes, or once wrote, into a config.json besides the fields of a configuration.
_KEYS_OF_TRANSFORMERS = {
    *("model_type", "num_labels", "torch_dtype", "name_or_path", "auto_map", "custom_pipelines", "output_attentions"),
    *("attn_implementation", "experts_implementation", "quantization_config", "distributed_config", "fusion_config"),
    *("transformers_weights", "per_layer_config", "gradient_checkpointing", "torchscript", "use_bfloat16"),
    *("tf_legacy_loss", "pruned_heads", "tie_word_embeddings", "tie_encoder_decoder", "is_decoder"),
    *("add_cross_attention", "cross_attention_hidden_size", "finetuning_task", "task_specific_params", "prefix"),
    *("tokenizer_class", "processor_class", "bos_token_id", "pad_token_id", "eos_token_id", "sep_token_id"),
    "decoder_start_token_id",
}


# Fields that say how many modules a model has, how many a model may have, and how many names of classes.
_COUNTS = re.compile(r"depth|layer|block|expert|_stages")
_MOST_MODULES = 1000
_MOST_LABELS = 1_000_000
_LARGEST = 2**31 - 1


def refuse_huge(values: Any, name: str = "") -> None:
    """
    Reject numbers that no model has, before anything is built by them: a file of a few bytes must not ask for a
    billion layers or classes.

    Args:
        values: Fields by name, sub-configurations among them, or the value of one.
        name: Name of the field.

    Raises:
        CaeAvError: A number is out of range.
    """
    if isinstance(values, PreTrainedConfig):
        values = vars(values)
    if isinstance(values, Mapping):
        for key, value in values.items():
            refuse_huge(value, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_huge(value, name)
    elif isinstance(values, int | float):
        most = _MOST_MODULES if _COUNTS.search(name) else _MOST_LABELS if name == "num_labels" else _LARGEST
        if abs(values) > most:
            raise CaeAvError(f"`{name}` must be at most {most:,}, got {shown(values)}")


def refuse_unknown(config_class: type[PreTrainedConfig], names: Iterable[str]) -> None:
    """
    Reject names that are fields neither of the class nor of Transformers.

    Raises:
        CaeAvError: A name is unknown; the message suggests the nearest known one.
    """
    known = {field.name for field in fields(config_class)} | _KEYS_OF_TRANSFORMERS
    unknown = [name for name in names if name not in known and not name.startswith("_")]
    unknown = sorted(set(unknown) - set(GenerationConfig._get_default_generation_params()))
    if unknown:
        nearest = get_close_matches(unknown[0], sorted(known - _KEYS_OF_TRANSFORMERS | {"num_labels"}), 1)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        raise CaeAvError(f"{config_class.__name__} has no field {', '.join(f'`{name}`' for name in unknown)}{hint}")


def tuples_to_lists(config: PreTrainedConfig, *names: str) -> None:
    """Convert tuples to lists, as JSON does, so that a configuration equals itself after saving and loading."""
    for name in names:
        if isinstance(getattr(config, name), tuple):
            setattr(config, name, list(getattr(config, name)))


def positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, list | tuple) else (value,)
        if not values or any(v <= 0 for v in values):
            raise ValueError(f"`{name}` of {type(config).__name__} must be positive, got {value}")


def probability(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"`{name}` of {type(config).__name__} must lie in [0, 1), got {getattr(config, name)}")


def divisible(config: PreTrainedConfig, name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise ValueError(f"`{by_name}` ({by}) of {type(config).__name__} must divide `{name}` ({value})")


class TowersConfig(PreTrainedConfig):
    """
    Base class of configurations of models on frozen towers, whose fields `task` and `interaction` name their task and
    their method.
    """

    # Names of the configuration and of the model begin with it.
    name_prefix: ClassVar[str]

    if TYPE_CHECKING:
        task: str
        interaction: str

    # What code for all models asks for. A configuration of models that have it has a field of the name.
    shared_tower = False
    audio_text_config = None
    frame_crop = False
    visual_3d_size = 0

    @property
    def is_official(self) -> bool:
        """Whether the model follows the authors' code rather than the printed equations."""
        return False

    def __post_init__(self, **kwargs):
        if "custom_pipelines" in kwargs:
            kwargs["custom_pipelines"] = RegisteredPipelines(kwargs["custom_pipelines"])
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """
        Load a configuration; see `PreTrainedConfig.from_pretrained`.

        Raises:
            CaeAvError: The file is broken, or a value is rejected by the validation.
            OSError: There is no such file, or it is not JSON.
        """
        with reading(pretrained_model_name_or_path, f"a {cls.__name__}", passing=(OSError,)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`; `AutoConfig`, which reads the file, calls it with its `name_or_path`."""
        if "name_or_path" not in kwargs:
            return super().from_dict(config_dict, **kwargs)
        with reading(kwargs["name_or_path"], f"a {cls.__name__}"):
            return super().from_dict(config_dict, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: `save_pretrained` writes a stub, whereas the base class would copy this module."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """See `PreTrainedConfig.save_pretrained`; also writes a stub through which Transformers finds this package."""
        self.auto_map = auto_map(self.name_prefix)
        task = get_task(self.task, self.interaction)
        self.custom_pipelines = custom_pipelines((self.architectures or [task.model_name])[0])
        write_stub(save_directory)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def _record_of_preset(cls, task: str, size: str, method: str | None, overrides: Mapping[str, Any]) -> Task:
        """
        Return the record of a task for `from_preset` with these arguments.

        Raises:
            ValueError: There is no such task or size, its models have another configuration, or an override is no
                field.
        """
        record = get_task(task, method)
        if not issubclass(cls, record.config_class):
            by = f" by {method!r}" if method in get_task(task).methods else ""
            raise ValueError(f"models of the task {task!r}{by} have a {record.config_name}, not a {cls.__name__}")
        if size not in ("full", "toy"):
            raise ValueError(f"`size` must be 'full' or 'toy', got {size!r}")
        refuse_unknown(cls, overrides)
        return record
