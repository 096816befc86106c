"""
Noise and corruptions of sound: waveforms (samples,) float32.

The digital corruptions are those of AVRobustBench. Its environmental and human sounds are recordings that cannot be
distributed here, so sounds of the same kind are synthesized and mixed in at its signal-to-noise ratios: results are
comparable in kind, not to the digit.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from .kinds import KINDS


# Order of the compression's low-pass filter.
_ORDER = 6
# The shortest pause of interference in seconds.
_SHORTEST_PAUSE = 0.1
# Share of the samples that impulses hit, and the photons, so to speak, of shot noise at full scale.
_IMPULSES = 0.05
_SHOTS = 50.0
# Takes of each ambient sound, and their length in seconds.
_TAKES = 6
_TAKE_SECONDS = 10
# Highest peak of a take, in parts of its root mean square, beyond which it is rounded off.
_CREST = 5.0
# Mean square of a silent clip for which a noise is scaled: -40 dB of full scale.
_SILENCE = 1e-4


def mix(waveform: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """
    Add a noise at a signal-to-noise ratio in dB, the ratio of mean squares over the clip. A mix that would exceed full
    scale is scaled down as a whole, which keeps the ratio. A silent clip counts as one of -40 dB.
    """
    signal_power, noise_power = (float(np.mean(np.square(sound, dtype=np.float64))) for sound in (waveform, noise))
    if not noise_power:
        return waveform
    gain = np.sqrt((signal_power or _SILENCE) / noise_power * 10 ** (-snr / 10))
    mixed = waveform + np.float32(gain) * noise
    peak = float(np.abs(mixed).max())
    return mixed / np.float32(peak) if peak > 1.0 else mixed


def white_noise(rng: np.random.Generator, waveform: np.ndarray) -> np.ndarray:
    """Return Gaussian white noise of the length of a waveform."""
    return rng.standard_normal(len(waveform), dtype=np.float32)


def corrupt(kind: str, rng: np.random.Generator, waveform: np.ndarray, sampling_rate: int, level: int) -> np.ndarray:
    """
    Corrupt a sound by one of AVRobustBench's kinds.

    Args:
        kind: Name of the kind.
        rng: Source of what is drawn.
        waveform: (samples,) float32.
        sampling_rate: Samples per second.
        level: Severity, from 1 to 5.
    """
    strength = KINDS[kind].strength(level)
    if kind == "compression":
        return _low_pass(waveform, sampling_rate, strength)
    if kind == "interference":
        return _with_pauses(rng, waveform, sampling_rate, strength, 2 * level)
    if kind in _DIGITAL:
        return mix(waveform, _DIGITAL[kind](rng, waveform), strength)
    return mix(waveform, _ambience(kind, rng, len(waveform), sampling_rate), strength)


def _low_pass(waveform: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    """Filter by the gain of a Butterworth filter, without its delay."""
    spectrum = np.fft.rfft(waveform)
    gain = 1 / np.sqrt(1 + (np.fft.rfftfreq(len(waveform), 1 / rate) / cutoff) ** (2 * _ORDER))
    return np.fft.irfft(spectrum * gain.astype(np.float32), len(waveform)).astype(np.float32)


def _with_pauses(rng: np.random.Generator, waveform: np.ndarray, rate: int, share: float, count: int) -> np.ndarray:
    """Silence a share of the sound, in `count` places, which may overlap."""
    length = min(max(round(share * len(waveform)) // count, round(_SHORTEST_PAUSE * rate)), len(waveform))
    paused = waveform.copy()
    for start in rng.integers(0, len(waveform) - length + 1, count).tolist():
        paused[start : start + length] = 0
    return paused


# Digital noises: (generator, waveform) -> noise.


def _impulses(rng: np.random.Generator, waveform: np.ndarray) -> np.ndarray:
    drawn = rng.random(len(waveform), dtype=np.float32)
    return (drawn > 1 - _IMPULSES / 2).astype(np.float32) - (drawn < _IMPULSES / 2).astype(np.float32)


def _shots(rng: np.random.Generator, waveform: np.ndarray) -> np.ndarray:
    low, high = float(waveform.min()), float(waveform.max())
    scaled = (waveform - low) / (high - low) if high > low else np.full_like(waveform, 0.5)
    return rng.poisson(scaled * _SHOTS).astype(np.float32) / np.float32(_SHOTS) - scaled


def _speckle(rng: np.random.Generator, waveform: np.ndarray) -> np.ndarray:
    return white_noise(rng, waveform) * waveform


_DIGITAL: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "gaussian": white_noise,
    "impulse": _impulses,
    "shot": _shots,
    "speckle": _speckle,
}


def _ambience(kind: str, rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Draw a part of one of the takes of an ambient sound, which repeats in longer clips."""
    take = _take(kind, int(rng.integers(_TAKES)), rate)
    return np.resize(np.roll(take, int(rng.integers(len(take)))), samples)


