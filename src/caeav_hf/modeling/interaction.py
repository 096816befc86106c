"""
Base class and registry of interaction methods.

A layer gets the tokens of both streams and the pair's two frozen blocks, and runs the frozen branches itself, since
published methods act before, beside or after them. A method is one file: a subclass of [`InteractionLayer`] registered
by [`register_interaction`]. The encoder depends only on the interface in this file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_cae_av import CaeAvConfig, TowerStage
from ..errors import CaeAvError
from ..towers.base import Tower, TowerReader, pair_blocks
from ..towers.recompute import checkpointed_unit
from .frames import FrameLayout


@dataclass(frozen=True)
class BlockPosition:
    """
    Position of a block in its tower, and the sizes of its tokens.

    Attributes:
        index: Index of the block in the tower, from 0.
        index_in_stage: Index of the block in its stage, from 0.
        depth: Number of blocks of the whole tower.
        num_tokens: Number of tokens per frame, L.
        hidden_size: Number of channels, C.
        grid: Height and width of the grid of patch tokens, which are in row-major order.
        num_heads: Number of attention heads.
        num_prefix_tokens: Number of tokens before the patch tokens, such as a class token.
        has_windows: Whether its attention stays within windows of the grid.
    """

    index: int
    index_in_stage: int
    depth: int
    num_tokens: int
    hidden_size: int
    grid: tuple[int, int]
    num_heads: int
    num_prefix_tokens: int = 0
    has_windows: bool = False


@dataclass(frozen=True)
class PairPosition:
    """
    Position of a pair of blocks.

    Attributes:
        stage: Number of the stage, from 1.
        is_first: Whether it is the first pair of its stage.
        is_last: Whether it is the last pair of the model.
        visual, audio: Positions of its blocks.
    """

    stage: int
    is_first: bool
    is_last: bool
    visual: BlockPosition
    audio: BlockPosition


@dataclass
class InteractionOutput:
    """
    Output of a layer. N is the number of real frames of the batch.

    Attributes:
        visual, audio: New tokens of the streams, (N, L, C) each.
        explained: Tensors (N, ...) by name that explain the layer's decisions. The model returns a tuple per name with
            one tensor per layer that has it: as a field of [`CaeAvModelOutput`] if there is one of this name,
            otherwise in its `explained`. `InteractionLayer.collect` may change them.
        losses: Scalar losses by name. The model averages each over the layers that return it, multiplies it by the
            option `<name>_loss_weight`, and adds it to the loss.
        visual_pooling, audio_pooling: Optional, used from the last pair only: weights (N, L) of a sum over tokens that
            replaces the tower's read-out.
    """

    visual: Tensor
    audio: Tensor
    explained: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    visual_pooling: Tensor | None = None
    audio_pooling: Tensor | None = None


class Step(GradientCheckpointingLayer):
    """A unit that gradient checkpointing recomputes as a whole: frozen blocks between two pairs, or half a pair."""

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        if not (self.gradient_checkpointing and self.training):
            return function(*inputs)
        with checkpointed_unit():
            return function(*inputs)


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class InteractionLayer(nn.Module):
    """
    Base class of the layers of a method, one per pair of blocks. A subclass implements

        forward(visual, audio, visual_block, audio_block, frames) -> InteractionOutput

    with tokens (N, L, C) of both streams, the frozen blocks, and the layout of the frames. With gradient
    checkpointing, the backward pass recomputes what runs through `self.step(function, *inputs)`.

    Args:
        config: The configuration.
        position: Position of the layer's pair of blocks.

    Attributes:
        options_class: Dataclass of the method's options, which `CaeAvConfig.interaction_options` holds as a dict. It
            raises a `ValueError` for a wrong value.
        title: Name of the method in model cards; by default the one it is registered as.
        reference: Authors and title of its paper, for model cards.
        options: The layer's instance of `options_class`.

    Raises:
        CaeAvError: `interaction_options` has an unknown option, lacks one, or has a wrong value.
    """

    options_class: ClassVar[type] = NoOptions
    title: ClassVar[str | None] = None
    reference: ClassVar[str | None] = None

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__()
        self.config = config
        self.position = position
        self.options = self.read_options(config)
        self.step = Step()

    @property
    def is_frozen(self) -> bool:
        """
        Whether the layer computes the same from a clip in every step, and returns nothing but the streams. By default
        layers without parameters are; one of them that draws random numbers must override this.
        """
        return next(self.parameters(), None) is None

    @classmethod
    def read_options(cls, config: CaeAvConfig) -> Any:
        """
        Return `config.interaction_options` as an instance of `options_class`.

        Raises:
            CaeAvError: An option is unknown or missing, or has a wrong value.
        """
        where = f"`interaction_options` of CaeAvConfig, for `interaction` {config.interaction!r}"
        values = config.interaction_options or {}
        known = [option.name for option in fields(cls.options_class)]
        if unknown := sorted(set(values) - set(known)):
            expected = f"expected some of {', '.join(known)}" if known else "it has no options"
            raise CaeAvError(f"{where}: unknown option {unknown[0]!r}; {expected}")
        try:
            return cls.options_class(**values)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise CaeAvError(f"{where}: {error}") from error

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        """
        Return the fields of [`CaeAvConfig`] that the method changes in the preset of a task, for
        `CaeAvConfig.from_preset(task, size, method=...)`: `interaction_options`, and what it does without or needs
        otherwise. A dict for a sub-configuration has the values that differ. By default nothing changes.
        """
        return {}

    @classmethod
    def tower_preset(cls, task: str, size: str, vision_config: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the fields of a preset with `shared_tower` that depend on the tower, which the caller may choose. Those
        of `audio_config` are merged with the preset's.

        Args:
            task: The task.
            size: `"full"` or `"toy"`.
            vision_config: Fields of the tower's configuration, with its `model_type` unless it is the default one.
        """
        return {}

    @classmethod
    def vision_preset(cls, vision_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return fields of the visual tower's configuration that the method sets unless the caller does. No weight may
        depend on them, since the tower may be a pretrained one: the number of heads of CLIP's vision transformer.

        Args:
            vision_config: Fields of the tower's configuration, with its `model_type` unless it is the default one.
            options: The `interaction_options` of the preset and the caller.
        """
        return {}

    @classmethod
    def loss_weights(cls, config: CaeAvConfig) -> dict[str, float]:
        """Return the weight of each loss of the method by name: the options `<name>_loss_weight`."""
        suffix, options = "_loss_weight", cls.read_options(config)
        names = [option.name for option in fields(cls.options_class) if option.name.endswith(suffix)]
        return {name.removesuffix(suffix): float(getattr(options, name)) for name in names}

    @classmethod
    def shared_modules(cls, config: CaeAvConfig) -> dict[str, nn.Module]:
        """
        Return modules that all layers of the method share, by name; they become submodules of the encoder. Those with
        the attribute `is_frozen` stay frozen.
        """
        return {}

    @classmethod
    def initialize_from_towers(cls, config: CaeAvConfig, vision: Tower, shared: Mapping[str, nn.Module]) -> None:
        """
        Initialise what is made from the weights of the visual tower. Called for a new model, again once
        `from_backbones` has loaded its towers, and never for weights that come from a checkpoint.

        Args:
            config: The configuration.
            vision: The tower that reads the frames.
            shared: The modules of `shared_modules`.
        """

    @classmethod
    def embed_audio(
        cls, config: CaeAvConfig, reader: TowerReader, inputs: Tensor, shared: Mapping[str, nn.Module]
    ) -> Tensor:
        """
        Return the tokens of the sound (N, L, C), by default those that its tower embeds.

        Args:
            config: The configuration.
            reader: Reader of the tower that reads the sound.
            inputs: (N, 1, frames, bands) spectrograms or filter banks.
            shared: The modules of `shared_modules`.
        """
        return reader.embed(inputs)

    @classmethod
    def embed(
        cls, config: CaeAvConfig, visual: Tensor, audio: Tensor, frames: FrameLayout, shared: Mapping[str, nn.Module]
    ) -> tuple[Tensor, Tensor]:
        """
        Change the embedded tokens before the first blocks, for example to add the method's own position embeddings or
        prompt tokens. By default the tokens stay unchanged.

        Args:
            config: The configuration.
            visual, audio: (N, L, C) embeddings of both towers, with position embeddings.
            frames: The layout of the frames.
            shared: The modules of `shared_modules`.

        Returns:
            The new tokens of both streams.
        """
        return visual, audio

    @classmethod
    def collect(
        cls,
        config: CaeAvConfig,
        explained: dict[str, list[Tensor]],
        frames: FrameLayout,
        shared: Mapping[str, nn.Module],
        loss_weights: Mapping[str, float] | None,
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """
        Complete the layers' outputs after the last layer. Losses that involve several layers are computed here.

        Args:
            config: The configuration.
            explained: `InteractionOutput.explained` by name, one (N, ...) per layer that has it.
            frames: The layout of the frames.
            shared: The modules of `shared_modules`.
            loss_weights: Current weights of all losses; `None` if no losses are requested.

        Returns:
            The tensors that the model returns as explanations, and unweighted losses in addition to the layers'.
        """
        return explained, {}


_INTERACTIONS: dict[str, type[InteractionLayer]] = {}


def register_interaction(name: str) -> Callable[[type[InteractionLayer]], type[InteractionLayer]]:
    """Make a layer class available as `CaeAvConfig(interaction=name)`."""

    def register(layer_class: type[InteractionLayer]) -> type[InteractionLayer]:
        _INTERACTIONS[name] = layer_class
        return layer_class

    return register


def _method(name: str, where: str) -> type[InteractionLayer]:
    """Return the layer class of a name that was given somewhere."""
    if name not in _INTERACTIONS:
        raise CaeAvError(
            f"{where} must be one of {', '.join(sorted(_INTERACTIONS))}, got {name!r}; the module that registers "
            "another one must be imported first"
        )
    return _INTERACTIONS[name]


def method_preset(name: str, task: str, size: str) -> dict[str, Any]:
    """
    Return the fields of [`CaeAvConfig`] in which a method's preset of a task differs from the task's own.

    Args:
        name: What the method is registered as.
        task: The task's name.
        size: `"full"` or `"toy"`.

    Raises:
        CaeAvError: No method of this name is registered.
    """
    return {"interaction": name, **_method(name, "`method`").preset(task, size)}


def method_tower_preset(name: str, task: str, size: str, vision_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a method's preset that depend on the tower; see [`InteractionLayer.tower_preset`]."""
    return _method(name, "`method`").tower_preset(task, size, vision_config)


def method_vision_preset(
    name: str, vision_config: Mapping[str, Any], options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return fields of the visual tower that a method sets; see [`InteractionLayer.vision_preset`]."""
    return _method(name, "`method`").vision_preset(vision_config, options or {})


def interaction_class(config: CaeAvConfig) -> type[InteractionLayer]:
    """
    Return the layer class that the configuration names.

    Raises:
        CaeAvError: No layer is registered under `config.interaction`, or `agreement_loss_weight` is set although the
            method has no agreement.
    """
    method = _method(config.interaction, "`interaction` of CaeAvConfig")
    if config.agreement_loss_weight and "agreement" not in method.loss_weights(config):
        raise CaeAvError(
            f"`agreement_loss_weight` of CaeAvConfig must be 0 with `interaction` {config.interaction!r}, which has "
            "no agreement"
        )
    return method


def pair_positions(visual: Sequence[TowerStage], audio: Sequence[TowerStage]) -> list[list[PairPosition]]:
    """
    Return the positions of the pairs of blocks that interact, by stage; see [`~towers.base.pair_blocks`].

    Args:
        visual, audio: Stages of both towers.
    """

    def positions(stages: Sequence[TowerStage]) -> list[BlockPosition]:
        depth = sum(stage.depth for stage in stages)
        blocks = [(stage, index) for stage in stages for index in range(stage.depth)]
        return [
            BlockPosition(
                index=number,
                index_in_stage=index,
                depth=depth,
                num_tokens=stage.num_tokens,
                hidden_size=stage.hidden_size,
                grid=stage.grid,
                num_heads=stage.num_heads,
                num_prefix_tokens=stage.num_prefix_tokens,
                has_windows=stage.has_windows,
            )
            for number, (stage, index) in enumerate(blocks)
        ]

    visual_blocks, audio_blocks = positions(visual), positions(audio)
    pairs = pair_blocks([stage.depth for stage in visual], [stage.depth for stage in audio])
    last = [pair for stage in pairs for pair in stage][-1]
    return [
        [
            PairPosition(
                stage=number,
                is_first=index == 0,
                is_last=pair == last,
                visual=visual_blocks[pair[0]],
                audio=audio_blocks[pair[1]],
            )
            for index, pair in enumerate(stage)
        ]
        for number, stage in enumerate(pairs, start=1)
    ]
