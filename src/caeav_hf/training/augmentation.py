"""
Changes to the clips that are trained on, each a switch of the recipe that is off by default.

- Flip: half of the clips are mirrored, left to right, frames and masks together.
- SpecAugment (arXiv:1904.08779) as HTS-AT's front end has it: in each segment's spectrogram two stripes of up to 64
  frames and two of up to 8 mel bands are blanked. There the spectrogram has gone through batch norm, so that blank is
  the mean of each band; here a band is blanked with its mean over the clip.
- Mixup (arXiv:1710.09412) of the sound as HTS-AT's: log-mels of two clips are averaged with a weight from Beta(0.5,
  0.5). The other clip is heard but not seen, so that of events that are both, and of what sounds and is seen, the
  labels stay as they are; so does the caption. That this is so, the clip's own sound always has the larger weight.

What happens to a clip follows from the seed, the epoch and its number alone: neither the number of processes and
workers nor stopping and resuming changes it.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch.utils.data import Dataset


TIME_DROP_WIDTH, TIME_STRIPES = 64, 2
FREQ_DROP_WIDTH, FREQ_STRIPES = 8, 2
MIXUP_ALPHA = 0.5


@dataclass(frozen=True)
class Augmentation:
    """
    What is done to a clip.

    Args:
        flip_frames, spec_augment, mixup: The switches.
        seed: Seed of what is drawn.
        images: Targets that are mirrored with the frames.
    """

    flip_frames: bool = False
    spec_augment: bool = False
    mixup: bool = False
    seed: int = 0
    images: tuple[str, ...] = ()

    def __call__(self, dataset: Any, index: SupportsIndex, epoch: int) -> dict[str, Any]:
        """Return the item `index` of a data set as it is in an epoch."""
        item = dataset[index]
        generator = np.random.default_rng([self.seed, epoch, operator.index(index)])
        # Always drawn, so that no switch changes what another one does.
        flips, other, weight = generator.random() < 0.5, int(generator.integers(len(dataset))), _weight(generator)
        if self.flip_frames and flips:
            item = flip(item, self.images)
        if self.mixup:
            features = mix(item["input_features"], dataset[other]["input_features"], weight)
            item = {**item, "input_features": features}
        if self.spec_augment:
            item = {**item, "input_features": blank_stripes(item["input_features"], generator)}
        return item


class AugmentedClips(Dataset):
    """
    A data set of clips for training, augmented.

    Args:
        dataset: A data set of clips: [`CaeAvDataset`], or [`StreamedClips`], which cannot be mixed.
    """

    def __init__(self, dataset: Any, augmentation: Augmentation) -> None:
        self.dataset, self.augmentation = dataset, augmentation
        # In shared memory, for workers that live on.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self.augmentation(self.dataset, index, int(self._epoch))

    @property
    def groups(self) -> list[int] | None:
        """As for [`CaeAvDataset`]."""
        return self.dataset.groups

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is."""
        self._epoch.fill_(epoch)


def flip(item: Mapping[str, Any], images: Sequence[str] = ()) -> dict[str, Any]:
    """Return the item with its frames, and the targets that are images, mirrored left to right."""
    names = ("pixel_values_videos", *(name for name in images if name in item))
    return {**item, **{name: item[name].flip(-1) for name in names}}


def mix(features: torch.Tensor, others: torch.Tensor, weight: float) -> torch.Tensor:
    """
    `weight` times the log-mels (T, 1, frames, mels) and the rest of those of another clip; segments that the other
    clip does not have stay.
    """
    mixed, both = features.clone(), min(len(features), len(others))
    mixed[:both] = weight * features[:both] + (1 - weight) * others[:both]
    return mixed


def blank_stripes(features: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Log-mels (T, 1, frames, mels) with stripes of frames and of bands blanked in each segment."""
    blanked = features.clone()
    mean = features.mean((0, 1, 2))
    frames, bands = features.shape[2:]
    for segment in blanked[:, 0]:
        for first, last in _stripes(frames, TIME_DROP_WIDTH, TIME_STRIPES, generator):
            segment[first:last] = mean
        for first, last in _stripes(bands, FREQ_DROP_WIDTH, FREQ_STRIPES, generator):
            segment[:, first:last] = mean[first:last]
    return blanked


def _stripes(width: int, most: int, count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """`count` stripes of less than `most`, anywhere in `width`."""
    stripes = []
    for _ in range(count):
        length = int(generator.integers(min(most, width)))
        first = int(generator.integers(width - length))
        stripes.append((first, first + length))
    return stripes


def _weight(generator: np.random.Generator) -> float:
    weight = float(generator.beta(MIXUP_ALPHA, MIXUP_ALPHA))
    return max(weight, 1 - weight)
