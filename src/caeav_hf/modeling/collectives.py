"""
A batch that several processes share: means, rows and statistics over all of it.

While gradients are recorded, every process gets the loss of the whole batch, and distributed training takes the mean
of their gradients. Together these are loss and gradient of one process with all the clips, however many processes
there are, and however unequal their shares of clips, frames and labels. Without gradients every process is alone, so
that one of them may score a model while the others do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..towers.recompute import is_recomputing


_is_stand_in = False


@contextmanager
def standing_in(active: bool = True) -> Iterator[None]:
    """
    Within this context, forward and backward pass alike, what this process computes counts nowhere. A process without
    a clip of its own takes part in a step in this way, with any clip: the others wait for it.
    """
    global _is_stand_in
    before, _is_stand_in = _is_stand_in, active
    try:
        yield
    finally:
        _is_stand_in = before


def num_processes() -> int:
    """Between how many processes the batch is shared: 1 without distributed training, and without gradients."""
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        return dist.get_world_size()
    return 1


def counts() -> bool:
    """Whether the clips of this process are of the batch; see `standing_in`."""
    return not _is_stand_in


def anywhere(condition: bool, device: torch.device) -> bool:
    """Whether a condition holds on any process that shares the batch."""
    if num_processes() == 1:
        return condition
    flag = torch.tensor([condition and counts()], dtype=torch.int32, device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, for sums and losses; anything wider as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _LossSum(torch.autograd.Function):
    """
    Sum over processes on the way to a loss that every process computes alike. The gradient that comes back is then the
    same on all of them, and needs no exchange to be summed.
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
    Mean over the whole batch, of a loss or of what a loss is computed from in the same way everywhere.

    Args:
        total: Sum over what this process has of the batch, any shape.
        count: How many that are.

    Returns:
        The mean, as `total` in shape, in float32 at least; 0 over nothing at all.
    """
    total = at_least_float32(total)
    number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    if num_processes() > 1:
        both = torch.cat([total.reshape(-1), number.reshape(1)])
        both = _LossSum.apply(both if counts() else 0.0 * both)
        total, number = both[:-1].view_as(total), both[-1]
    return total / number.clamp_min(1)


class _Gather(torch.autograd.Function):
    """The tensors of all processes, of one shape, stacked; their gradients are summed where they came from."""

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
    The rows (n, ...) of every process, in the order of the processes, and the place of this process's own. Their
    number may differ. Gradients flow to all of them.
    """
    if num_processes() == 1:
        return [rows], 0
    rows = rows if counts() else rows[:0]
    lengths = _Gather.apply(torch.tensor([len(rows)], device=rows.device))[:, 0].tolist()
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(1, *lengths) - len(rows)))
    parts = _Gather.apply(padded.contiguous())
    return [part[:length] for part, length in zip(parts, lengths, strict=True)], dist.get_rank()


class _SharedNormalisation(torch.autograd.Function):
    """Normalises rows (n, C) by mean and variance over the rows of all processes; gives these and their number too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sums = torch.cat([wide.sum(0), wide.new_full((1,), len(rows))]) * counts()
        dist.all_reduce(sums)
        number = sums[-1].clamp_min(1)
        mean = sums[:-1] / number
        centred = wide - mean
        squares = centred.square().sum(0) * counts()
        dist.all_reduce(squares)
        variance = squares / number
        scale = (variance + eps).rsqrt()
        normalised = (centred * scale).to(rows.dtype)
        ctx.save_for_backward(normalised, scale, number)
        ctx.counts = counts()
        ctx.mark_non_differentiable(mean, variance, number)
        return normalised, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normalised, scale, number = ctx.saved_tensors
        gradient, wide = gradients[0].to(scale.dtype), normalised.to(scale.dtype)
        sums = torch.stack([gradient.sum(0), (gradient * wide).sum(0)]) * ctx.counts
        dist.all_reduce(sums)
        if ctx.counts:
            means = sums / number
            gradient = gradient - means[0] - wide * means[1]
        return (gradient * scale).to(normalised.dtype), None


class SharedBatchNorm(nn.BatchNorm1d):
    """
    Batch normalisation of the last axis over the rows of all processes, whose running statistics do not count a batch
    again when the backward pass recomputes it.
    """

    def forward(self, states: Tensor) -> Tensor:
        """(..., C), normalised over all axes but the last."""
        return self._normalise(states.reshape(-1, states.shape[-1])).view_as(states)

    def _normalise(self, rows: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(rows)
        if num_processes() == 1:
            if not is_recomputing():
                return super().forward(rows)
            spare = (self.running_mean.clone(), self.running_var.clone())
            return F.batch_norm(rows, *spare, self.weight, self.bias, training=True, eps=self.eps)
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
