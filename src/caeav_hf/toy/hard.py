"""
The toy corpus at its hard level: what is seen and heard is weak, more is misaligned, and one caption in five is wrong.

Plans of other levels are weakened: objects are paler, behind a pole and under grain, voices quieter under louder
noise. Event localization and multi-source segmentation have plans of their own besides, in which neither modality
alone tells when an event happens: something is seen and something heard in most seconds, and only whether they are of
one class decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .classes import CLASSES
from .look import Look, Pole, draw_backdrop
from .scene import (
    EVENT_SECONDS,
    MISALIGNMENTS,
    NUM_SEGMENTS,
    SPLITS,
    Card,
    Scene,
    Segment,
    audio_caption,
    finish_scene,
    plan_clips,
    visual_caption,
)
from .segmentation import draw_classes, draw_in_view, draw_order, draw_sounding, multi_source_scene
from .voice import Voice, draw_noise_bed


HARD_MISALIGNMENTS = (*MISALIGNMENTS, "delayed_sound")

# Share of the clips of a split whose captions are of other classes.
WRONG_CAPTIONS = 0.2

# Factor of an object's radius, what is left of its contrast, and the grain over it (standard deviation in [0, 1]).
RADIUS = (1.1, 1.4)
OPACITY = (0.85, 1.0)
FRAME_NOISE = (0.0, 0.02)
# Share of the clips with a pole in front of the first object, and its half width in radii of that object.
POLES = 0.25
POLE_RADIUS = (0.25, 0.4)
# By how many decibels a voice is quieter, and the level of the noise.
DROP = (4.0, 10.0)
NOISE_DECIBELS = (-42.0, -30.0)

# Share of the event clips in which two objects are seen and heard together, and captions alone tell which is meant.
_COMPANY = 0.5
# Share of the misaligned event clips with a silent object in view throughout, and of the clips with a sound from
# off-screen in which it goes on during the event.
_DISTRACTORS = 0.25
_MIXED_SOUND = 0.5
# Shortest and longest delay of a sound in a clip with an event, in seconds.
_DELAY = (1, 3)

_Plan = Callable[[int, Sequence[float], float, Mapping[str, float], int], list[Scene]]


def hard_plan(plan: _Plan) -> _Plan:
    """The plan with weakened scenes, of which the share `WRONG_CAPTIONS` of each split has wrong captions."""

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
            weaken(np.random.default_rng([seed, scene.index, 1]), scene, scene.index not in wrong) for scene in scenes
        ]

    return planned


def weaken(rng: np.random.Generator, scene: Scene, caption_is_right: bool = True) -> Scene:
    """The scene with a weak signal, and with captions of classes that do not occur in it where they are not right."""
    sources = [
        replace(source, look=_weak_look(rng, source.look), voice=_weak_voice(rng, source.voice))
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
    told = [
        replace(
            segment,
            visible=tuple(i for i in segment.visible if i not in scene.untold),
            sounding=tuple(i for i in segment.sounding if i not in scene.untold),
        )
        for segment in scene.segments
    ]
    return replace(
        scene,
        sources=tuple(sources),
        noise=noise,
        visual_caption=visual_caption(rng, named, scene.backdrops, told),
        audio_caption=audio_caption(rng, named, noise, told),
        caption_is_right=caption_is_right,
        pole=_draw_pole(rng, sources[0].look) if rng.uniform() < POLES else None,
        frame_noise=float(rng.uniform(*FRAME_NOISE)),
    )


def _weak_look(rng: np.random.Generator, look: Look) -> Look:
    radius = look.radius * float(rng.uniform(*RADIUS))
    return replace(look, radius=radius, opacity=float(rng.uniform(*OPACITY)))


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
    Plans clips with one audio-visual event each, as [`~scene.plan_event_clips`] does, with more that misleads.

    In half of the clips another object is seen and heard with that of the event all along. Captions do not mention it:
    they alone tell which of the two is meant, as a viewer's account of a clip tells what it is about. In misaligned
    clips a silent object may be in view throughout, the event included. Outside of the event, on each side in half of
    the time or more, the clip's own or another object is seen in silence (`silent_object`) or heard only
    (`off_screen_sound`), or one is seen and the other heard (`wrong_soundtrack`), or the camera cuts away while the
    sound goes on (`camera_cut`). Off-screen sound may go on during the event. In clips of `delayed_sound` the object
    comes into view one to three seconds before it is heard, and is heard as long after it is gone.

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
    Plans clips as [`~segmentation.plan_multi_source_clips`] does, with one more kind of misalignment: objects come
    into view one second before they are heard, and are heard for a second after they are gone (`delayed_sound`).

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


def _event_scene(rng: np.random.Generator, card: Card) -> Scene:
    """A clip with an event of `card.number` seconds: its own object, another one, and one that is always silent."""
    sources = draw_in_view(rng, draw_classes(rng, card.class_id, 2))
    backdrops = (draw_backdrop(rng), draw_backdrop(rng))
    start = int(rng.integers(0, NUM_SEGMENTS - card.number + 1))
    end = start + card.number
    visible: list[tuple[int, ...]] = [()] * NUM_SEGMENTS
    sounding: list[tuple[int, ...]] = [()] * NUM_SEGMENTS
    own = (0, 1) if rng.uniform() < _COMPANY else (0,)
    visible[start:end] = sounding[start:end] = [own] * card.number
    kinds: list[str | None] = [None] * NUM_SEGMENTS
    if card.kind == "delayed_sound":
        delay = int(rng.integers(_DELAY[0], _DELAY[1] + 1))
        for second in range(max(0, start - delay), start):
            visible[second], kinds[second] = own, "delayed_sound"
        for second in range(end, min(NUM_SEGMENTS, end + delay)):
            sounding[second], kinds[second] = own, "delayed_sound"
    elif card.kind is not None:
        if card.kind == "off_screen_sound" and own == (0,) and rng.uniform() < _MIXED_SOUND:
            sounding[start:end], kinds[start:end] = [(0, 1)] * card.number, [card.kind] * card.number
        stretch_kind = card.kind
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
            weights = np.array(card.weights[: len(MISALIGNMENTS)])
            if weights.sum():
                stretch_kind = MISALIGNMENTS[rng.choice(len(MISALIGNMENTS), p=weights / weights.sum())]
    if card.kind is not None and (card.kind == "silent_object" or rng.uniform() < _DISTRACTORS):
        visible = [(2, *seen) for seen in visible]
        kinds = ["silent_object" if kind is None else kind for kind in kinds]
    segments = [
        Segment(seen, heard, backdrop=int(kind == "camera_cut"), misalignment=kind)
        for seen, heard, kind in zip(visible, sounding, kinds, strict=True)
    ]
    scene = finish_scene(rng, card, sources, backdrops, draw_noise_bed(rng), segments)
    return replace(scene, untold=own[1:])


def _multi_source_scene(rng: np.random.Generator, card: Card) -> Scene:
    if card.kind != "delayed_sound":
        return multi_source_scene(rng, card)
    sources = draw_in_view(rng, draw_classes(rng, card.class_id, card.number - 1))
    order = draw_order(rng, card.number)
    heard: list[tuple[int, ...]] = []
    while not any(0 in seen and 0 in before for seen, before in zip(heard[1:], heard, strict=False)):
        heard = draw_sounding(rng, card.number)
    segments = []
    for seen, sounding in zip(heard, [(), *heard], strict=False):
        kind = None if seen == sounding else card.kind
        segments.append(Segment(tuple(i for i in order if i in seen), sounding, misalignment=kind))
    return finish_scene(rng, card, sources, [draw_backdrop(rng)], draw_noise_bed(rng), segments)
