"""
The frozen towers as stages of blocks, a block being two residual branches: attention and feed-forward.

An interaction layer decides when each branch runs and on what, so the towers here hand out their blocks instead of
running them. A tower is one file: a [`Tower`] under [`register_tower`], beside a configuration that answers what the
encoder, the heads and the processor ask before the tower is built ([`~configuration_cae_av.TowerGeometry`]).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_cae_av import TowerStage
from ..errors import CaeAvError


Grid = tuple[int, int]


def _no_groups(*_: Any) -> Tensor:
    raise CaeAvError("the blocks of this tower attend within a frame only")


@dataclass(frozen=True)
class FrozenBlock:
    """
    One block of a tower. Both branches map tokens (N, L, C) to what is added to them, norms included.

    Attributes:
        attention: The attention branch.
        feed_forward: The feed-forward branch.
        group_attention: The attention branch with the same weights and norms on groups of tokens that the caller
            chose: `group_attention(groups, bias)` takes (G, M, C), G groups of M tokens that attend to their own group
            and to nothing else, and what is added to the scores, broadcastable to (G, heads, M, M), or `None`. For
            attention along time, the groups are the frames of a clip at each token position.
        position_bias: What the tower adds to the scores of M tokens of one frame: their rows and columns in the grid,
            (M, 2) integers, to (heads, M, M). It is for the `bias` of `group_attention`.
    """

    attention: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    group_attention: Callable[..., Tensor] = _no_groups
    position_bias: Callable[[Tensor], Tensor] = _no_groups

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run the whole block."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class Tower(nn.Module):
    """
    Base class of the towers that read frames or sound. A subclass takes its configuration as the only argument and
    keeps it as `config`.

    `grid` is, in all methods, the height and width of the patch tokens in a stage, which other inputs than those of
    the configured size may have; by default that of the configuration.
    """

    config: Any

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the tokens (N, L, C) of N inputs, positions included."""
        raise NotImplementedError

    def embed_spectrogram(self, inputs: Tensor) -> Tensor:
        """Return the tokens (N, L, C) of filter banks (N, 1, frames, bands), read as images."""
        return self.embed(inputs.expand(-1, self.config.num_channels, -1, -1))

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """
        Return tokens as the blocks of a stage take them: downsampled from the stage before, whose grid is given. Stage
        0 may have a norm that stands between the embedding and the first block.
        """
        return tokens

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        """Return the blocks of a stage."""
        raise NotImplementedError

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm behind the last stage."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """Return one vector a frame, (..., C), of its tokens (..., L, C): the patches' mean or the class token."""
        if self.config.read_out == "class":
            return tokens[..., 0, :]
        return tokens[..., self.config.stages()[-1].num_prefix_tokens :, :].mean(-2)

    def keep_constants(self, dtype: torch.dtype, grids: Sequence[Grid] | None = None) -> None:
        """Compute what attention in `dtype` adds to its scores, which needs nothing but weights."""

    def forget(self) -> None:
        """Drop what was computed from the weights and kept."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that reads the patches, where text models have their embedding."""
        raise NotImplementedError


