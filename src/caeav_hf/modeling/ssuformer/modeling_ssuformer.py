"""SSUFormer without its decoders: the four towers, and the integrated tokens of picture and sound."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from ...assets import aligned_toy_towers, toy_towers
from ...configuration_ssuformer import SsuFormerConfig
from ...errors import CaeAvError
from ...towers import lora
from ...towers.base import TowerReader, build_tower
from ...towers.frozen import is_adapted
from ...towers.loading import PretrainedTower, load_tower
from ..frames import FrameLayout
from ..interaction import Step
from ..pretrained import FrozenTowersMixin, TowerPreTrainedModel
from .integration import Integration, TokenGenerator


@dataclass
class SsuFormerModelOutput(ModelOutput):
    r"""
    Output of [`SsuFormerModel`]; padded frames are zero.

    Attributes:
        query_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, num_queries, hidden_size)`):
            F, the integrated queries of the sound.
        visual_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, tokens, hidden_size)`):
            v, the integrated tokens of the picture.
        visual_feature_maps (`tuple(torch.FloatTensor)`):
            The tower's maps of strides 4, 8, 16 and 32, `(batch_size, num_frames, channels, height, width)` each.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): True for real frames.
    """

    query_hidden_state: torch.Tensor | None = None
    visual_hidden_state: torch.Tensor | None = None
    visual_feature_maps: tuple[torch.Tensor, ...] | None = None
    frame_mask: torch.Tensor | None = None


class SsuFormerPreTrainedModel(TowerPreTrainedModel):
    """Base class of all SSUFormer models: checkpoints, freezing and LoRA of the towers, and pretrained towers."""

    config: SsuFormerConfig
    config_class = SsuFormerConfig
    _no_split_modules = ("IntegrationLayer", "MaskLayer", "GPT2Block")
    # Without the expert's text the router's parameters are idle, and so is a tower of frames that is trained later.
    has_idle_parameters = True

    def start_epoch(self, epoch: int) -> None:
        """Train the tower of the frames from `unfreeze_vision_epoch` on [avsf]."""
        self.base_model.epoch = epoch

    def method_names(self) -> dict[str, str | None]:
        return {
            "title": "SSUFormer",
            "reference": 'Sun et al., "RA-SSU: Towards Fine-Grained Audio-Visual Learning with Region-Aware Sound '
            'Source Understanding"',
            # No code of its authors is public, and the equations leave parts open.
            "formulation": None,
        }

    @property
    def trains_through_text_tower(self) -> bool:  # type: ignore[override]
        """RCC embeds predicted text in every step."""
        return self.config.is_consistent

    @classmethod
    def needed_towers(cls, task: str, size: str = "full", **overrides: Any) -> dict[str, bool]:
        planned = SsuFormerConfig.from_preset(task, size, **_without_towers(overrides))
        return {
            "vision": True,
            "audio": True,
            "text": planned.use_text_tower,
            "region": planned.collaborates or planned.is_consistent,
        }

    @classmethod
    def packaged_towers(cls, task: str, **overrides: Any) -> dict[str, Path]:
        aligned = aligned_toy_towers()
        return {**toy_towers(), "text": aligned["text"], "region": aligned["vision"]}

    @classmethod
    def from_backbones(
        cls,
        vision: Any,
        audio: Any,
        text: Any = None,
        region: Any = None,
        task: str = "ra_ssu",
        size: str = "full",
        **overrides: Any,
    ):
        """
        Build a model on separately pretrained towers; its own layers are randomly initialised.

        Any Hub repository may be followed by a revision, `org/name@revision`.

        Args:
            vision: PVT-v2 as a Hub repository (`OpenGVLab/pvt_v2_b5`) or folder saved by Transformers, or any tower of
                four stages, under the names that [`CaeAvPreTrainedModel.from_backbones`] takes.
            audio: VGGish as a file with a public checkpoint of PyTorch, or any tower of sound.
            text: CLIP's text tower: an open_clip name with the tag of its weights (`ViT-B-16/openai`), a Hub
                repository or a folder. `None` for a model that reads and compares no text.
            region: CLIP's vision transformer: a timm name (`vit_base_patch16_clip_quickgelu_224.openai`), a Hub
                repository or a folder. `None` for a model without mask collaboration and consistency.
            task: Preset for all other sizes; `avs_s4` or `avs_ms3` for [`SsuFormerForSegmentation`].
            size: Size of that preset, `"full"` or `"toy"`.
            overrides: Fields of the configuration. Sizes of the towers come from the towers; `vision_config`,
                `audio_config` and `region_config` may name the `model_type` of the tower that converts the model, and
                `audio_config` the front end.

        Raises:
            CaeAvError: A tower cannot be found or is not of a supported kind, one is missing or not used, or an
                override sets its sizes.
        """
        if "text_config" in overrides:
            raise CaeAvError("`text_config` comes from the tower itself and cannot be given to `from_backbones`")
        of_towers = {kind: overrides.pop(f"{kind}_config", None) for kind in ("vision", "audio", "region")}
        names = {"vision": vision, "audio": audio, "region": region, "text": text}
        planned = SsuFormerConfig.from_preset(task, size, **overrides)
        wanted = cls.needed_towers(task, size, **overrides)
        for kind, is_wanted in wanted.items():
            if (names[kind] is None) == is_wanted:
                state = "missing" if is_wanted else f"not used by this model, got {names[kind]!r}"
                raise CaeAvError(f"`{kind}` is {state}; see `outputs`, `use_mcm`, `use_rcc` and `use_mohe`")
        towers: dict[str, PretrainedTower] = {}
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            projects = kind in ("region", "text") and planned.is_consistent
            towers[kind] = load_tower(kind, names[kind], overrides=of_towers.get(kind), projects=projects)
            if kind == "text":
                towers[kind].config.setdefault("projection_dim", None)
        return cls._on_towers(towers, task, size, overrides).eval()


def _without_towers(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields without those of towers, which come from the towers."""
    of_towers = [f"{kind}_config" for kind in SsuFormerModel.tower_kinds]
    return {name: value for name, value in overrides.items() if name not in of_towers}


