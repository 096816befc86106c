"""
The door for methods: what an interaction layer is told, what it returns, and the registry.

A layer gets the tokens of both streams and the pair's two frozen blocks, and drives the frozen branches itself, since
published methods act before, beside or after them. A method is one file: a subclass of [`InteractionLayer`] under
[`register_interaction`]. The encoder knows methods by what this file says of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_cae_av import CaeAvConfig, TowerStage
from ..errors import CaeAvError
from ..towers.base import pair_blocks
from .frames import FrameLayout


@dataclass(frozen=True)
class BlockPosition:
    """
    Where a block stands in its tower, and the tokens that pass it.

    Attributes:
        index: Its number in the tower, from 0.
        index_in_stage: Its number in its stage, from 0.
        depth: Blocks of the whole tower.
        num_tokens: Tokens of a frame, L.
        hidden_size: Channels, C.
        grid: Height and width of the tokens of patches, which are in row-major order.
        num_heads: Heads of its attention.
        num_prefix_tokens: Tokens before those of the patches, such as a class token.
    """

    index: int
    index_in_stage: int
    depth: int
    num_tokens: int
    hidden_size: int
    grid: tuple[int, int]
    num_heads: int
    num_prefix_tokens: int = 0


@dataclass(frozen=True)
class PairPosition:
    """
    Where a pair of blocks stands.

    Attributes:
        stage: Its stage, counted from 1.
        is_first: Whether it is the first pair of its stage.
        is_last: Whether it is the last pair of the model.
        visual, audio: Its blocks.
    """

    stage: int
    is_first: bool
    is_last: bool
    visual: BlockPosition
    audio: BlockPosition


@dataclass
class InteractionOutput:
    """
    What a layer returns. N counts the real frames of the batch.

    Attributes:
        visual, audio: New streams, (N, L, C) each.
        explained: By name, what explains the layer's decisions, (N, ...) each. The model returns a tuple under each
            name, one value for each layer that has it: fields of [`CaeAvModelOutput`] in these, other names in its
            `explained`. `InteractionLayer.collect` may change that.
        losses: By name, scalars. The model takes the mean over the layers that return one, weighs it by the option
            `<name>_loss_weight`, and adds it to the loss.
        visual_pooling, audio_pooling: From the last pair of the model, optionally, the weights (N, L) of the sum over
            tokens that replaces their mean where the model reads the frames out.
    """

    visual: Tensor
    audio: Tensor
    explained: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    visual_pooling: Tensor | None = None
    audio_pooling: Tensor | None = None


class Step(GradientCheckpointingLayer):
    """What gradient checkpointing computes again as a whole: a frozen block that runs alone, or half a pair."""

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


@dataclass(frozen=True)
class NoOptions:
    """The options of a method without any."""


class InteractionLayer(nn.Module):
    """
    Base class of the layers of a method, one for each pair of blocks. A subclass has a `forward`:

        forward(visual, audio, visual_block, audio_block, frames) -> InteractionOutput

    with the streams (N, L, C), the frozen blocks, and the layout of the frames. What it does through
    `self.step(function, *inputs)` is computed again in the backward pass with gradient checkpointing.

    Args:
        config: The configuration.
        position: Where the layer stands.

    Attributes:
        options_class: Dataclass of the method's options, which `CaeAvConfig.interaction_options` holds as a dict. It
            rejects a wrong value with a `ValueError`.
        options: An instance of it.

    Raises:
        CaeAvError: `interaction_options` has an unknown option, lacks one, or has a wrong value.
    """

    options_class: ClassVar[type] = NoOptions

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__()
        self.config = config
        self.position = position
        self.options = self.read_options(config)
        self.step = Step()

    @classmethod
    def read_options(cls, config: CaeAvConfig) -> Any:
        """
        Return `config.interaction_options` as the method's options.

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
    def loss_weights(cls, config: CaeAvConfig) -> dict[str, float]:
        """Return the weight of each loss of the method by name: the options `<name>_loss_weight`."""
        suffix, options = "_loss_weight", cls.read_options(config)
        names = [option.name for option in fields(cls.options_class) if option.name.endswith(suffix)]
        return {name.removesuffix(suffix): float(getattr(options, name)) for name in names}

    @classmethod
    def shared_modules(cls, config: CaeAvConfig) -> dict[str, nn.Module]:
        """Return modules that the layers of the method have in common, which become parts of the encoder."""
        return {}

    @classmethod
    def embed(
        cls, config: CaeAvConfig, visual: Tensor, audio: Tensor, frames: FrameLayout, shared: Mapping[str, nn.Module]
    ) -> tuple[Tensor, Tensor]:
        """
        Change the tokens (N, L, C) of both streams between the towers' embeddings, positions included, and what is
        before the first blocks: position tables or prompt tokens of the method's own. By default nothing changes.

        Args:
            config: The configuration.
            visual, audio: What the embeddings give.
            frames: The layout of the frames.
            shared: The modules of `shared_modules`.
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
        Finish what the layers returned, once all have run. A method whose losses look at several layers computes them
        here.

        Args:
            config: The configuration.
            explained: `InteractionOutput.explained` by name, one (N, ...) for each layer that has it.
            frames: The layout of the frames.
            shared: The modules of `shared_modules`.
            loss_weights: Today's weights of all losses; `None` where no loss is asked for.

        Returns:
            What the model returns of `explained`, and unweighted losses besides those that the layers returned.
        """
        return explained, {}


_INTERACTIONS: dict[str, type[InteractionLayer]] = {}


def register_interaction(name: str) -> Callable[[type[InteractionLayer]], type[InteractionLayer]]:
    """Make a layer class available as `CaeAvConfig(interaction=name)`."""

    def register(layer_class: type[InteractionLayer]) -> type[InteractionLayer]:
        _INTERACTIONS[name] = layer_class
        return layer_class

    return register


def interaction_class(config: CaeAvConfig) -> type[InteractionLayer]:
    """
    Return the layer class that the configuration names.

    Raises:
        CaeAvError: No layer is registered under `config.interaction`, or `agreement_loss_weight` is set although the
            method has no agreement.
    """
    if config.interaction not in _INTERACTIONS:
        known = ", ".join(sorted(_INTERACTIONS))
        raise CaeAvError(
            f"`interaction` of CaeAvConfig must be one of {known}, got {config.interaction!r}; the module that "
            "registers another one has to be imported first"
        )
    method = _INTERACTIONS[config.interaction]
    if config.agreement_loss_weight and "agreement" not in method.loss_weights(config):
        raise CaeAvError(
            f"`agreement_loss_weight` of CaeAvConfig must be 0 with `interaction` {config.interaction!r}, which has "
            "no agreement"
        )
    return method


def pair_positions(visual: Sequence[TowerStage], audio: Sequence[TowerStage]) -> list[list[PairPosition]]:
    """
    Return the positions of the pairs of blocks that interact, for each stage; see [`~towers.base.pair_blocks`].

    Args:
        visual, audio: The stages of both towers.
    """

    def positions(stages: Sequence[TowerStage]) -> list[BlockPosition]:
        depth = sum(stage.depth for stage in stages)
        places = [(stage, index) for stage in stages for index in range(stage.depth)]
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
            )
            for number, (stage, index) in enumerate(places)
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
