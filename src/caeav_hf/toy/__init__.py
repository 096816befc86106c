"""
The toy corpus: small real mp4 clips of moving, sounding objects, in the layout of a public data set.

It is deterministic given its seed and controls what CAE-AV is about: how often, and how, sight and sound are
misaligned. `scene`, `segmentation`, `parsing` and `questions` plan what happens in each second, `hard` makes it harder
to see and hear, `look` and `voice` draw it, `render` encodes it and `layout` writes the files. `render_frame` and
`render_sound` return single frames and sounds, without files, to train a toy tower on.
"""

from .classes import CLASSES
from .hard import HARD_MISALIGNMENTS
from .layout import LAYOUTS, LEVELS, generate
from .look import render_frame
from .render import MediaFormat
from .scene import MISALIGNMENTS, Scene
from .voice import render_sound


__all__ = [
    "CLASSES",
    "HARD_MISALIGNMENTS",
    "LAYOUTS",
    "LEVELS",
    "MISALIGNMENTS",
    "MediaFormat",
    "Scene",
    "generate",
    "render_frame",
    "render_sound",
]