class TowerReader:
    """
    A tower as one stream reads through it.

    Args:
        tower: The tower.
        input_size: Height and width of the inputs; by default the tower's own.
        reads_spectrograms: Whether the inputs are filter banks and the tower is one of frames (Table II, "shared").
    """

    def __init__(self, tower: Tower, input_size: Grid | None = None, reads_spectrograms: bool = False):
        self.tower = tower
        self.input_size = input_size
        self.reads_spectrograms = reads_spectrograms
        self.stages: list[TowerStage] = tower.config.stages(input_size)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the tokens (N, L, C) of N inputs."""
        if not self.reads_spectrograms:
            return self.tower.embed(inputs)
        if inputs.shape[1:] != (1, *(self.input_size or ())):
            raise CaeAvError(
                f"`input_features` must end in {(1, *(self.input_size or ()))}, got {tuple(inputs.shape[1:])}"
            )
        return self.tower.embed_spectrogram(inputs)

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Return tokens as the blocks of a stage take them."""
        return self.tower.enter_stage(stage, tokens, self.stages[max(0, stage - 1)].grid)

    def blocks(self, stage: int) -> list[FrozenBlock]:
        """Return the blocks of a stage."""
        return self.tower.blocks(stage, self.stages[stage].grid)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm behind the last stage."""
        return self.tower.final_norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return one vector a frame, (..., C), of its tokens (..., L, C)."""
        return self.tower.pool(tokens)

    def patches(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the patches among those of the last stage, (..., L, C)."""
        return tokens[..., self.stages[-1].num_prefix_tokens :, :]

    def keep_constants(self, dtype: torch.dtype) -> None:
        """Compute what attention in `dtype` adds to its scores."""
        self.tower.keep_constants(dtype, [stage.grid for stage in self.stages])

    def walk(self, tokens: Tensor, run: Callable[..., Tensor] | None = None) -> "TowerWalk":
        """Return the tokens of [`TowerReader.embed`] as a [`TowerWalk`]."""
        return TowerWalk(self, tokens, run)


class TowerWalk:
    """
    Tokens on their way through the blocks of a tower, which are numbered from 0 through all stages.

    Args:
        reader: Of the tower.
        tokens: (N, L, C), embedded.
        run: Runs a block alone, `run(block, tokens)`.

    Attributes:
        tokens: (N, L, C), where they are now.
        ends: Those that left each stage, before the next one downsampled them.
    """

    def __init__(self, reader: TowerReader, tokens: Tensor, run: Callable[..., Tensor] | None = None):
        self.tokens = tokens
        self.ends: list[Tensor] = []
        self._reader = reader
        self._run = run or FrozenBlock.__call__
        self._places = [(stage, index) for stage, size in enumerate(reader.stages) for index in range(size.depth)]
        self._blocks: list[FrozenBlock] = []
        self._count = 0

    def reach(self, number: int) -> FrozenBlock:
        """
        Run the blocks before this number and return the one with it. The caller runs that one on `tokens` and writes
        what comes of it back there.
        """
        while self._count < number:
            block = self._next()
            self.tokens = self._run(block, self.tokens)
        return self._next()

    def finish(self) -> Tensor:
        """Run the blocks that are left and return the tokens, before the final norm."""
        while self._count < len(self._places):
            block = self._next()
            self.tokens = self._run(block, self.tokens)
        self.ends.append(self.tokens)
        return self.tokens

    def _next(self) -> FrozenBlock:
        stage, index = self._places[self._count]
        if index == 0:
            if stage:
                self.ends.append(self.tokens)
            self.tokens = self._reader.enter_stage(stage, self.tokens)
            self._blocks = self._reader.blocks(stage)
        self._count += 1
        return self._blocks[index]


def pair_blocks(visual: Sequence[int], audio: Sequence[int]) -> list[list[tuple[int, int]]]:
    """
    Return the pairs of blocks that interact.

    Of n and m blocks, n >= m, block j of the m stands beside block (j + 1) n / m - 1, rounded down, of the n; the
    others run alone. Towers with the same number of stages, whose numbers of blocks in each divide, pair stage by
    stage; other towers pair over all their blocks.

    Args:
        visual, audio: Blocks of each stage of both towers.

    Returns:
        For each stage the numbers (visual, audio) of the pairs, counted from 0 through all stages. Towers with
        different numbers of stages have those of the one with more of them.
    """

    def pair(n_v: int, n_a: int) -> list[tuple[int, int]]:
        shorter = min(n_v, n_a)
        return [((j + 1) * n_v // shorter - 1, (j + 1) * n_a // shorter - 1) for j in range(shorter)]

    if len(visual) == len(audio) and all(v % a == 0 for v, a in zip(visual, audio, strict=True)):
        firsts = [(sum(visual[:stage]), sum(audio[:stage])) for stage in range(len(visual))]
        return [
            [(first_v + v, first_a + a) for v, a in pair(n_v, n_a)]
            for (first_v, first_a), n_v, n_a in zip(firsts, visual, audio, strict=True)
        ]
    stages, of_audio = (visual, 0) if len(visual) >= len(audio) else (audio, 1)
    stage_of_block = [stage for stage, depth in enumerate(stages) for _ in range(depth)]
    pairs = pair(sum(visual), sum(audio))
    return [[p for p in pairs if stage_of_block[p[of_audio]] == stage] for stage in range(len(stages))]


_TOWERS: dict[str, type[Tower]] = {}

# Imported when they are built: the libraries behind them take seconds to load.
_OWN = {"cae_av_vision": "swin_v2", "cae_av_audio": "htsat"}

_TowerClass = TypeVar("_TowerClass", bound=type[Tower])


def register_tower(config_class: type[PreTrainedConfig]) -> Callable[[_TowerClass], _TowerClass]:
    """
    Make a tower class the one for `vision_config` and `audio_config` of this class. Saved configurations name it by
    its `model_type`; the module that registers it has to be imported before one is loaded.
    """

    def register(tower_class: _TowerClass) -> _TowerClass:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        _TOWERS[config_class.model_type] = tower_class
        return tower_class

    return register


def build_tower(config: PreTrainedConfig) -> Tower:
    """
    Return the tower of a configuration, randomly initialised.

    Raises:
        CaeAvError: No tower is registered for its model type.
    """
    if config.model_type in _OWN:
        import_module(f".{_OWN[config.model_type]}", __package__)
    if config.model_type not in _TOWERS:
        known = ", ".join(sorted(_OWN.keys() | _TOWERS.keys()))
        raise CaeAvError(
            f"no tower is registered for the model type {config.model_type!r}; expected one of {known}, or import the "
            "module that registers it first"
        )
    return _TOWERS[config.model_type](config)
