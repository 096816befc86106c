"""
Noise and corruptions of pictures: frames (n, H, W, 3) uint8.

The severities are those of AVRobustBench, most of them from ImageNet-C (Hendrycks and Dietterich, ICLR 2019). They are
meant for pictures with a side of `REFERENCE` pixels, so that corruptions of detail first reduce larger pictures to it.
What the benchmark takes from photographs (frost, a crowd) is drawn instead.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter


# Shorter side of the pictures, in pixels, for which severities are given.
REFERENCE = 224

# Severities 1 to 5.
_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of values in [0, 1]
_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of the values that become 0 or 1
_SHOT = (60, 25, 12, 5, 3)  # photons at full brightness
_SPECKLE = (0.15, 0.2, 0.35, 0.45, 0.6)  # standard deviation, in parts of the value
_QUALITY = (25, 18, 15, 10, 7)  # of JPEG
# Mean and deviation of the noise that flakes are made of, its enlargement, threshold, length and deviation of the
# streaks, and the share of the picture that is not whitened.
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_RAIN = (
    (0.05, 0.2, 3, 0.3, 10, 4, 0.8),
    (0.05, 0.2, 3.5, 0.3, 10, 5, 0.7),
    (0.1, 0.2, 4, 0.25, 12, 6, 0.7),
    (0.1, 0.2, 4.5, 0.25, 15, 8, 0.65),
    (0.1, 0.25, 5, 0.2, 18, 10, 0.6),
)
_FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # shares of the picture and of the frost
# Mean and deviation of noise, its blur, threshold, opacity, and whether it is mud rather than water.
_SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6, False),
    (0.65, 0.3, 3, 0.68, 0.6, False),
    (0.65, 0.3, 2, 0.68, 0.5, False),
    (0.65, 0.3, 1, 0.65, 1.5, True),
    (0.67, 0.4, 1, 0.65, 1.5, True),
)
_WIND = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # length and deviation of the streaks
# Deviation of the blur, share of red that is kept, contrast, and brightness of the haze.
_UNDERWATER = (
    (0.8, 0.9, 0.9, 20),
    (1.1, 0.7, 0.8, 40),
    (1.4, 0.5, 0.7, 60),
    (1.85, 0.3, 0.6, 80),
    (2.6, 0.1, 0.5, 100),
)
_CONCERT = (0.1, 0.2, 0.3, 0.4, 0.5)  # added brightness
_SMOKE = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))  # thickness, and decay from coarse to fine swirls
_CROWD = (0.1, 0.2, 0.3, 0.4, 0.5)  # side of the crowd, in sides of the picture

# Values that a draw can take: pixels are looked up in a table of this many equally likely outcomes.
_DRAWS = 4096


def corrupt(kind: str, rng: np.random.Generator, frames: np.ndarray, level: int) -> np.ndarray:
    """
    Corrupt frames by one of AVRobustBench's kinds, except interference, which is [`rotate`].

    Args:
        kind: Name of the kind.
        rng: Source of what is drawn.
        frames: (n, H, W, 3) uint8.
        level: Severity, from 1 to 5.

    Returns:
        (n, h, w, 3) uint8, where the shorter of h and w is at most `REFERENCE`.
    """
    return _CORRUPTIONS[kind](rng, reduced(frames), level - 1)


def rotate(frames: np.ndarray, degrees: Sequence[float]) -> np.ndarray:
    """Turn each frame counterclockwise by its degrees; corners become black."""
    turned = [Image.fromarray(frame).rotate(angle) for frame, angle in zip(frames, degrees, strict=True)]
    return np.stack([np.asarray(image) for image in turned])


def blur(frames: np.ndarray, deviation: float) -> np.ndarray:
    """Blur frames by a Gaussian filter, with its standard deviation in pixels of a picture of side `REFERENCE`."""
    blurring = ImageFilter.GaussianBlur(deviation * min(frames.shape[1:3]) / REFERENCE)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blurring)) for frame in frames])


def occlude(rng: np.random.Generator, frames: np.ndarray, share: float) -> np.ndarray:
    """Hide a share of the picture behind a grey box, which stays in its place."""
    height, width = frames.shape[1:3]
    # A random shape between a picture's proportions and a strip, within the picture.
    tall = rng.uniform(share**0.75, share**0.25)
    box = max(1, round(tall * height)), max(1, round(share / tall * width))
    top, left = (int(rng.integers(0, side - part + 1)) for side, part in zip((height, width), box, strict=True))
    hidden = frames.copy()
    hidden[:, top : top + box[0], left : left + box[1]] = 128
    return hidden


def darken(rng: np.random.Generator, frames: np.ndarray, stops: float) -> np.ndarray:
    """Show frames as taken with so many stops less light: darker, with the noise of the sensor."""
    return _drawn(rng, reduced(frames), _dark_table(stops))


def reduced(frames: np.ndarray) -> np.ndarray:
    """Return frames whose shorter side is at most `REFERENCE` pixels, with the same proportions."""
    height, width = frames.shape[1:3]
    scale = REFERENCE / min(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX, reducing_gap=2.0)) for frame in frames]
    )


def _drawn(rng: np.random.Generator, frames: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace each value v of frames by one of `table[v]`, (256, _DRAWS) uint8, drawn independently."""
    draws = rng.integers(0, _DRAWS, frames.shape, dtype=np.uint16)
    return table.reshape(-1)[frames.astype(np.uint32) * _DRAWS + draws]


