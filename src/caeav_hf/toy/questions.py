"""
Plans of clips for audio-visual question answering, and questions about them: twenty seconds with one or two objects in
view and one or two heard, not always the same ones.

A clip's questions follow from its scene. Questions with two possible answers are sampled so that in each split both
answers are right equally often: the text of a question does not give its answer away.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caeav_hf.errors import DataError

from .classes import CLASSES
from .look import draw_backdrop
from .scene import SPLITS, ClipSpec, Scene, Segment, Source, finish_scene, plan_clips
from .segmentation import draw_classes, draw_in_view, draw_order
from .voice import draw_noise_bed


SECONDS = 20
QUESTION_MISALIGNMENTS = ("silent_object", "off_screen_sound", "wrong_soundtrack")
# Few, so that a small corpus has enough questions about each.
OBJECTS = CLASSES[:5]
ANSWERS = (*OBJECTS, "yes", "no", "one", "two")

# Sounds start and stop only at multiples of this many seconds, so that nothing changes within any of five or ten
# evenly spread segments.
_STEP = 4
# Shortest and longest pause of a sound, in seconds.
_PAUSE = (8, 12)
_NUMBERS = ("zero", "one", "two")


@dataclass(frozen=True)
class AskedQuestion:
    """One question: `content` has a slot `<Object>` for each of `values`."""

    content: str
    kind: str
    subtype: str
    values: tuple[str, ...]
    answer: str


def plan_question_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips to ask about. In aligned clips one or two objects are seen and heard all the time. In misaligned clips
    two are in view and only the first is heard (`silent_object`); or one is in view and heard, and another is heard
    off-screen (`off_screen_sound`); or one is in view and only another is heard (`wrong_soundtrack`). Sounds of
    misaligned clips may pause for eight to twelve seconds.

    Args:
        misalignment_weights: Weight of each kind of `QUESTION_MISALIGNMENTS`; that of `camera_cut` is ignored.
        num_clips, split, misalignment, seed: As for [`~scene.plan_event_clips`].
    """
    weights = {kind: misalignment_weights.get(kind, 0.0) for kind in QUESTION_MISALIGNMENTS}
    if misalignment and not sum(weights.values()) > 0:
        raise DataError(
            "question-answering clips support only the misalignments "
            f"{', '.join(QUESTION_MISALIGNMENTS)}; expected a weight for one of them"
        )
    rest = {kind: weight for kind, weight in misalignment_weights.items() if kind != "camera_cut"}
    weights = rest if misalignment else {"silent_object": 1.0}
    return plan_clips(num_clips, split, misalignment, weights, seed, (0, 1), _question_scene, num_classes=len(OBJECTS))


def _question_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    in_view, heard = {
        None: (1 + spec.number, tuple(range(1 + spec.number))),
        "silent_object": (2, (0,)),
        "off_screen_sound": (1, (0, 1)),
        "wrong_soundtrack": (1, (1,)),
    }[spec.kind]
    classes = draw_classes(rng, spec.class_id, 0 if spec.kind is None and in_view == 1 else 1, len(OBJECTS))
    sources: list[Source] = draw_in_view(rng, classes[:in_view])
    # Objects out of view have a look too; it is never painted.
    sources += [source for class_id in classes[in_view:] for source in draw_in_view(rng, [class_id])]
    order = draw_order(rng, in_view)
    pause = range(0)
    if spec.kind is not None:
        length = _STEP * int(rng.integers(_PAUSE[0] // _STEP, _PAUSE[1] // _STEP + 1))
        start = _STEP * int(rng.integers(0, (SECONDS - length) // _STEP + 1))
        pause = range(start, start + length)
    # Of two heard objects one pauses, either of them; a single one pauses or not.
    pausing = {1: heard[0] if spec.number else None, 2: spec.number}[len(heard)]
    segments = []
    for second in range(SECONDS):
        sounding = tuple(source for source in heard if not (source == pausing and second in pause))
        aligned = set(order) == set(sounding)
        segments.append(Segment(order, sounding, misalignment=None if aligned else spec.kind))
    return finish_scene(rng, spec, sources, [draw_backdrop(rng)], draw_noise_bed(rng), segments)


def draw_questions(scenes: Sequence[Scene]) -> list[tuple[Scene, AskedQuestion]]:
    """
    Return the questions about the clips, in the order of the clips.

    In each split, questions with two possible answers are subsampled until both answers are equally frequent.
    """
    drawn: list[tuple[Scene, AskedQuestion]] = []
    for number, split in enumerate(SPLITS):
        in_split = [scene for scene in scenes if scene.split == split]
        asked = [(scene, question) for scene in in_split for question in _questions(scene)]
        rng = np.random.default_rng([len(scenes), number])
        by_answer: dict[str, dict[str, list[int]]] = {}
        for index, (_, question) in enumerate(asked):
            by_answer.setdefault(question.content, {}).setdefault(question.answer, []).append(index)
        kept: list[int] = []
        for answers in by_answer.values():
            if set(answers) <= set(OBJECTS):
                kept.extend(index for indices in answers.values() for index in indices)
                continue
            fewest = min(map(len, answers.values())) if len(answers) == 2 else 0
            for indices in answers.values():
                kept.extend(rng.permutation(indices)[:fewest].tolist())
        drawn.extend(asked[index] for index in sorted(kept))
    return drawn


def _questions(scene: Scene) -> Iterator[AskedQuestion]:
    """Yield every question that can be asked about a clip."""
    names = [CLASSES[source.class_id] for source in scene.sources]
    seen = set(scene.segments[0].visible)
    heard = {source for segment in scene.segments for source in segment.sounding}
    rng = np.random.default_rng([scene.index, len(names)])
    yield AskedQuestion("How many objects are in the video?", "Visual", "Counting", (), _NUMBERS[len(seen)])
    if len(seen) == 1:
        yield AskedQuestion("What kind of object is it?", "Visual", "Location", (), names[min(seen)])
    yield AskedQuestion(
        "How many objects were heard throughout the video?", "Audio", "Counting", (), _NUMBERS[len(heard)]
    )
    silent = [names[source] for source in sorted(seen - heard)] or sorted(set(OBJECTS) - set(names))
    values, answer = (sorted(names[source] for source in heard), "yes") if rng.uniform() < 0.5 else (silent, "no")
    yield AskedQuestion("Is there a <Object> sound?", "Audio", "Existential", (str(rng.choice(values)),), answer)
    if len(seen) == len(heard) == 1:
        answer = "yes" if seen == heard else "no"
        yield AskedQuestion("Is this sound from the object in the video?", "Audio-Visual", "Existential", (), answer)
    if len(both := seen & heard) == 1 and len(seen | heard) == 2:
        (source,) = both
        yield AskedQuestion(
            "Which object in the video makes the sound?", "Audio-Visual", "Location", (), names[source]
        )
        always = all(source in segment.sounding for segment in scene.segments)
        yield AskedQuestion(
            "Is the <Object> in the video always sounding?",
            "Audio-Visual",
            "Temporal",
            (names[source],),
            "yes" if always else "no",
        )


def annotation(question_id: int, scene: Scene, question: AskedQuestion) -> dict[str, Any]:
    """Return the question as a record of MUSIC-AVQA (which spells the last key `anser`)."""
    return {
        "video_id": scene.clip_id,
        "question_id": question_id,
        "type": json.dumps([question.kind, question.subtype]),
        "question_content": question.content,
        "templ_values": json.dumps(question.values),
        "question_deleted": 0,
        "anser": question.answer,
    }
