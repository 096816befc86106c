"""
CAE-AV as Transformers models: the paired encoder over two frozen towers, captions and CASE.

Hu, Li and Zhang, "CAE-AV: Improving Audio-Visual Learning via Cross-modal Interactive Enrichment".
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..task import tasks
from ..towers import lora
from ..towers.base import TowerReader, build_tower
from ..towers.frozen import freeze, is_adapted
from ..towers.loading import load_tower
from . import avmoe, cae_av  # noqa: F401 - they register their methods
from .captions import CaptionMapper, Captions
from .case import CASE, CASEOutput, masked_mean
from .checkpoints import TOWER_NAMES, adapter_names, attach_towers, find_sources
from .collectives import anywhere
from .frames import FrameLayout
from .interaction import PairPosition, Step, interaction_class, pair_positions
from .losses import (
    AlignmentProjections,
    caption_contrastive_loss,
    modality_alignment_loss,
    selection_entropy_loss,
)


if TYPE_CHECKING:
    from peft import LoraConfig


logger = logging.get_logger(__name__)

# What every model says of the agreement of sound and picture.
AGREEMENT_OUTPUTS = ("agreement", "agreement_probs")
# What explains an interaction and has a field of its own in the output.
_EXPLAINED_FIELDS = (*AGREEMENT_OUTPUTS, "enrichment_weights", "audio_enrichment_weights", "router_probs")


@dataclass
class CaeAvModelOutput(ModelOutput):
    r"""
    Output of [`CaeAvModel`]; padded frames are zero.

    Attributes:
        loss (`torch.FloatTensor` of shape `(1,)`, with `return_loss=True`): Weighted sum of the terms below.
        loss_dict (`dict[str, torch.Tensor]`, with `return_loss=True`): The unweighted terms.
        visual_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, visual_tokens, visual_size)`):
            Last visual stage after CASE, before the tower's final norm.
        audio_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, audio_tokens, audio_size)`):
            Last audio stage after CASE.
        visual_pooler_output (`torch.FloatTensor` of shape `(batch_size, num_frames, visual_size)`):
            Each frame as one vector: the tower's read-out behind its final norm, by default the mean of its tokens, or
            their sum by the weights that the interaction method gives.
        audio_pooler_output (`torch.FloatTensor` of shape `(batch_size, num_frames, audio_size)`):
            Likewise of the audio, without a final norm.
        visual_hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            One `(batch_size, num_frames, tokens, size)` for the embedding and one for each stage, as its last block
            leaves it: before the next stage downsamples it, the last one before CASE and the final norm.
        audio_hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`): Likewise of the audio.
        visual_feature_maps (`tuple(torch.FloatTensor)`, with `output_feature_maps=True`):
            One `(batch_size, num_frames, tokens, size)` a stage. The last one is after CASE, in the official
            formulation before it, and after the tower's final norm.
        agreement (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames)` a stage, cosine of the modalities (Eq. 1).
        agreement_probs (`tuple(torch.FloatTensor)`, with `agreement_loss_weight`):
            One `(batch_size, num_frames)` a stage: probability that a frame and its sound belong together, where as
            many pairs do as do not.
        enrichment_weights (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames, 2)` a stage: the visual stream's spatial and temporal weight (Eq. 4).
        audio_enrichment_weights (`tuple(torch.FloatTensor)`): Likewise of the audio stream.
        router_probs (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames, 4, experts)` a paired block with adapters: visual and audio beside attention,
            visual and audio beside the feed-forward.
        explained (`dict[str, tuple(torch.FloatTensor)]`, with interaction methods that have more):
            One `(batch_size, num_frames, ...)` a layer that returns it, under the method's own names.
        caption_agreement (`torch.FloatTensor` of shape `(batch_size, num_frames)`, with captions):
            Cosine of each frame and its visual caption (Eq. 19).
        audio_caption_agreement (`torch.FloatTensor` of shape `(batch_size, num_frames)`, with captions): Likewise.
        visual_selected_tokens (`torch.LongTensor` of shape `(batch_size, num_frames, kept)`, with captions):
            The tokens that CASE enriched.
        audio_selected_tokens (`torch.LongTensor` of shape `(batch_size, num_frames, kept)`, with captions): Likewise.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): True for real frames.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    visual_hidden_state: torch.Tensor | None = None
    audio_hidden_state: torch.Tensor | None = None
    visual_pooler_output: torch.Tensor | None = None
    audio_pooler_output: torch.Tensor | None = None
    visual_hidden_states: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: tuple[torch.Tensor, ...] | None = None
    visual_feature_maps: tuple[torch.Tensor, ...] | None = None
    agreement: tuple[torch.Tensor, ...] | None = None
    agreement_probs: tuple[torch.Tensor, ...] | None = None
    enrichment_weights: tuple[torch.Tensor, ...] | None = None
    audio_enrichment_weights: tuple[torch.Tensor, ...] | None = None
    router_probs: tuple[torch.Tensor, ...] | None = None
    explained: dict[str, tuple[torch.Tensor, ...]] | None = None
    caption_agreement: torch.Tensor | None = None
    audio_caption_agreement: torch.Tensor | None = None
    visual_selected_tokens: torch.Tensor | None = None
    audio_selected_tokens: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None


