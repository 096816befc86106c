"""
Sounds of the toy corpus: a timbre per class (harmonics, noise and modulation) over quiet background noise.

Any second of a voice is enough to recognise its class; pitch, pace and loudness vary between voices.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .classes import CLASSES


NOISE_BEDS = {
    "hiss": "a faint hiss",
    "rumble": "a distant rumble",
    "rustle": "a soft rustle",
    "hum": "a low hum",
}


@dataclass(frozen=True)
class Voice:
    """Sound of one object: `pitch` and `pace` in [0, 1] place it in the range of its class, `gain` is its peak."""

    class_id: int
    pitch: float
    pace: float
    phase: float
    gain: float
    seed: int


@dataclass(frozen=True)
class NoiseBed:
    """Background noise of a recording: its kind and its level (root mean square)."""

    kind: str
    level: float
    seed: int


def draw_voice(rng: np.random.Generator, class_id: int, decibels: tuple[float, float] = (-18.0, -4.0)) -> Voice:
    """Draw a voice of a class, with its peak between these levels."""
    return Voice(
        class_id=class_id,
        pitch=float(rng.uniform()),
        pace=float(rng.uniform()),
        phase=float(rng.uniform()),
        gain=float(10 ** (rng.uniform(*decibels) / 20)),
        seed=int(rng.integers(2**31)),
    )


def draw_noise_bed(rng: np.random.Generator, decibels: tuple[float, float] = (-48.0, -30.0)) -> NoiseBed:
    """Draw background noise with its level in this range; by default 12 to 44 dB below a voice's peak."""
    return NoiseBed(
        kind=str(rng.choice(list(NOISE_BEDS))),
        level=float(10 ** (rng.uniform(*decibels) / 20)),
        seed=int(rng.integers(2**31)),
    )


def synthesize_voice(voice: Voice, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Synthesize the voice alone, without pauses: (num_samples,) float32 with peak `voice.gain`."""
    rng = np.random.default_rng(voice.seed)
    time = np.arange(num_samples) / sampling_rate + 10.0 * voice.phase
    wave = _TIMBRES[CLASSES[voice.class_id]](voice, time, sampling_rate, rng)
    return (wave * (voice.gain / np.abs(wave).max())).astype(np.float32)


def synthesize_noise(bed: NoiseBed, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Synthesize the background noise: (num_samples,) float32."""
    rng = np.random.default_rng(bed.seed)
    time = np.arange(num_samples) / sampling_rate
    if bed.kind == "hiss":
        noise = rng.standard_normal(num_samples)
    elif bed.kind == "rumble":
        noise = _shaped_noise(rng, num_samples, sampling_rate, lambda f: 1 / (1 + (f / 120) ** 2))
    elif bed.kind == "rustle":
        swell = 1 + 0.6 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.6) * time + rng.uniform()))
        noise = swell * _shaped_noise(rng, num_samples, sampling_rate, lambda f: 1 / np.sqrt(1 + f / 200))
    else:
        hum = _sum(np.sin(2 * np.pi * (k * 110 * time + rng.uniform())) / k**2 for k in range(1, 4))
        noise = hum + 0.2 * rng.standard_normal(num_samples)
    return (noise * (bed.level / np.sqrt(np.mean(noise**2)))).astype(np.float32)


def render_sound(
    rng: np.random.Generator, class_id: int | None, sampling_rate: int, seconds: float = 1.0
) -> np.ndarray:
    """
    Render random sound of a class, as in the clips, to train an audio tower on.

    Args:
        rng: Source of the voice and of the noise.
        class_id: Index into `CLASSES`, or None for background noise alone.
        sampling_rate: Samples per second.
        seconds: Duration.

    Returns:
        (round(seconds * sampling_rate),) float32 in [-1, 1].
    """
    num_samples = round(seconds * sampling_rate)
    sound = synthesize_noise(draw_noise_bed(rng), num_samples, sampling_rate)
    if class_id is not None:
        sound = sound + synthesize_voice(draw_voice(rng, class_id), num_samples, sampling_rate)
    return limit(sound)


def limit(sound: np.ndarray) -> np.ndarray:
    """Scale the sound down if its peak exceeds 1."""
    return sound / max(1.0, float(np.abs(sound).max()))


def _between(value: float, low: float, high: float) -> float:
    return low + value * (high - low)


