"""
Base classes of models on frozen towers: initialization, freezing, LoRA, and checkpoints with and without the towers.

Training, export and the pipelines rely on what is defined here, whatever the model under a task's head.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CaeAvError, reading, shown
from ..task import tasks
from ..towers import lora
from ..towers.frozen import freeze, is_adapted
from ..towers.linear import speed_up_linear_layers
from .checkpoints import TOWER_NAMES, adapter_names, attach_towers, find_sources
from .tower_cache import TowerCache


if TYPE_CHECKING:
    from peft import LoraConfig

    from ..towers.loading import PretrainedTower


def _refuse_shards_elsewhere(folder: Any) -> None:
    """
    Raises:
        CaeAvError: The index of a local folder names shards that are not in it.
    """
    for index in Path(folder or "").glob("*.index.json") if folder and os.path.isdir(folder) else ():
        for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if not isinstance(shard, str) or shard in ("", "..") or PurePath(shard).name != shard:
                raise CaeAvError(f"{index}: expected names of files in its folder, got {shown(shard)}")


# Most bytes of weights and constants that loading initialises because no file has them, such as a text tower or a head
# for other classes; and of an adapter-only checkpoint, which lacks all towers.
_MOST_MISSING = 2 * 10**9
_MOST_MISSING_TOWERS = 8 * 10**9


class TowerPreTrainedModel(PreTrainedModel):
    """
    Base class of all models on frozen towers. The model without head is the `base_model` of a model with one, and
    inherits from [`FrozenTowersMixin`] too.

    Its configuration has the fields `task`, `lora`, `tower_sources` and `adapter_only`, one `NAME_config` per tower,
    and the property `reads_captions`.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Losses are means over the frames or clips of a batch and take no `num_items_in_batch`.
    accepts_loss_kwargs = False
    # Whether some batches leave trained parameters unused; distributed training then has to look for them.
    has_idle_parameters = False
    # Fields of the output that an exported graph returns, if they are not `None`.
    exported_outputs: ClassVar[tuple[str, ...]] = ()
    # Fields that the model decodes step by step, which a graph does not.
    decoded_outputs: ClassVar[tuple[str, ...]] = ()
    # Whether outputs of a graph depend on captions, so that it takes them.
    exports_captions: ClassVar[bool] = True

    # Whether steps of training run the text tower even if the features of all captions are known.
    trains_through_text_tower = False

    def __init__(self, config: Any):
        super().__init__(config)
        if config.adapter_only:
            # `from_pretrained` attaches the towers after the rest is loaded.
            self._keys_to_ignore_on_load_missing = [TOWER_NAMES]

    def post_init(self) -> None:
        speed_up_linear_layers(self)
        super().post_init()

    @property
    def _bare(self) -> Any:
        """The model without its head."""
        return self.base_model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Running statistics are buffers; the base class initialises them only where they were not loaded.
            super()._init_weights(module)
        elif hasattr(module, "reset_parameters"):
            # Only PyTorch's functions know loaded parameters, which Transformers marks; timm has its own.
            own = list(module.parameters(recurse=False))
            if not own or not all(getattr(parameter, "_is_hf_initialized", False) for parameter in own):
                cast(Any, module).reset_parameters()
        elif hasattr(module, "init_parameters"):
            # The text tower, recognised by its method, since importing its class takes a second.
            cast(Any, module).init_parameters()
        if hasattr(module, "init_non_persistent_buffers"):
            cast(Any, module).init_non_persistent_buffers()

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the auxiliary losses by name. May be changed in place, for example by a warm-up."""
        return self._bare.auxiliary_loss_weights

    @classmethod
    def needed_towers(cls, task: str, size: str = "full", **overrides: Any) -> dict[str, bool]:
        """Return by kind whether `from_backbones` with these arguments needs a tower."""
        raise NotImplementedError

    @classmethod
    def packaged_towers(cls, task: str, **overrides: Any) -> dict[str, Path]:
        """Return the toy towers of the package for a model with these arguments of `from_backbones`, by kind."""
        raise NotImplementedError

    @classmethod
    def _on_towers(
        cls, towers: Mapping[str, "PretrainedTower"], task: str, size: str, overrides: Mapping[str, Any]
    ) -> Any:
        """
        Build a model on pretrained towers, given by kind, with all other values from a preset and `overrides`.

        Raises:
            CaeAvError: The tensors of a tower do not fit its configuration.
        """
        configs = {
            f"{kind}_config": {**tower.config, "model_type": tower.model_type} for kind, tower in towers.items()
        }
        sources = {kind: tower.source for kind, tower in towers.items()}
        config = cls.config_class.from_preset(task, size, **{**configs, **overrides, "tower_sources": sources})
        model = cls(config)
        for kind, module in model._bare.named_towers().items():
            try:
                module.load_state_dict(towers[kind].state)
            except RuntimeError as error:
                raise CaeAvError(f"`{kind}`: the tensors do not fit their configuration: {error}") from error
        return model

    def method_names(self) -> dict[str, str | None]:
        """Return `title`, `reference` (its paper) and `formulation` of the method, for model cards."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Do what depends on the epoch, from 0, before it is trained on; the training loop calls this."""

    def name_classes(self, processor: Any) -> None:
        """Take in the names of the configuration's classes, for models that read them; training calls this once."""

    def example_inputs(self, batch_size: int, num_frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return random inputs that only this model's head reads, for tracing it."""
        return {}

    def add_lora(self, config: "LoraConfig") -> None:
        """
        Add LoRA to linear layers of the towers, to be trained with the adapters. It becomes part of the model and of
        its checkpoints.

        Alternatively, `peft.get_peft_model(model, config)` trains only LoRA and the modules in `modules_to_save`.

        Args:
            config: For example from [`~towers.lora.tower_lora_config`]; `target_modules` are names within
                the model without its head.

        Raises:
            CaeAvError: The model already has LoRA, or `target_modules` match modules outside the towers.
        """
        if self.config.lora is not None:
            raise CaeAvError("the model already has LoRA; merge it first with `merge_lora()`")
        values = lora.to_values(config)
        lora.inject(self._bare, self._bare.named_towers(), values)
        self.config.lora = values

    def merge_lora(self) -> None:
        """
        Merge LoRA into the weights of the towers and remove it. The outputs stay the same and inference is faster, but
        the towers are no longer the pretrained ones.
        """
        self._remove_lora(merge=True)

    def unload_lora(self) -> None:
        """Remove LoRA without merging it, which restores the towers."""
        self._remove_lora(merge=False)

    def _remove_lora(self, merge: bool) -> None:
        if self.config.lora is not None:
            lora.remove(self._bare, merge=merge)
            self.config.lora = None
            self._bare.forget()

    def save_lora(self, folder: str | os.PathLike) -> None:
        """
        Save only LoRA, in peft's format. `PeftModel.from_pretrained` loads it into the model after `unload_lora`.

        Raises:
            CaeAvError: The model has no LoRA, or it cannot be written.
        """
        if self.config.lora is None:
            raise CaeAvError("the model has no LoRA to save")
        lora.save(self._bare, folder, "" if self._bare is self else f"{self.base_model_prefix}.")

    def get_input_embeddings(self) -> nn.Module:
        """Return the visual tower's patch embedding, the counterpart of a text model's token embedding."""
        return self._bare.vision_tower.get_input_embeddings()

    @classmethod
    def from_pretrained(cls, *args: Any, towers: Mapping[str, str | os.PathLike] | None = None, **kwargs: Any):
        """
        Load a model; see `PreTrainedModel.from_pretrained`. The towers stay frozen.

        The towers of an adapter-only checkpoint are loaded from the sources in its configuration. Wherever they come
        from, their tensors must be those that the checkpoint was trained on.

        Args:
            towers: For adapter-only checkpoints: other sources of the `vision`, `audio` or `text` tower, as
                `from_backbones` takes them.

        Raises:
            CaeAvError: A file is broken, the checkpoint belongs to another task's class, a tower cannot be loaded or
                differs from the one that the checkpoint was trained on, or `towers` are given but the checkpoint
                contains its own.
            OSError: There is no such model, or a file of it is missing.
        """
        source = next(iter(args), kwargs.get("pretrained_model_name_or_path"))
        with reading(source or cls.__name__, f"a {cls.__name__}", passing=(OSError,)):
            _refuse_shards_elsewhere(source)
            cls._refuse_other_task(*args[:1], **kwargs)
            loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.adapter_only:
            attach_towers(model, towers or {})
            model.config.adapter_only = False
        elif towers is not None:
            raise CaeAvError("`towers` are for adapter-only checkpoints; this one contains its own")
        # `super().from_pretrained` leaves every loaded parameter trainable.
        model._bare.freeze_towers()
        return loaded

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Iterable[str], *args: Any, **kwargs: Any) -> None:
        """
        Materialise weights that no file has, as the base class does, unless a configuration asks for absurdly many: up
        to here nothing of the model takes memory, and what a file has cannot exceed its size.

        Raises:
            CaeAvError: They take more than 2 GB, or 8 GB with all towers.
        """
        most = _MOST_MISSING_TOWERS if self.config.adapter_only else _MOST_MISSING
        named = {name: self.get_parameter_or_buffer(name) for name in missing_keys}
        named |= dict(self.named_non_persistent_buffers())
        size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
        if size > most:
            largest = max(named, key=lambda name: named[name].numel())
            raise CaeAvError(
                f"the sizes of the configuration ask for {size / 1e9:.1f} GB of tensors that are in no file, the "
                f"largest {largest!r} of the shape {tuple(named[largest].shape)}; expected at most "
                f"{most / 1e9:.1f} GB"
            )
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

    @classmethod
    def _refuse_other_task(cls, pretrained_model_name_or_path: Any = None, **kwargs: Any) -> None:
        """Raise if the checkpoint is of another task: it has no weights for the head, which would stay random."""
        records = [record for task in tasks().values() for record in task.records()]
        heads = {record.model_name for record in records}
        own = next((base.__name__ for base in cls.__mro__ if base.__name__ in heads), None)
        if own is None or pretrained_model_name_or_path is None:
            return
        hub = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")
        try:
            values, _ = cls.config_class.get_config_dict(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in hub if name in kwargs}
            )
        except OSError:
            return  # Loading it raises the proper error.
        task = values.get("task", cls.config_class.task)
        held = next(iter(values.get("architectures") or ()), None)
        if held is None and values.get("model_type") == cls.config_class.model_type:
            same = (r for r in records if (r.name, r.config_name) == (task, cls.config_class.__name__))
            held = next((record.model_name for record in same), None)
        if held in heads and held != own:
            own_tasks = ", ".join(repr(record.name) for record in records if record.model_name == own)
            raise CaeAvError(
                f"{pretrained_model_name_or_path} is a checkpoint of {held} (task {task!r}) and holds no head of "
                f"{cls.__name__} (task {own_tasks}); load it with {held}, or its encoder alone with AutoModel"
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        *args: Any,
        adapter_only: bool = False,
        towers: Mapping[str, str | os.PathLike] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Save the model; see `PreTrainedModel.save_pretrained`.

        Args:
            adapter_only: Leave out the towers and store their sources in the configuration, from which
                `from_pretrained` loads them. What is trained inside them is saved.
            towers: With `adapter_only`: sources of the `vision`, `audio` or `text` tower, as `from_backbones` takes
                them, for a model that does not know them or towers that have moved.

        Raises:
            CaeAvError: With `adapter_only`, the source of a tower is unknown, or no longer holds that tower.
        """
        if not adapter_only:
            if towers is not None:
                raise CaeAvError("`towers` are for `adapter_only=True`; a whole checkpoint contains its own")
            super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
            return
        weights = self.state_dict() if state_dict is None else state_dict
        self.config.tower_sources = find_sources(self, weights, towers or {})
        names = adapter_names(self)
        kept = {name: tensor for name, tensor in weights.items() if name in names}
        self.config.adapter_only = True
        try:
            super().save_pretrained(save_directory, is_main_process, kept, *args, **kwargs)
        finally:
            self.config.adapter_only = False


class FrozenTowersMixin:
    """
    The towers of a model without head, which are its attributes `vision_tower`, `audio_tower` and so on; `None` stands
    for one that it does not have.
    """

    # In the order in which a model names them.
    tower_kinds: ClassVar[tuple[str, ...]]
    config: Any
    # See `use_tower_cache`.
    tower_cache: TowerCache | None = None

    def named_towers(self) -> dict[str, nn.Module]:
        """Return the towers that the model has, by kind."""
        towers = {kind: getattr(self, f"{kind}_tower") for kind in self.tower_kinds}
        return {kind: tower for kind, tower in towers.items() if tower is not None}

    def frozen_towers(self) -> dict[str, nn.Module]:
        """Return the towers that are never trained as a whole, which adapter-only checkpoints leave out."""
        return self.named_towers()

    def trained_tower_norms(self) -> dict[str, nn.LayerNorm]:
        """Return the layer norms of frozen towers that are trained, by name in this model."""
        return {}

    @property
    def has_frozen_part(self) -> bool:
        """Whether the towers compute something from a clip that no step of training changes."""
        raise NotImplementedError

    def use_tower_cache(self, folder: str | os.PathLike) -> None:
        """
        Store what the towers compute before the first trained layer in a folder, and read it for clips that come
        again. Meant for training without augmentation: each change of a clip is another clip.

        Args:
            folder: Folder for the files.

        Raises:
            CaeAvError: The first layer is trained, so that there is nothing to store.
        """
        if not self.has_frozen_part:
            raise CaeAvError(
                "`tower_cache` needs a model whose first layers are not trained, such as AVMoE without adapters in "
                "its first stage"
            )
        self.tower_cache = TowerCache(folder, self.config)

    def freeze_towers(self) -> None:
        """Freeze the towers, except LoRA and layer norms that the configuration declares as trained."""
        for tower in self.frozen_towers().values():
            freeze(tower)
            if self.config.lora is not None:
                lora.activate(tower)
        for norm in self.trained_tower_norms().values():
            norm.requires_grad_(True)

    def keep_constants(self, dtype: torch.dtype) -> None:
        """
        Precompute what the towers derive from their weights, in `dtype`. It is otherwise computed on first use, which
        is not possible within a graph of `torch.compile`.
        """

    def towers(self) -> tuple[nn.Module, ...]:
        """Return the frozen towers without their names."""
        return tuple(self.named_towers().values())

    def forget(self) -> None:
        """Drop cached values computed from the weights of the towers."""
        for tower in self.towers():
            cast(Any, tower).forget()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        for tower in self.towers():
            tower.eval()
            if is_adapted(tower):
                lora.set_training(tower, mode)
                # Merging LoRA later may change weights in place without a trace, so drop what was cached from them.
                cast(Any, tower).forget()
        return self

    def get_caption_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Encode captions for `visual_caption_embeds` and `audio_caption_embeds`.

        Args:
            ids: (B, N) token ids of captions.
            mask: (B, N), true for real tokens. Padding is then not encoded, except in the official formulation.

        Returns:
            (B, N, D) features of the text tower, zero where padding is not encoded.

        Raises:
            CaeAvError: The model has no text tower.
        """
        text_tower = cast(Any, self).text_tower
        if text_tower is None:
            raise CaeAvError(
                "the model has no text tower (`use_text_tower=False`): pass caption features, `visual_caption_embeds` "
                "and `audio_caption_embeds`"
            )
        if self.config.is_official:
            # The authors' code attends to all positions, padding included.
            mask = None
        # In training on precomputed caption features, the text tower may stay on the CPU.
        return text_tower(ids.to(text_tower.ln_final.weight.device), mask).to(ids.device)
