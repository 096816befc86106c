"""Collator of clips: pads time and captions to a batch, with masks of what is real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from caeav_hf.constants import MODALITIES
from caeav_hf.errors import DataError
from caeav_hf.task import FRAMES, Target, tasks


@dataclass(frozen=True)
class CaeAvCollator:
    """
    Collates clips of a [`CaeAvDataset`] to a batch.

    Each clip is a dict with `pixel_values_videos` (T, 3, H, W), `input_features` (T, 1, frames, mels), optionally
    `frame_mask` (T,), `visual_caption_ids` and `audio_caption_ids` (N,) or `*_caption_embeds` (N, D), `*_caption_mask`
    (N,) with them, and the targets of its task. Other keys are omitted.

    The batch has the same keys with the batch as first axis. T and N are those of the longest clip and caption.
    Padding is 0, False or 0 in masks, and in targets the value that the task defines, such as -100 for labels. If any
    clip of the batch has a caption, the batch has both captions for all clips, and missing ones have a mask of zeros.

    If targets share clips, such as questions, items with the identical tensor `pixel_values_videos`, such as
    consecutive questions about one clip, share it: the batch contains each clip once, and `clip_index` (items,) is the
    clip of each item.

    Args:
        pad_token_id: Padding of caption ids.
        targets: The targets of a task ([`~task.Task`]) by name. By default those of all tasks; the number of segments
            is then not checked for targets that differ between tasks.

    Raises:
        DataError: Tasks pad a target differently, so that `targets` are required.
    """

    pad_token_id: int = 0
    targets: Mapping[str, Target] | None = None

    def __post_init__(self) -> None:
        if self.targets is None:
            object.__setattr__(self, "targets", _targets_of_all_tasks())

    def __call__(self, clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate clips.

        Raises:
            DataError: Sizes of clips differ, only some have labels, a clip's tensors differ in T, or some captions are
                ids and others embeddings.
        """
        targets = cast(Mapping[str, Target], self.targets)
        for clip in clips:
            _check_lengths(clip, targets)
        distinct, clip_index = _distinct_clips(clips, targets)
        batch = {name: _pad(distinct, name, 0.0) for name in ("pixel_values_videos", "input_features")}
        masks = [{"frame_mask": _frame_mask(clip)} for clip in distinct]
        batch["frame_mask"] = _pad(masks, "frame_mask", False)
        if len(distinct) < len(clips):
            batch["clip_index"] = clip_index
        for name, target in targets.items():
            if _in_all_or_none(clips, name):
                batch[name] = _pad(clips, name, target.padding, target.padded_axes)
        return batch | self._captions(distinct)

    def _captions(self, clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        kinds = {kind for clip in clips for kind in ("ids", "embeds") for m in MODALITIES if _key(m, kind) in clip}
        if not kinds:
            return {}
        if len(kinds) > 1:
            raise DataError("a batch needs captions either as `*_caption_ids` or as `*_caption_embeds`, got both")
        kind = kinds.pop()
        filler = self.pad_token_id if kind == "ids" else 0.0
        example = next(clip[_key(m, kind)] for clip in clips for m in MODALITIES if _key(m, kind) in clip)
        # One padding token, so that a batch without any caption of one kind still has a masked token.
        absent = {
            "caption": example.new_full((1, *example.shape[1:]), filler),
            "mask": torch.zeros(1, dtype=torch.long),
        }
        batch = {}
        for modality in MODALITIES:
            key, mask_key = _key(modality, kind), _key(modality, "mask")
            captions = [
                {
                    "caption": clip[key],
                    "mask": clip.get(mask_key, torch.ones(len(clip[key]), dtype=torch.long)),
                }
                if key in clip
                else absent
                for clip in clips
            ]
            batch[key] = _pad(captions, "caption", filler)
            batch[mask_key] = _pad(captions, "mask", 0)
        return batch


def _key(modality: str, part: str) -> str:
    return f"{modality}_caption_{part}"


def _targets_of_all_tasks() -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for task in tasks().values():
        for name, target in task.targets.items():
            known = targets.setdefault(name, target)
            if (known.padding, known.shares_clip) != (target.padding, target.shares_clip):
                raise DataError(f"tasks pad `{name}` differently; expected `targets`, those of one task")
            if known.axis != target.axis:
                targets[name] = replace(known, axis=None)
    return targets


def _distinct_clips(
    items: Sequence[Mapping[str, Any]], targets: Mapping[str, Target]
) -> tuple[list[Mapping[str, Any]], torch.Tensor]:
    """Return the items with distinct clips, if targets may share clips, and the index of each item's clip."""
    if not any(target.shares_clip and name in items[0] for name, target in targets.items()):
        return list(items), torch.arange(len(items))
    numbers: dict[int, int] = {}
    index = [numbers.setdefault(id(item["pixel_values_videos"]), len(numbers)) for item in items]
    return [items[index.index(number)] for number in range(len(numbers))], torch.tensor(index)


def _frame_mask(clip: Mapping[str, Any]) -> torch.Tensor:
    return clip.get("frame_mask", torch.ones(len(clip["pixel_values_videos"]), dtype=torch.bool))


def _check_lengths(clip: Mapping[str, Any], targets: Mapping[str, Target]) -> None:
    along_time = [name for name, target in targets.items() if target.axis == FRAMES]
    names = ("pixel_values_videos", "input_features", "frame_mask", *along_time)
    lengths = {name: len(clip[name]) for name in names if name in clip}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the tensors of a clip must have one length T, got {lengths}")


def _in_all_or_none(clips: Sequence[Mapping[str, Any]], name: str) -> bool:
    count = sum(name in clip for clip in clips)
    if count not in (0, len(clips)):
        raise DataError(f"`{name}` must be in all clips of a batch or in none, got it in {count} of {len(clips)}")
    return bool(count)


def _pad(clips: Sequence[Mapping[str, Any]], name: str, value: float, axes: int = 1) -> torch.Tensor:
    """Stack the tensors `name` of all clips, padded at the end of their first axes."""
    tensors = [clip[name] for clip in clips]
    if len({(tensor.ndim, *tensor.shape[axes:]) for tensor in tensors}) > 1:
        sizes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise DataError(f"`{name}` must have one size in all clips of a batch, got {sizes}")
    if not tensors[0].ndim:
        return torch.stack(tensors)
    longest = [max(lengths) for lengths in zip(*(tensor.shape for tensor in tensors), strict=True)]
    if all(list(tensor.shape) == longest for tensor in tensors):
        # In the workers of a loader, this writes directly to shared memory.
        return torch.utils.data.default_collate(tensors)
    batch = tensors[0].new_full((len(tensors), *longest), value)
    for row, tensor in zip(batch, tensors, strict=True):
        row[tuple(map(slice, tensor.shape))] = tensor
    return batch
