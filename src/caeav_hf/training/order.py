"""Which clips make up which batch: a function of the seed, the epoch and the process, and of nothing else."""

import numpy as np


def epoch_batches(
    num_clips: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> list[list[int]]:
    """
    The training batches of one process in one epoch, as lists of clip numbers.

    All processes together see every clip once, in an order drawn from `seed` and `epoch`. Each process gets as many
    batches as the others and no empty one: where the last clips are fewer than the processes, clips from the start of
    the order fill up.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_clips).tolist()
    stride = batch_size * num_processes
    batches = []
    for start in range(0, num_clips, stride):
        chunk = order[start : start + stride]
        for filler in range(num_processes - len(chunk)):
            chunk.append(order[filler % num_clips])
        batches.append(chunk[process_index::num_processes])
    return batches


def ordered_batches(
    num_clips: int, batch_size: int, *, process_index: int = 0, num_processes: int = 1
) -> list[list[int]]:
    """The evaluation batches of one process: every clip exactly once over all processes, none twice."""
    mine = list(range(process_index, num_clips, num_processes))
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