@lru_cache(maxsize=2 * _TAKES)
def _take(kind: str, number: int, rate: int) -> np.ndarray:
    rng = np.random.default_rng([number, *kind.encode()])
    sound = _AMBIENT[kind](rng, _TAKE_SECONDS * rate, rate)
    # Round off peaks, as recordings do, so that a single crack does not decide how loud the rest may be.
    sound = sound / (_CREST * np.sqrt(np.mean(np.square(sound))))
    return np.tanh(sound).astype(np.float32)


# Synthesized ambient sounds: (generator, samples, sampling rate) -> sound of any scale.


def _shaped(rng: np.random.Generator, samples: int, rate: int, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Draw Gaussian noise, filtered by a gain over frequency in Hz, with a mean square of 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    noise = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(samples, 1 / rate)).astype(np.float32), samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def _band(low: float, high: float, frequencies: np.ndarray) -> np.ndarray:
    """Return a gain with smooth edges at two frequencies."""
    rising = frequencies**2 / (frequencies**2 + low**2)
    return rising / (1 + (frequencies / high) ** 4)


def _swell(rng: np.random.Generator, samples: int, rate: int, per_second: float) -> np.ndarray:
    """Draw a slow curve between 0 and 1 with about so many ups and downs per second."""
    points = rng.random(max(2, round(samples / rate * per_second) + 2))
    return np.interp(np.linspace(0, len(points) - 1, samples), np.arange(len(points)), points).astype(np.float32)


