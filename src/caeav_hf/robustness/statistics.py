"""
Measures of robustness, and intervals by the bootstrap.

Notation: clean is the score on the unchanged set, S(k, l) that on kind k at level l. All functions take arrays with
any leading axes, such as resamples, so one call computes a measure of all resamples.
"""

import math
from collections.abc import Sequence

import numpy as np


# Student's t: 97.5 % quantiles for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def absolute_robustness(clean: np.ndarray, scores: np.ndarray, *, scale: float = 1.0, sign: int = 1) -> np.ndarray:
    """
    Return 1 - (clean - S) / scale: how much of the whole scale a model keeps, as AVRobustBench (Maharana et al.,
    "AVRobustBench: Benchmarking the Robustness of Audio-Visual Recognition Models at Test-Time", NeurIPS 2025) reports
    it for accuracies in percent, after Schiappa et al. ("A Large-scale Robustness Analysis of Video Action Recognition
    Models", CVPR 2023).

    Args:
        clean: (...) scores on the unchanged set.
        scores: (..., kinds, levels).
        scale: 1 for shares, 100 for percent.
        sign: 1 if higher scores are better, -1 if lower ones are.

    Returns:
        (..., kinds, levels); 1 is no change, below 1 worse.
    """
    return 1 - sign * (clean[..., None, None] - scores) / scale


def relative_robustness(clean: np.ndarray, scores: np.ndarray, *, sign: int = 1) -> np.ndarray:
    """
    Return 1 - (clean - S) / clean, the score relative to the clean one, S / clean, if higher scores are better. Source
    and arguments as for [`absolute_robustness`]. NaN where the clean score is 0.
    """
    clean = np.where(clean == 0, np.nan, clean)[..., None, None]
    return 1 - sign * (clean - scores) / clean


def corruption_errors(scores: np.ndarray, reference: np.ndarray, *, scale: float = 1.0, sign: int = 1) -> np.ndarray:
    """
    Return the corruption error of each kind: the error summed over levels, divided by that of a reference model. Its
    mean over kinds is the mean corruption error (mCE) of Hendrycks and Dietterich ("Benchmarking Neural Network
    Robustness to Common Corruptions and Perturbations", ICLR 2019), whose reference is AlexNet.

    Args:
        scores, reference: (..., kinds, levels) of the model and of the reference.
        scale, sign: See [`absolute_robustness`]. The error is scale - S if higher scores are better, else S.

    Returns:
        (..., kinds); below 1 the model errs less than the reference. NaN where the reference does not err.
    """
    return _ratio(np.nansum(_error(scores, scale, sign), -1), np.nansum(_error(reference, scale, sign), -1))


def relative_corruption_errors(
    clean: np.ndarray, scores: np.ndarray, reference_clean: np.ndarray, reference: np.ndarray, *, sign: int = 1
) -> np.ndarray:
    """
    Return the relative corruption error of each kind (ibid.): what the kind adds to the error, summed over levels,
    divided by what it adds to that of the reference. NaN where it adds nothing to the latter.

    Args:
        clean, reference_clean: (...) scores on the unchanged set.
        scores, reference, sign: See [`corruption_errors`].

    Returns:
        (..., kinds).
    """
    added = sign * np.nansum(clean[..., None, None] - scores, -1)
    reference_added = sign * np.nansum(reference_clean[..., None, None] - reference, -1)
    return _ratio(added, np.where(reference_added > 0, reference_added, 0))


def known_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of what is not NaN; NaN if nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def _error(scores: np.ndarray, scale: float, sign: int) -> np.ndarray:
    return scale - scores if sign > 0 else scores


def _ratio(value: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(value, by, out=np.full(np.broadcast(value, by).shape, np.nan), where=np.asarray(by) != 0)


def resample_counts(num_clips: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each resample draws each clip, (resamples, num_clips): rows sum to `num_clips`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=resamples).astype(np.float64)


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of resamples (n,): their 2.5th and 97.5th percentiles, leaving out NaN."""
    known = resampled[~np.isnan(resampled)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """
    Return the mean and the half width of its 95 % interval by Student's t, NaN for one value. With more than ten
    values the interval is a little too wide, since it takes the quantile of ten.
    """
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    quantile = T_QUANTILES[min(len(values) - 2, len(T_QUANTILES) - 1)]
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def share_better(difference: np.ndarray, *, sign: int = 1) -> float:
    """Return the share of resamples (n,) whose difference is in favour of the first model; ties count half."""
    known = sign * difference[~np.isnan(difference)]
    return float(((known > 0) + 0.5 * (known == 0)).mean()) if known.size else math.nan
