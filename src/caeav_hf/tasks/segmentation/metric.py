"""
Scores of audio-visual segmentation, as defined for AVSBench: J, the overlap of masks, and F, the maximum F-measure
over thresholds.

- J is the mean over frames of the intersection over the union of the target with what is predicted with a probability
  above one half. A frame whose target is empty scores the share of its pixels that are predicted as empty.
- F has beta^2 = 0.3 and counts the frames whose target is not empty. Each gives an F-measure at each of 255
  thresholds, evenly spaced on [0, 1): a pixel is predicted where its probability is not below the threshold. The
  F-measures of each threshold are averaged over the frames of a clip, and the largest of the 255 means is the clip's
  F. `f` is the mean over clips, as in AVSBench's evaluation: each clip has its own best threshold. A clip whose
  targets are all empty has nothing to find and does not count; AVSBench's script would give it an F of 0.
- `f_whole_set` has one threshold for all clips: the F-measures of each threshold are averaged over the frames of all
  clips, and the largest of the 255 means is the score.

All are made of sums over frames and clips, so they are accumulated as [`SegmentationSums`], some 2 kB however many
clips there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from caeav_hf.constants import IGNORED_LABEL
from caeav_hf.errors import DataError


BETA_SQUARED = 0.3
NUM_THRESHOLDS = 255

# AVSBench's constant against 0 / 0 in a precision, too small to change a score.
_EPSILON = 1e-20
# Number of pixels processed at a time.
_CHUNK_PIXELS = 1 << 20

_CITATION = """\
@inproceedings{zhou2022avs,
  title={Audio-Visual Segmentation},
  author={Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
    Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle={ECCV},
  year={2022}
}
"""

_INPUTS = """
Args:
    mask_logits: (..., T, H, W), T the frames of a clip: logit of "this pixel shows what sounds".
    masks: (..., T, H, W): 1 where a pixel shows what sounds, 0 elsewhere, -100 in frames that do not count.
Returns:
    j: mean intersection over union in [0, 1].
    f: mean over clips of the maximum F-measure, in [0, 1], None where every target is empty.
    f_whole_set: maximum over thresholds of the mean F-measure of all frames, in [0, 1], None as f.
    num_frames: frames that count.
"""


@dataclass(frozen=True)
class SegmentationSums:
    """
    Sums from which the scores over some clips are computed; add them to combine clips.

    Args:
        j: Sum over frames of their J.
        frames: Number of frames.
        f: (255,) float64, sum over the frames with a target of their F at each threshold.
        frames_with_target: Number of these.
        best_f: Sum over the clips with a target of their F at their best threshold.
        clips_with_target: Number of these.
    """

    j: float
    frames: int
    f: np.ndarray
    frames_with_target: int
    best_f: float
    clips_with_target: int

    def __add__(self, other: "SegmentationSums") -> "SegmentationSums":
        return SegmentationSums(
            self.j + other.j,
            self.frames + other.frames,
            self.f + other.f,
            self.frames_with_target + other.frames_with_target,
            self.best_f + other.best_f,
            self.clips_with_target + other.clips_with_target,
        )

    def scores(self) -> dict[str, float | None]:
        """
        Return `j`, `f` and `f_whole_set` as [`segmentation_scores`] gives them.

        Raises:
            DataError: There is no frame.
        """
        if not self.frames:
            raise DataError(f"`masks` has no frame that counts: all of its frames are {IGNORED_LABEL}")
        if not self.clips_with_target:
            return {"j": self.j / self.frames, "f": None, "f_whole_set": None}
        return {
            "j": self.j / self.frames,
            "f": self.best_f / self.clips_with_target,
            "f_whole_set": float(self.f.max()) / self.frames_with_target,
        }


def clip_sums(outputs: Any, inputs: Mapping[str, Any]) -> list[SegmentationSums]:
    """
    Return the sums of each clip of a batch, from the output of the model and its inputs with `labels`. The masks of a
    whole split would not fit into memory.
    """
    return [segmentation_sums(*clip) for clip in zip(outputs.logits, inputs["labels"], strict=True)]


def segmentation_scores(mask_logits: Any, masks: Any) -> dict[str, float | None]:
    """
    Return J over frames and F over clips.

    Args:
        mask_logits: (T, H, W) array or tensor of logits, the frames of one clip, or (B, T, H, W), those of B clips.
            A channel of one, as in (B, T, 1, H, W), may stand before H.
        masks: (T, H, W), or (B, T, H, W): 1 or True for what sounds, 0 or False for the rest. Frames that are -100
            throughout do not count.

    Returns:
        `j`, `f` and `f_whole_set` in [0, 1], as defined above; the latter two are None if every target is empty.

    Raises:
        DataError: Shapes do not fit, a mask has another value, a logit of a frame that counts is not a number, or no
            frame counts.
    """
    return segmentation_sums(mask_logits, masks).scores()


def segmentation_sums(mask_logits: Any, masks: Any) -> SegmentationSums:
    """
    Return the sums from which the scores are computed, to be added over batches of whole clips.

    Args:
        mask_logits, masks: As for [`segmentation_scores`]; here no frame need count.

    Raises:
        DataError: As for [`segmentation_scores`].
    """
    logits, targets, clips, num_clips = _frames(mask_logits, masks)
    overlap = 0.0
    # A clip's frames may lie in two chunks, so its F-measures are added up before their maximum is taken.
    f, frames_with_target = torch.zeros(num_clips, NUM_THRESHOLDS, dtype=torch.float64), torch.zeros(num_clips)
    step = max(1, _CHUNK_PIXELS // max(1, logits.shape[1]))
    for first in range(0, len(logits), step):
        chunk = slice(first, first + step)
        overlaps, measures, has_target = _measure(logits[chunk], targets[chunk])
        overlap += float(overlaps.sum())
        f.index_add_(0, clips[chunk][has_target], measures[has_target])
        frames_with_target.index_add_(0, clips[chunk], has_target.float())
    counted = frames_with_target > 0
    best = f[counted].amax(1) / frames_with_target[counted]
    return SegmentationSums(
        overlap,
        len(logits),
        f.sum(0).numpy(),
        int(frames_with_target.sum()),
        float(best.sum()),
        int(counted.sum()),
    )


class SegmentationScores(evaluate.Metric):
    """
    [`segmentation_scores`] as a metric that accumulates over batches and processes.

    ```python
    >>> metric = SegmentationScores()
    >>> metric.add_batch(mask_logits=outputs.logits, masks=labels)  # (B, T, 1, H, W), (B, T, H, W)
    >>> metric.compute()["j"]
    ```

    A batch holds whole clips. It is kept as its sums, not as its masks, so the frames of a batch may have another size
    than those of the next. With several processes pass `num_process`, `process_id` and a common `experiment_id` and
    `cache_dir`, as for every `evaluate` metric: process 0 gets the scores of all, the others None. Arguments are those
    of `evaluate.Metric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "j": datasets.Value("float64"),
                    "frames": datasets.Value("int64"),
                    "f": datasets.Sequence(datasets.Value("float64")),
                    "frames_with_target": datasets.Value("int64"),
                    "best_f": datasets.Value("float64"),
                    "clips_with_target": datasets.Value("int64"),
                }
            ),
        )

    def add_batch(self, *, mask_logits: Any, masks: Any, **kwargs: Any) -> None:
        """Add a batch of clips, see [`segmentation_scores`]."""
        sums = segmentation_sums(mask_logits, masks)
        super().add_batch(
            j=[sums.j],
            frames=[sums.frames],
            f=[sums.f.tolist()],
            frames_with_target=[sums.frames_with_target],
            best_f=[sums.best_f],
            clips_with_target=[sums.clips_with_target],
            **kwargs,
        )

    def add(self, *, mask_logits: Any, masks: Any, **kwargs: Any) -> None:
        """Add one clip, (T, H, W)."""
        self.add_batch(mask_logits=mask_logits, masks=masks, **kwargs)

    def compute(self, *, mask_logits: Any = None, masks: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Return the scores of all batches so far, including this one if given."""
        if mask_logits is not None or masks is not None:
            self.add_batch(mask_logits=mask_logits, masks=masks)
        return super().compute(**kwargs)

    def _compute(
        self, j: Any, frames: Any, f: Any, frames_with_target: Any, best_f: Any, clips_with_target: Any
    ) -> dict[str, Any]:
        sums = SegmentationSums(
            sum(j),
            sum(frames),
            np.sum(np.asarray(f), axis=0),
            sum(frames_with_target),
            sum(best_f),
            sum(clips_with_target),
        )
        return {**sums.scores(), "num_frames": sums.frames}


def _frames(mask_logits: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """
    Return the frames that count: logits (N, pixels) float32 and targets (N, pixels) bool, on the device of the logits;
    the number of each one's clip (N,), on the CPU; and the number of clips.
    """
    logits = torch.as_tensor(mask_logits).detach()
    targets = torch.as_tensor(masks).detach().to(logits.device)
    if logits.ndim == targets.ndim + 1 and logits.ndim >= 3 and logits.shape[-3] == 1:
        logits = logits.squeeze(-3)
    if logits.ndim < 3 or logits.shape != targets.shape or not logits.shape[-2:].numel():
        raise DataError(
            "expected `mask_logits` and `masks` of one shape (T, H, W) or (B, T, H, W), "
            f"got {tuple(torch.as_tensor(mask_logits).shape)} and {tuple(targets.shape)}"
        )
    clips = torch.arange(logits.shape[:-2].numel()) // max(1, logits.shape[-3])
    num_clips = logits.shape[:-3].numel()
    logits, targets = logits.flatten(0, -3).flatten(1), targets.flatten(0, -3).flatten(1)
    if targets.dtype != torch.bool:
        # As an unsigned byte, -100 would be 156.
        targets = targets.short() if targets.dtype == torch.uint8 else targets
        ignored = targets == IGNORED_LABEL
        counted = ~ignored.all(1)
        if not counted.all():
            logits, targets, ignored = logits[counted], targets[counted], ignored[counted]
            clips = clips[counted.cpu()]
        wrong = (targets != 0) & (targets != 1)
        if wrong.any():
            raise DataError(
                f"`masks` must be 0 and 1, or {IGNORED_LABEL} in all of a frame, got {targets[wrong][0].item()} "
                "in a frame that counts"
            )
        targets = targets != 0
    logits = logits.float()
    if logits.isnan().any():
        raise DataError("`mask_logits` has values that are not numbers (NaN)")
    return logits, targets, clips, num_clips


def _measure(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return J (n,), the F-measures (n, 255) and whether there is a target (n,), of frames given as (n, pixels)."""
    count, pixels = logits.shape
    # In logits, not probabilities: rounding would make a sigmoid just above one half equal to it.
    predicted = logits > 0
    intersection, union = (predicted & targets).sum(1).cpu().double(), (predicted | targets).sum(1).cpu().double()
    area = targets.sum(1).cpu().double()
    overlap = torch.where(area > 0, intersection / union, 1 - union / pixels)

    # Every pixel falls into one of 255 bins by the highest threshold that its probability reaches. All pixels of that
    # bin and of those above it are predicted at its threshold, so one count of the bins serves all thresholds.
    thresholds = torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS, device=logits.device)
    bins = torch.bucketize(logits.sigmoid(), thresholds, right=True) - 1
    frame = torch.arange(count, device=logits.device)[:, None]
    counts = torch.bincount(
        ((2 * frame + targets) * NUM_THRESHOLDS + bins).flatten(), minlength=2 * count * NUM_THRESHOLDS
    )
    counts = counts.view(count, 2, NUM_THRESHOLDS).flip(-1).cumsum(-1).flip(-1).cpu().double()
    hits = counts[:, 1]
    precision = hits / (counts.sum(1) + _EPSILON)
    recall = hits / (area[:, None] + _EPSILON)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    # Nothing hit: 0 / 0.
    return overlap, f.nan_to_num(nan=0.0), area > 0