def _events(
    rng: np.random.Generator,
    samples: int,
    rate: int,
    per_second: float,
    seconds: float,
    draw: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Scatter short sounds of random loudness; `draw` makes one, given the times of its samples in seconds."""
    sound = np.zeros(samples + round(seconds * rate) + 1, np.float32)
    times = np.arange(max(2, round(seconds * rate))) / rate
    for start in rng.integers(0, samples, max(1, rng.poisson(per_second * samples / rate))).tolist():
        sound[start : start + len(times)] += rng.exponential() * draw(times)[: len(sound) - start]
    return sound[:samples]


def _ring(
    rng: np.random.Generator, pitch: tuple[float, float], decay: float, bend: float, times: np.ndarray
) -> np.ndarray:
    """Draw a decaying tone whose pitch in Hz bends by a factor per second."""
    frequency = rng.uniform(*pitch)
    return np.sin(2 * np.pi * frequency * times * (1 + bend * times)) * np.exp(-times / decay)


def _snow(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Steps that crunch in the snow, in a soft wind."""
    pace = rng.uniform(1.4, 2.0)
    since = ((np.arange(samples) / rate + rng.random()) * pace) % 1.0
    steps = np.exp(-since / 0.12) * (1 - np.exp(-since / 0.02))
    crunch = _shaped(rng, samples, rate, partial(_band, 900, 5000)) * _swell(rng, samples, rate, 40) * steps
    return 3 * crunch + 0.15 * _wind(rng, samples, rate)


def _frost(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Ice that cracks."""
    cracks = _events(rng, samples, rate, 6, 0.15, partial(_ring, rng, (900, 5000), 0.012, -1.5))
    booms = _events(rng, samples, rate, 0.7, 0.6, partial(_ring, rng, (150, 500), 0.12, -0.6))
    return cracks + 0.6 * booms + 0.02 * _shaped(rng, samples, rate, partial(_band, 200, 3000))


def _drops(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Drops of water that fall on a surface."""
    drops = _events(rng, samples, rate, 9, 0.12, partial(_ring, rng, (600, 2200), 0.02, 2.5))
    return drops + 0.01 * _shaped(rng, samples, rate, partial(_band, 300, 6000))


def _wind(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Gusts of wind."""
    return _shaped(rng, samples, rate, lambda f: _band(30, 400, f) / np.sqrt(1 + f / 100)) * (
        0.25 + _swell(rng, samples, rate, 0.8) ** 2
    )


def _rain(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Rain, and drops nearby."""
    wash = _shaped(rng, samples, rate, partial(_band, 1000, 7000))
    hits = np.zeros(samples, np.float32)
    places = rng.integers(0, samples, round(120 * samples / rate))
    hits[places] = rng.exponential(1.0, len(places))
    length = max(2, round(0.004 * rate))
    plop = np.exp(-6 * np.arange(length) / length) * rng.standard_normal(length)
    return wash + 2 * np.convolve(hits, plop.astype(np.float32))[:samples]


def _underwater(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A rumble and rising bubbles."""
    rumble = _shaped(rng, samples, rate, partial(_band, 20, 180)) * (0.5 + _swell(rng, samples, rate, 1.5))
    return rumble + 0.8 * _events(rng, samples, rate, 12, 0.1, partial(_ring, rng, (200, 800), 0.03, 4.0))


def _concert(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Music with a beat, and its audience."""
    time = np.arange(samples, dtype=np.float32) / rate
    beat = rng.uniform(1.7, 2.2)
    chord = rng.integers(0, 4, 64)[(time * beat / 4).astype(int) % 64]
    root = rng.uniform(100, 160) * 2 ** (np.array([0, 5, 7, 9]) / 12)[chord]
    phase = 2 * np.pi * np.cumsum(root) / rate
    music = np.sum(
        [np.sin(ratio * phase) / (1 + number) for number, ratio in enumerate((1, 1.5, 2, 2.52, 3, 4))], axis=0
    )
    since = (time * beat) % 1.0 / beat
    drum = np.sin(2 * np.pi * 60 * since) * np.exp(-since / 0.08)
    hat = rng.standard_normal(samples, dtype=np.float32) * np.exp(-((since + 0.5 / beat) % (1 / beat)) / 0.02)
    audience = _shaped(rng, samples, rate, partial(_band, 400, 3000))
    return (music + 2 * drum + 0.3 * hat + 0.5 * audience).astype(np.float32)


def _fire(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A crackling fire, and a siren."""
    time = np.arange(samples) / rate
    crackle = _events(rng, samples, rate, 14, 0.01, lambda t: rng.standard_normal(len(t)) * np.exp(-t / 0.002))
    sweep = 900 * 2 ** (0.45 * np.sin(2 * np.pi * rng.uniform(0.25, 0.5) * time + rng.uniform(0, 6)))
    siren = np.sin(2 * np.pi * np.cumsum(sweep) / rate)
    roar = _shaped(rng, samples, rate, partial(_band, 40, 300))
    return (1.5 * crackle + 0.5 * siren + 0.4 * roar).astype(np.float32)


# Formants of vowels in Hz.
_VOWELS = (
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
    (490, 1350, 1690),
)


def _crowd(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Several people who talk at once, without words."""
    frequencies = np.fft.rfftfreq(samples, 1 / rate)
    total = np.zeros(len(frequencies), np.complex64)
    for vowel in _VOWELS:
        # Pulses of a voice, loud in some syllables, through the resonances of one vowel.
        pitch = rng.uniform(90, 240) * 2 ** (0.3 * (_swell(rng, samples, rate, 2) - 0.5))
        cycles = np.floor(np.cumsum(pitch) / rate)
        pulses = np.diff(cycles, prepend=0).astype(np.float32)
        pulses *= np.maximum(0, _swell(rng, samples, rate, 5) - 0.35)
        gain = np.sum([1 / (1 + ((frequencies - formant) / 90) ** 2) for formant in vowel], axis=0)
        total += np.fft.rfft(pulses) * gain.astype(np.float32)
    total[0] = 0
    voices = np.fft.irfft(total, samples)
    voices /= np.sqrt(np.mean(voices**2)) or 1.0
    return (voices + 0.2 * _shaped(rng, samples, rate, partial(_band, 200, 2500))).astype(np.float32)


_AMBIENT: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "snow": _snow,
    "frost": _frost,
    "spatter": _drops,
    "wind": _wind,
    "rain": _rain,
    "underwater": _underwater,
    "concert": _concert,
    "smoke": _fire,
    "crowd": _crowd,
}
