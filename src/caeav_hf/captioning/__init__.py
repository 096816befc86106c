"""
Visual and audio captions for CASE, written by an omni-modal language model from two symmetric prompts.

`prompts` holds the prompts, `material` prepares frames and sound, `captioner` defines the interface of the back ends
`server` (any OpenAI-compatible server) and `local` (Transformers), and `job` captions a whole data set into a file.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .captioner import Captioner, CaptionerUnusableError, CaptioningError
    from .job import CaptionReport, caption_clips
    from .local import LocalCaptioner
    from .material import ClipMaterial
    from .prompts import PROMPT_VERSION
    from .request import CaptionRequest
    from .server import ServerCaptioner
    from .settings import CaptionSettings
    from .sources import CaptionClip, find_clips


__all__ = [
    "PROMPT_VERSION",
    "CaptionClip",
    "CaptionReport",
    "CaptionRequest",
    "CaptionSettings",
    "Captioner",
    "CaptionerUnusableError",
    "CaptioningError",
    "ClipMaterial",
    "LocalCaptioner",
    "ServerCaptioner",
    "caption_clips",
    "find_clips",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".captioner": ("Captioner", "CaptionerUnusableError", "CaptioningError"),
        ".job": ("CaptionReport", "caption_clips"),
        ".local": ("LocalCaptioner",),
        ".material": ("ClipMaterial",),
        ".prompts": ("PROMPT_VERSION",),
        ".request": ("CaptionRequest",),
        ".server": ("ServerCaptioner",),
        ".settings": ("CaptionSettings",),
        ".sources": ("CaptionClip", "find_clips"),
    },
)
