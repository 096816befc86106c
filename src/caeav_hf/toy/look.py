"""
Visuals of the toy corpus: a shape, a colour and a motion per class, in front of a textured backdrop.

Everything is drawn from distance functions on a pixel grid, so any size works and edges are smooth. The coverage that
paints an object is also its mask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .classes import CLASSES, TOY_CLASSES


BACKDROPS = {
    "plain": "a plain wall",
    "gradient": "a hazy sky",
    "stripes": "a striped wall",
    "checks": "a tiled wall",
    "blobs": "a mottled curtain",
}


@dataclass(frozen=True)
class Look:
    """
    Appearance of one object: position and radius as fractions of the frame, colour in [0, 1], motion parameters, and
    `opacity`, which blends its colour with the backdrop.
    """

    class_id: int
    x: float
    y: float
    radius: float
    colour: tuple[float, float, float]
    phase: float
    speed: float
    opacity: float = 1.0


@dataclass(frozen=True)
class Pole:
    """A bar across the whole frame, in front of everything: a point on its axis, its angle, its half width."""

    x: float
    y: float
    angle: float
    radius: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Backdrop:
    """A background: a texture between two colours in [0, 1], with static grain."""

    kind: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    frequency: float
    angle: float
    seed: int


def draw_look(rng: np.random.Generator, class_id: int) -> Look:
    """Draw the appearance of an object of a class; hues of neighbouring classes overlap."""
    hue = TOY_CLASSES[class_id].hue + rng.uniform(-0.08, 0.08)
    return Look(
        class_id=class_id,
        x=float(rng.uniform(0.28, 0.72)),
        y=float(rng.uniform(0.28, 0.72)),
        radius=float(rng.uniform(0.12, 0.23)),
        colour=_rgb(hue, rng.uniform(0.5, 0.95), rng.uniform(0.65, 1.0)),
        phase=float(rng.uniform(0.0, 1.0)),
        speed=float(rng.uniform(0.35, 0.8)),
    )


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """Draw a background, paler and darker than the objects."""
    first, second = (
        _rgb(rng.uniform(), rng.uniform(0.0, 0.5), value) for value in (rng.uniform(0.15, 0.7), rng.uniform(0.15, 0.7))
    )
    return Backdrop(
        kind=str(rng.choice(list(BACKDROPS))),
        colours=(first, second),
        frequency=float(rng.uniform(2.0, 6.0)),
        angle=float(rng.uniform(0.0, np.pi)),
        seed=int(rng.integers(2**31)),
    )


def paint_backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    """Return the background as a float32 image of shape (size, size, 3) in [0, 1]."""
    rng = np.random.default_rng(backdrop.seed)
    x, y = _grid(size)
    along = x * np.cos(backdrop.angle) + y * np.sin(backdrop.angle)
    across = y * np.cos(backdrop.angle) - x * np.sin(backdrop.angle)
    turns = 2 * np.pi * backdrop.frequency
    if backdrop.kind == "plain":
        mix = np.zeros_like(x)
    elif backdrop.kind == "gradient":
        mix = 0.5 + 0.5 * along
    elif backdrop.kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(turns * along)
    elif backdrop.kind == "checks":
        mix = 0.5 + 0.5 * np.tanh(6 * np.sin(turns * along) * np.sin(turns * across))
    else:
        waves = rng.uniform(-1, 1, (6, 3)) * (backdrop.frequency * np.pi, backdrop.frequency * np.pi, np.pi)
        mix = 0.5 + 0.5 * np.tanh(sum(np.sin(a * x + b * y + c) for a, b, c in waves))
    image = np.array(backdrop.colours[0]) * (1 - mix[..., None]) + np.array(backdrop.colours[1]) * mix[..., None]
    grain = rng.normal(0.0, 0.02, (size, size, 1))
    return np.clip(image + grain, 0.0, 1.0).astype(np.float32)


def paint_object(image: np.ndarray, look: Look, time: float) -> np.ndarray:
    """
    Paint an object into a float image of shape (size, size, 3), in place.

    Returns:
        Its coverage, (size, size) float32 in [0, 1].
    """
    size = image.shape[0]
    turn = 2 * np.pi * (look.speed * time + look.phase)
    shape, motion = _SHAPES[CLASSES[look.class_id]]
    dx, dy, scale, angle = motion(turn)
    radius = look.radius * scale
    x, y = _grid(size)
    x, y = (x - look.x - dx * look.radius) / radius, (y - look.y - dy * look.radius) / radius
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = shape(x, y, turn) * radius * size  # in pixels, negative inside
    coverage = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    # A darker rim keeps the outline visible in front of a backdrop of the same colour.
    rim = np.clip(distance / (0.1 * radius * size) + 1.3, 0.0, 1.0)[..., None]
    colour = np.array(look.colour) * (1 - 0.55 * rim)
    image += look.opacity * coverage[..., None] * (colour - image)
    return coverage


def paint_pole(image: np.ndarray, pole: Pole) -> np.ndarray:
    """
    Paint a pole into a float image of shape (size, size, 3), in place.

    Returns:
        Its coverage, (size, size) float32 in [0, 1].
    """
    size = image.shape[0]
    x, y = _grid(size)
    across = (y - pole.y) * np.cos(pole.angle) - (x - pole.x) * np.sin(pole.angle)
    coverage = np.clip(0.5 - (np.abs(across) - pole.radius) * size, 0.0, 1.0).astype(np.float32)
    image += coverage[..., None] * (np.array(pole.colour) - image)
    return coverage


def render_frame(rng: np.random.Generator, class_id: int | None, size: int) -> np.ndarray:
    """
    Render one random frame of a class, as in the clips, to train a visual tower on.

    Args:
        rng: Source of the backdrop and of the object's appearance.
        class_id: Index into `CLASSES`, or None for a frame without an object.
        size: Side of the frame in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    image = paint_backdrop(draw_backdrop(rng), size)
    if class_id is not None:
        paint_object(image, draw_look(rng, class_id), time=float(rng.uniform(0.0, 10.0)))
    return to_uint8(image)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image in [0, 1] to uint8."""
    return np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    channels = (np.array([5.0, 3.0, 1.0]) + 6.0 * (hue % 1.0)) % 6.0
    rgb = value * (1.0 - saturation * np.clip(np.minimum(channels, 4.0 - channels), 0.0, 1.0))
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


# Shapes: signed distances in units of the radius, y pointing down. `turn` is the motion's angle, for moving parts.


def _triangle(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return np.maximum(y - 0.8, 0.88 * np.abs(x) - 0.47 * (y + 1.0))


def _disc(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return np.hypot(x, y) - 0.95


def _square(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _star(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return 0.7 * (np.hypot(x, y) - 0.75 - 0.35 * np.cos(5 * np.arctan2(y, x)))


def _box(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return np.maximum(np.abs(x) - 1.2, np.abs(y) - 0.5)


def _rod(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    return np.hypot(np.maximum(np.abs(x) - 1.1, 0.0), y) - 0.27


def _drops(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    fall = turn / np.pi
    drops = ((-0.8, 0.0), (-0.4, 1.1), (0.0, 0.4), (0.4, 1.5), (0.8, 0.8))
    return np.minimum.reduce([np.hypot(x - left, (y + 1.0 - (fall + top) % 2.0) * 0.7) - 0.31 for left, top in drops])


def _dial(x: np.ndarray, y: np.ndarray, turn: float) -> np.ndarray:
    ring = np.abs(np.hypot(x, y) - 0.78) - 0.2
    along = np.clip(x * np.cos(turn) + y * np.sin(turn), 0.0, 0.7)
    hand = np.hypot(x - along * np.cos(turn), y - along * np.sin(turn)) - 0.14
    return np.minimum(ring, hand)


# Motions: (dx, dy) in radii, a scale and a rotation.

_Shape = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
_Motion = Callable[[float], tuple[float, float, float, float]]

_SHAPES: dict[str, tuple[_Shape, _Motion]] = {
    "bell": (_triangle, lambda turn: (0.5 * np.sin(turn), 0.0, 1.0, 0.5 * np.sin(turn))),
    "drum": (_disc, lambda turn: (0.0, 0.0, 1.0 + 0.25 * np.sin(turn), 0.0)),
    "siren": (_square, lambda turn: (0.0, 0.0, 1.0, turn)),
    "bird": (_star, lambda turn: (0.0, -0.9 * abs(np.sin(turn)), 1.0, 0.0)),
    "engine": (_box, lambda turn: (0.9 * np.sin(0.5 * turn), 0.08 * np.sin(7 * turn), 1.0, 0.0)),
    "flute": (_rod, lambda turn: (0.0, 0.0, 1.0, 0.8 + 0.6 * np.sin(turn))),
    "rain": (_drops, lambda turn: (0.0, 0.0, 1.0, 0.0)),
    "clock": (_dial, lambda turn: (0.0, 0.0, 1.0, 0.0)),
}