class SsuFormerModel(FrozenTowersMixin, SsuFormerPreTrainedModel):
    """
    The towers, the tokens of both streams, and their integration.

    The tower of the frames is frozen until the epoch `unfreeze_vision_epoch`, if that is set: until then it runs
    without gradients. The other towers are always frozen.

    Args:
        config: The configuration.
    """

    tower_kinds = ("vision", "audio", "region", "text")

    def __init__(self, config: SsuFormerConfig):
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config)
        self.audio_tower = build_tower(config.audio_config)
        has_region = config.collaborates or config.is_consistent
        self.region_tower = build_tower(config.region_config) if has_region else None
        self.text_tower: nn.Module | None = None
        if config.use_text_tower:
            # Imported here, since the library behind it takes seconds to load.
            from ...towers.clip_text import ClipTextTower

            self.text_tower = ClipTextTower(config.text_config)
        self.freeze_towers()
        if config.lora is not None:
            lora.inject(self, self.named_towers(), config.lora)
        self.step = Step()
        self.tokens = TokenGenerator(config, config.visual_stages[-1].hidden_size, config.audio_stages[-1].hidden_size)
        self.integration = Integration(config)
        self.auxiliary_loss_weights = {"consistency": float(config.consistency_loss_weight)}
        # The epoch that is trained on, which `start_epoch` sets.
        self.epoch = 0
        self.post_init()

    def frozen_towers(self) -> dict[str, nn.Module]:
        towers = self.named_towers()
        if self.config.unfreeze_vision_epoch is not None:
            del towers["vision"]
        return towers

    def keep_constants(self, dtype: torch.dtype) -> None:
        for kind in ("vision", "audio", "region"):
            tower = getattr(self, f"{kind}_tower")
            if tower is not None:
                TowerReader(tower).keep_constants(dtype)

    @property
    def _trains_vision(self) -> bool:
        first = self.config.unfreeze_vision_epoch
        return self.config.lora is not None or (first is not None and self.epoch >= first)

    def encode_frames(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps (N, C, H, W) of strides 4, 8, 16 and 32 of frames (N, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_vision):
            return TowerReader(self.vision_tower).feature_maps(pixels.to(self.dtype), self.step)

    def encode_sound(self, features: Tensor) -> Tensor:
        """Return the vectors (N, C) of seconds of sound (N, 1, frames, mels)."""
        reader = TowerReader(self.audio_tower)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lora is not None):
            tokens = reader.walk(reader.embed(features.to(self.dtype)), self.step).finish()
            return reader.pool(reader.final_norm(tokens))

    @property
    def has_frozen_part(self) -> bool:
        return not any(is_adapted(tower) for tower in (self.vision_tower, self.audio_tower))

    def _recall(
        self, kind: str, frames: FrameLayout, inputs: Tensor, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what a tower computes from inputs (N, ...), from `tower_cache` if possible."""
        if self.tower_cache is None or not self.has_frozen_part or torch.compiler.is_compiling():
            return compute()
        tower = cast(nn.Module, getattr(self, f"{kind}_tower"))
        weights = dict((*tower.named_parameters(), *tower.named_buffers()))
        found = self.tower_cache.get(kind, weights, frames, [inputs], compute)
        return {name: found[name] for name in sorted(found)}

    def encode_regions(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """
        Return the last hidden tokens (N, 1 + patches, C) of masked frames (N, 3, H, W), for the text decoder, and
        their embedding (N, P) in the space of texts if the tower has a projection.
        """
        reader = TowerReader(cast(Any, self.region_tower))
        tokens = reader.walk(reader.embed(pixels.to(self.dtype)), self.step).finish()
        if getattr(self.config.region_config, "projection_dim", None) is None:
            return tokens, None
        return tokens, reader.tower.project(reader.pool(reader.final_norm(tokens)))

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
    ) -> SsuFormerModelOutput:
        r"""
        Args:
            pixel_values_videos: `(batch_size, num_frames, channels, height, width)`, normalised frames.
            input_features: `(batch_size, num_frames, 1, frames, mel_bins)`, the sound of each second.
            frame_mask: `(batch_size, num_frames)`, true for real frames; by default all are.

        Raises:
            CaeAvError: Shapes do not match each other or the configuration.
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
        frames = FrameLayout(pixel_values_videos.shape[0], pixel_values_videos.shape[1], frame_mask)
        pixels, sounds = frames.to_list(pixel_values_videos), frames.to_list(input_features)

        def encode_frames() -> dict[str, Tensor]:
            return {str(stage): maps for stage, maps in enumerate(self.encode_frames(pixels))}

        if self._trains_vision:
            maps = self.encode_frames(pixels)
        else:
            maps = [*self._recall("vision", frames, pixels, encode_frames).values()]
        sound = self._recall("audio", frames, sounds, lambda: {"0": self.encode_sound(sounds)})["0"]
        visual, queries = self.tokens(maps[-1], sound, frames)
        visual, queries = self.integration(visual, queries, frames)
        return SsuFormerModelOutput(
            query_hidden_state=frames.to_grid(queries),
            visual_hidden_state=frames.to_grid(visual),
            visual_feature_maps=tuple(map(frames.to_grid, maps)),
            frame_mask=torch.ones_like(pixel_values_videos[:, :, 0, 0, 0], dtype=torch.bool)
            if frame_mask is None
            else frame_mask.bool(),
        )


__all__ = ["SsuFormerModel", "SsuFormerModelOutput", "SsuFormerPreTrainedModel"]
