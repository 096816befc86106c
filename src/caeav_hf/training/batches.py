"""From a data set of clips to the batches of one epoch, which know the numbers of their clips."""

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
    One batch: the model's inputs, the numbers of its clips, and which of them could not be decoded, so that another
    stands in its place. There are no inputs where a process has no clip in a step.
    """

    inputs: dict[str, torch.Tensor]
    indices: list[int]
    replaced: list[bool]


class _NumberedClips(Dataset):
    """Hands on every clip with its number, so that a batch knows which clips it has."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> tuple[int, Any]:
        return operator.index(index), self.dataset[index]


class _NumberedCollator:
    """Makes batches of numbered clips."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, numbered: list[tuple[int, Any]]) -> ClipBatch:
        return {
            "inputs": dict(self.collator([clip for _, clip in numbered])) if numbered else {},
            "indices": [index for index, _ in numbered],
            "replaced": ["replaces" in clip for _, clip in numbered],
        }


class EpochBatches:
    """The batches of the running epoch, `current`."""

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
    A loader of exactly these batches of clip numbers, or of rows of [`StreamedClips`]. With `persistent_workers` the
    batches may be others in the next pass over the loader (see [`EpochBatches`]), which its workers live to see.

    It draws its worker seeds from a generator of its own: making or resuming a loader must not move the random
    numbers that dropout will see.
    """
    return DataLoader(
        _NumberedClips(dataset),
        batch_sampler=batches,
        collate_fn=_NumberedCollator(collator),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
        generator=torch.Generator(),
    )


def lend_inputs(batch: ClipBatch, lender: int, accelerator: Accelerator) -> ClipBatch:
    """
    Return `batch`; if it has no clip, one with the inputs of process `lender`. All processes call it.

    A process without a clip cannot sit out a step, for the others wait for its part.
    """
    (inputs,) = broadcast_object_list([batch["inputs"]], from_process=lender)
    return batch if batch["indices"] else {**batch, "inputs": inputs}


def windows(loader: DataLoader, size: int) -> Iterator[list[ClipBatch]]:
    """The batches of the loader in lists of `size`, one list a step; the last may be shorter."""
    batches = iter(loader)
    while window := list(islice(batches, size)):
        yield window
