"""Assign clips to batches such that each step has the same clips on any number of processes."""

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
    Return the training batches of one process in one epoch, as lists of clip indices.

    All processes together see every clip once, in an order drawn from `seed` and `epoch` alone, `batch_size` times
    `num_processes` clips per step; the first `start` clips of the order are left out. All processes get the same
    number of batches; a batch is empty if a step has fewer clips, or groups, than processes.

    `groups` holds a group number (from 0) for each clip. Clips of a group are consecutive, and those of one step are
    in one batch, so a batch has at most `batch_size` groups but may have more clips.
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
    Return the evaluation batches of one process. All processes together see every clip exactly once; clips of a group
    are consecutive.
    """
    order = np.arange(num_clips) if groups is None else np.argsort(groups, kind="stable")
    mine = np.array_split(order, num_processes)[process_index].tolist()
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
