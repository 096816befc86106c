"""
Plans of toy clips: what happens in each second, before anything is drawn.

A scene lists its sources (objects with a look and a voice) and, for every one-second segment, which of them are
visible, which are sounding, which backdrop is in view and whether (and how) sight and sound are misaligned. Renderers
and layout writers need nothing else, so supporting another data set takes a plan and a writer. The plan of clips with
one event each is here; the other tasks have separate modules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caeav_hf.errors import DataError

from .classes import CLASSES, MISALIGNMENTS, TOY_CLASSES
from .look import BACKDROPS, Backdrop, Look, Pole, draw_backdrop, draw_look
from .voice import NOISE_BEDS, NoiseBed, Voice, draw_noise_bed, draw_voice


SPLITS = ("train", "validation", "test")

NUM_SEGMENTS = 10  # seconds of a clip with one event

# Durations of events in seconds, ordered so that every prefix averages at least 5: even in a tiny split, predicting
# "background" everywhere is right for at most half of the segments.
EVENT_SECONDS = (8, 3, 7, 4, 6, 5, 9, 2)


@dataclass(frozen=True)
class Source:
    """A thing that can be seen and heard."""

    class_id: int
    look: Look
    voice: Voice


@dataclass(frozen=True)
class Segment:
    """One second: indices into the scene's sources and backdrops, and the kind of misalignment, if any."""

    visible: tuple[int, ...] = ()
    sounding: tuple[int, ...] = ()
    backdrop: int = 0
    misalignment: str | None = None


@dataclass(frozen=True)
class Scene:
    """
    One clip. `index` is its number in the corpus; its first source is its main object. `frame_noise` is the standard
    deviation of grain that changes with every frame. Captions do not mention the `uncaptioned` sources.
    """

    clip_id: str
    index: int
    split: str
    sources: tuple[Source, ...]
    backdrops: tuple[Backdrop, ...]
    noise: NoiseBed
    segments: tuple[Segment, ...]
    visual_caption: str
    audio_caption: str
    caption_is_right: bool = True
    pole: Pole | None = None
    frame_noise: float = 0.0
    uncaptioned: tuple[int, ...] = ()

    @property
    def class_id(self) -> int:
        """Class of the first source."""
        return self.sources[0].class_id

    @property
    def event(self) -> tuple[int, int]:
        """[start, end) of the event in seconds, from the first to the last in which source 0 is seen and heard."""
        together = [t for t, segment in enumerate(self.segments) if 0 in segment.visible and 0 in segment.sounding]
        return (together[0], together[-1] + 1) if together else (0, 0)

    @property
    def is_aligned(self) -> bool:
        """Whether in every segment exactly the visible sources are heard."""
        return all(segment.misalignment is None for segment in self.segments)


@dataclass(frozen=True)
class ClipSpec:
    """
    What the balanced plan assigns to a clip, before its scene is drawn.

    Args:
        index: Its number in the corpus.
        split: Its split.
        class_id: Class of its first source.
        number: One of the balanced numbers; the plan decides what it counts.
        kind: Kind of its misalignment, `None` in an aligned clip.
        weights: Weight of each kind of misalignment.
    """

    index: int
    split: str
    class_id: int
    number: int
    kind: str | None
    weights: tuple[float, ...]

    @property
    def clip_id(self) -> str:
        """Name of the clip: 11 characters, like YouTube's."""
        return f"toy{self.index:08d}"


def plan_event_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
) -> list[Scene]:
    """
    Plan clips with one audio-visual event each, as in AVE: an object is seen and heard during an interval; the rest is
    background, which in misaligned clips has objects without their sound or sounds without their object.

    Args:
        num_clips: Total number of clips.
        split: Weights of training, validation and test.
        misalignment: Share of misaligned clips in each split, in [0, 1].
        misalignment_weights: Weight of each kind of `MISALIGNMENTS`; kinds not named get 0.
        seed: Random seed.

    Returns:
        The scenes, by split. Among the aligned and among the misaligned clips of every split, classes are balanced and
        events last 5.5 s on average.
    """
    return plan_clips(num_clips, split, misalignment, misalignment_weights, seed, EVENT_SECONDS, _event_scene)


