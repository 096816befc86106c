"""
The toy corpus: small real mp4 clips of moving, sounding objects, in the layout of a public data set.

It is deterministic given its seed and controls what CAE-AV is about: how often, and how, sight and sound are
misaligned. `scene`, `segmentation`, `parsing` and `questions` plan what happens in each second, `hard` makes it harder
to see and hear, `look` and `voice` draw it, `render` encodes it and `layout` writes the files. `render_frame` and
`render_sound` return single frames and sounds, without files, to train a toy tower on.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .classes import CLASSES, HARD_MISALIGNMENTS, LEVELS, MISALIGNMENTS
    from .layout import LAYOUTS, generate
    from .look import render_frame
    from .render import MediaFormat
    from .scene import Scene
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".classes": ("CLASSES", "HARD_MISALIGNMENTS", "LEVELS", "MISALIGNMENTS"),
        ".layout": ("LAYOUTS", "generate"),
        ".look": ("render_frame",),
        ".render": ("MediaFormat",),
        ".scene": ("Scene",),
        ".voice": ("render_sound",),
    },
)
