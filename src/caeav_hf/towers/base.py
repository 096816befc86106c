"""
The frozen towers as stages of blocks, a block being two residual branches: attention and feed-forward.

An interaction layer decides when each branch runs and on what, so the towers here hand out their blocks instead of
running them. What depends on frozen weights alone - position biases, attention masks - is computed once and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class FrozenBlock:
    """
    One block of a tower. Both branches map tokens (N, L, C) to what is added to them, norms included.

    Attributes:
        attention: The attention branch.
        feed_forward: The feed-forward branch.
    """

    attention: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]

    def __call__(self, tokens: Tensor) -> Tensor:
        """The whole block."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class Tower(Protocol):
    """What the encoder asks of a backbone."""

    def stage_sizes(self) -> list[tuple[int, int]]:
        """Tokens and channels of each stage."""

    def stage_grids(self) -> list[tuple[int, int]]:
        """Height and width of the tokens of each stage."""

    def stage_heads(self) -> list[int]:
        """Attention heads of each stage."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Inputs of N frames to the tokens (N, L, C) that enter the first stage."""

    def enter_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Tokens as they leave stage `stage` - 1, downsampled for stage `stage`; the first stage changes nothing."""

    def blocks(self, stage: int) -> list[FrozenBlock]:
        """The blocks of a stage."""

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last stage."""
