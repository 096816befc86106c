"""Masks of misaligned clips."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...data.images import read_mask
from ...data.misalign.change import HEARD_SHARE, Change, LabelCorrection, Row
from ...data.schema import AVSBENCH_NUM_SEGMENTS


# Smallest overlap (intersection over union) of two masks that show the same objects at different times.
_SAME = 0.5


class MaskCorrection(LabelCorrection):
    """
    The mask of a segment is empty if no sound of the clip itself fills half of it. Otherwise it depends on the objects
    that sound. A clip with one source (S4, whose rows name its category) sounds throughout, so that the picture's mask
    holds. With several sources (MS3) it holds if the masks of the picture and of the sound show the same objects, that
    is, if every region of one meets the other; else the mask cannot be known and is left out. So is that of a picture
    whose mask is not given. Masks turn with their pictures.
    """

    num_segments = AVSBENCH_NUM_SEGMENTS

    def source(self, row: Row) -> Any | None:
        """Return the class of a clip's only source, or `None` if there may be several."""
        return row["category"]

    def classes(self, row: Row) -> frozenset[Any] | None:
        source = self.source(row)
        return None if source is None else frozenset([source])

    def corrected(self, row: Row, change: Change) -> dict[str, Any]:
        given = dict(zip(row["mask_frames"], row["masks"], strict=True))
        if change.rotation:
            return {"masks": [_turned(mask, change.rotation[segment]) for segment, mask in given.items()]}
        masks = {segment: self._mask(row, change, segment, given) for segment in given}
        if all(masks[segment] is mask for segment, mask in given.items()):
            return {}
        known = {segment: mask for segment, mask in masks.items() if mask is not None}
        return {"mask_frames": list(known), "masks": list(known.values())}

    def _mask(
        self, row: Row, change: Change, segment: int, given: Mapping[int, Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        """Return the mask of a segment, or `None` if it is unknown, where those of the original clip are `given`."""
        if segment >= len(change.picture):
            return given[segment]
        shown = given.get(change.picture[segment])
        has_one_source = self.source(row) is not None
        if not change.is_heard(segment, [True] * len(change.picture)):
            is_same_class = change.donor is not None and self.source(change.donor) == self.source(row)
            if has_one_source and is_same_class and change.foreign[segment]:
                return shown
            return _empty(given[segment])
        if has_one_source or shown is None:
            return shown
        heard = [source for source, share in change.sound[segment].items() if share >= HEARD_SHARE]
        others = [given.get(source) for source in heard if source != change.picture[segment]]
        if not others:
            return shown
        pixels = read_mask(shown).pixels
        known = all(other is not None and _shows_the_same(pixels, read_mask(other).pixels) for other in others)
        return shown if known else None


def _empty(mask: Mapping[str, Any]) -> dict[str, Any]:
    """Return an empty mask of the size of a given one."""
    return _file(np.zeros_like(read_mask(mask).pixels))


def _turned(mask: Mapping[str, Any], degrees: float) -> dict[str, Any]:
    """Return a mask turned with its picture, which has the same proportions."""
    return _file(np.asarray(Image.fromarray(read_mask(mask).pixels).rotate(degrees)))


def _file(pixels: np.ndarray) -> dict[str, Any]:
    """Return a mask (H, W) bool as an image file."""
    target = io.BytesIO()
    Image.fromarray(255 * pixels.astype(np.uint8)).save(target, "png")
    return {"path": "mask.png", "bytes": target.getvalue()}


def _shows_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether each region of one mask (H, W) bool meets the other mask, and their overlap is large."""
    if one.shape != other.shape:
        return False
    both, either = one & other, one | other
    if not either.any():
        return True
    return both.sum() >= _SAME * either.sum() and all((_grown(both, mask) == mask).all() for mask in (one, other))


def _grown(seed: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the regions of a mask (H, W) bool that meet `seed`, a part of it."""
    grown = seed
    while True:
        padded = np.pad(grown, 1)
        wider = grown | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        wider &= mask
        if wider.sum() == grown.sum():
            return grown
        grown = wider
