"""
The hard level of the toy corpus: weak signals, more misalignment, and one caption in five is wrong.

Scenes of the normal plans are weakened: objects are paler, grainy and partly behind a pole, voices are quieter and the
noise is louder. Event localization and multi-source segmentation also have separate plans, in which neither
modality alone shows when an event happens: in most seconds something is seen and something is heard, and what decides
is whether both are of one class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .classes import CLASSES, HARD_MISALIGNMENTS, MISALIGNMENTS
from .look import Look, Pole, draw_backdrop
from .scene import (
    EVENT_SECONDS,
    NUM_SEGMENTS,
    SPLITS,
    ClipSpec,
    Scene,
    Segment,
    audio_caption,
    finish_scene,
    plan_clips,
    visual_caption,
)
from .segmentation import draw_classes, draw_in_view, draw_order, draw_sounding, multi_source_scene
from .voice import Voice, draw_noise_bed


# Share of the clips of a split whose captions name other classes.
WRONG_CAPTIONS = 0.2

# Ranges of the factor on an object's radius, in general and in event clips, of which each frame as a whole must tell
# up to three objects; of its opacity; and of the grain over the frame (standard deviation of values in [0, 1]).
RADIUS = (0.9, 1.2)
EVENT_RADIUS = (1.1, 1.4)
OPACITY = (0.85, 1.0)
FRAME_NOISE = (0.0, 0.02)
# Share of clips with a pole in front of the first object, and the pole's half width in radii of that object.
POLES = 0.25
POLE_RADIUS = (0.25, 0.4)
# Ranges of the attenuation of voices and of the level of the noise, in decibels.
DROP = (4.0, 10.0)
NOISE_DECIBELS = (-42.0, -30.0)

# Share of event clips in which two objects are seen and heard together, and only captions tell which one is meant.
_COMPANIONS = 0.5
# Share of misaligned event clips in which a silent object is always in view, and share of clips with off-screen sound
# in which that sound continues during the event.
_DISTRACTORS = 0.25
_MIXED_SOUND = 0.5
# Shortest and longest delay of the sound in an event clip, in seconds.
_DELAY = (1, 3)

_Plan = Callable[[int, Sequence[float], float, Mapping[str, float], int], list[Scene]]


def hard_plan(plan: _Plan, radius: tuple[float, float] = RADIUS) -> _Plan:
    """Wrap a plan: weaken its scenes and give a share `WRONG_CAPTIONS` of each split wrong captions."""

    def planned(
        num_clips: int,
        split: Sequence[float],
        misalignment: float,
        misalignment_weights: Mapping[str, float],
        seed: int,
    ) -> list[Scene]:
        scenes = plan(num_clips, split, misalignment, misalignment_weights, seed)
        wrong: set[int] = set()
        for number, split_name in enumerate(SPLITS):
            indices = [scene.index for scene in scenes if scene.split == split_name]
            rng = np.random.default_rng([seed, number, 1])
            wrong.update(rng.permutation(indices)[: round(WRONG_CAPTIONS * len(indices))].tolist())
        return [
            weaken(np.random.default_rng([seed, scene.index, 1]), scene, scene.index not in wrong, radius)
            for scene in scenes
        ]

    return planned


def weaken(
    rng: np.random.Generator, scene: Scene, caption_is_right: bool = True, radius: tuple[float, float] = RADIUS
) -> Scene:
    """Return the scene with a weak signal and, unless `caption_is_right`, captions of classes that are absent."""
    sources = [
        replace(source, look=_weak_look(rng, source.look, radius), voice=_weak_voice(rng, source.voice))
        for source in scene.sources
    ]
    noise = draw_noise_bed(rng, NOISE_DECIBELS)
    named = sources
    if not caption_is_right:
        absent = sorted(set(range(len(CLASSES))) - {source.class_id for source in sources})
        named = [
            replace(source, class_id=int(class_id))
            for source, class_id in zip(sources, rng.permutation(absent), strict=False)
        ]
    captioned = [
        replace(
            segment,
            visible=tuple(i for i in segment.visible if i not in scene.uncaptioned),
            sounding=tuple(i for i in segment.sounding if i not in scene.uncaptioned),
        )
        for segment in scene.segments
    ]
    return replace(
        scene,
        sources=tuple(sources),
        noise=noise,
        visual_caption=visual_caption(rng, named, scene.backdrops, captioned),
        audio_caption=audio_caption(rng, named, noise, captioned),
        caption_is_right=caption_is_right,
        pole=_draw_pole(rng, sources[0].look) if rng.uniform() < POLES else None,
        frame_noise=float(rng.uniform(*FRAME_NOISE)),
    )


def _weak_look(rng: np.random.Generator, look: Look, radius: tuple[float, float]) -> Look:
    return replace(look, radius=look.radius * float(rng.uniform(*radius)), opacity=float(rng.uniform(*OPACITY)))


def _weak_voice(rng: np.random.Generator, voice: Voice) -> Voice:
    return replace(voice, gain=voice.gain * float(10 ** (-rng.uniform(*DROP) / 20)))


def _draw_pole(rng: np.random.Generator, look: Look) -> Pole:
    x, y = np.array([look.x, look.y]) + look.radius * rng.uniform(-0.5, 0.5, 2)
    grey = float(rng.uniform(0.1, 0.6))
    angle, radius = float(rng.uniform(0, np.pi)), look.radius * float(rng.uniform(*POLE_RADIUS))
    return Pole(float(x), float(y), angle, radius, (grey, grey, grey))


def plan_hard_event_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips with one audio-visual event each, like [`~scene.plan_event_clips`] but with more distractors.

    In half of the clips another object is seen and heard during the whole event. Captions do not mention it: only they
    tell which of the two objects is meant, as a viewer's description tells what a clip is about. In misaligned clips a
    silent object may be in view all the time, including the event. For at least half of the time before and after the
    event, the clip's own or another object is seen in silence (`silent_object`) or only heard (`off_screen_sound`),
    one is seen and the other is heard (`wrong_soundtrack`), or the camera cuts away while the sound continues
    (`camera_cut`). Off-screen sound may continue during the event. With `delayed_sound` the object appears one to
    three seconds before it is heard and is heard for as long after it has disappeared.

    Args:
        misalignment_weights: Weight of each kind of `HARD_MISALIGNMENTS`.
        num_clips, split, misalignment, seed: As for [`~scene.plan_event_clips`].
    """
    return plan_clips(
        num_clips,
        split,
        misalignment,
        misalignment_weights,
        seed,
        EVENT_SECONDS,
        _event_scene,
        kinds_known=HARD_MISALIGNMENTS,
    )