def _shaped_noise(
    rng: np.random.Generator, num_samples: int, sampling_rate: int, gain: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Draw Gaussian noise, filtered by a gain over frequency, with unit root mean square."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    noise = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(num_samples, 1 / sampling_rate)), num_samples)
    return noise / np.sqrt(np.mean(noise**2))


def _sum(waves: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(waves), axis=0)


def _since(time: np.ndarray, period: float) -> np.ndarray:
    """Return the seconds since the last beat."""
    return time % period


# Timbres: (voice, time in seconds, sampling rate, generator) -> samples of any scale.


def _bell(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = _between(voice.pitch, 480, 880)
    since = _since(time, _between(voice.pace, 0.45, 0.7))
    # Partials of a church bell (hum, prime, tierce, quint, nominal and above): inharmonic; higher ones decay faster.
    partials = ((0.5, 0.5), (1.0, 1.0), (1.19, 0.7), (1.5, 0.5), (2.0, 0.8), (2.74, 0.4), (4.07, 0.25))
    return _sum(
        weight * np.sin(2 * np.pi * ratio * pitch * time) * np.exp(-since * (2.5 + 1.5 * ratio))
        for ratio, weight in partials
    )


def _drum(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = _between(voice.pitch, 60, 115)
    since = _since(time, _between(voice.pace, 0.22, 0.4))
    thump = np.sin(2 * np.pi * pitch * (since + 0.04 * (1 - np.exp(-since / 0.03)))) * np.exp(-since / 0.09)
    return thump + 0.25 * rng.standard_normal(time.size) * np.exp(-since / 0.015)


def _siren(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    sweep = np.sin(2 * np.pi * _between(voice.pace, 0.8, 1.6) * time)
    phase = 2 * np.pi * np.cumsum(_between(voice.pitch, 560, 900) * 2 ** (0.4 * sweep)) / sampling_rate
    return _sum(np.sin(k * phase) / k for k in range(1, 6))


def _bird(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    period = _between(voice.pace, 0.12, 0.2)
    since = _since(time, period) / period
    pattern = rng.permutation([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    sings = pattern[np.floor(time / period).astype(int) % pattern.size]
    chirp = np.clip(since / 0.7, 0.0, 1.0)
    phase = np.cumsum(_between(voice.pitch, 2800, 4400) * (1.3 - 0.5 * chirp)) / sampling_rate
    return sings * np.sin(np.pi * chirp) ** 2 * np.sin(2 * np.pi * phase)


def _engine(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = _between(voice.pitch, 50, 90)
    wobble = 0.02 * np.sin(2 * np.pi * 0.7 * time)
    growl = _sum(np.sin(2 * np.pi * k * pitch * (time + wobble)) * np.exp(-k / 7) for k in range(1, 16))
    fires = 1 + 0.7 * np.sin(2 * np.pi * _between(voice.pace, 11, 18) * time)
    return fires * (growl + 0.5 * _shaped_noise(rng, time.size, sampling_rate, lambda f: 1 / (1 + (f / 400) ** 2)))


def _flute(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    period = _between(voice.pace, 0.3, 0.55)
    since = _since(time, period) / period
    melody = rng.choice([1.0, 9 / 8, 5 / 4, 3 / 2], 16)[np.floor(time / period).astype(int) % 16]
    vibrato = 1 + 0.008 * np.sin(2 * np.pi * 5.5 * time)
    phase = 2 * np.pi * np.cumsum(_between(voice.pitch, 520, 800) * melody * vibrato) / sampling_rate
    tone = np.sin(phase) + 0.3 * np.sin(2 * phase) + 0.1 * np.sin(3 * phase)
    breath = _shaped_noise(rng, time.size, sampling_rate, lambda f: f / (f + 2000))
    return np.minimum(1.0, 12 * np.minimum(since, 1 - since)) * (tone + 0.03 * breath)


def _rain(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    centre = _between(voice.pitch, 3000, 7000)
    wash = _shaped_noise(rng, time.size, sampling_rate, lambda f: np.exp(-((f - centre) ** 2) / (2 * 2500**2)))
    drops = np.zeros(time.size)
    hits = rng.uniform(size=time.size) < _between(voice.pace, 60, 140) / sampling_rate
    drops[hits] = rng.exponential(1.0, int(hits.sum()))
    length = max(2, round(0.004 * sampling_rate))
    plop = np.exp(-6 * np.arange(length) / length) * rng.standard_normal(length)
    return 0.4 * wash + np.convolve(drops, plop)[: time.size]


def _clock(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    period = _between(voice.pace, 0.2, 0.33)
    since = _since(time, period)
    tock = np.where(np.floor(time / period) % 2 == 0, 1.0, 0.7)
    return np.sin(2 * np.pi * _between(voice.pitch, 2000, 3200) * tock * since) * np.exp(-since / 0.008)


_TIMBRES: dict[str, Callable[[Voice, np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "bell": _bell,
    "drum": _drum,
    "siren": _siren,
    "bird": _bird,
    "engine": _engine,
    "flute": _flute,
    "rain": _rain,
    "clock": _clock,
}
