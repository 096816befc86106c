"""Captions in the arguments of a pipeline's call."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..constants import MODALITIES, PREPARED
from ..errors import CaeAvError


CAPTIONS = ("visual_caption", "audio_caption")
# Keys of the clip in a dict; the last one is the builders' column.
CLIP_KEYS = ("clip", "video", "media")


def is_row(value: Any) -> bool:
    """Return whether a value is a dict that contains a clip among others, unlike `{"bytes": ..., "path": ...}`."""
    return isinstance(value, Mapping) and any(key in value for key in (*CLIP_KEYS, PREPARED))


def split_captions(clips: Any, kwargs: dict[str, Any], needed: Sequence[str]) -> None:
    """
    Replace `captions` in `kwargs`, if given, by `visual_caption` and `audio_caption`. It must have those in `needed`.
    """
    captions = kwargs.pop("captions", None)
    if captions is None:
        return
    texts = ", ".join(f'"{side}": text' for side in needed)
    expected = f"expected `captions` as {{{texts}}}, for a list of clips a list of such"
    if both := [name for name in CAPTIONS if kwargs.get(name) is not None]:
        raise CaeAvError(f"`captions` and `{both[0]}` were given; {expected}, and nothing besides")
    if not isinstance(captions, Mapping) and not (isinstance(captions, list | tuple) and isinstance(clips, list)):
        raise CaeAvError(f"{expected}, got a {type(captions).__name__}")
    for caption in [captions] if isinstance(captions, Mapping) else captions:
        if caption is not None and not (
            isinstance(caption, Mapping) and set(needed) <= set(caption) <= set(MODALITIES)
        ):
            raise CaeAvError(f"{expected}, got {caption!r}")
    for name in CAPTIONS:
        side = name.removesuffix("_caption")
        if isinstance(captions, Mapping):
            kwargs[name] = captions.get(side)
        else:
            kwargs[name] = [None if caption is None else caption.get(side) for caption in captions]


def attach_captions(clips: list[Any], kwargs: dict[str, Any], clip_key: str) -> list[Any]:
    """Return the clips with their captions, if `kwargs` has lists of captions; these are removed from `kwargs`."""
    for name in CAPTIONS:
        captions = kwargs.get(name)
        if isinstance(captions, list | tuple):
            if len(captions) != len(clips):
                raise CaeAvError(
                    f"`{name}` has {len(captions)} captions for {len(clips)} clips; expected one for each"
                )
            del kwargs[name]
            clips = [
                {**(clip if is_row(clip) else {clip_key: clip}), name: caption}
                for clip, caption in zip(clips, captions, strict=True)
            ]
    return clips
