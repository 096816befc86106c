"""Clips into a batch: pads time and captions, and says with masks what is real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from caeav_hf.constants import IGNORED_LABEL, MODALITIES
from caeav_hf.errors import DataError


# What a batch may have besides the clips and their captions, and what it is padded with.
_TARGETS = {
    "labels": IGNORED_LABEL,
    "audio_labels": IGNORED_LABEL,
    "visual_labels": IGNORED_LABEL,
    "visual_3d_features": 0.0,
    "question_ids": 0,
    "question_mask": 0,
}


@dataclass(frozen=True)
class CaeAvCollator:
    """
    Makes a batch of the clips of a [`CaeAvDataset`].

    Each clip is a dict with `pixel_values_videos` (T, 3, H, W), `input_features` (T, 1, frames, mels), optionally
    `frame_mask` (T,), `labels` (T,) or (T, size, size), `visual_caption_ids` and `audio_caption_ids` (N,) or
    `*_caption_embeds` (N, D), and `*_caption_mask` (N,) with them. For video parsing `labels` are those of the clip,
    (C,) floating point, and `audio_labels`, `visual_labels` (T, C) and `visual_3d_features` (T, size) those of its
    segments. For question answering `labels` is a number and `question_ids`, `question_mask` are (Q,). Other keys are
    left out.

    The batch has the same keys with the batch first. T, N and Q are those of the longest clip, caption and question.
    Padding is 0, in labels -100, in the masks False or 0. If some clip of the batch has a caption of either kind, the
    batch has both kinds for all; a caption that does not exist has a mask of zeros. If none has one, the batch has
    none. Questions that have one and the same `pixel_values_videos`, as those about one clip that follow each other in
    the data set, share it: the batch has each clip once, and `clip_index` (questions,), the clip of each question.

    Args:
        pad_token_id: Id that caption ids are padded with.
    """

    pad_token_id: int = 0

    def __call__(self, clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Raises:
            DataError: Clips do not fit together (their sizes, or some have labels and others not), a clip's tensors
                differ in T, or some captions are ids and others embeddings.
        """
        for clip in clips:
            _check_lengths(clip)
        distinct, clip_index = _distinct_clips(clips)
        batch = {name: _pad(distinct, name, 0.0) for name in ("pixel_values_videos", "input_features")}
        masks = [{"frame_mask": _frame_mask(clip)} for clip in distinct]
        batch["frame_mask"] = _pad(masks, "frame_mask", False)
        if len(distinct) < len(clips):
            batch["clip_index"] = clip_index
        for name, value in _TARGETS.items():
            if _in_all_or_none(clips, name):
                batch[name] = _pad(clips, name, value)
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
        # One padding token, so that a batch without a single caption of one kind still has something to mask.
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


def _distinct_clips(items: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], torch.Tensor]:
    """The items without those whose clip an earlier one has, if they are questions, and the clip of each item."""
    if "question_ids" not in items[0]:
        return list(items), torch.arange(len(items))
    numbers: dict[int, int] = {}
    index = [numbers.setdefault(id(item["pixel_values_videos"]), len(numbers)) for item in items]
    return [items[index.index(number)] for number in range(len(numbers))], torch.tensor(index)


def _frame_mask(clip: Mapping[str, Any]) -> torch.Tensor:
    return clip.get("frame_mask", torch.ones(len(clip["pixel_values_videos"]), dtype=torch.bool))


def _check_lengths(clip: Mapping[str, Any]) -> None:
    names = ("pixel_values_videos", "input_features", "frame_mask", *_TARGETS)
    lengths = {name: len(clip[name]) for name in names if name in clip and not _is_of_whole_clip(name, clip[name])}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the tensors of a clip must have one length T, got {lengths}")


def _is_of_whole_clip(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor has no axis of segments: classes of a clip (shares, not numbers), an answer, a question."""
    return name.startswith("question_") or (name == "labels" and (tensor.is_floating_point() or not tensor.ndim))


def _in_all_or_none(clips: Sequence[Mapping[str, Any]], name: str) -> bool:
    count = sum(name in clip for clip in clips)
    if count not in (0, len(clips)):
        raise DataError(f"`{name}` must be in all clips of a batch or in none, got it in {count} of {len(clips)}")
    return bool(count)


def _pad(clips: Sequence[Mapping[str, Any]], name: str, value: float) -> torch.Tensor:
    """The tensors `name` of all clips, padded at the end of their first axis, stacked."""
    tensors = [clip[name] for clip in clips]
    if len({(tensor.ndim, *tensor.shape[1:]) for tensor in tensors}) > 1:
        sizes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise DataError(f"`{name}` must have one size in all clips of a batch, got {sizes}")
    if not tensors[0].ndim:
        return torch.stack(tensors)
    longest = max(len(tensor) for tensor in tensors)
    if all(len(tensor) == longest for tensor in tensors):
        # Writes to shared memory at once in the workers of a loader.
        return torch.utils.data.default_collate(tensors)
    batch = tensors[0].new_full((len(tensors), longest, *tensors[0].shape[1:]), value)
    for row, tensor in zip(batch, tensors, strict=True):
        row[: len(tensor)] = tensor
    return batch