def plan_hard_multi_source_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips like [`~segmentation.plan_multi_source_clips`], with one more kind of misalignment: objects appear one
    second before they are heard and are heard for one second after they have disappeared (`delayed_sound`).

    Args:
        misalignment_weights: Weight of each kind of `HARD_MISALIGNMENTS`.
        num_clips, split, misalignment, seed: As for [`~scene.plan_event_clips`].
    """
    return plan_clips(
        num_clips,
        split,
        misalignment,
        misalignment_weights,
        seed,
        (2, 3),
        _multi_source_scene,
        kinds_known=HARD_MISALIGNMENTS,
    )


def _event_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    """Draw a clip with an event of `spec.number` seconds: its own object, another one, and an always silent one."""
    sources = draw_in_view(rng, draw_classes(rng, spec.class_id, 2))
    backdrops = (draw_backdrop(rng), draw_backdrop(rng))
    start = int(rng.integers(0, NUM_SEGMENTS - spec.number + 1))
    end = start + spec.number
    visible: list[tuple[int, ...]] = [()] * NUM_SEGMENTS
    sounding: list[tuple[int, ...]] = [()] * NUM_SEGMENTS
    own = (0, 1) if rng.uniform() < _COMPANIONS else (0,)
    visible[start:end] = sounding[start:end] = [own] * spec.number
    kinds: list[str | None] = [None] * NUM_SEGMENTS
    if spec.kind == "delayed_sound":
        delay = int(rng.integers(_DELAY[0], _DELAY[1] + 1))
        for second in range(max(0, start - delay), start):
            visible[second], kinds[second] = own, "delayed_sound"
        for second in range(end, min(NUM_SEGMENTS, end + delay)):
            sounding[second], kinds[second] = own, "delayed_sound"
    elif spec.kind is not None:
        if spec.kind == "off_screen_sound" and own == (0,) and rng.uniform() < _MIXED_SOUND:
            sounding[start:end], kinds[start:end] = [(0, 1)] * spec.number, [spec.kind] * spec.number
        stretch_kind = spec.kind
        for first, last in rng.permutation([run for run in ((0, start), (end, NUM_SEGMENTS)) if run[0] < run[1]]):
            length = int(rng.integers((last - first + 1) // 2, last - first + 1))
            offset = int(rng.integers(0, last - first - length + 1))
            if stretch_kind == "camera_cut":
                offset = 0 if first == end else last - first - length
            stray = int(rng.integers(2))
            stretch = slice(first + offset, first + offset + length)
            kinds[stretch] = [stretch_kind] * length
            visible[stretch] = [(stray,) if stretch_kind in ("silent_object", "wrong_soundtrack") else ()] * length
            heard = {"silent_object": (), "camera_cut": own, "off_screen_sound": (stray,)}
            sounding[stretch] = [heard.get(stretch_kind, (1 - stray,))] * length
            weights = np.array(spec.weights[: len(MISALIGNMENTS)])
            if weights.sum():
                stretch_kind = MISALIGNMENTS[rng.choice(len(MISALIGNMENTS), p=weights / weights.sum())]
    if spec.kind is not None and (spec.kind == "silent_object" or rng.uniform() < _DISTRACTORS):
        visible = [(2, *seen) for seen in visible]
        kinds = ["silent_object" if kind is None else kind for kind in kinds]
    segments = [
        Segment(seen, heard, backdrop=int(kind == "camera_cut"), misalignment=kind)
        for seen, heard, kind in zip(visible, sounding, kinds, strict=True)
    ]
    scene = finish_scene(rng, spec, sources, backdrops, draw_noise_bed(rng), segments)
    return replace(scene, uncaptioned=own[1:])


def _multi_source_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    if spec.kind != "delayed_sound":
        return multi_source_scene(rng, spec)
    sources = draw_in_view(rng, draw_classes(rng, spec.class_id, spec.number - 1))
    order = draw_order(rng, spec.number)
    heard: list[tuple[int, ...]] = []
    while not any(0 in seen and 0 in before for seen, before in zip(heard[1:], heard, strict=False)):
        heard = draw_sounding(rng, spec.number)
    segments = []
    for seen, sounding in zip(heard, [(), *heard], strict=False):
        kind = None if seen == sounding else spec.kind
        segments.append(Segment(tuple(i for i in order if i in seen), sounding, misalignment=kind))
    return finish_scene(rng, spec, sources, [draw_backdrop(rng)], draw_noise_bed(rng), segments)
