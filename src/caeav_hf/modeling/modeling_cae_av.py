"""
CAE-AV as Transformers models: the paired encoder over two frozen towers, captions and CASE.

Hu, Li and Zhang, "CAE-AV: Improving Audio-Visual Learning via Cross-modal Interactive Enrichment".
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple, logging

from ..assets import aligned_toy_towers, toy_towers, toy_vision_tower
from ..configuration_cae_av import CaeAvConfig
from ..constants import MODALITIES
from ..errors import CaeAvError
from ..task import get_task
from ..towers import lora
from ..towers.base import TowerReader, TowerWalk, build_tower
from ..towers.frozen import freeze, is_adapted, tower_norms
from ..towers.loading import FRONT_END, load_tower
from . import avmoe, cae_av, dg_sct, lavish, stg_cma  # noqa: F401 - importing them registers their methods
from .captions import CaptionMapper, Captions
from .case import CASE, CASEOutput, masked_mean
from .collectives import anywhere
from .frames import FrameLayout
from .interaction import (
    InteractionLayer,
    InteractionOutput,
    Step,
    interaction_class,
    method_preset,
    method_tower_preset,  # noqa: F401 - the configuration finds it here
    method_vision_preset,
    pair_positions,
)
from .losses import (
    AlignmentProjections,
    caption_contrastive_loss,
    modality_alignment_loss,
    selection_entropy_loss,
)
from .pretrained import FrozenTowersMixin, TowerPreTrainedModel
from .tower_cache import TowerCache


logger = logging.get_logger(__name__)

# Agreement of sound and picture, in the output of every model.
AGREEMENT_OUTPUTS = ("agreement", "agreement_probs")
# Entries of `InteractionOutput.explained` that have their own field in `CaeAvModelOutput`.
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
            One vector per frame: the tower's read-out after its final norm, by default the mean of the tokens, or
            their weighted sum if the interaction method returns weights.
        audio_pooler_output (`torch.FloatTensor` of shape `(batch_size, num_frames, audio_size)`):
            The same for the audio, without a final norm unless `config.audio_final_norm`.
        visual_hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`):
            One `(batch_size, num_frames, tokens, size)` for the embedding and one per stage, the output of its last
            block: before the next stage's downsampling and, for the last stage, before CASE and the final norm.
        audio_hidden_states (`tuple(torch.FloatTensor)`, with `output_hidden_states=True`): The same for the audio.
        visual_feature_maps (`tuple(torch.FloatTensor)`, with `output_feature_maps=True`):
            One `(batch_size, num_frames, tokens, size)` per stage. The last one is after CASE (in the official
            formulation, before it) and after the tower's final norm.
        agreement (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames)` per stage: cosine similarity of the modalities (Eq. 1).
        agreement_probs (`tuple(torch.FloatTensor)`, with `agreement_loss_weight`):
            One `(batch_size, num_frames)` per stage: probability that a frame and its sound belong together, given
            that half of all pairs do.
        enrichment_weights (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames, 2)` per stage: the visual stream's spatial and temporal weight (Eq. 4).
        audio_enrichment_weights (`tuple(torch.FloatTensor)`): The same for the audio stream.
        router_probs (`tuple(torch.FloatTensor)`):
            One `(batch_size, num_frames, 4, experts)` per paired block with adapters: visual and audio beside
            attention, visual and audio beside the feed-forward.
        explained (`dict[str, tuple(torch.FloatTensor)]`, if the interaction method returns more):
            One `(batch_size, num_frames, ...)` per layer that returns it, under the method's own names.
        caption_agreement (`torch.FloatTensor` of shape `(batch_size, num_frames)`, with captions):
            Cosine similarity of each frame and its visual caption (Eq. 19).
        audio_caption_agreement (`torch.FloatTensor` of shape `(batch_size, num_frames)`, with captions):
            The same for each frame's sound and the audio caption.
        visual_selected_tokens (`torch.LongTensor` of shape `(batch_size, num_frames, kept)`, with captions):
            Indices of the tokens that CASE enriched.
        audio_selected_tokens (`torch.LongTensor` of shape `(batch_size, num_frames, kept)`, with captions):
            The same for the audio.
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
    """Return ids below `size` and the mask, (batch_size, length) each, of random texts of different lengths."""
    mask = torch.arange(length) < torch.randint(1, length + 1, (batch_size, 1), generator=generator)
    return torch.randint(1, size, (batch_size, length), generator=generator) * mask, mask.long()


class CaeAvPreTrainedModel(TowerPreTrainedModel):
    """Base class of all CAE-AV models: checkpoints, freezing and LoRA of the towers, and pretrained towers."""

    config: CaeAvConfig
    config_class = CaeAvConfig
    _no_split_modules: tuple[str, ...] | set[str] = ("CASE",)
    # Layers of CASE that only the official formulation has now; checkpoints of the paper's may still hold them.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"case\.(visual|audio)_stream\.(temporal_norm|caption_feed_forward)\."
    ]

    @property
    def cae_av(self) -> "CaeAvModel":
        """The model without its head."""
        return cast("CaeAvModel", self.base_model)

    def _total_loss(self, outputs: CaeAvModelOutput, task_loss: Tensor, **auxiliary: Tensor) -> dict[str, Any]:
        """Return `loss` and `loss_dict` of a head, which include the terms of the model under it."""
        loss, terms = cast(Tensor, outputs.loss) + task_loss, cast(dict, outputs.loss_dict)
        for name, value in auxiliary.items():
            loss = loss + self.loss_weights[name] * value
        return {"loss": loss, "loss_dict": {"task": task_loss, **terms, **auxiliary}}

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
            labels: If given, the output includes the losses.
            outputs: `output_feature_maps` and `output_hidden_states`.

        Returns:
            The [`CaeAvModelOutput`], and the layout of the frames.
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

    def method_names(self) -> dict[str, str | None]:
        method = interaction_class(self.config)
        # A method that builds on another one does not inherit its name.
        names = vars(method)
        return {
            "title": names.get("title") or self.config.interaction,
            "reference": names.get("reference"),
            # Of the method, if it has its own; otherwise of the whole model.
            "formulation": getattr(method.read_options(self.config), "formulation", self.config.formulation),
        }

    @classmethod
    def needed_towers(cls, task: str, size: str = "full", **overrides: Any) -> dict[str, bool]:
        values = {**_method_values(task, size, overrides), **overrides}
        return {
            "vision": True,
            "audio": not values.get("shared_tower"),
            "text": bool(values.get("use_text_tower", True)),
        }

    @classmethod
    def packaged_towers(cls, task: str, **overrides: Any) -> dict[str, Path]:
        if get_task(task).preset.get("audio_text_config") is not None:
            return aligned_toy_towers()
        of_method = _method_values(task, "toy", overrides)
        kinds = [(values.get("vision_config") or {}).get("model_type") for values in (overrides, of_method)]
        return {**toy_towers(), "vision": toy_vision_tower(kinds[0] or kinds[1])}

    @classmethod
    def from_backbones(
        cls,
        vision: str | os.PathLike,
        audio: str | os.PathLike | None,
        text: str | os.PathLike | None,
        task: str = "ave",
        size: str = "full",
        audio_text: str | os.PathLike | None = None,
        **overrides: Any,
    ):
        """
        Build a model on separately pretrained towers; its own layers are randomly initialised.

        Any Hub repository may be followed by a revision, `org/name@revision`.

        Args:
            vision: A Swin Transformer, version 2 or 1, or CLIP's vision transformer: a timm name
                (`swinv2_large_window12_192.ms_in22k`), a Hub repository (`hf-hub:org/name`), or a local folder in
                timm's Hub format (`config.json` and `model.safetensors`). Or any registered tower that converts the
                timm model, or that [`~towers.loading.save_tower`] saved to a folder or Hub repository.
            audio: A Hub repository or local folder saved by `transformers.ClapModel` or `ClapAudioModel`, with the
                front end of the `ClapFeatureExtractor` saved beside it, or else HTS-AT's; or a file with a public
                checkpoint of HTS-AT, with the front end that it was trained with; or, as for `vision`, any registered
                tower. `None` with `shared_tower=True`, where the visual tower reads the sound too.
            text: An open_clip name followed by a slash and the tag of its weights (`ViT-L-14/openai`), a Hub
                repository (`hf-hub:org/name`), or a local folder in open_clip's Hub format. `None` with
                `use_text_tower=False`.
            task: Preset for all other sizes.
            size: Size of that preset, `"full"` or `"toy"`.
            audio_text: For few-shot tasks: another CLAP than `audio` for the text branch.
            overrides: Fields of the configuration, and `method`, see [`CaeAvConfig.from_preset`]; a method without
                captions needs no `text`. Sizes of the towers come from the towers; `vision_config` and `audio_config`
                may set only the `model_type` of the tower that converts the model, where several could,
                `vision_config` also the `num_attention_heads` of CLIP's vision transformer, and `audio_config` the
                front end: sampling rate, window, hop, frequencies, mel scale and tiling.

        Raises:
            CaeAvError: A tower cannot be found or is not of a supported kind, or an override sets its sizes.
        """
        if "text_config" in overrides:
            raise CaeAvError("`text_config` comes from the tower itself and cannot be given to `from_backbones`")
        method = overrides.get("method") or get_task(task).preset.get("interaction")
        of_method = _method_values(task, size, overrides)
        values = {**of_method, **overrides}
        if (audio is None) != bool(values.get("shared_tower")):
            raise CaeAvError(f"`audio` must be None if and only if `shared_tower` is True, got {audio!r}")
        if (text is None) != (not values.get("use_text_tower", True)):
            raise CaeAvError(f"`text` must be None if and only if `use_text_tower` is False, got {text!r}")
        preset = get_task(task).preset
        projects = preset.get("audio_text_config") is not None
        of_vision = overrides.pop("vision_config", None)
        towers = {"vision": load_tower("vision", vision, overrides=of_vision, projects=projects)}
        if method is not None:
            own_vision = {**towers["vision"].config, "model_type": towers["vision"].model_type}
            recut = method_vision_preset(method, own_vision, values.get("interaction_options"))
            towers["vision"].config |= {**recut, **(of_vision or {})}
        if text is not None:
            towers["text"] = load_tower("text", text, projects=projects)
        if audio is not None:
            of_audio = overrides.pop("audio_config", None)
            own = {} if of_method.get("shared_tower") else of_method.get("audio_config", {})
            if projects:
                # The authors' front end, not that with which CLAP was trained.
                own = {**CaeAvConfig.from_preset(task, size).audio_config.to_dict(), **own}
            front_end = {name: value for name, value in own.items() if name in FRONT_END}
            of_audio = {**front_end, **(of_audio or {})} or None
            towers["audio"] = load_tower("audio", audio, overrides=of_audio, projects=projects)
        if projects:
            towers["audio_text"] = load_tower("audio_text", audio_text or cast(str, audio))
        elif audio_text is not None:
            raise CaeAvError(f"`audio_text` was given for the task {task!r}, whose models do not match texts")
        model = cls._on_towers(towers, task, size, overrides)
        model.cae_av.initialize_from_towers()
        return model.eval()


def _method_values(task: str, size: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that belong to the method of arguments of `from_backbones`."""
    method = overrides.get("method") or get_task(task).preset.get("interaction")
    return method_preset(method, task, size) if method is not None else {}


