"""
Augmentation of training clips. Each kind is a recipe switch that is off by default.

- Flip: mirrors half of the clips left to right, frames and masks together.
- SpecAugment (arXiv:1904.08779) as in HTS-AT's front end: blanks two stripes of up to 64 frames and two of up to 8 mel
  bands in each segment's spectrogram. HTS-AT blanks after batch norm, where zero is the mean of each band; here a band
  is blanked with its mean over the clip.
- Mixup (arXiv:1710.09412) of the sound as in HTS-AT: averages the log-mels of two clips with a weight from Beta(0.5,
  0.5). The other clip is heard but not seen, so labels of audible and visible events stay valid, and so does the
  caption. To keep it that way, the clip's own sound always has the larger weight.
- STG-CMA's augmentation of event localization, for frames of a whole clip alike: operations of RandAugment
  (arXiv:1909.13719) as timm has them, a random part of the frame resized to its size, and a blank rectangle; and with
  some probability the sound of another clip, averaged with weights from Beta(10, 10), one a segment. The authors mix
  waveforms, here spectrograms are mixed.

The result depends only on the seed, the epoch and the index of the clip, not on the number of processes or workers or
on resuming.
"""

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import CaeAvError


TIME_DROP_WIDTH, TIME_STRIPES = 64, 2
FREQ_DROP_WIDTH, FREQ_STRIPES = 8, 2
MIXUP_ALPHA = 0.5
SOUND_MIXING_ALPHA = 10


@dataclass(frozen=True)
class Augmentation:
    """
    Augments a clip.

    Args:
        flip_frames, spec_augment, mixup: The switches.
        rand_augment: Policy in timm's notation, such as `"rand-m7-n4"`; `None` for none.
        crop_area: Smallest share of a frame's area that is cropped; `None` for no crop.
        erasing: Probability of blanking a rectangle of the frames of a clip.
        sound_mixing: Probability of mixing in the sound of another clip.
        seed: Seed of the random draws.
        images: Names of the targets to mirror with the frames.
    """

    flip_frames: bool = False
    spec_augment: bool = False
    mixup: bool = False
    seed: int = 0
    images: tuple[str, ...] = ()
    rand_augment: str | None = None
    crop_area: float | None = None
    erasing: float = 0.0
    sound_mixing: float = 0.0

    def __post_init__(self) -> None:
        if self.rand_augment is not None:
            _policy(self.rand_augment)  # Raises if timm has no such policy.

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
        # Draws of their own, so that neither these nor those above depend on each other.
        generator = np.random.default_rng([self.seed, epoch, operator.index(index), 1])
        seed, mixes = int(generator.integers(2**32)), generator.random() < self.sound_mixing
        if self.rand_augment is not None or self.crop_area is not None or self.erasing:
            with _global_seed(seed):
                item = {**item, "pixel_values_videos": self._change_frames(item["pixel_values_videos"])}
        if mixes:
            others = dataset[int(generator.integers(len(dataset)))]["input_features"]
            weights = torch.from_numpy(generator.beta(SOUND_MIXING_ALPHA, SOUND_MIXING_ALPHA, len(others)))
            item = {**item, "input_features": mix(item["input_features"], others, weights.float())}
        return item

    def _change_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the normalised frames (T, 3, H, W) of a clip, all changed alike."""
        from torchvision.transforms import v2

        if self.rand_augment is not None:
            frames = rand_augment(frames, self.rand_augment)
        if self.crop_area is not None:
            size = (frames.shape[-2], frames.shape[-1])
            frames = v2.RandomResizedCrop(size, scale=(self.crop_area, 1.0), antialias=True)(frames)
        return v2.RandomErasing(self.erasing)(frames) if self.erasing else frames


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


def rand_augment(frames: torch.Tensor, policy: str) -> torch.Tensor:
    """
    Change normalised frames (T, 3, H, W) by the operations that a policy of timm draws, the same for all of them. The
    draws are those of the global generators.
    """
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pictures = [to_pil_image((frame * std + mean).clamp(0, 1)) for frame in frames]
    operations, before = _policy(policy), (random.getstate(), np.random.get_state())
    changed = []
    for picture in pictures:
        random.setstate(before[0])
        np.random.set_state(before[1])
        changed.append(pil_to_tensor(operations(picture)))
    return (torch.stack(changed).float() / 255 - mean) / std


def _policy(text: str) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    if not text.startswith("rand-"):
        raise CaeAvError(f"recipe value 'rand_augment' must be a policy such as rand-m7-n4, got {text!r}")
    mean = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    try:
        return rand_augment_transform(text, {"img_mean": mean})
    except (AssertionError, ValueError, KeyError) as error:
        raise CaeAvError(f"recipe value 'rand_augment': timm has no policy {text!r}: {error}") from error


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of the processor, from which libraries draw, and restore them afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def mix(features: torch.Tensor, others: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """
    Return `weight * features + (1 - weight) * others`, log-mels (T, 1, frames, mels) of two clips. Segments beyond the
    end of `others` stay unchanged. A tensor has the weight of each segment.
    """
    mixed, both = features.clone(), min(len(features), len(others))
    if isinstance(weight, torch.Tensor):
        weight = weight[:both, None, None, None]
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