def _normal() -> np.ndarray:
    """Return equally likely values of the normal distribution, (_DRAWS,), ascending."""
    return torch.special.ndtri((torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS).numpy()


def _bytes(values: np.ndarray) -> np.ndarray:
    """Convert values in [0, 1] to uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


@lru_cache(maxsize=8)
def _noise_table(kind: str, severity: int) -> np.ndarray:
    values = (np.arange(256) / 255)[:, None]
    if kind == "gaussian":
        return _bytes(values + _GAUSSIAN[severity] * _normal())
    if kind == "speckle":
        return _bytes(values + values * _SPECKLE[severity] * _normal())
    chances = (np.arange(_DRAWS) + 0.5) / _DRAWS
    if kind == "impulse":
        half = _IMPULSE[severity] / 2
        return _bytes(np.where(chances < half, 0.0, np.where(chances > 1 - half, 1.0, values)))
    # Shots: counts of photons, by the inverse of their Poisson distribution.
    photons = _SHOT[severity]
    counts = np.arange(4 * photons + 20)
    log_factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    expected = np.maximum(values * photons, 1e-12)
    cumulative = np.cumsum(np.exp(counts * np.log(expected) - expected - log_factorials), axis=1)
    return _bytes(np.stack([np.searchsorted(row, chances) for row in cumulative]) / photons)


@lru_cache(maxsize=8)
def _dark_table(stops: float) -> np.ndarray:
    # Light is about the value's 2.2th power. A sensor's noise has a part that grows with the root of the light.
    light = (np.arange(256) / 255)[:, None] ** 2.2 / 2**stops
    noisy = light + (0.002 + 0.02 * np.sqrt(light)) * _normal()
    return _bytes(noisy.clip(0, 1) ** (1 / 2.2))


def _noisy(kind: str, rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    return _drawn(rng, frames, _noise_table(kind, severity))


def _compressed(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    images = []
    for frame in frames:
        file = BytesIO()
        Image.fromarray(frame).save(file, "jpeg", quality=_QUALITY[severity])
        images.append(np.asarray(Image.open(file)))
    return np.stack(images)


def _size(frames: np.ndarray) -> tuple[int, int]:
    """Return height and width of a layer of the frames' proportions, with a shorter side of `REFERENCE`."""
    height, width = frames.shape[1:3]
    scale = REFERENCE / min(height, width)
    return round(scale * height), round(scale * width)


def _resized(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a layer (h, w) float32 to a height and a width."""
    if layer.shape == size:
        return layer
    return np.asarray(Image.fromarray(layer).resize(size[::-1], Image.Resampling.BILINEAR))


def _streaked(layer: np.ndarray, length: int, deviation: float, degrees: float) -> np.ndarray:
    """Smear images (..., h, w, channels) along a direction, with weights that fall off like a Gaussian."""
    steps = np.arange(2 * length + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).astype(np.float32)
    angle = np.deg2rad(degrees)
    smeared = np.zeros(layer.shape, np.float32)
    for weight, y, x in zip(weights, steps * np.sin(angle), steps * np.cos(angle), strict=True):
        if weight > 1e-3:
            smeared += weight * np.roll(layer, (round(float(y)), round(float(x))), axis=(-3, -2))
    return smeared


def _moved(rng: np.random.Generator, layer: np.ndarray, count: int) -> np.ndarray:
    """Return a layer (h, w) in `count` random positions, (count, h, w, 1); what leaves it on one side comes back."""
    places = zip(
        rng.integers(0, layer.shape[0], count).tolist(), rng.integers(0, layer.shape[1], count).tolist(), strict=True
    )
    return np.stack([np.roll(layer, place, axis=(0, 1)) for place in places])[..., None]


def _grey(values: np.ndarray) -> np.ndarray:
    """Return the brightness of images (..., 3) as (..., 1)."""
    return values @ np.array([[0.299], [0.587], [0.114]], np.float32)


def _precipitation(
    severities: Sequence[tuple[float, ...]],
    colour: Sequence[float],
    angles: tuple[float, float],
    whitening: tuple[float, float],
    rng: np.random.Generator,
    frames: np.ndarray,
    severity: int,
) -> np.ndarray:
    mean, deviation, zoom, threshold, length, spread, kept = severities[severity]
    size = _size(frames)
    noise = rng.normal(mean, deviation, [max(1, round(side / zoom)) for side in size]).astype(np.float32)
    layer = _resized(noise, size)
    flakes = np.where(layer < threshold, 0, layer.clip(0, 1))
    layer = _streaked(flakes[..., None], int(length), spread, rng.uniform(*angles))[..., 0]
    layer = _resized(layer, frames.shape[1:3])
    layer = _moved(rng, layer + np.rot90(layer, 2), len(frames))
    values = frames.astype(np.float32) / 255
    white = np.maximum(values, _grey(values) * whitening[0] + whitening[1])
    return _bytes(kept * values + (1 - kept) * white + layer * np.array(colour, np.float32))


def _swirls(rng: np.random.Generator, size: tuple[int, int], decay: float) -> np.ndarray:
    """
    Draw noise in [0, 1] (h, w) whose amplitude falls by a factor with every halving of its scale. It continues on the
    opposite side.
    """
    y, x = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    frequency = np.hypot(y, x)
    frequency[0, 0] = np.inf  # no constant part
    # An octave of a picture's frequencies has an area that grows with their square.
    spectrum = np.fft.rfft2(rng.standard_normal(size, dtype=np.float32)) / frequency ** (1 + np.log2(decay))
    noise = np.fft.irfft2(spectrum, size)
    noise -= noise.min()
    return (noise / (noise.max() or 1.0)).astype(np.float32)


def _frosted(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    kept, added = _FROST[severity]
    size = _size(frames)
    # Crystals: ridges of noise, white on a bluish ground, denser towards the edges.
    ridges = 1 - 2 * np.abs(_swirls(rng, size, 1.3) - 0.5)
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    edge = np.maximum(np.abs(y)[:, None], np.abs(x)[None])
    ice = _resized((ridges**2 * (0.45 + 0.55 * edge**2)).astype(np.float32), frames.shape[1:3])[..., None]
    colour = np.array([0.75, 0.88, 1.0], np.float32) * (1 - ice) + ice
    return _bytes(kept * (frames.astype(np.float32) / 255) + added * ice * colour)


def _spattered(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    mean, deviation, blurring, threshold, opacity, is_mud = _SPATTER[severity]
    noise = _gaussian(rng.normal(mean, deviation, _size(frames)).astype(np.float32), blurring)
    if is_mud:
        cover = _gaussian((noise > threshold).astype(np.float32), opacity)
        cover[cover < 0.8] = 0
        colour = np.array([63, 42, 20], np.float32) / 255
        cover = _resized(cover, frames.shape[1:3])[..., None]
        return _bytes(frames.astype(np.float32) / 255 * (1 - cover) + cover * colour)
    # Drops are brightest inside and at the edge that the light comes from.
    drops = _gaussian((noise > threshold).astype(np.float32), 1.0)
    slope = np.roll(drops, (1, 1), (0, 1)) - np.roll(drops, (-1, -1), (0, 1))
    shine = (drops * (0.6 + 0.8 * slope)).clip(0, 1) * opacity
    colour = np.array([175, 238, 238], np.float32) / 255
    return _bytes(frames.astype(np.float32) / 255 + _resized(shine, frames.shape[1:3])[..., None] * colour)


def _gaussian(layer: np.ndarray, deviation: float) -> np.ndarray:
    """Blur a layer (h, w) float32."""
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        layer = sum(w * np.roll(layer, step, axis) for w, step in zip(weights, range(-reach, reach + 1), strict=True))
    return layer


def _windswept(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    length, deviation = _WIND[severity]
    scale = min(frames.shape[1:3]) / REFERENCE
    angle = rng.uniform(-45, 45)
    # Edges are repeated, so that nothing comes in from the other side.
    reach = max(1, round(2 * length * scale))
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge").astype(np.float32)
    smeared = _streaked(padded, max(1, round(length * scale)), deviation * scale, angle)
    return smeared[:, reach:-reach, reach:-reach].round().astype(np.uint8)


def _submerged(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    deviation, red, contrast, haze = _UNDERWATER[severity]
    values = blur(frames, deviation).astype(np.float32) * np.array([red, 1, 1], np.float32)
    return (0.85 * contrast * values + 0.15 * haze).round().astype(np.uint8)


def _lit(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    values = frames.astype(np.float32) / 255
    # The value of a colour (as in HSV) is its largest component.
    value = values.max(-1, keepdims=True)
    brighter = np.minimum(value + _CONCERT[severity], 1)
    return _bytes(np.where(value > 0, values * (brighter / np.maximum(value, 1e-6)), brighter))


def _smoky(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    thickness, decay = _SMOKE[severity]
    smoke = _moved(rng, _resized(_swirls(rng, _size(frames), decay), frames.shape[1:3]), len(frames))
    values = frames.astype(np.float32) / 255
    brightest = values.max()
    return _bytes((values + thickness * smoke) * (brightest / (brightest + thickness)))


def _crowded(rng: np.random.Generator, frames: np.ndarray, severity: int) -> np.ndarray:
    """Draw people from behind, in a box at a random place."""
    height, width = (max(2, round(_CROWD[severity] * side)) for side in frames.shape[1:3])
    scale = 4  # drawn larger, for smooth outlines
    box = Image.new("RGBA", (scale * width, scale * height))
    draw = ImageDraw.Draw(box)
    for row in range(3):
        for place in range(4):
            radius = scale * width * rng.uniform(0.07, 0.1)
            x = scale * width * (place + 0.5 * (row % 2) + rng.uniform(0.3, 0.7)) / 4.5
            y = scale * height * (0.15 + 0.27 * row) + rng.uniform(-0.3, 0.3) * radius
            clothes, hair = (tuple(int(v) for v in rng.integers(10, limit, 3)) for limit in (120, 70))
            draw.rounded_rectangle(
                (x - 2 * radius, y + radius, x + 2 * radius, scale * height + 2 * radius), radius, clothes
            )
            draw.ellipse((x - radius, y - 1.2 * radius, x + radius, y + 1.2 * radius), hair)
    people = np.asarray(box.resize((width, height), Image.Resampling.BOX)).astype(np.float32)
    top, left = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(frames.shape[1:3], (height, width), strict=True)
    )
    alpha = people[..., 3:] / 255
    crowded = frames.copy()
    behind = crowded[:, top : top + height, left : left + width]
    behind[:] = (behind * (1 - alpha) + people[..., :3] * alpha).round()
    return crowded


_CORRUPTIONS: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    **{kind: partial(_noisy, kind) for kind in ("gaussian", "impulse", "shot", "speckle")},
    "compression": _compressed,
    "snow": partial(_precipitation, _SNOW, (1, 1, 1), (45, 135), (1.5, 0.5)),
    "frost": _frosted,
    "spatter": _spattered,
    "wind": _windswept,
    "rain": partial(_precipitation, _RAIN, (0.5, 0.9, 1.2), (60, 120), (1.3, 0.3)),
    "underwater": _submerged,
    "concert": _lit,
    "smoke": _smoky,
    "crowd": _crowded,
}
