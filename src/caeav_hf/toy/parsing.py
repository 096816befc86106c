"""
Plans of clips for audio-visual video parsing: ten seconds with one or two objects, each seen during one stretch of
seconds and heard during one, usually the same. The labels of each second are the classes seen and the classes heard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .look import draw_backdrop
from .scene import NUM_SEGMENTS, ClipSpec, Scene, Segment, finish_scene, plan_clips
from .segmentation import draw_classes, draw_in_view, draw_order
from .voice import draw_noise_bed


# Shortest and longest stretch of an object, and the shortest rest after a part is cut off, in seconds.
_SPAN = (3, 6)
_REST = 2


def plan_parsing_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips as in LLP: one third with one object, two thirds with two of different classes, whose stretches of three
    to six seconds may overlap.

    In aligned clips an object is seen while it is heard. In misaligned clips the last object is not seen during all or
    part of its stretch (`off_screen_sound`); or it is not heard during all or part of it (`silent_object`); or at some
    second another object's sound replaces that of the first, which stays in view (`wrong_soundtrack`); or the camera
    cuts to an empty place during part of the first one's stretch while the sound continues (`camera_cut`).

    Args:
        num_clips, split, misalignment, misalignment_weights, seed: As for [`~scene.plan_event_clips`].

    Returns:
        The scenes, by split. As in LLP, a clip's name includes its start and end in a video.
    """
    return plan_clips(num_clips, split, misalignment, misalignment_weights, seed, (2, 1, 2), _parsing_scene)


def _parsing_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    kind = spec.kind
    count = 2 if kind == "wrong_soundtrack" else spec.number
    sources = draw_in_view(rng, draw_classes(rng, spec.class_id, count - 1))
    seen = [_span(rng) for _ in range(count)]
    heard = list(seen)
    away = range(0)
    if kind in ("off_screen_sound", "silent_object"):
        lacking = seen if kind == "off_screen_sound" else heard
        lacking[-1] = range(0) if rng.uniform() < 0.5 else _divide(rng, lacking[-1])[0]
    elif kind == "wrong_soundtrack":
        second = int(rng.integers(seen[0].start + 1, seen[0].stop - 1))
        heard = [range(seen[0].start, second), range(second, seen[0].stop)]
        seen[1] = range(0)
    elif kind == "camera_cut":
        away = _divide(rng, seen[0])[1]

    order = draw_order(rng, count)
    segments = []
    for second in range(NUM_SEGMENTS):
        visible = tuple(source for source in order if second in seen[source] and second not in away)
        sounding = tuple(source for source in range(count) if second in heard[source])
        segments.append(
            Segment(
                visible,
                sounding,
                backdrop=int(second in away),
                misalignment=None if set(visible) == set(sounding) else kind,
            )
        )
    backdrops = [draw_backdrop(rng), draw_backdrop(rng)]
    scene = finish_scene(rng, spec, sources, backdrops, draw_noise_bed(rng), segments)
    start = 10 * (spec.index % 30)
    return replace(scene, clip_id=f"{spec.clip_id}_{start}_{start + NUM_SEGMENTS}")


def _span(rng: np.random.Generator) -> range:
    length = int(rng.integers(_SPAN[0], _SPAN[1] + 1))
    start = int(rng.integers(0, NUM_SEGMENTS - length + 1))
    return range(start, start + length)


def _divide(rng: np.random.Generator, span: range) -> tuple[range, range]:
    """Split a stretch into the rest, at least `_REST` seconds, and a part cut off at its beginning or end."""
    length = int(rng.integers(_REST, len(span)))
    if rng.uniform() < 0.5:
        return span[:length], span[length:]
    return span[-length:], span[:-length]
