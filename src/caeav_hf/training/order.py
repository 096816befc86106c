"""Which clips make up which batch: the same ones in each step, however many processes share it."""

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
    start: int = 0,
) -> list[list[int]]:
    """
    The training batches of one process in one epoch, as lists of clip numbers.

    All processes together see every clip once, in an order drawn from `seed` and `epoch` alone, `batch_size` times
    `num_processes` of them at a time; the first `start` clips of the order are left out. Each process gets as many
    batches as the others. One is empty where there are fewer clips, or groups, than processes.

    With a group for each clip, from 0 on, those of one group follow each other, and those that are in one step are
    in one batch: then a batch has no more than `batch_size` groups, but may have more clips.
    """
    generator = np.random.default_rng([seed, epoch])
    permuted = generator.permutation(num_clips)
    if groups is not None and num_clips:
        place = generator.permutation(max(groups) + 1)[np.asarray(groups)[permuted]]
        permuted = permuted[place.argsort(kind="stable")]
    order = permuted.tolist()
    stride = batch_size * num_processes
    batches = []
    for first in range(start, num_clips, stride):
        by_group: dict[int, list[int]] = {}
        for clip in order[first : first + stride]:
            by_group.setdefault(clip if groups is None else groups[clip], []).append(clip)
        mine = np.array_split(np.arange(len(by_group)), num_processes)[process_index]
        runs = list(by_group.values())
        batches.append([clip for number in mine for clip in runs[number]])
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