def plan_clips(
    num_clips: int,
    split: Sequence[float],
    misalignment: float,
    misalignment_weights: Mapping[str, float],
    seed: int,
    numbers: Sequence[int],
    make_scene: Callable[[np.random.Generator, ClipSpec], Scene],
    num_classes: int = len(CLASSES),
    kinds_known: Sequence[str] = MISALIGNMENTS,
) -> list[Scene]:
    """
    Assign classes, numbers and kinds of misalignment evenly to clips and make a scene for each.

    Args:
        num_clips, split, misalignment, misalignment_weights, seed: As for [`plan_event_clips`].
        numbers: Balanced among the aligned and among the misaligned clips of each split.
        make_scene: Makes one scene, given a generator.
        num_classes: Number of classes to use, from the first.
        kinds_known: Kinds of misalignment that can be assigned.

    Raises:
        DataError: An argument is out of range.
    """
    weights = _checked_weights(misalignment_weights, kinds_known)
    if not 0.0 <= misalignment <= 1.0:
        raise DataError(f"`misalignment` must be a share of the clips in [0, 1], got {misalignment}")
    if len(split) != len(SPLITS) or min(split) < 0 or sum(split) <= 0:
        raise DataError(f"`split` must be {len(SPLITS)} weights for {', '.join(SPLITS)}, got {tuple(split)}")
    if num_clips < 1:
        raise DataError(f"`num_clips` must be at least 1, got {num_clips}")
    scenes: list[Scene] = []
    for split_name, size in zip(SPLITS, _apportion(num_clips, split), strict=True):
        rng = np.random.default_rng([seed, len(scenes), SPLITS.index(split_name)])
        num_misaligned = round(misalignment * size)
        specs = [
            (class_id, number, kind)
            for kinds in (
                [None] * (size - num_misaligned),
                _shuffled(rng, np.repeat(np.arange(len(kinds_known)), _apportion(num_misaligned, weights))),
            )
            for class_id, number, kind in zip(
                _shuffled(rng, np.resize(rng.permutation(num_classes), len(kinds))),
                _shuffled(rng, np.resize(numbers, len(kinds))),
                kinds,
                strict=True,
            )
        ]
        for position in rng.permutation(size):
            class_id, number, kind = specs[position]
            name = None if kind is None else kinds_known[kind]
            spec = ClipSpec(len(scenes), split_name, class_id, number, name, tuple(weights))
            scenes.append(make_scene(np.random.default_rng([seed, spec.index]), spec))
    return scenes


