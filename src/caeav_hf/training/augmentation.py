"""
Augmentation of training clips. Each kind is a recipe switch that is off by default.

- Flip: mirrors half of the clips left to right, frames and masks together.
- SpecAugment (arXiv:1904.08779) as in HTS-AT's front end: blanks two stripes of up to 64 frames and two of up to 8 mel
  bands in each segment's spectrogram. HTS-AT blanks after batch norm, where zero is the mean of each band; here a band
  is blanked with its mean over the clip.
- Mixup (arXiv:1710.09412) of the sound as in HTS-AT: averages the log-mels of two clips with a weight from Beta(0.5,
  0.5). The other clip is heard but not seen, so labels of audible and visible events stay valid, and so does the
  caption. To keep it that way, the clip's own sound always has the larger weight.

The result depends only on the seed, the epoch and the index of the clip, not on the number of processes or workers or
on resuming.
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
    Augments a clip.

    Args:
        flip_frames, spec_augment, mixup: The switches.
        seed: Seed of the random draws.
        images: Names of the targets to mirror with the frames.
    """

    flip_frames: bool = False
    spec_augment: bool = False
    mixup: bool = False
    seed: int = 0
    images: tuple[str, ...] = ()

    def __call__(self, dataset: Any, index: SupportsIndex, epoch: int) -> dict[str, Any]:
        """Return item `index` of a data set, augmented for an epoch."""
        item = dataset[index]
        generator = np.random.default_rng([self.seed, epoch, operator.index(index)])
        # Always draw all three, so that no switch changes the draws of another.
        flips, other, weight = (
            generator.random() < 0.5,
            int(generator.integers(len(dataset))),
            _mixing_weight(generator),
        )
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
    Augmented training clips.

    Args:
        dataset: [`CaeAvDataset`], or [`StreamedClips`], which does not support mixup.
    """

    def __init__(self, dataset: Any, augmentation: Augmentation) -> None:
        self.dataset, self.augmentation = dataset, augmentation
        # In shared memory, so that persistent workers see the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self.augmentation(self.dataset, index, int(self._epoch))

    @property
    def groups(self) -> list[int] | None:
        """See [`CaeAvDataset`]."""
        return self.dataset.groups

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the random draws depend on."""
        self._epoch.fill_(epoch)


def flip(item: Mapping[str, Any], images: Sequence[str] = ()) -> dict[str, Any]:
    """Mirror the frames of an item left to right, and its targets called `images`."""
    names = ("pixel_values_videos", *(name for name in images if name in item))
    return {**item, **{name: item[name].flip(-1) for name in names}}


def mix(features: torch.Tensor, others: torch.Tensor, weight: float) -> torch.Tensor:
    """
    Return `weight * features + (1 - weight) * others`, log-mels (T, 1, frames, mels) of two clips. Segments beyond the
    end of `others` stay unchanged.
    """
    mixed, both = features.clone(), min(len(features), len(others))
    mixed[:both] = weight * features[:both] + (1 - weight) * others[:both]
    return mixed


def blank_stripes(features: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Blank stripes of frames and of mel bands in each segment of log-mels (T, 1, frames, mels)."""
    blanked = features.clone()
    mean = features.mean((0, 1, 2))
    frames, bands = features.shape[2:]
    for segment in blanked[:, 0]:
        for first, last in _stripes(frames, TIME_DROP_WIDTH, TIME_STRIPES, generator):
            segment[first:last] = mean
        for first, last in _stripes(bands, FREQ_DROP_WIDTH, FREQ_STRIPES, generator):
            segment[:, first:last] = mean[first:last]
    return blanked


def _stripes(width: int, max_width: int, count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Draw `count` stripes narrower than `max_width`, as (first, last + 1) within `width`."""
    stripes = []
    for _ in range(count):
        length = int(generator.integers(min(max_width, width)))
        first = int(generator.integers(width - length))
        stripes.append((first, first + length))
    return stripes


def _mixing_weight(generator: np.random.Generator) -> float:
    weight = float(generator.beta(MIXUP_ALPHA, MIXUP_ALPHA))
    return max(weight, 1 - weight)
