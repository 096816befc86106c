"""Load the batches of one epoch from a data set of clips, with the indices of their clips."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, SupportsIndex, TypedDict

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset


Collator = Callable[[list[Any]], dict[str, torch.Tensor]]


class ClipBatch(TypedDict):
    """
    One batch of clips.

    Attributes:
        inputs: The model's inputs; empty if the process has no clip in a step.
        indices: Indices of the clips in the data set.
        replaced: For each clip, whether it could not be decoded and another one takes its place.
    """

    inputs: dict[str, torch.Tensor]
    indices: list[int]
    replaced: list[bool]


class _IndexedClips(Dataset):
    """Returns every clip together with its index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> tuple[int, Any]:
        return operator.index(index), self.dataset[index]


class _IndexedCollator:
    """Collates (index, clip) pairs into a [`ClipBatch`]."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, items: list[tuple[int, Any]]) -> ClipBatch:
        return {
            "inputs": dict(self.collator([clip for _, clip in items])) if items else {},
            "indices": [index for index, _ in items],
            "replaced": ["replaces" in clip for _, clip in items],
        }


class EpochBatches:
    """Batch sampler that iterates over `current`, the batches of the running epoch."""

    def __init__(self) -> None:
        self.current: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.current)


def clip_loader(
    dataset: Sized,
    batches: Iterable[list[Any]],
    collator: Collator,
    *,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
    persistent_workers: bool = False,
) -> DataLoader:
    """
    Return a loader of exactly these batches of clip indices, or of rows of [`StreamedClips`]. With
    `persistent_workers` the batches may change between passes over the loader (see [`EpochBatches`]).

    The loader draws its worker seeds from its own generator: creating or resuming a loader must not advance the random
    numbers that dropout will see.
    """
    return DataLoader(
        _IndexedClips(dataset),
        batch_sampler=batches,
        collate_fn=_IndexedCollator(collator),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
        generator=torch.Generator(),
    )


def fill_empty_batch(batch: ClipBatch, source: int, accelerator: Accelerator) -> ClipBatch:
    """
    Return `batch`; if it has no clip, a copy with the inputs of process `source`. All processes must call it.

    A process without a clip cannot sit out a step: the collectives of the others would wait for it.
    """
    (inputs,) = broadcast_object_list([batch["inputs"]], from_process=source)
    return batch if batch["indices"] else {**batch, "inputs": inputs}


def windows(loader: DataLoader, size: int) -> Iterator[list[ClipBatch]]:
    """Yield the batches of each optimizer step as a list of `size`; the last one may be shorter."""
    batches = iter(loader)
    while window := list(islice(batches, size)):
        yield window
