"""Log-mel spectrograms of segments, the audio front ends of the towers: waveform -> `input_features`."""

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from ..errors import CaeAvError, shown
from ..media.segments import count_segments, spaced_starts


# Power below which a band counts as silent; 10 log10 of it, -100 dB, is the lowest value of a spectrogram.
_POWER_FLOOR = 1e-10
# Kaldi's default pre-emphasis.
_PREEMPHASIS = 0.97
# Added to VGGish's magnitudes before their logarithm.
_VGGISH_OFFSET = 0.01
# Frames of VGGish's input if the settings name no other number.
_VGGISH_FRAMES = 96


# Most of each setting, far beyond any model, which keeps a file of a few bytes from asking for terabytes.
_MOST: dict[str, float] = {
    "feature_size": 4096,
    "sampling_rate": 10**6,
    "fft_window_size": 2**18,
    "hop_length": 10**6,
    "segment_seconds": 600,
    "tile_seconds": 600,
    "spectrogram_frames": 10**5,
    "filter_sampling_rate": 10**6,
    "window_seconds": 600,
}


class CaeAvFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Cut mono waveforms into segments and convert each segment to a log-mel spectrogram.

    Each segment is repeated until it fills `tile_seconds` (HTS-AT listens to ten seconds). Its spectrogram is the
    power of a short-time Fourier transform with a periodic Hann window, centred with reflection, through Slaney mel
    filters normalised by area, in dB: 10 log10(max(power, 1e-10)). It has tile_seconds * sampling_rate / hop_length
    + 1 frames. The front end of a CLAP model, [`~transformers.ClapFeatureExtractor`], differs in its settings only.

    With `mel_scale="kaldi"` it is a filter bank as Kaldi computes it, without dither and energy, of the waveform less
    its mean: windows that lie within the segment, their mean subtracted, pre-emphasised by 0.97, under a symmetric
    Hann window; the natural logarithm of the power in triangular filters; (x - mean) / (2 std) of that, cut or padded
    with 0 to as many frames as bands, or to `spectrogram_frames`. With `window_seconds`, the filter banks of the n
    segments of a clip are not those of their own sound, but of n windows of this length that begin at equal distances,
    the last one a tenth of a second and its own length before the end (STG-CMA); shorter sound is read whole.

    With `mel_scale="vggish"` it is the input of VGGish (Hershey et al., "CNN Architectures for Large-Scale Audio
    Classification"): windows from the first sample on, without padding, under a periodic Hann window; the magnitude
    of a transform of the next power of two; triangular HTK mel filters; log(x + 0.01). Of these frames the first
    `spectrogram_frames` are kept, 96 by default; a shorter segment is filled up with silence.

    Args:
        feature_size (`int`, defaults to 64): Mel bands.
        sampling_rate (`int`, defaults to 32000): Required sampling rate of waveforms in Hz.
        padding_value (`float`, defaults to 0.0): Value of the features of padded segments.
        fft_window_size (`int`, defaults to 1024): Samples of an analysis window.
        hop_length (`int`, defaults to 320): Samples between analysis windows.
        frequency_min (`float`, defaults to 50): Lower edge of the mel filters in Hz.
        frequency_max (`float`, defaults to 14000): Upper edge of the mel filters in Hz.
        segment_seconds (`float`, defaults to 1.0): Length of a segment in seconds.
        tile_seconds (`float`, defaults to 10): Length in seconds to which a segment is repeated; not with `"kaldi"`.
        tile_padding (`str`, defaults to `"repeat"`): How: `"repeat"` cuts the last repetition, `"repeatpad"` adds
            silence after the last whole one, `"pad"` adds silence to the segment itself.
        mel_scale (`str`, defaults to `"slaney"`): `"slaney"`, `"kaldi"` or `"vggish"`, as above, or `"htk"`: HTK mel
            filters, which are not normalised.
        spectrogram_dtype (`str`, defaults to `"float32"`): `"float32"` or `"float64"`, the precision of the
            spectrogram; not with `"kaldi"`.
        feature_mean, feature_std (`float`): Mean and standard deviation of Kaldi-style features.
        spectrogram_frames (`int`, *optional*): Frames of a Kaldi-style filter bank, by default `feature_size`, or of
            VGGish's input, by default 96.
        filter_sampling_rate (`int`, *optional*): Sampling rate in Hz for which the filters are made; by default
            `sampling_rate`.
        window_seconds (`float`, *optional*): Length in seconds of the windows, as above; only with `"kaldi"`, and not
            for segments that are spread over a clip.
    """

    model_input_names = ["input_features", "frame_mask"]  # noqa: RUF012 (the base class's own form)

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 32_000,
        padding_value: float = 0.0,
        fft_window_size: int = 1024,
        hop_length: int = 320,
        frequency_min: float = 50,
        frequency_max: float = 14_000,
        segment_seconds: float = 1.0,
        tile_seconds: float = 10,
        tile_padding: Literal["repeat", "repeatpad", "pad"] = "repeat",
        mel_scale: Literal["slaney", "htk", "kaldi", "vggish"] = "slaney",
        spectrogram_dtype: Literal["float32", "float64"] = "float32",
        feature_mean: float = -4.984795570373535,
        feature_std: float = 3.7079780101776123,
        spectrogram_frames: int | None = None,
        filter_sampling_rate: int | None = None,
        window_seconds: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        given = locals()
        for name, most in _MOST.items():
            if given[name] is not None and not 0 < given[name] <= most:
                raise CaeAvError(f"`{name}` must be positive and at most {most:,}, got {shown(given[name])}")
        # Filters may end above the Nyquist frequency, as in a public HTS-AT at 16 kHz; bands there stay empty.
        filter_rate = filter_sampling_rate or sampling_rate
        if not 0 <= frequency_min < min(frequency_max, filter_rate / 2) or frequency_max > filter_rate:
            raise CaeAvError(
                "`frequency_min` and `frequency_max` must satisfy 0 <= frequency_min < frequency_max <= sampling_rate "
                f"and frequency_min < sampling_rate / 2, got {frequency_min} and {frequency_max} at {filter_rate} Hz"
            )
        if not 0 < segment_seconds <= tile_seconds:
            raise CaeAvError(
                f"`tile_seconds` must be at least `segment_seconds`, which must be positive, got {tile_seconds} and "
                f"{segment_seconds}"
            )
        self.fft_window_size = fft_window_size
        self.hop_length = hop_length
        self.frequency_min = frequency_min
        self.frequency_max = frequency_max
        self.segment_seconds = segment_seconds
        self.tile_seconds = tile_seconds
        if round(tile_seconds * sampling_rate) <= fft_window_size // 2:
            raise CaeAvError(
                f"`tile_seconds` must be more than half a window of {fft_window_size} samples, got {tile_seconds} at "
                f"{sampling_rate} Hz"
            )
        for name, value, known in (
            ("tile_padding", tile_padding, ("repeat", "repeatpad", "pad")),
            ("mel_scale", mel_scale, ("slaney", "htk", "kaldi", "vggish")),
            ("spectrogram_dtype", spectrogram_dtype, ("float32", "float64")),
        ):
            if value not in known:
                raise CaeAvError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}")
        self.tile_padding = tile_padding
        self.mel_scale = mel_scale
        self.spectrogram_dtype = spectrogram_dtype
        self.feature_mean = feature_mean
        self.feature_std = feature_std
        self.spectrogram_frames = spectrogram_frames
        self.filter_sampling_rate = filter_sampling_rate
        self.window_seconds = window_seconds
        is_kaldi = mel_scale == "kaldi"
        if window_seconds is not None and not (is_kaldi and round(window_seconds * sampling_rate) >= fft_window_size):
            raise CaeAvError(
                f"`window_seconds` needs `mel_scale` 'kaldi' and must hold a window of {fft_window_size} samples, got "
                f"{window_seconds} with {mel_scale!r} at {sampling_rate} Hz"
            )
        if is_kaldi and self.segment_samples < fft_window_size:
            raise CaeAvError(
                f"`segment_seconds` must hold a window of {fft_window_size} samples, got {segment_seconds} at "
                f"{sampling_rate} Hz"
            )
        has_power_of_two = is_kaldi or mel_scale == "vggish"
        # `to_dict` of the base class does not save an attribute of this name.
        with warnings.catch_warnings():
            # Kaldi's narrow bands at low frequencies may lie between two bins; they are silent there too.
            warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
            self.mel_filters = mel_filter_bank(
                num_frequency_bins=(self._fft_size if has_power_of_two else fft_window_size) // 2 + 1,
                num_mel_filters=feature_size,
                min_frequency=frequency_min,
                max_frequency=frequency_max,
                sampling_rate=filter_rate,
                norm="slaney" if mel_scale == "slaney" else None,
                # Up to rounding, VGGish's scale is Kaldi's, whose filters are triangles on it too.
                mel_scale="kaldi" if has_power_of_two else mel_scale,
                triangularize_in_mel_space=has_power_of_two,
            ).astype(np.float32 if is_kaldi else spectrogram_dtype)

    @property
    def segment_samples(self) -> int:
        """Number of samples per segment."""
        return round(self.segment_seconds * self.sampling_rate)

    @property
    def num_spectrogram_frames(self) -> int:
        """Number of frames of a segment's spectrogram."""
        if self.mel_scale == "kaldi":
            return self.spectrogram_frames or self.feature_size
        if self.mel_scale == "vggish":
            return self.spectrogram_frames or _VGGISH_FRAMES
        return round(self.tile_seconds * self.sampling_rate) // self.hop_length + 1

    @property
    def _fft_size(self) -> int:
        """Samples of the transform: the next power of two."""
        return 2 ** math.ceil(math.log2(self.fft_window_size))

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        num_segments: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Args:
            audio: One waveform (samples,), mono, as array or tensor of floats in [-1, 1], or a list of them.
            sampling_rate: Sampling rate of the waveforms in Hz. Must be that of the extractor, which does not
                resample.
            num_segments: Maximum number of segments of a clip; None keeps all.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_features` (B, T, 1, frames, mels) float32, in dB or normalised, and `frame_mask` (B, T) bool, True
            where a segment is real. T is that of the longest waveform; padded segments hold `padding_value`. A
            waveform whose last segment is not full is filled up with silence (see
            [`~media.segments.count_segments`]).

        Raises:
            CaeAvError: A waveform is not mono, empty, of integers or not finite, or the rate is missing or wrong.
        """
        if sampling_rate is None:
            raise CaeAvError(f"`sampling_rate` of the waveforms must be given; expected {self.sampling_rate}")
        if sampling_rate != self.sampling_rate:
            raise CaeAvError(
                f"`sampling_rate` is {sampling_rate} Hz; expected {self.sampling_rate} Hz: resample the sound first"
            )
        given = audio if isinstance(audio, list | tuple) else [audio]
        waveforms = [self._checked(waveform, index) for index, waveform in enumerate(given)]
        if not waveforms:
            raise CaeAvError("`audio` is an empty list; expected at least one waveform")
        if self.mel_scale == "kaldi":
            # Before silence is added, which would otherwise begin with a step.
            waveforms = [waveform - waveform.mean() for waveform in waveforms]
        segments = [self._segments(waveform, num_segments) for waveform in waveforms]
        counts = torch.tensor([len(part) for part in segments])
        frame_mask = torch.arange(int(counts.max())) < counts[:, None]
        if len({part.shape[1] for part in segments}) == 1:
            segments = [torch.cat(segments) if len(segments) > 1 else segments[0]]
        log_mel = torch.cat([self._log_mel(part) for part in segments])[:, None]
        if frame_mask.all():
            features = log_mel.view(*frame_mask.shape, *log_mel.shape[1:])
        else:
            features = torch.full((*frame_mask.shape, *log_mel.shape[1:]), float(self.padding_value))
            features[frame_mask] = log_mel
        return BatchFeature({"input_features": features, "frame_mask": frame_mask}, tensor_type=return_tensors)

    def _checked(self, waveform: Any, index: int) -> torch.Tensor:
        waveform = torch.as_tensor(waveform).detach().cpu()
        if waveform.ndim != 1 or not waveform.numel():
            raise CaeAvError(
                f"waveform {index} has shape {tuple(waveform.shape)}; expected mono sound of shape (samples,)"
            )
        if not waveform.is_floating_point():
            raise CaeAvError(f"waveform {index} is of {waveform.dtype}; expected floats in [-1, 1]")
        # The extremes are not finite where anything is not, and take one pass.
        if not all(map(math.isfinite, (value.item() for value in waveform.aminmax()))):
            raise CaeAvError(f"waveform {index} holds values that are not finite; expected floats in [-1, 1]")
        return waveform.float()

    def _segments(self, waveform: torch.Tensor, num_segments: int | None) -> torch.Tensor:
        """
        Split samples (samples,) into segments (segments, samples of a segment), of which silence completes the last
        one, or cut windows from them.
        """
        count = count_segments(len(waveform) / self.sampling_rate, self.segment_seconds, num_segments)
        samples = count * self.segment_samples
        waveform = torch.nn.functional.pad(waveform[:samples], (0, max(0, samples - len(waveform))))
        if self.window_seconds is None:
            return waveform.view(count, self.segment_samples)
        starts = spaced_starts(count, samples, self.window_seconds, self.sampling_rate)
        length = round(self.window_seconds * self.sampling_rate)
        return torch.stack([waveform[start : start + length] for start in starts])

    def _log_mel(self, segments: torch.Tensor) -> torch.Tensor:
        """Return the log-mel spectrograms (n, frames, mels) of segments (n, samples of a segment)."""
        if self.mel_scale == "kaldi":
            return self._filter_bank(segments)
        if self.mel_scale == "vggish":
            return self._vggish_features(segments)
        segments = segments.to(getattr(torch, self.spectrogram_dtype))
        tile_samples = round(self.tile_seconds * self.sampling_rate)
        # If the tile ends with silence, it is not periodic.
        repeats, rest = divmod(tile_samples, self.segment_samples) if self.tile_padding != "pad" else (1, 0)
        period, offset = divmod(self.segment_samples, self.hop_length)
        # Frames at either end whose window reaches past the sound into its reflection.
        edge = math.ceil(self.fft_window_size / 2 / self.hop_length)
        if repeats > 2 and not (rest or offset or self.fft_window_size % 2) and edge <= period // 2:
            # Repeated sound has a periodic spectrogram: besides the frames at its two ends, one period holds all that
            # are different.
            half = self.fft_window_size // 2
            reach = (edge - 1) * self.hop_length + half
            sound = [segments[:, 1 : half + 1].flip(1), segments, segments[:, :reach]]
            begin = self._spectrogram(torch.cat(sound, dim=1), center=False)
            sound = [segments[:, -reach:], segments[:, -half - 1 : -1].flip(1)]
            finish = self._spectrogram(torch.cat(sound, dim=1), center=False)
            inner, whole = begin[:, edge:], edge + (repeats - 1) * period
            log_mel = begin.new_empty(len(segments), repeats * period + 1, begin.shape[-1])
            log_mel[:, :edge] = begin[:, :edge]
            log_mel[:, edge:whole].unflatten(1, (repeats - 1, period))[:] = inner[:, None]
            log_mel[:, whole:-edge] = inner[:, : period + 1 - 2 * edge]
            log_mel[:, -edge:] = finish
            return log_mel.float()
        tiles = segments.repeat(1, repeats + (self.tile_padding == "repeat"))[:, :tile_samples]
        return self._spectrogram(torch.nn.functional.pad(tiles, (0, tile_samples - tiles.shape[1]))).float()

    def _filter_bank(self, segments: torch.Tensor) -> torch.Tensor:
        """Return Kaldi's filter banks (n, frames, mels), normalised, of segments (n, samples of a segment)."""
        windows = segments.unfold(1, self.fft_window_size, self.hop_length)[:, : self.num_spectrogram_frames]
        windows = windows - windows.mean(-1, keepdim=True)
        # The sample before a window's first counts as that one.
        before = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
        windows = (windows - _PREEMPHASIS * before) * torch.hann_window(self.fft_window_size, periodic=False)
        power = torch.fft.rfft(windows, self._fft_size).abs().square()
        bands = (power @ torch.from_numpy(self.mel_filters)).clamp(min=torch.finfo(torch.float32).eps).log()
        features = (bands - self.feature_mean) / (2 * self.feature_std)
        return torch.nn.functional.pad(features, (0, 0, 0, self.num_spectrogram_frames - features.shape[1]))

    def _vggish_features(self, segments: torch.Tensor) -> torch.Tensor:
        """Return VGGish's inputs (n, frames, mels) of segments (n, samples of a segment)."""
        samples = (self.num_spectrogram_frames - 1) * self.hop_length + self.fft_window_size
        segments = torch.nn.functional.pad(segments[:, :samples], (0, max(0, samples - segments.shape[1])))
        windows = segments.to(getattr(torch, self.spectrogram_dtype)).unfold(1, self.fft_window_size, self.hop_length)
        windows = windows * torch.hann_window(self.fft_window_size, dtype=windows.dtype)
        magnitude = torch.fft.rfft(windows, self._fft_size).abs()
        return (magnitude @ torch.from_numpy(self.mel_filters) + _VGGISH_OFFSET).log().float()

    def _spectrogram(self, sound: torch.Tensor, center: bool = True) -> torch.Tensor:
        """
        Return the log-mel spectrograms in dB (n, samples / hop_length + 1, mels) of sounds (n, samples); without
        `center`, only frames whose window lies inside the sound.
        """
        spectrum = torch.stft(
            sound,
            n_fft=self.fft_window_size,
            hop_length=self.hop_length,
            window=torch.hann_window(self.fft_window_size, dtype=sound.dtype),
            center=center,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.real.square().add_(spectrum.imag.square()).transpose(1, 2)
        return 10 * (power @ torch.from_numpy(self.mel_filters)).clamp(min=_POWER_FLOOR).log10()
