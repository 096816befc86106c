"""
The two captions of a clip that CASE reads, written by an omni-modal language model from two symmetric prompts.

`prompts` has what is asked, `material` what is shown and played, `captioner` the interface of the back ends `server`
(any OpenAI-compatible one) and `local` (Transformers), `job` the captioning of a whole data set into a file.
"""

from .captioner import Captioner, CaptionerUnusableError, CaptioningError, CaptionSettings
from .job import CaptionReport, caption_clips
from .local import LocalCaptioner
from .material import ClipMaterial
from .prompts import PROMPT_VERSION, CaptionRequest
from .server import ServerCaptioner
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