def _event_scene(rng: np.random.Generator, spec: ClipSpec) -> Scene:
    """Draw a clip with an event of `spec.number` seconds."""
    other_class = int(rng.choice([other for other in range(len(CLASSES)) if other != spec.class_id]))
    sources = tuple(Source(c, draw_look(rng, c), draw_voice(rng, c)) for c in (spec.class_id, other_class))
    start = int(rng.integers(0, NUM_SEGMENTS - spec.number + 1))
    end = start + spec.number
    segments = [Segment()] * NUM_SEGMENTS
    segments[start:end] = [Segment(visible=(0,), sounding=(0,))] * spec.number
    if (kind := spec.kind) is not None:
        # The background before and after the event gets one kind each, the first of them (at random) `spec.kind`.
        for first, last in rng.permutation([run for run in ((0, start), (end, NUM_SEGMENTS)) if run[0] < run[1]]):
            length = int(rng.integers((last - first + 1) // 2, last - first + 1))
            offset = int(rng.integers(0, last - first - length + 1))
            if kind == "camera_cut":  # next to the event: cuts away from its source, which keeps sounding
                offset = 0 if first == end else last - first - length
            segments[first + offset : first + offset + length] = [_misaligned(rng, kind)] * length
            kind = MISALIGNMENTS[rng.choice(len(MISALIGNMENTS), p=np.array(spec.weights) / sum(spec.weights))]
    backdrops, noise = (draw_backdrop(rng), draw_backdrop(rng)), draw_noise_bed(rng)
    return finish_scene(rng, spec, sources, backdrops, noise, segments)


def finish_scene(
    rng: np.random.Generator,
    spec: ClipSpec,
    sources: Sequence[Source],
    backdrops: Sequence[Backdrop],
    noise: NoiseBed,
    segments: Sequence[Segment],
) -> Scene:
    """Build the scene of a clip, with captions of what is seen and heard in it."""
    return Scene(
        clip_id=spec.clip_id,
        index=spec.index,
        split=spec.split,
        sources=tuple(sources),
        backdrops=tuple(backdrops),
        noise=noise,
        segments=tuple(segments),
        visual_caption=visual_caption(rng, sources, backdrops, segments),
        audio_caption=audio_caption(rng, sources, noise, segments),
    )


def _misaligned(rng: np.random.Generator, kind: str) -> Segment:
    """Draw a background segment of a kind. Source 0 is the clip's own, source 1 another one; either may appear."""
    stray = int(rng.integers(2))
    if kind == "off_screen_sound":
        return Segment(sounding=(stray,), misalignment=kind)
    if kind == "silent_object":
        return Segment(visible=(stray,), misalignment=kind)
    if kind == "wrong_soundtrack":
        return Segment(visible=(stray,), sounding=(1 - stray,), misalignment=kind)
    return Segment(sounding=(0,), backdrop=1, misalignment=kind)


def visual_caption(
    rng: np.random.Generator, sources: Sequence[Source], backdrops: Sequence[Backdrop], segments: Sequence[Segment]
) -> str:
    """Write a sentence about what is seen in a clip."""
    own, *others = (TOY_CLASSES[source.class_id] for source in sources)
    place = BACKDROPS[backdrops[0].kind]
    if not any(segment.visible for segment in segments):
        return f"The video shows nothing but {place}."
    moves = str(rng.choice(own.seen))
    sentence = str(
        rng.choice(
            [
                f"{own.look} {moves} in front of {place}",
                f"in front of {place}, {own.look} {moves}",
                f"the video shows {own.look} that {moves} before {place}",
            ]
        )
    )
    for index, other in enumerate(others, 1):
        if any(index in segment.visible for segment in segments):
            sentence += str(rng.choice([f", and {other.look} is seen", f"; {other.look} also appears"]))
    if any(segment.backdrop for segment in segments):
        away = BACKDROPS[backdrops[1].kind]
        sentence += str(rng.choice([f", and the camera cuts to {away}", f"; there is also a view of {away}"]))
    return f"{sentence[0].upper()}{sentence[1:]}."


def audio_caption(
    rng: np.random.Generator, sources: Sequence[Source], noise: NoiseBed, segments: Sequence[Segment]
) -> str:
    """Write a sentence about what is heard in a clip."""
    bed = NOISE_BEDS[noise.kind]
    sounds = [
        str(rng.choice(TOY_CLASSES[source.class_id].heard))
        for index, source in enumerate(sources)
        if any(index in segment.sounding for segment in segments)
    ]
    if not sounds:
        return f"There is nothing to hear but {bed}."
    heard = " and ".join(sounds)
    sentence = str(rng.choice([f"{heard} over {bed}", f"over {bed}, {heard}", f"{heard}, with {bed}"]))
    return f"{sentence[0].upper()}{sentence[1:]}."


def _checked_weights(weights: Mapping[str, float], kinds: Sequence[str]) -> list[float]:
    if unknown := sorted(set(weights) - set(kinds)):
        raise DataError(f"`misalignment_weights` has unknown kinds {unknown}, expected some of {', '.join(kinds)}")
    values = [float(weights.get(kind, 0.0)) for kind in kinds]
    if min(values) < 0 or sum(values) <= 0:
        raise DataError(f"`misalignment_weights` must be non-negative and not all 0, got {dict(weights)}")
    return values


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide `total` into whole numbers in proportion to the weights (largest remainder method)."""
    quotas = np.array(weights, dtype=float) * total / sum(weights)
    counts = np.floor(quotas).astype(int)
    for position in np.argsort(counts - quotas, kind="stable")[: total - int(counts.sum())]:
        counts[position] += 1
    return counts.tolist()


def _shuffled(rng: np.random.Generator, values: Sequence[int] | np.ndarray) -> list[int]:
    return rng.permutation(np.asarray(values, dtype=int)).tolist()
