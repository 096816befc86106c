"""
Base class and registry of frozen towers.

A tower is a sequence of stages of blocks, and a block has two residual branches: attention and feed-forward. Towers
return their blocks instead of running them, since interaction layers decide when each branch runs and on which tokens.
A tower is one file: a [`Tower`] registered by [`register_tower`], and a configuration from which the encoder, the
heads and the processor read its sizes before it is built ([`~configuration_cae_av.TowerGeometry`]).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_cae_av import TowerStage
from ..errors import CaeAvError
from .windows import Windows


Grid = tuple[int, int]


def _no_groups(*_: Any) -> Tensor:
    raise CaeAvError("the blocks of this tower attend within a frame only")


@dataclass(frozen=True)
class FrozenBlock:
    """
    One block of a tower. Both branches, which include their norms, map tokens (N, L, C) to a term to add to them.

    Attributes:
        attention: The attention branch.
        feed_forward: The feed-forward branch.
        group_attention: The attention branch, with the same weights and norms, within groups of tokens chosen by the
            caller: `group_attention(groups, bias)` takes G groups of M tokens, (G, M, C), and a bias on the scores,
            broadcastable to (G, heads, M, M), or `None`. For attention along time, a group holds the tokens at one
            position of all frames of a clip.
        position_bias: The tower's bias on the scores of M tokens of one frame, (heads, M, M), from their rows and
            columns in the grid, (M, 2) integers. May be passed as `bias` to `group_attention`.
        windows: The windows within which the block attends; `None` if it attends to the whole frame.
    """

    attention: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    group_attention: Callable[..., Tensor] = _no_groups
    position_bias: Callable[[Tensor], Tensor] = _no_groups
    windows: Windows | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run the whole block."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class Tower(nn.Module):
    """
    Base class of the towers that read frames or sound. A subclass takes its configuration as the only argument and
    stores it as `config`.

    In all methods, `grid` is the height and width of the patch tokens in a stage. It depends on the size of the
    inputs; by default inputs have the configured size.

    Attributes:
        final_norm_name: Name of the module that `final_norm` applies.
        lora_targets: Regular expression of the names, within the tower, of the layers that LoRA adapts by default.
        full_precision_modules: Names of submodules that run outside autocast and must keep their dtype.
    """

    config: Any
    final_norm_name: ClassVar[str] = "norm"
    lora_targets: ClassVar[str | None] = None
    full_precision_modules: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def convert(cls, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """
        Return values of the tower's configuration, and its tensors by name, from a pretrained model of another
        library.

        Args:
            model: A timm model for towers of frames, a Transformers model for towers of sound.

        Returns:
            Both, or `None` if the tower is not of the model's architecture.

        Raises:
            CaeAvError: The tower is of this architecture, but does not support the model's settings.
        """
        return None

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the tokens (N, L, C) of N inputs, with position embeddings."""
        raise NotImplementedError

    def embed_spectrogram(self, inputs: Tensor) -> Tensor:
        """Return the tokens (N, L, C) of filter banks (N, 1, frames, bands), read as images."""
        return self.embed(inputs.expand(-1, self.config.num_channels, -1, -1))

    def enter_stage(self, stage: int, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """
        Return the input tokens of a stage's blocks, by default unchanged.

        Hierarchical towers downsample the tokens of the stage before, whose grid is given. Stage 0 may apply a norm
        between the embedding and the first block.
        """
        return tokens

    def blocks(self, stage: int, grid: Grid | None = None) -> list[FrozenBlock]:
        """Return the blocks of a stage."""
        raise NotImplementedError

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm after the last stage."""
        raise NotImplementedError

    def stage_norm(self, stage: int, tokens: Tensor) -> Tensor:
        """Apply the norm after a stage before the last, for towers that have one where a stage is read as a map."""
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens (..., L, C) to one vector per frame (..., C): the mean of the patches or the class token."""
        if self.config.read_out == "class":
            return tokens[..., 0, :]
        return tokens[..., self.config.stages()[-1].num_prefix_tokens :, :].mean(-2)

    def project(self, pooled: Tensor) -> Tensor:
        """
        Map the normalised and pooled vectors (..., C) to the space (..., P) that the tower shares with a text tower.

        Raises:
            CaeAvError: The tower has no such projection.
        """
        raise CaeAvError(f"this {type(self).__name__} has no projection to the space of a text tower")

    def keep_constants(self, dtype: torch.dtype, grids: Sequence[Grid] | None = None) -> None:
        """Precompute the biases of attention in `dtype`, which depend only on weights."""

    def forget(self) -> None:
        """Drop cached values computed from the weights."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding, the counterpart of a text model's token embedding."""
        raise NotImplementedError


class TowerReader:
    """
    A tower applied to the inputs of one stream.

    Args:
        tower: The tower.
        input_size: Height and width of the inputs; by default the tower's own.
        reads_spectrograms: Whether a tower of frames reads filter banks (Table II, "shared").
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
        return self.tower.embed_spectrogram(self.checked_spectrogram(inputs))

    def checked_spectrogram(self, inputs: Tensor) -> Tensor:
        """
        Return filter banks unchanged.

        Raises:
            CaeAvError: Their size is not the configured one.
        """
        if inputs.shape[1:] != (1, *(self.input_size or ())):
            raise CaeAvError(
                f"`input_features` must end in {(1, *(self.input_size or ()))}, got {tuple(inputs.shape[1:])}"
            )
        return inputs

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Return the input tokens of a stage's blocks."""
        return self.tower.enter_stage(stage, tokens, self.stages[max(0, stage - 1)].grid)

    def blocks(self, stage: int) -> list[FrozenBlock]:
        """Return the blocks of a stage."""
        return self.tower.blocks(stage, self.stages[stage].grid)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm after the last stage."""
        return self.tower.final_norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens (..., L, C) to one vector per frame (..., C)."""
        return self.tower.pool(tokens)

    def patches(self, tokens: Tensor) -> Tensor:
        """Return the patch tokens among the last stage's tokens (..., L, C)."""
        return tokens[..., self.stages[-1].num_prefix_tokens :, :]

    def feature_maps(self, inputs: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """
        Return a map (N, C, H, W) of each stage, after its norm.

        Args:
            inputs: N inputs.
            run: Runs blocks, see [`TowerWalk`].
        """
        walk = self.walk(self.embed(inputs), run)
        walk.finish()
        last = len(self.stages) - 1
        maps = []
        for number, (stage, tokens) in enumerate(zip(self.stages, walk.ends, strict=True)):
            tokens = self.final_norm(tokens) if number == last else self.tower.stage_norm(number, tokens)
            maps.append(tokens[:, stage.num_prefix_tokens :].transpose(1, 2).unflatten(2, stage.grid))
        return maps

    def keep_constants(self, dtype: torch.dtype) -> None:
        """Precompute the biases of attention in `dtype`."""
        self.tower.keep_constants(dtype, [stage.grid for stage in self.stages])

    def walk(
        self, tokens: Tensor, run: Callable[..., Tensor] | None = None, start: int = 0, ends: Sequence[Tensor] = ()
    ) -> "TowerWalk":
        """Start a [`TowerWalk`] with the tokens of [`TowerReader.embed`], or at block `start`."""
        return TowerWalk(self, tokens, run, start, ends)


def _in_sequence(tokens: Tensor, *blocks: FrozenBlock) -> Tensor:
    for block in blocks:
        tokens = block(tokens)
    return tokens


def _call(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return function(*inputs)


class TowerWalk:
    """
    The state of tokens that pass through the blocks of a tower. Blocks are numbered from 0 over all stages.

    Args:
        reader: Reader of the tower.
        tokens: (N, L, C) embedded tokens.
        run: Runs blocks that do not interact, `run(function, tokens, *blocks)`.
        start: Number of the next block. Unless it is 0, `tokens` are those that `run_to(start)` left, of a walk with
            these `ends`.
        ends: See above.

    Attributes:
        tokens: (N, L, C) current tokens.
        ends: Output tokens of each completed stage, before downsampling.
    """

    def __init__(
        self,
        reader: TowerReader,
        tokens: Tensor,
        run: Callable[..., Tensor] | None = None,
        start: int = 0,
        ends: Sequence[Tensor] = (),
    ):
        self.tokens = tokens
        self.ends: list[Tensor] = [*ends]
        self._reader = reader
        self._run = run or _call
        self._schedule = [(stage, index) for stage, size in enumerate(reader.stages) for index in range(size.depth)]
        self._blocks: list[FrozenBlock] = []
        self._stage = -1  # of these blocks
        self._count = start
        if start:
            self._stage = self._schedule[start - 1][0]
            self._blocks = reader.blocks(self._stage)

    def reach(self, number: int) -> FrozenBlock:
        """
        Run all blocks before block `number` and return that block. The caller runs it on `tokens` and assigns the
        result to `tokens`.
        """
        # Recomputing two blocks needs less memory than recomputing one that interacts, and stores a state less.
        self.run_to(number, at_once=2)
        return self._next()

    def run_to(self, number: int, at_once: int = 1) -> None:
        """Run all blocks before block `number`, up to `at_once` of a stage in a call of `run`."""
        while self._count < number:
            blocks = [self._next()]
            while len(blocks) < at_once and self._count < number and self._schedule[self._count][0] == self._stage:
                blocks.append(self._next())
            self.tokens = self._run(_in_sequence, self.tokens, *blocks)

    def finish(self) -> Tensor:
        """Run the remaining blocks and return the tokens, before the final norm."""
        self.run_to(len(self._schedule))
        self.ends.append(self.tokens)
        return self.tokens

    def _next(self) -> FrozenBlock:
        stage, index = self._schedule[self._count]
        if stage != self._stage:
            if stage:
                self.ends.append(self.tokens)
            self.tokens = self._reader.enter_stage(stage, self.tokens)
            self._stage, self._blocks = stage, self._reader.blocks(stage)
        self._count += 1
        return self._blocks[index]


def pair_blocks(visual: Sequence[int], audio: Sequence[int]) -> list[list[tuple[int, int]]]:
    """
    Return the pairs of blocks that interact.

    Of n and m blocks, n >= m, block j of the m pairs with block floor((j + 1) n / m) - 1 of the n; the other blocks
    run alone. If both towers have the same number of stages and the audio depth divides the visual depth in each, they
    pair stage by stage, otherwise over all blocks.

    Args:
        visual, audio: Number of blocks in each stage of both towers.

    Returns:
        For each stage the pairs (visual, audio) of block numbers, from 0 over all stages. If the numbers of stages
        differ, the stages are those of the tower with more.
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

# Modules imported when their tower is built, since the libraries behind them take seconds to load.
_OWN = {
    "cae_av_vision": "swin_v2",
    "cae_av_swin": "swin",
    "cae_av_vit": "vit",
    "cae_av_pvt_v2": "pvt_v2",
    "cae_av_audio": "htsat",
    "cae_av_vggish": "vggish",
}

_TowerClass = TypeVar("_TowerClass", bound=type[Tower])


def register_tower(config_class: type[PreTrainedConfig]) -> Callable[[_TowerClass], _TowerClass]:
    """
    Register a tower class for a `vision_config` or `audio_config` of class `config_class`. Saved configurations name
    it by the `model_type`, so the module that registers it must be imported before they are loaded.
    """

    def register(tower_class: _TowerClass) -> _TowerClass:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        _TOWERS[config_class.model_type] = tower_class
        return tower_class

    return register


def model_types() -> list[str]:
    """Return the model types of the registered towers, those of this package first."""
    return [*_OWN, *(name for name in _TOWERS if name not in _OWN)]


def tower_class(model_type: str) -> type[Tower]:
    """
    Return the class of the towers of a model type.

    Raises:
        CaeAvError: No tower is registered for the model type.
    """
    if model_type in _OWN:
        import_module(f".{_OWN[model_type]}", __package__)
    if model_type not in _TOWERS:
        raise CaeAvError(
            f"no tower is registered for the model type {model_type!r}; expected one of {', '.join(model_types())}, "
            "or import the module that registers it first"
        )
    return _TOWERS[model_type]


def build_tower(config: PreTrainedConfig) -> Tower:
    """
    Build the tower of a configuration, randomly initialised.

    Raises:
        CaeAvError: No tower is registered for its model type.
    """
    return tower_class(config.model_type)(config)
