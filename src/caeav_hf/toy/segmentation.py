"""
Plans of clips for audio-visual segmentation: five seconds of objects in view together, of which one (single source) or
some (multiple sources) sound. The mask of a second covers the visible pixels of the objects that sound in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from caeav_hf.errors import DataError

from .classes import CLASSES
from .look import draw_backdrop, draw_look
from .scene import ClipSpec, Scene, Segment, Source, finish_scene, plan_clips
from .voice import draw_noise_bed, draw_voice


SECONDS = 5

# Distance of objects from the centre of the frame and range of their radii, as fractions of its side, by the number of
# objects in view. None is at the centre, so that guessing a position does not pay.
_DISTANCES = {1: 0.24, 2: 0.26, 3: 0.29}
_RADII = {1: (0.18, 0.24), 2: (0.16, 0.22), 3: (0.14, 0.19)}
# A narrower range than with one sounding source at a time, so that none masks another.
_DECIBELS = (-12.0, -6.0)
# Share of the stretches of a multi-source clip in which nothing sounds.
_SILENCE = 0.02


def plan_single_source_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips as in AVSBench's single-source subset: the first source is seen and heard all the time. In misaligned
    clips one or two silent objects of other classes are in view too, and only the sound tells which object to segment.

    Args:
        misalignment_weights: Must give `silent_object` a weight; other kinds are ignored.
        num_clips, split, misalignment, seed: As for [`~scene.plan_event_clips`].
    """
    if misalignment and not misalignment_weights.get("silent_object", 0.0) > 0:
        raise DataError("single-source clips support only the misalignment `silent_object`; expected a weight for it")
    silent = {"silent_object": 1.0}
    return plan_clips(num_clips, split, misalignment, silent, seed, (1, 2), _single_source_scene)


def plan_multi_source_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips as in AVSBench's multi-source subset: two or three objects of different classes. The subset that sounds
    changes one to three times per clip and may be empty.

    In aligned clips an object is in view while it sounds. In misaligned clips all are in view all the time, sounding
    or not (`silent_object`). Clips of the other kinds also have one second in which the sound of an object that is not
    in view is added (`off_screen_sound`) or replaces theirs (`wrong_soundtrack`), or in which the camera cuts to an
    empty place while they continue to sound (`camera_cut`).

    Args:
        num_clips, split, misalignment, misalignment_weights, seed: As for [`~scene.plan_event_clips`].
    """
    return plan_clips(num_clips, split, misalignment, misalignment_weights, seed, (2, 3), multi_source_scene)


def _single_source_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    classes = draw_classes(rng, spec.class_id, 0 if spec.kind is None else spec.number)
    sources = draw_in_view(rng, classes)
    segment = Segment(visible=draw_order(rng, len(sources)), sounding=(0,), misalignment=spec.kind)
    return finish_scene(rng, spec, sources, [draw_backdrop(rng)], draw_noise_bed(rng), [segment] * SECONDS)


def multi_source_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    """Draw a clip with `spec.number` objects in view and one that never is."""
    count = spec.number
    *classes, stray_class = draw_classes(rng, spec.class_id, count)
    stray = Source(stray_class, draw_look(rng, stray_class), draw_voice(rng, stray_class, _DECIBELS))
    sources = [*draw_in_view(rng, classes), stray]
    order, sounding = draw_order(rng, count), draw_sounding(rng, count)
    if spec.kind is None:
        segments = [Segment(tuple(i for i in order if i in heard), heard) for heard in sounding]
    else:
        segments = [
            Segment(order, heard, misalignment=None if len(heard) == count else "silent_object") for heard in sounding
        ]
        second = _stray_second(rng, sounding)
        heard = sounding[second]
        segments[second] = {
            "silent_object": segments[second],
            "off_screen_sound": Segment(order, (*heard, count), misalignment=spec.kind),
            "wrong_soundtrack": Segment(order, (count,), misalignment=spec.kind),
            "camera_cut": Segment((), heard or (0,), backdrop=1, misalignment=spec.kind),
        }[spec.kind]
    backdrops = [draw_backdrop(rng), draw_backdrop(rng)]
    return finish_scene(rng, spec, sources, backdrops, draw_noise_bed(rng), segments)


def draw_classes(rng: np.random.Generator, class_id: int, others: int, among: int = len(CLASSES)) -> list[int]:
    """Draw `others` more classes for a class, all different, among the first `among`."""
    rest = [other for other in range(among) if other != class_id]
    return [class_id, *rng.choice(rest, others, replace=False).tolist()]


def draw_in_view(rng: np.random.Generator, classes: Sequence[int]) -> list[Source]:
    """Draw sources that are in view together, spaced around the centre of the frame."""
    count, turn = len(classes), rng.uniform(0, 2 * np.pi)
    sources = []
    for number, class_id in enumerate(classes):
        angle = turn + 2 * np.pi * number / count
        x, y = 0.5 + _DISTANCES[count] * np.array([np.cos(angle), np.sin(angle)]) + rng.uniform(-0.03, 0.03, 2)
        look = replace(draw_look(rng, class_id), x=float(x), y=float(y), radius=float(rng.uniform(*_RADII[count])))
        sources.append(Source(class_id, look, draw_voice(rng, class_id, _DECIBELS)))
    return sources


def draw_order(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Draw the order in which sources are painted, from back to front."""
    return tuple(rng.permutation(count).tolist())


def draw_sounding(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """
    Draw which of `count` sources sound in each second: two to four stretches, each unlike the one before. The first
    source sounds in at least one.
    """
    while True:
        changes = rng.choice(np.arange(1, SECONDS), rng.integers(1, 4), replace=False).tolist()
        seconds = [_subset(rng, count)]
        for second in range(1, SECONDS):
            heard = seconds[-1]
            while second in changes and heard == seconds[-1]:
                heard = _subset(rng, count)
            seconds.append(heard)
        if any(0 in heard for heard in seconds):
            return seconds


def _subset(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    if rng.uniform() < _SILENCE:
        return ()
    return tuple(sorted(rng.choice(count, rng.integers(1, count + 1), replace=False).tolist()))


def _stray_second(rng: np.random.Generator, sounding: Sequence[tuple[int, ...]]) -> int:
    """Draw a second such that the first source also sounds in another one."""
    with_first = {second for second, heard in enumerate(sounding) if 0 in heard}
    return int(rng.choice([second for second in range(SECONDS) if with_first - {second}]))
