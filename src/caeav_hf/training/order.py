"""Which clips make up which batch: a function of the seed, the epoch and the process, and of nothing else."""

from collections.abc import Sequence

import numpy as np


def epoch_batches(
    num_clips: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    process_index: int = 0,
    num_processes: int = 1,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """
    The training batches of one process in one epoch, as lists of clip numbers.

    All processes together see every clip once, in an order drawn from `seed` and `epoch`. Each process gets as many
    batches as the others and no empty one: where the last clips are fewer than the processes, clips from the start of
    the order fill up. With a group for each clip, from 0 on, those of one group follow each other.
    """
    generator = np.random.default_rng([seed, epoch])
    permuted = generator.permutation(num_clips)
    if groups is not None and num_clips:
        place = generator.permutation(max(groups) + 1)[np.asarray(groups)[permuted]]
        permuted = permuted[place.argsort(kind="stable")]
    order = permuted.tolist()
    stride = batch_size * num_processes
    batches = []
    for start in range(0, num_clips, stride):
        chunk = order[start : start + stride]
        for filler in range(num_processes - len(chunk)):
            chunk.append(order[filler % num_clips])
        batches.append(np.array_split(chunk, num_processes)[process_index].tolist())
    return batches


def ordered_batches(
    num_clips: int,
    batch_size: int,
    *,
    process_index: int = 0,
    num_processes: int = 1,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """
    The evaluation batches of one process: every clip exactly once over all processes, none twice. Those of one group
    follow each other.
    """
    order = np.arange(num_clips) if groups is None else np.argsort(groups, kind="stable")
    mine = np.array_split(order, num_processes)[process_index].tolist()
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