def _pool(reader: TowerReader, tokens: Tensor, weights: Tensor | None) -> Tensor:
    """Pool tokens (N, L, C) to (N, C): by the tower's read-out, or as their sum with weights (N, L)."""
    return reader.pool(tokens) if weights is None else (weights[:, None] @ tokens).squeeze(1)


class CaeAvModel(FrozenTowersMixin, CaeAvPreTrainedModel):
    """
    Two frozen towers whose blocks run in pairs with interaction layers between them, captions, and CASE.

    Args:
        config: The configuration.
    """

    exported_outputs = ("visual_hidden_state", "audio_hidden_state", *AGREEMENT_OUTPUTS)
    # The tower of sound is missing where that of frames reads it too.
    tower_kinds = ("vision", "audio", "text", "audio_text")

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        # Imported here, since the libraries behind it take seconds to load.
        from ..towers.clip_text import ClipTextTower

        self.vision_tower = build_tower(config.vision_config)
        self.audio_tower = None if config.shared_tower else build_tower(config.audio_config)
        self.text_tower = ClipTextTower(config.text_config) if config.use_text_tower else None
        self.audio_text_tower: nn.Module | None = None
        if config.audio_text_config is not None:
            from ..towers.clap_text import ClapTextTower

            self.audio_text_tower = ClapTextTower(config.audio_text_config)
        self._shared_names: tuple[str, ...] = ()
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
        }
        method_weights = self.interaction_class.loss_weights(config)
        if taken := sorted(method_weights.keys() & self.auxiliary_loss_weights.keys()):
            raise CaeAvError(
                f"`interaction` {config.interaction!r} names a loss {taken[0]!r}, which the model has itself"
            )
        self.auxiliary_loss_weights |= method_weights
        self.post_init()
        self.initialize_from_towers()

    def readers(self) -> tuple[TowerReader, TowerReader]:
        """Return the readers of the frames and of the sound; with a shared tower, both run the visual tower."""
        if self.audio_tower is not None:
            return TowerReader(self.vision_tower), TowerReader(self.audio_tower)
        size = self.config.audio_config.spectrogram_size
        return TowerReader(self.vision_tower), TowerReader(self.vision_tower, size, reads_spectrograms=True)

    def embed_frames(self, pixels: Tensor) -> Tensor:
        """
        Return the visual tower's tokens (N, L, C) of frames (N, 3, H, W), which are first resized to the tower's size
        if `frame_size` of the configuration is set.
        """
        size = self.config.vision_config.input_size
        if self.config.frame_size is not None and tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
        return self.readers()[0].embed(pixels.to(self.dtype))

    def _shared_modules(self) -> dict[str, nn.Module]:
        """Return the modules that all layers of the method share."""
        return {name: getattr(self, name) for name in self._shared_names}

    @torch.no_grad()
    def initialize_from_towers(self) -> None:
        """Initialise what the method makes from the weights of the visual tower, which may have changed."""
        self.interaction_class.initialize_from_towers(self.config, self.vision_tower, self._shared_modules())

    def freeze_towers(self) -> None:
        """Also freeze modules that the method declares as frozen."""
        super().freeze_towers()
        for name in self._shared_names:
            if getattr(getattr(self, name), "is_frozen", False):
                freeze(getattr(self, name))

    def trained_tower_norms(self) -> dict[str, nn.LayerNorm]:
        """Return the layer norms of towers that are trained (`config.trained_tower_norms`), by name in this model."""
        norms: dict[str, nn.LayerNorm] = {}
        for kind in ("vision", "audio"):
            tower = getattr(self, f"{kind}_tower")
            if tower is None:
                continue
            found = tower_norms(tower, tower.final_norm_name, self.config.trained_tower_norms)
            if kind == "audio" and not self.config.audio_final_norm:
                found.pop(tower.final_norm_name, None)  # It does not run.
            norms |= {f"{kind}_tower.{name}": norm for name, norm in found.items()}
        return norms

    def keep_constants(self, dtype: torch.dtype) -> None:
        """
        Precompute the biases of the towers' attention in `dtype`. They are otherwise computed on first use, which is
        not possible within a graph of `torch.compile`.
        """
        for reader in self.readers():
            reader.keep_constants(dtype)

    def num_frozen_pairs(self) -> int:
        """
        Return the number of pairs of blocks before the first trained layer. What they compute from a clip stays the
        same in training.
        """
        readers = {id(reader.tower): reader.tower for reader in self.readers()}
        for tower in readers.values():
            # The final norm comes after all blocks.
            norms = tower_norms(tower, tower.final_norm_name, "final").values()
            last = {parameter for norm in norms for parameter in norm.parameters()}
            if is_adapted(tower) or any(p.requires_grad for p in tower.parameters() if p not in last):
                return 0
        if any(p.requires_grad for module in self._shared_modules().values() for p in module.parameters()):
            return 0
        layers = self._layers()
        return next((number for number, layer in enumerate(layers) if not layer.is_frozen), len(layers))

    @property
    def has_frozen_part(self) -> bool:
        return self.num_frozen_pairs() > 0

    def _layers(self) -> list[InteractionLayer]:
        """Return the layers of the method in order."""
        return [cast(InteractionLayer, layer) for stage in self.interactions for layer in cast(nn.ModuleList, stage)]

    def _start_walks(self, pixels: Tensor, sounds: Tensor, frames: FrameLayout) -> tuple[TowerWalk, TowerWalk]:
        """Embed frames (N, 3, H, W) and sounds (N, 1, frames, mels)."""
        visual_reader, audio_reader = self.readers()
        shared = self._shared_modules()
        visual, method = self.embed_frames(pixels), self.interaction_class
        audio = method.embed_audio(self.config, audio_reader, sounds.to(self.dtype), shared)
        visual, audio = method.embed(self.config, visual, audio, frames, shared)
        return visual_reader.walk(visual, self.step), audio_reader.walk(audio, self.step)

    def _interact(
        self, layer: InteractionLayer, visual_walk: TowerWalk, audio_walk: TowerWalk, frames: FrameLayout
    ) -> InteractionOutput:
        """Run both towers up to the blocks of a layer, and these with it."""
        position = layer.position
        visual_block = visual_walk.reach(position.visual.index)
        audio_block = audio_walk.reach(position.audio.index)
        output = layer(visual_walk.tokens, audio_walk.tokens, visual_block, audio_block, frames)
        visual_walk.tokens, audio_walk.tokens = output.visual, output.audio
        return output

    def _recall_walks(
        self, num_pairs: int, pixels: Tensor, sounds: Tensor, frames: FrameLayout, with_ends: bool
    ) -> tuple[TowerWalk, TowerWalk]:
        """
        Return the state of both towers after the first pairs, where the next one finds it, from `tower_cache`.

        Args:
            num_pairs: Number of pairs.
            pixels, sounds, frames: See `_start_walks`.
            with_ends: Whether the outputs of the visual stages are needed, which take most of the space.
        """
        layers, readers = self._layers(), self.readers()
        starts = [sum(stage.depth for stage in reader.stages) for reader in readers]
        if num_pairs < len(layers):
            starts = [layers[num_pairs].position.visual.index, layers[num_pairs].position.audio.index]

        def compute() -> dict[str, Tensor]:
            walks = self._start_walks(pixels, sounds, frames)
            for layer in layers[:num_pairs]:
                output = self._interact(layer, *walks, frames)
                if output.explained or output.losses or output.visual_pooling is not None:
                    raise CaeAvError(
                        f"`is_frozen` of {type(layer).__name__} must be False, since it returns more than the streams"
                    )
            states = {}
            for name, walk, start in zip(MODALITIES, walks, starts, strict=True):
                walk.run_to(start)
                states[name] = walk.tokens
            if with_ends:
                states |= {f"end_{number}": end for number, end in enumerate(walks[0].ends)}
            return states

        modules: dict[str, nn.Module] = {f"{kind}_tower": tower for kind, tower in self.named_towers().items()}
        weights = {
            f"{kind}.{name}": tensor
            for kind, module in {**modules, **self._shared_modules()}.items()
            if "text" not in kind
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if not tensor.requires_grad
        }
        part = f"{num_pairs} pairs" + (", ends" if with_ends else "")
        found = cast(TowerCache, self.tower_cache).get(part, weights, frames, [pixels, sounds], compute)
        ends = [found[name] for name in sorted(found) if name not in MODALITIES]
        visual_walk, audio_walk = (
            reader.walk(found[name], self.step, start, ends if name == "visual" else ())
            for name, reader, start in zip(MODALITIES, readers, starts, strict=True)
        )
        return visual_walk, audio_walk

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
            input_features: `(batch_size, num_frames, 1, frames, mel_bins)`, log-mel spectrogram of each segment in dB.
            frame_mask: `(batch_size, num_frames)`, true for real frames; by default all are.
            visual_caption_ids, audio_caption_ids: `(batch_size, tokens)`, CLIP token ids.
            visual_caption_mask, audio_caption_mask: `(batch_size, tokens)`, true for real tokens. A row without real
                tokens marks a clip without captions.
            visual_caption_embeds, audio_caption_embeds: `(batch_size, tokens, size)`, features from
                [`~CaeAvModel.get_caption_features`], instead of ids.
            return_loss: Whether to compute the auxiliary losses.
            output_feature_maps: Whether to return the visual tokens of every stage.
            output_hidden_states: Whether to return the tokens of both streams after the embedding and every stage; by
                default the configuration decides.

        Raises:
            CaeAvError: Shapes do not match each other or the configuration, or only one caption is given.
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
        # A compiled graph needs static shapes, so there the list keeps padded frames. Losses and the statistics of
        # batch norms in training must cover only real frames.
        is_graph = torch.compiler.is_compiling() and not self.training and not return_loss
        frames = FrameLayout(batch_size, num_frames, frame_mask, keeps_padding=is_graph)
        visual_reader, audio_reader = self.readers()
        shared = self._shared_modules()
        pixels, sounds = frames.to_list(pixel_values_videos), frames.to_list(input_features)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        visual_states: list[Tensor] = []
        audio_states: list[Tensor] = []
        explained: dict[str, list[Tensor]] = {}
        interaction_losses: dict[str, list[Tensor]] = {}
        # The cache has no embeddings, and a graph no clips of known length.
        use_cache = self.tower_cache is not None and not output_hidden_states and not frames.keeps_padding
        if num_frozen := self.num_frozen_pairs() if use_cache else 0:
            visual_walk, audio_walk = self._recall_walks(num_frozen, pixels, sounds, frames, output_feature_maps)
        else:
            visual_walk, audio_walk = self._start_walks(pixels, sounds, frames)
        if output_hidden_states:
            visual_states, audio_states = [visual_walk.tokens], [audio_walk.tokens]
        output = InteractionOutput(visual_walk.tokens, audio_walk.tokens)
        for layer in self._layers()[num_frozen:]:
            output = self._interact(layer, visual_walk, audio_walk, frames)
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
            maps[-1] = visual_reader.final_norm(maps[-1] if self.config.is_official else new_visual)
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
            visual_pooler_output=grid(
                _pool(visual_reader, visual_reader.final_norm(new_visual), output.visual_pooling)
            ),
            audio_pooler_output=grid(
                _pool(
                    audio_reader,
                    audio_reader.final_norm(new_audio) if self.config.audio_final_norm else new_audio,
                    output.audio_pooling,
                )
            ),
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
        Return the text features of both captions, each given as (ids, mask, embeds), or `None` without captions.

        With `device`, processes that share the batch first agree: one without captions gets empty ones if another has
        captions, since all of them must run the same layers.
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
                    f"`{name}_caption_*` must have one row per clip ({batch_size}) and a mask of the same length, got "
                    f"{tuple(source.shape)} and mask {None if mask is None else tuple(mask.shape)}"
                )
            sources.append((ids, mask, embeds))
        if len(sources) == 1:
            raise CaeAvError("CASE needs both captions of a clip: give the visual and the audio one, or neither")
        if not self.config.use_case:
            return None
        given = []
        for ids, mask, embeds in sources:
            features = embeds if embeds is not None else self.get_caption_features(cast(Tensor, ids), mask)
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
            # Attention without any key is undefined, so rows without a caption attend to all; their output is unused.
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
        """Return the unweighted losses of captions and CASE (Eq. 22 to 25) over the real frames."""
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
