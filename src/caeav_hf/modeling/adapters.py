"""
Parts of the adapters of several methods: cross-modal maps, latent tokens, and the bottleneck of LAVisH, which DG-SCT
and AVMoE build on.

Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (CVPR 2023).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import CaeAvError
from ..towers.linear import linear, product_dtype
from .collectives import SharedBatchNorm, at_least_float32


class CrossModalMap(nn.Module):
    r"""
    Brings the other modality's tokens y (N, L', C') to the stream's shape by a linear map A over tokens and a linear
    map W over channels: Y = A y W^T + a s^T + 1 b^T, with a and b their biases and s the row sums of W.

    Y is as large as the stream, and A is the most expensive product of the whole model, so Y is not formed where few
    queries read it: both directions of an attention over Y factor through y, at 2 n L L' instead of L L' min(C, C')
    operations for n queries.
    """

    def __init__(self, num_tokens: int, other_tokens: int, hidden_size: int, other_size: int):
        super().__init__()
        self.tokens = nn.Linear(other_tokens, num_tokens)
        self.channels = nn.Linear(other_size, hidden_size)

    def forward(self, other: Tensor) -> Tensor:
        """Map tokens (N, L', C') to (N, L, C), in the cheaper order of the two maps."""
        weight = self.channels.weight
        if weight.shape[0] < weight.shape[1]:
            mapped = self._map_tokens(linear(other, weight))
        else:
            mapped = linear(self._map_tokens(other), weight)
        return mapped + self.tokens.bias[:, None] * weight.sum(1) + self.channels.bias

    def _map_tokens(self, other: Tensor) -> Tensor:
        """Apply A to (N, L', C), without its bias."""
        # Contiguous, since PyTorch would otherwise copy the weight for each frame.
        return linear(other.transpose(1, 2).contiguous(), self.tokens.weight).transpose(1, 2)

    def mean(self, other: Tensor) -> Tensor:
        """Return the mean (N, C) over the mapped tokens of (N, L', C')."""
        return self._mean(self.tokens.weight.sum(0), other)

    def _mean(self, column_sums: Tensor, other: Tensor) -> Tensor:
        """Return `mean` from the sums (L') over the rows of A."""
        weight = self.channels.weight
        # A batched product: PyTorch's product of a vector and a batch copies the batch and keeps the copy.
        means = (column_sums / self.tokens.out_features).expand(other.shape[0], 1, -1)
        pooled = (means @ other).squeeze(1)
        return linear(pooled, weight) + self.tokens.bias.mean() * weight.sum(1) + self.channels.bias

    def factors(self, num_queries: int) -> bool:
        """Return whether answering this number of queries is cheaper without forming Y."""
        return 2 * num_queries < min(self.channels.weight.shape)

    def attend_and_mean(self, queries: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return softmax(q Y^T) Y, (N, n, C), for queries (n, C) shared by all frames, unscaled, and the mean (N, C) over
        the tokens of Y.
        """
        weight, bias = self.channels.weight, self.tokens.bias
        if not self.factors(len(queries)):
            mapped = self(other)
            return (queries @ mapped.transpose(1, 2)).softmax(-1) @ mapped, mapped.mean(1)
        row_sums = weight.sum(1)
        # The channel bias is constant over the tokens of Y, so it does not change the softmax and is left out.
        keys, offsets = linear(other, queries @ weight).transpose(1, 2), queries @ row_sums
        if torch.compiler.is_compiling():
            probs = (linear(keys, self.tokens.weight) + offsets[:, None] * bias).softmax(-1)
            gathered, column_sums = linear(probs, self.tokens.weight.T), self.tokens.weight.sum(0)
            # The bias as a column: onnxruntime 1.31 computes wrong products of a transposed tensor and a vector.
            moved = probs @ bias[:, None]
        else:
            rows, offsets = keys.flatten(0, 1), offsets.repeat(other.shape[0])
            gathered, moved, column_sums = _AttentionThroughMap.apply(rows, offsets, self.tokens.weight, bias)
            gathered, moved = gathered.view(keys.shape), moved.view(*keys.shape[:2], 1)
        context = linear(gathered @ other, weight) + moved * row_sums + self.channels.bias
        return context, self._mean(column_sums, other)


class _AttentionThroughMap(torch.autograd.Function):
    """
    P = softmax(X A^T + r a^T), P A, P a and the column sums of A, for rows X (R, L'), offsets r (R), a map A (L, L')
    and its bias a (L).

    A is large and read three times. Here its gradient is one product instead of the sum of three.
    """

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = product_dtype(keys)
        ctx.keys_dtype, stored = keys.dtype, weight
        with torch.autocast(keys.device.type, enabled=False):
            keys, weight = keys.to(dtype), weight.to(dtype)
            scores = at_least_float32(linear(keys, weight)) + offsets[:, None] * bias
            # The ones sum the columns.
            readers = torch.cat([scores.softmax(-1).to(dtype), keys.new_ones(1, len(bias))])
            read = linear(readers, weight.T)
            moved = readers[:-1] @ bias.to(dtype)
        # Not the weight's copy in `dtype`, which is made again in the backward pass.
        ctx.save_for_backward(keys, offsets, stored, bias, readers)
        return read[:-1], moved, read[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_gathered: Tensor, of_moved: Tensor, of_sums: Tensor) -> tuple[Tensor, ...]:
        keys, offsets, stored, bias, readers = ctx.saved_tensors
        with torch.autocast(keys.device.type, enabled=False):
            weight = stored.to(keys.dtype)
            of_read = torch.cat([of_gathered, of_sums[None]]).to(keys.dtype)
            probs = at_least_float32(readers[:-1])
            of_probs = at_least_float32(linear(of_read[:-1], weight)) + of_moved[:, None] * bias
            of_scores = probs * (of_probs - (probs * of_probs).sum(-1, keepdim=True))
            of_offsets = of_scores @ bias.to(of_scores.dtype)
            of_bias = offsets.to(of_scores.dtype) @ of_scores + of_moved.to(probs.dtype) @ probs
            of_scores = of_scores.to(keys.dtype)
            of_keys = linear(of_scores, weight.T)
            of_weight = linear(torch.cat([of_scores, readers]).T, torch.cat([keys, of_read]).T)
        return of_keys.to(ctx.keys_dtype), of_offsets, of_weight.to(stored.dtype), of_bias


class GroupedLinear(nn.Module):
    """A linear map without bias in which each group of output channels reads one group of input channels."""

    def __init__(self, in_features: int, out_features: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, states: Tensor) -> Tensor:
        # The map is narrow, so one dense product with blocks on the diagonal is faster than a strided one per group.
        return linear(states, torch.block_diag(*self.weight.chunk(self.groups)))


class LatentAttention(nn.Module):
    """
    Attention of a stream to latent tokens that have gathered context, scaled by a gate (initially 0). The latents are
    at first drawn from [0, 1), or zero.
    """

    def __init__(self, num_latent_tokens: int, hidden_size: int, zero_latents: bool = False):
        super().__init__()
        self.zero_latents = zero_latents
        self.latents = nn.Parameter(torch.empty(num_latent_tokens, hidden_size))
        self.gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.zero_latents:
            nn.init.zeros_(self.latents)
        else:
            nn.init.uniform_(self.latents)
        nn.init.zeros_(self.gate)

    def forward(self, states: Tensor, gathered: Tensor) -> Tensor:
        """Let `states` (N, L, C) attend to the latents plus `gathered` (N, n, C), the context that they gathered."""
        tokens = self.latents + gathered
        # With so few keys the attention map is small beside the states: the backward pass keeps it, not the result.
        probs = (states @ tokens.transpose(1, 2)).softmax(-1)
        return torch.baddbmm(states, probs, self.gate * tokens)


@dataclass(frozen=True, kw_only=True)
class LatentAdapterOptions:
    """
    Options of a [`LatentAdapter`], which the options of a method extend.

    Args:
        reduction: Channels over those of the bottleneck.
        groups: Groups of the bottleneck's two projections.
        num_latent_tokens: Latent tokens of the exchange.
        zero_latents: Whether these begin at zero instead of being drawn from [0, 1).
        norm_before, batch_norm: Layer norm before, and batch norms in, the bottleneck.
        gated_streams: Streams whose adapters have a gate, which begins at 0: `"both"` or `"visual"`.
        gate_before_norm: Whether the gate stands before the last layer norm, or behind it.

    Raises:
        ValueError: A field of the class or of its subclass has a wrong type or value.
    """

    reduction: int = 8
    groups: int = 2
    num_latent_tokens: int = 32
    zero_latents: bool = False
    norm_before: bool = True
    batch_norm: bool = True
    gated_streams: Literal["both", "visual"] = "both"
    gate_before_norm: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if choices := get_args(kind):
                if value not in choices:
                    raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
            elif kind is float:
                if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value < float("inf"):
                    raise ValueError(f"`{name}` must be a number that is not negative, got {value!r}")
            elif kind is int:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}")
            elif not isinstance(value, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}, got {value!r}")


class LatentAdapter(nn.Module):
    """
    Base class of adapters with latent tokens, a bottleneck, norms and a gate. A subclass calls `add_bottleneck` after
    it has built its own layers, and defines `forward`.

    Args:
        options: Options of the method.
    """

    def __init__(self, options: LatentAdapterOptions):
        super().__init__()
        self.options = options
        self.gate: nn.Parameter | None = None

    def add_bottleneck(self, size: int) -> None:
        """
        Build latent tokens, bottleneck and norms for a stream of `size` channels.

        Raises:
            CaeAvError: `reduction` and `groups` do not divide the channels.
        """
        options = self.options
        if size % options.reduction or (size // options.reduction) % options.groups:
            raise CaeAvError(
                f"`reduction` ({options.reduction}) and `groups` ({options.groups}) of `interaction_options` must "
                f"divide the channels of every stage one after the other, got {size}"
            )
        bottleneck = size // options.reduction
        self.exchange = LatentAttention(options.num_latent_tokens, size, options.zero_latents)
        self.norm_before = nn.LayerNorm(size) if options.norm_before else nn.Identity()
        self.down = GroupedLinear(size, bottleneck, options.groups)
        self.up = GroupedLinear(bottleneck, size, options.groups)
        self.batch_norm_down = SharedBatchNorm(bottleneck) if options.batch_norm else nn.Identity()
        self.batch_norm_up = SharedBatchNorm(size) if options.batch_norm else nn.Identity()
        self.norm_after = nn.LayerNorm(size)

    def add_gate(self) -> None:
        """Build the gate, which begins at 0 and scales the result."""
        self.gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def gather(self, tokens: Tensor) -> Tensor:
        """Return the context that the latents gather from tokens (N, L, C) by unscaled attention, (N, n, C)."""
        return (self.exchange.latents @ tokens.transpose(1, 2)).softmax(-1) @ tokens

    def bottleneck(self, states: Tensor) -> Tensor:
        """Pass tokens (N, L, C) through the bottleneck, the norms and the gate."""
        hidden = self.batch_norm_down(self.down(self.norm_before(states)))
        hidden = self.batch_norm_up(self.up(F.relu(hidden)))
        if self.gate is None:
            return self.norm_after(hidden)
        if self.options.gate_before_norm:
            return self.norm_after(self.gate * hidden)
        return self.gate * self.norm_after(hidden)
