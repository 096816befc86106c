"""
The toy corpus: real little mp4 clips of things that move and sound, in the layout of a public data set.

It is deterministic in its seed and controls what CAE-AV is about: how often, and how, sight and sound are misaligned.
`scene`, `segmentation`, `parsing` and `questions` plan what happens each second, `hard` makes it harder to see and
hear, `look` and `voice` draw it, `render` makes files of it, `layout` puts them on the disk. `render_frame` and
`render_sound` give single frames and sounds, without files, to train a toy tower on.
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