def random_words(batch_size: int, length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ids below `size` and mask, (batch_size, length) each, of random texts of different lengths."""
    mask = torch.arange(length) < torch.randint(1, length + 1, (batch_size, 1), generator=generator)
    return torch.randint(1, size, (batch_size, length), generator=generator) * mask, mask.long()


class CaeAvPreTrainedModel(PreTrainedModel):
    """Initialisation, freezing, and construction from separately pretrained towers, for all CAE-AV models."""

    config: CaeAvConfig
    config_class = CaeAvConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: tuple[str, ...] | set[str] = ("CASE",)
    _supports_sdpa = True
    # Layers of CASE that the paper formulation once built too, and which are official alone.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"case\.(visual|audio)_stream\.(temporal_norm|caption_feed_forward)\."
    ]
    # Losses are means over a batch's own frames or clips.
    accepts_loss_kwargs = False
    # Whether some batches leave trained parameters of the head unused, for which distributed training then looks.
    has_idle_parameters = False
    # The outputs that a model has in an exported graph, as far as it gives them.
    exported_outputs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        if config.adapter_only:
            # They are attached once the rest is loaded.
            self._keys_to_ignore_on_load_missing = [TOWER_NAMES]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Its running statistics are buffers, which only the base class initialises safely.
            super()._init_weights(module)
        elif hasattr(module, "reset_parameters"):
            cast(Any, module).reset_parameters()
        elif hasattr(module, "init_parameters"):
            # The text tower; not by its class, which takes a second to import.
            cast(Any, module).init_parameters()
        if hasattr(module, "init_non_persistent_buffers"):
            cast(Any, module).init_non_persistent_buffers()

    @property
    def cae_av(self) -> "CaeAvModel":
        """The model without head."""
        return cast("CaeAvModel", self.base_model)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the auxiliary terms by name, to be changed in place, for example by a warm-up."""
        return self.cae_av.auxiliary_loss_weights

    def _total_loss(self, outputs: CaeAvModelOutput, task_loss: Tensor, **auxiliary: Tensor) -> dict[str, Any]:
        """`loss` and `loss_dict` of a head: its own terms and those of the model under it."""
        loss, terms = cast(Tensor, outputs.loss) + task_loss, cast(dict, outputs.loss_dict)
        for name, value in auxiliary.items():
            loss = loss + self.loss_weights[name] * value
        return {"loss": loss, "loss_dict": {"task": task_loss, **terms, **auxiliary}}

    def example_inputs(self, batch_size: int, num_frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return random inputs that only this model's head reads, for tracing it."""
        return {}

    def _encode(
        self,
        pixel_values_videos: Tensor,
        input_features: Tensor,
        frame_mask: Tensor | None,
        *captions: Tensor | None,
        labels: Tensor | None,
        **outputs: bool | None,
    ) -> tuple[Any, FrameLayout]:
        """
        Run the model under a head.

        Args:
            pixel_values_videos, input_features, frame_mask, captions: In the order of [`CaeAvModel.forward`].
            labels: With them, the output has the losses.
            outputs: `output_feature_maps` and `output_hidden_states`.

        Returns:
            The [`CaeAvModelOutput`], and where each frame of the batch belongs.
        """
        encoded = self.cae_av(
            pixel_values_videos,
            input_features,
            frame_mask,
            *captions,
            return_loss=labels is not None,
            return_dict=True,
            **outputs,
        )
        return encoded, FrameLayout(pixel_values_videos.shape[0], pixel_values_videos.shape[1], frame_mask)

    def add_lora(self, config: "LoraConfig") -> None:
        """
        Put LoRA beside linear maps of the towers, to be trained with the adapters. It is part of the model from then
        on, and of its checkpoints.

        `peft.get_peft_model(model, config)` is the alternative: it trains nothing but LoRA, and what `modules_to_save`
        names.

        Args:
            config: Such as [`~towers.lora.tower_lora_config`] makes; `target_modules` are names within
                [`CaeAvModel`].

        Raises:
            CaeAvError: The model has LoRA already, or `target_modules` name something else than parts of the towers.
        """
        if self.config.lora is not None:
            raise CaeAvError("the model has LoRA already; merge it first, `merge_lora()`")
        values = lora.to_values(config)
        lora.inject(self.cae_av, self.cae_av.named_towers(), values)
        self.config.lora = values

    def merge_lora(self) -> None:
        """
        Add the product of LoRA to the weights of the towers, after which the model has none; it computes the same,
        faster, but on towers of its own.
        """
        self._remove_lora(merge=True)

    def unload_lora(self) -> None:
        """Take LoRA out again, which leaves the towers as they were."""
        self._remove_lora(merge=False)

    def _remove_lora(self, merge: bool) -> None:
        if self.config.lora is not None:
            lora.remove(self.cae_av, merge=merge)
            self.config.lora = None
            self.cae_av.forget()

    def save_lora(self, folder: str | os.PathLike) -> None:
        """
        Write LoRA alone in the format of peft, for `PeftModel.from_pretrained` on the model that `unload_lora` leaves.

        Raises:
            CaeAvError: There is none, or it cannot be written.
        """
        if self.config.lora is None:
            raise CaeAvError("the model has no LoRA to be saved")
        lora.save(self.cae_av, folder, "" if self.cae_av is self else f"{self.base_model_prefix}.")

    def get_input_embeddings(self) -> nn.Module:
        """Frames are no tokens: the patch embedding stands where text models have their embedding."""
        return cast(Any, self.cae_av.vision_tower).get_input_embeddings()

    @classmethod
    def from_pretrained(cls, *args: Any, towers: Mapping[str, str | os.PathLike] | None = None, **kwargs: Any):
        """
        See `PreTrainedModel.from_pretrained`, which makes every loaded parameter trainable; the towers are not.

        The towers of an adapter-only checkpoint are fetched from where its configuration says. Whatever they come
        from, their tensors have to be those that the checkpoint was trained on.

        Args:
            towers: For adapter-only checkpoints: where `vision`, `audio` or `text` tower are to be found instead, as
                `from_backbones` takes them.

        Raises:
            CaeAvError: The checkpoint is that of another task's class, a tower cannot be loaded or is another one, or
                the checkpoint holds its own.
        """
        cls._refuse_other_task(*args[:1], **kwargs)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.adapter_only:
            attach_towers(model, towers or {})
            model.config.adapter_only = False
        elif towers is not None:
            raise CaeAvError("`towers` are for adapter-only checkpoints; this one holds its own")
        model.cae_av.freeze_towers()
        return loaded

    @classmethod
    def _refuse_other_task(cls, pretrained_model_name_or_path: Any = None, **kwargs: Any) -> None:
        """A checkpoint of another task has no weights for the head of this class, which would stay random."""
        heads = {task.name: task.model_name for task in tasks().values()}
        own = next((base.__name__ for base in cls.__mro__ if base.__name__ in heads.values()), None)
        if own is None or pretrained_model_name_or_path is None:
            return
        hub = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")
        try:
            values, _ = CaeAvConfig.get_config_dict(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in hub if name in kwargs}
            )
        except OSError:
            return  # loading it says what is wrong
        if values.get("model_type") != CaeAvConfig.model_type:
            return
        task = values.get("task", CaeAvConfig.task)
        held = (values.get("architectures") or [heads.get(task)])[0]
        if held in heads.values() and held != own:
            own_tasks = ", ".join(repr(name) for name, model in heads.items() if model == own)
            raise CaeAvError(
                f"{pretrained_model_name_or_path} is a checkpoint of {held} (task {task!r}) and holds no head of "
                f"{cls.__name__} (task {own_tasks}); load it with {held}, or its encoder alone with CaeAvModel"
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
        See `PreTrainedModel.save_pretrained`.

        Args:
            adapter_only: Leave out the towers and name them in the configuration, for `from_pretrained` to fetch. What
                is trained inside them is stored.
            towers: With `adapter_only`: where `vision`, `audio` or `text` tower are to be had, as `from_backbones`
                takes them, for a model that does not remember it or towers that lie elsewhere now.

        Raises:
            CaeAvError: `adapter_only`, and where a tower can be had is not known, or it is no longer that tower.
        """
        if not adapter_only:
            if towers is not None:
                raise CaeAvError("`towers` are for `adapter_only=True`; a whole checkpoint holds its own")
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

    @classmethod
    def from_backbones(
        cls,
        vision: str | os.PathLike,
        audio: str | os.PathLike | None,
        text: str | os.PathLike | None,
        task: str = "ave",
        size: str = "full",
        **overrides: Any,
    ):
        """
        A model on separately pretrained towers, its own layers newly initialised.

        Args:
            vision: A timm name (`swinv2_large_window12_192.ms_in22k`), a Hub repository (`hf-hub:org/name`), or a
                local folder in timm's Hub format (`config.json` and `model.safetensors`).
            audio: A Hub repository or local folder that `transformers.ClapModel` or `ClapAudioModel` saved, whose
                front end is the `ClapFeatureExtractor` saved beside it, or HTS-AT's where there is none; or a file
                with a public checkpoint of HTS-AT, whose front end's settings come with it. `None` with
                `shared_tower=True`: the visual tower then reads the sound too.
            text: An open_clip name, with the weights' tag behind a slash (`ViT-L-14/openai`), a Hub repository
                (`hf-hub:org/name`), or a local folder in open_clip's Hub format. `None` with
                `use_text_tower=False`. Behind each Hub repository a revision may follow, `org/name@revision`.
            task: Preset whose other sizes are used.
            size: Size of that preset, `"full"` or `"toy"`.
            overrides: Fields of the configuration. The towers' own sizes come from the towers; of `audio_config` only
                the front end may be given: rate, window, hop, frequencies, mel scale and tiling.

        Raises:
            CaeAvError: A tower cannot be found, is none of the supported kinds, or its sizes are given.
        """
        for name in ("vision_config", "text_config"):
            if name in overrides:
                raise CaeAvError(f"`{name}` comes from the tower itself and cannot be given to `from_backbones`")
        if (audio is None) != bool(overrides.get("shared_tower")):
            raise CaeAvError(f"`audio` must be None exactly where `shared_tower` is set, got {audio!r}")
        if (text is None) != (not overrides.get("use_text_tower", True)):
            raise CaeAvError(f"`text` must be None exactly where `use_text_tower` is False, got {text!r}")
        towers = {"vision": load_tower("vision", vision)}
        if text is not None:
            towers["text"] = load_tower("text", text)
        if audio is not None:
            towers["audio"] = load_tower("audio", audio, front_end=overrides.pop("audio_config", None))
        configs = {f"{kind}_config": tower.config for kind, tower in towers.items()}
        sources = {kind: tower.source for kind, tower in towers.items()}
        config = CaeAvConfig.from_preset(task, size, **{**configs, **overrides, "tower_sources": sources})
        model = cls(config)
        for kind, module in model.cae_av.named_towers().items():
            module.load_state_dict(towers[kind].state)
        return model.eval()


def _pool(reader: TowerReader, tokens: Tensor, weights: Tensor | None) -> Tensor:
    """One vector a frame (N, C) of its tokens (N, L, C): the tower's read-out, or their sum by weights (N, L)."""
    return reader.pool(tokens) if weights is None else (weights[:, None] @ tokens).squeeze(1)


class CaeAvModel(CaeAvPreTrainedModel):
    """
    Two frozen towers whose blocks run in pairs with interaction layers between them, captions, and CASE.

    Args:
        config: The configuration.
    """

    exported_outputs = ("visual_hidden_state", "audio_hidden_state", *AGREEMENT_OUTPUTS)

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        # Only here, since the libraries behind the towers take seconds to load.
        from ..towers.clip_text import ClipTextTower

        self.vision_tower = build_tower(config.vision_config)
        self.audio_tower = None if config.shared_tower else build_tower(config.audio_config)
        self.text_tower = ClipTextTower(config.text_config) if config.use_text_tower else None
        self.freeze_towers()
        if config.lora is not None:
            lora.inject(self, self.named_towers(), config.lora)
        self.step = Step()
        self.interaction_class = interaction_class(config)
        self.interactions = nn.ModuleList(
            nn.ModuleList(self.interaction_class(config, position) for position in stage)
            for stage in pair_positions(config.visual_stages, config.audio_stages)
        )
        self._no_split_modules = {*self._no_split_modules, self.interaction_class.__name__}
        if config.use_case:
            self.caption_mapper = CaptionMapper(config)
            self.case = CASE(config)
            self.projections = AlignmentProjections(config)
        shared = self.interaction_class.shared_modules(config)
        self._shared_names = tuple(shared)
        for name, module in shared.items():
            self.add_module(name, module)
        self.auxiliary_loss_weights = {
            "caption": float(config.caption_loss_weight),
            "alignment": float(config.alignment_loss_weight),
            "entropy": float(config.entropy_loss_weight),
            "matching": float(config.matching_loss_weight),
            **self.interaction_class.loss_weights(config),
        }
        self.post_init()

    def named_towers(self) -> dict[str, nn.Module]:
        """The frozen towers: vision, audio unless the visual one reads the sound too, text unless there is none."""
        towers = {"vision": self.vision_tower, "audio": self.audio_tower, "text": self.text_tower}
        return {kind: tower for kind, tower in towers.items() if tower is not None}

    def towers(self) -> tuple[nn.Module, ...]:
        """The frozen towers without their names."""
        return tuple(self.named_towers().values())

    def readers(self) -> tuple[TowerReader, TowerReader]:
        """Return what reads the frames, and what reads the sound."""
        if self.audio_tower is not None:
            return TowerReader(self.vision_tower), TowerReader(self.audio_tower)
        size = self.config.audio_config.spectrogram_size
        return TowerReader(self.vision_tower), TowerReader(self.vision_tower, size, reads_spectrograms=True)

    def freeze_towers(self) -> None:
        """No gradient into the towers, but for LoRA that is part of the model."""
        for tower in self.towers():
            freeze(tower)
            if self.config.lora is not None:
                lora.activate(tower)

    def keep_constants(self, dtype: torch.dtype) -> None:
        """
        Compute what attention of the towers in `dtype` adds to its scores. It is computed when it is needed anyway,
        but not within a graph of `torch.compile`.
        """
        for reader in self.readers():
            reader.keep_constants(dtype)

    def forget(self) -> None:
        """Drop what was computed from the weights of the towers and kept."""
        for tower in self.towers():
            cast(Any, tower).forget()

    def train(self, mode: bool = True) -> "CaeAvModel":
        super().train(mode)
        for tower in self.towers():
            tower.eval()
            if is_adapted(tower):
                lora.set_training(tower, mode)
                # Weights of the tower into which LoRA is merged later may look untouched.
                cast(Any, tower).forget()
        return self

    def get_caption_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Frozen text features, as `visual_caption_embeds` and `audio_caption_embeds` take them.

        Args:
            ids: (B, N) token ids of captions.
            mask: Not needed, CLIP's text tower looks back only; accepted so that a tokenizer's output can be passed.

        Returns:
            (B, N, D).

        Raises:
            CaeAvError: The model has no text tower.
        """
        if self.text_tower is None:
            raise CaeAvError(
                "the model has no text tower (`use_text_tower=False`): give captions as features, "
                "`visual_caption_embeds` and `audio_caption_embeds`"
            )
        # While a model is trained on features that are known, its text tower may stay on the CPU.
        return self.text_tower(ids.to(self.text_tower.ln_final.weight.device)).to(ids.device)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        return_loss: bool = False,
        output_feature_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> CaeAvModelOutput:
        r"""
        Args:
            pixel_values_videos: `(batch_size, num_frames, channels, height, width)`, normalised frames.
            input_features: `(batch_size, num_frames, 1, frames, mel_bins)`, log-mel in dB of each segment.
            frame_mask: `(batch_size, num_frames)`, true for real frames; all are where it is absent.
            visual_caption_ids, audio_caption_ids: `(batch_size, tokens)`, CLIP token ids.
            visual_caption_mask, audio_caption_mask: `(batch_size, tokens)`, true for real tokens. A row without any
                says that the clip has no caption.
            visual_caption_embeds, audio_caption_embeds: `(batch_size, tokens, size)`, features that the text tower
                gave before, instead of ids.
            return_loss: Whether to compute the auxiliary losses.
            output_feature_maps: Whether to return the visual tokens of every stage.
            output_hidden_states: Whether to return the tokens of both streams after the embedding and every stage; by
                default as the configuration says.

        Raises:
            CaeAvError: Shapes do not fit each other or the configuration, or only one caption is given.
        """
        if pixel_values_videos.ndim != 5 or input_features.ndim != 5:
            raise CaeAvError(
                "`pixel_values_videos` must be (batch, frames, channels, height, width) and `input_features` "
                "(batch, frames, 1, frames, mel bins), got "
                f"{tuple(pixel_values_videos.shape)} and {tuple(input_features.shape)}"
            )
        if pixel_values_videos.shape[:2] != input_features.shape[:2]:
            raise CaeAvError(
                "`pixel_values_videos` and `input_features` must agree in batch and frames, got "
                f"{tuple(pixel_values_videos.shape[:2])} and {tuple(input_features.shape[:2])}"
            )
        batch_size, num_frames = pixel_values_videos.shape[:2]
        # Losses are about the real frames alone, and a batch norm in training has statistics of them.
        is_graph = torch.compiler.is_compiling() and not self.training and not return_loss
        frames = FrameLayout(batch_size, num_frames, frame_mask, keeps_padding=is_graph)
        vision, audition = self.readers()
        visual = vision.embed(frames.to_list(pixel_values_videos).to(self.dtype))
        audio = audition.embed(frames.to_list(input_features).to(self.dtype))
        shared = {name: getattr(self, name) for name in self._shared_names}
        visual, audio = self.interaction_class.embed(self.config, visual, audio, frames, shared)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        visual_states, audio_states = ([visual], [audio]) if output_hidden_states else ([], [])
        explained: dict[str, list[Tensor]] = {}
        interaction_losses: dict[str, list[Tensor]] = {}
        visual_walk, audio_walk = vision.walk(visual, self.step), audition.walk(audio, self.step)
        for layers in self.interactions:
            for layer in cast(nn.ModuleList, layers):
                position = cast(PairPosition, layer.position)
                visual_block = visual_walk.reach(position.visual.index)
                audio_block = audio_walk.reach(position.audio.index)
                output = layer(visual_walk.tokens, audio_walk.tokens, visual_block, audio_block, frames)
                visual_walk.tokens, audio_walk.tokens = output.visual, output.audio
                for name, value in output.explained.items():
                    explained.setdefault(name, []).append(value)
                for name, value in output.losses.items():
                    interaction_losses.setdefault(name, []).append(value)
        visual, audio = visual_walk.finish(), audio_walk.finish()
        if output_hidden_states:
            visual_states += visual_walk.ends
            audio_states += audio_walk.ends

        captions = self._captions(
            batch_size,
            (visual_caption_ids, visual_caption_mask, visual_caption_embeds),
            (audio_caption_ids, audio_caption_mask, audio_caption_embeds),
            visual.device if return_loss else None,
        )
        case: CASEOutput | None = None
        new_visual, new_audio = visual, audio
        if captions is not None:
            case = self.case(visual, audio, self.caption_mapper(captions), frames, caption_layout=frames)
            new_visual, new_audio = case.visual, case.audio
        weights = self.auxiliary_loss_weights if return_loss else None
        explained, losses = self.interaction_class.collect(self.config, explained, frames, shared, weights)
        loss, loss_dict = None, None
        if return_loss:
            losses |= {name: torch.stack(values).mean() for name, values in interaction_losses.items()}
            loss_dict = losses | self._losses(new_visual, new_audio, captions, case, frames)
            if without := sorted(loss_dict.keys() - self.auxiliary_loss_weights.keys()):
                raise CaeAvError(
                    f"the loss {without[0]!r} of `interaction` {self.config.interaction!r} has no weight; expected an "
                    f"option `{without[0]}_loss_weight`"
                )
            weighted = [self.auxiliary_loss_weights[name] * value for name, value in loss_dict.items()]
            loss = torch.stack(weighted).sum() if weighted else new_visual.new_zeros(())

        maps = list(visual_walk.ends) if output_feature_maps else []
        if maps:
            maps[-1] = vision.final_norm(maps[-1] if self.config.is_official else new_visual)
        grid = frames.to_grid
        optional: dict[str, Any] = {}
        if case is not None:
            optional = {
                "caption_agreement": grid(case.visual_agreement),
                "audio_caption_agreement": grid(case.audio_agreement),
                "visual_selected_tokens": grid(case.visual_selected),
                "audio_selected_tokens": grid(case.audio_selected),
            }
        for name, values in explained.items():
            where = optional if name in _EXPLAINED_FIELDS else optional.setdefault("explained", {})
            where[name] = tuple(map(grid, values))
        if output_hidden_states:
            optional["visual_hidden_states"] = tuple(map(grid, visual_states))
            optional["audio_hidden_states"] = tuple(map(grid, audio_states))
        return CaeAvModelOutput(
            loss=loss,
            loss_dict=loss_dict,
            visual_hidden_state=grid(new_visual),
            audio_hidden_state=grid(new_audio),
            visual_pooler_output=grid(_pool(vision, vision.final_norm(new_visual), output.visual_pooling)),
            audio_pooler_output=grid(_pool(audition, new_audio, output.audio_pooling)),
            visual_feature_maps=tuple(grid(tokens) for tokens in maps) or None,
            frame_mask=torch.ones_like(pixel_values_videos[:, :, 0, 0, 0], dtype=torch.bool)
            if frame_mask is None
            else frame_mask.bool(),
            **optional,
        )

    def _captions(
        self,
        batch_size: int,
        visual: tuple[Tensor | None, Tensor | None, Tensor | None],
        audio: tuple[Tensor | None, Tensor | None, Tensor | None],
        device: torch.device | None,
    ) -> Captions | None:
        """
        Text features of both captions from (ids, mask, embeds), or `None` without captions. With a device, this
        process gets empty ones where only others that share the batch have captions: all must take the same way.
        """
        sources = []
        for name, (ids, mask, embeds) in (("visual", visual), ("audio", audio)):
            if ids is not None and embeds is not None:
                raise CaeAvError(f"give either `{name}_caption_ids` or `{name}_caption_embeds`, not both")
            source = embeds if embeds is not None else ids
            if source is None:
                continue
            if source.shape[0] != batch_size or (mask is not None and mask.shape != source.shape[:2]):
                raise CaeAvError(
                    f"`{name}_caption_*` must have one row a clip ({batch_size}) and a mask of the same length, got "
                    f"{tuple(source.shape)} and mask {None if mask is None else tuple(mask.shape)}"
                )
            sources.append((ids, mask, embeds))
        if len(sources) == 1:
            raise CaeAvError("CASE needs both captions of a clip: give the visual and the audio one, or neither")
        if not self.config.use_case:
            return None
        given = []
        for ids, mask, embeds in sources:
            features = embeds if embeds is not None else self.get_caption_features(cast(Tensor, ids))
            given.append((features.to(self.dtype), None if mask is None else mask.bool()))
        if device is not None and anywhere(bool(given), device) and not given:
            nothing = torch.zeros(batch_size, 1, self.config.text_config.hidden_size, dtype=self.dtype, device=device)
            given = [(nothing, nothing.new_zeros(nothing.shape[:2], dtype=torch.bool))] * 2
        if not given:
            logger.warning_once("No captions given: CASE and the losses that need captions are skipped.")
            return None
        (visual_features, visual_mask), (audio_features, audio_mask) = given
        present = None
        if visual_mask is not None and audio_mask is not None:
            present = visual_mask.any(1) & audio_mask.any(1)
            # Attention over no key at all is undefined; what comes of these rows is not used.
            visual_mask, audio_mask = visual_mask | ~present[:, None], audio_mask | ~present[:, None]
        if self.config.is_official:
            # The authors' code attends to all positions, padding included.
            visual_mask = audio_mask = None
        return Captions(visual_features, audio_features, visual_mask, audio_mask, present)

    def _losses(
        self,
        visual: Tensor,
        audio: Tensor,
        captions: Captions | None,
        case: CASEOutput | None,
        frames: FrameLayout,
    ) -> dict[str, Tensor]:
        """The unweighted terms of captions and CASE (Eq. 22 to 25) over the real frames."""
        losses: dict[str, Tensor] = {}
        if not self.config.use_case:
            return losses
        visual_projected = self.projections.visual(visual.mean(1))
        audio_projected = self.projections.audio(audio.mean(1))
        losses["alignment"] = modality_alignment_loss(visual_projected, audio_projected)
        if captions is None or case is None:
            return losses
        clip = frames.clip_of_frame(visual.device)
        temperature = self.projections.temperature
        visual_log_probs, audio_log_probs = case.visual_saliency, case.audio_saliency
        visual_caption = self.projections.visual_caption(masked_mean(case.visual_caption, captions.visual_mask))
        audio_caption = self.projections.audio_caption(masked_mean(case.audio_caption, captions.audio_mask))
        if captions.present is not None:
            with_caption = captions.present[clip]
            visual_projected, audio_projected = visual_projected[with_caption], audio_projected[with_caption]
            visual_log_probs, audio_log_probs = visual_log_probs[with_caption], audio_log_probs[with_caption]
            clip = clip[with_caption]
        both_ways = self.config.is_official
        losses["caption"] = caption_contrastive_loss(
            visual_projected, visual_caption, clip, temperature, both_ways
        ) + caption_contrastive_loss(audio_projected, audio_caption, clip, temperature, both_ways)
        losses["entropy"] = selection_entropy_loss(visual_log_probs, audio_log_probs, self.config.entropy_sign)
        return losses


__all__ = [
    "CaeAvModel",
    "CaeAvModelOutput",
    "CaeAvPreTrainedModel",
]
