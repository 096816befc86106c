"""
Interaction layers: one paired block, that is, who acts in which order (Eq. 10 to 13).

A layer gets the tokens of both streams and the pair's two frozen blocks, and drives the frozen branches itself, since
published methods act before, beside or after them. `register_interaction` adds a method without touching the encoder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from .avmoe import AVMoE
from .caste import CASTE
from .frames import FrameLayout


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock


@dataclass(frozen=True)
class PairPosition:
    """
    Where a pair of blocks stands.

    Attributes:
        stage: Its stage, counted from 1.
        is_first: Whether it is the first pair of the stage.
        visual_tokens, visual_size, audio_tokens, audio_size: L and C of both streams there.
    """

    stage: int
    is_first: bool
    visual_tokens: int
    visual_size: int
    audio_tokens: int
    audio_size: int


class Step(GradientCheckpointingLayer):
    """What gradient checkpointing computes again as a whole: a frozen block that runs alone, or half a pair."""

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


class InteractionLayer(nn.Module):
    """
    Base class. `forward` takes the streams (N, L, C), the frozen blocks, and the layout of the frames, and returns the
    new streams with what explains them: enrichment weights (2, N, 2), embeddings (2, N, D) of both modalities, visual
    first, whose dot product is their agreement, and routing weights (4, N, experts), each of them `None` where the
    layer has no such part. What it does through `self.step(function, *inputs)` can be checkpointed.
    """

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__()
        self.config = config
        self.position = position
        self.step = Step()


_INTERACTIONS: dict[str, type[InteractionLayer]] = {}


def register_interaction(name: str) -> Callable[[type[InteractionLayer]], type[InteractionLayer]]:
    """Make a layer class available as `CaeAvConfig(interaction=name)`."""

    def register(layer_class: type[InteractionLayer]) -> type[InteractionLayer]:
        _INTERACTIONS[name] = layer_class
        return layer_class

    return register


def build_interaction(config: CaeAvConfig, position: PairPosition) -> InteractionLayer:
    """
    The layer that the configuration names.

    Raises:
        CaeAvError: No layer is registered under `config.interaction`.
    """
    if config.interaction not in _INTERACTIONS:
        known = ", ".join(sorted(_INTERACTIONS))
        raise CaeAvError(f"`interaction` of CaeAvConfig must be one of {known}, got {config.interaction!r}")
    return _INTERACTIONS[config.interaction](config, position)


@register_interaction("avmoe")
class AVMoEInteraction(InteractionLayer):
    """The baseline: two AVMoE adapters a stream, beside the attention branch and beside the feed-forward branch."""

    uses_caste = False

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__(config, position)
        visual, audio = (
            (position.visual_tokens, position.visual_size),
            (position.audio_tokens, position.audio_size),
        )
        # The authors' video parsing drops what its audio blocks make and goes on with the stream that CASTE enriched:
        # its checkpoints depend on that. AVMoE's video parsing does not do so.
        self.skips_audio_blocks = self.uses_caste and config.is_official and config.task == "avvp"
        self.has_adapters = position.stage in config.adapter_stages
        self.has_caste = self.uses_caste and position.is_first
        if self.has_caste:
            self.visual_caste = CASTE(config, position.visual_size, position.audio_size)
            self.audio_caste = CASTE(config, position.audio_size, position.visual_size)
        if self.has_adapters:
            gate = config.visual_adapter_gate
            self.visual_attention_adapter = AVMoE(config, *visual, *audio, has_gate=gate)
            self.audio_attention_adapter = AVMoE(config, *audio, *visual)
            self.visual_feed_forward_adapter = AVMoE(config, *visual, *audio, has_gate=gate)
            self.audio_feed_forward_adapter = AVMoE(config, *audio, *visual)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        visual, audio, weights, embeddings, probs = self.step(
            self._attend, visual, audio, visual_block, audio_block, frames
        )
        visual, audio, later_weights, later_embeddings, later_probs = self.step(
            self._feed_forward, visual, audio, visual_block, audio_block, frames
        )
        if later_weights is not None:
            weights, embeddings = later_weights, later_embeddings
        return visual, audio, weights, embeddings, None if probs is None else torch.cat([probs, later_probs])

    def _attend(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The first half: adapters beside the attention branches."""
        weights = embeddings = probs = None
        enriches = self.has_caste and self.config.caste_position == "before"
        visual_in, audio_in = visual, audio
        if enriches:
            visual_caste, audio_caste, weights, embeddings = self._enrich(visual, audio, frames)
            visual_in, audio_in = visual + visual_caste, audio + audio_caste
        # The frozen branches read the block's own input: what CASTE adds to it reaches the stream through the adapters
        # alone, or by itself where there are none.
        new_visual = visual + visual_block.attention(visual)
        if self.skips_audio_blocks:
            new_audio = audio_in if self.has_adapters else audio
        elif self.config.is_official:
            new_audio = audio_block(audio)
        else:
            new_audio = audio + audio_block.attention(audio)
        if self.has_adapters:
            visual_added, visual_probs = self.visual_attention_adapter(visual_in, audio_in, frames)
            audio_added, audio_probs = self.audio_attention_adapter(audio_in, visual_in, frames)
            new_visual, new_audio = new_visual + visual_added, new_audio + audio_added
            probs = torch.stack([visual_probs, audio_probs])
        elif enriches:
            new_visual, new_audio = new_visual + visual_caste, new_audio + audio_caste
        return new_visual, new_audio, weights, embeddings, probs

    def _feed_forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The second half: adapters beside the feed-forward branches."""
        weights = embeddings = probs = None
        position = self.config.caste_position if self.has_caste else None
        visual_in, audio_in = visual, audio
        if position == "between":
            visual_caste, audio_caste, weights, embeddings = self._enrich(visual, audio, frames)
            visual_in, audio_in = visual + visual_caste, audio + audio_caste
        new_visual, new_audio = visual + visual_block.feed_forward(visual), audio
        if not self.config.is_official:
            new_audio = audio + audio_block.feed_forward(audio)
        if self.has_adapters:
            visual_added, visual_probs = self.visual_feed_forward_adapter(visual_in, audio_in, frames)
            audio_added, audio_probs = self.audio_feed_forward_adapter(audio_in, visual_in, frames)
            new_visual, new_audio = new_visual + visual_added, new_audio + audio_added
            probs = torch.stack([visual_probs, audio_probs])
        elif position == "between":
            new_visual, new_audio = new_visual + visual_caste, new_audio + audio_caste
        visual, audio = new_visual, new_audio
        if position == "after":
            visual_caste, audio_caste, weights, embeddings = self._enrich(visual, audio, frames)
            visual, audio = visual + visual_caste, audio + audio_caste
        return visual, audio, weights, embeddings, probs

    def _enrich(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What CASTE adds to both streams, its weights, and embeddings (2, N, 2 D) of both modalities."""
        visual_added, visual_weights, visual_projections = self.visual_caste(visual, audio, frames)
        audio_added, audio_weights, audio_projections = self.audio_caste(audio, visual, frames)
        weights = torch.stack([visual_weights, audio_weights])
        # Unit vectors of both directions' gates side by side: their dot product is the mean of the two cosines.
        sides = torch.stack([visual_projections, audio_projections.flip(0)], dim=2)
        embeddings = F.normalize(sides, dim=-1).flatten(2) / math.sqrt(2)
        return visual_added, audio_added, weights, embeddings


@register_interaction("cae_av")
class CaeAvInteraction(AVMoEInteraction):
    """CAE-AV: CASTE once a stage, at its first pair, by default before the adapters (`caste_position`)."""

    uses_caste = True
