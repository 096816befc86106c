"""
Descriptions of what sounds in each second of a clip, and where, for sound source understanding.

Each source that sounds and can be seen is named with its look, its place and what it does, from left to right: "the
golden bell on the left is ringing and the red drum at the bottom is beating". Where none is, the description is empty.
"""

import numpy as np

from .classes import CLASSES, TOY_CLASSES
from .render import render_scene_frame
from .scene import Scene


# Side in pixels of the frames in which places are measured, and the pixels that a source must show there.
SIZE = 96
MIN_PIXELS = 12

_VERBS = dict(
    zip(
        CLASSES,
        ("ringing", "beating", "wailing", "chirping", "running", "playing", "pattering", "ticking"),
        strict=True,
    )
)


def describe_seconds(scene: Scene) -> list[str]:
    """Return the description of each second, of the frame at its middle."""
    return [describe(scene, second) for second in range(len(scene.segments))]


def describe(scene: Scene, second: int) -> str:
    """Return the description of a second."""
    _, seen = render_scene_frame(scene, second + 0.5, SIZE)
    segment = scene.segments[second]
    parts = []
    for source in set(segment.visible) & set(segment.sounding):
        rows, columns = np.nonzero(seen[source])
        if len(rows) < MIN_PIXELS:
            continue
        x, y = columns.mean(), rows.mean()
        of_class = TOY_CLASSES[scene.sources[source].class_id]
        look = of_class.look.removeprefix("an ").removeprefix("a ")
        parts.append((x, f"the {look} {_place(x, y)} is {_VERBS[of_class.name]}"))
    texts = [text for _, text in sorted(parts)]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _place(x: float, y: float) -> str:
    """Return the side of the frame that a centre is nearest to."""
    right, down = x - (SIZE - 1) / 2, y - (SIZE - 1) / 2
    if abs(right) >= abs(down):
        return "on the left" if right < 0 else "on the right"
    return "at the top" if down < 0 else "at the bottom"
