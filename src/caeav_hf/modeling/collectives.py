"""
Means, gathered rows and statistics over a batch that several processes share.

While gradients are recorded, every process computes the loss of the whole batch, and distributed training averages
their gradients. The result is the loss and gradient of one process with all clips, for any number of processes and
however unequal their shares of clips, frames and labels. Without gradients every process works alone, so that one of
them can evaluate a model while the others do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..towers.recompute import is_recomputing


_contributes = True


@contextmanager
def without_contribution(active: bool = True) -> Iterator[None]:
    """
    Run forward and backward passes in which this process adds nothing to losses, gathered rows or statistics. A
    process without clips takes part in a step in this way, with a borrowed clip, because the collectives
    of the others wait for it.
    """
    global _contributes
    before, _contributes = _contributes, not active
    try:
        yield
    finally:
        _contributes = before


def num_processes() -> int:
    """Return how many processes share the batch: 1 without distributed training or without gradients."""
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        return dist.get_world_size()
    return 1


def contributes() -> bool:
    """Return whether the clips of this process belong to the batch; see `without_contribution`."""
    return _contributes


def anywhere(condition: bool, device: torch.device) -> bool:
    """Return whether a condition holds on any process that shares the batch."""
    if num_processes() == 1:
        return condition
    flag = torch.tensor([condition and contributes()], dtype=torch.int32, device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def at_least_float32(values: Tensor) -> Tensor:
    """Cast half precision to float32, for sums and losses; keep wider types."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _LossSum(torch.autograd.Function):
    """
    Sum over processes for a loss that every process computes identically. The incoming gradient is then the same on
    all of them, so the backward pass sums it without communication.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return dist.get_world_size() * gradients[0]


def batch_mean(total: Tensor, count: int | Tensor) -> Tensor:
    """
    Return the mean over the whole batch of a loss, or of a value from which every process computes the same loss.

    Args:
        total: Sum over this process's share of the batch, any shape.
        count: Number of terms in the sum.

    Returns:
        The mean, shaped like `total`, in at least float32; 0 if the batch has no terms.
    """
    total = at_least_float32(total)
    # A count of tokens or frames may be symbolic in a graph; `as_tensor` would make it a constant.
    number = count.to(total) if isinstance(count, Tensor) else total.new_full((), count)
    if num_processes() > 1:
        both = torch.cat([total.reshape(-1), number.reshape(1)])
        both = _LossSum.apply(both if contributes() else 0.0 * both)
        total, number = both[:-1].view_as(total), both[-1]
    return total / number.clamp_min(1)


def batch_sum(total: Tensor) -> Tensor:
    """Return the sum over the whole batch of a loss, in at least float32, given this process's share."""
    total = at_least_float32(total)
    if num_processes() > 1:
        total = _LossSum.apply(total if contributes() else 0.0 * total)
    return total


class _Gather(torch.autograd.Function):
    """Stacks tensors of equal shape from all processes; the backward pass returns each process its summed gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather_rows(rows: Tensor) -> tuple[list[Tensor], int]:
    """
    Gather the rows (n, ...) of every process; n may differ between processes. Gradients flow to all rows.

    Returns:
        The rows by process, and the position of this process's own in that list.
    """
    if num_processes() == 1:
        return [rows], 0
    rows = rows if contributes() else rows[:0]
    lengths = _Gather.apply(torch.tensor([len(rows)], device=rows.device))[:, 0].tolist()
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(1, *lengths) - len(rows)))
    parts = _Gather.apply(padded.contiguous())
    return [part[:length] for part, length in zip(parts, lengths, strict=True)], dist.get_rank()


class _SharedNormalisation(torch.autograd.Function):
    """Normalizes rows (n, C) over the rows of all processes; also returns their mean, variance and number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sums = torch.cat([wide.sum(0), wide.new_full((1,), len(rows))]) * contributes()
        dist.all_reduce(sums)
        number = sums[-1].clamp_min(1)
        mean = sums[:-1] / number
        centred = wide - mean
        squares = centred.square().sum(0) * contributes()
        dist.all_reduce(squares)
        variance = squares / number
        scale = (variance + eps).rsqrt()
        normalised = (centred * scale).to(rows.dtype)
        ctx.save_for_backward(normalised, scale, number)
        ctx.contributes = contributes()
        ctx.mark_non_differentiable(mean, variance, number)
        return normalised, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normalised, scale, number = ctx.saved_tensors
        gradient, wide = gradients[0].to(scale.dtype), normalised.to(scale.dtype)
        sums = torch.stack([gradient.sum(0), (gradient * wide).sum(0)]) * ctx.contributes
        dist.all_reduce(sums)
        if ctx.contributes:
            means = sums / number
            gradient = gradient - means[0] - wide * means[1]
        return (gradient * scale).to(normalised.dtype), None


class SharedBatchNorm(nn.BatchNorm1d):
    """
    Batch normalization of the last axis over the rows of all processes. When the backward pass recomputes a batch, the
    running statistics are not updated a second time.
    """

    def forward(self, states: Tensor) -> Tensor:
        """Normalize (..., C) over all axes but the last."""
        return self._normalise(states.reshape(-1, states.shape[-1])).view_as(states)

    def _normalise(self, rows: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(rows)
        if num_processes() == 1:
            if not is_recomputing():
                return super().forward(rows)
            unused = (self.running_mean.clone(), self.running_var.clone())
            return F.batch_norm(rows, *unused, self.weight, self.bias, training=True, eps=self.eps)
        normalised, mean, variance, number = _SharedNormalisation.apply(rows, self.eps)
        if not is_recomputing():
            self._track(mean, variance * number / (number - 1).clamp_min(1))
        return normalised * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
