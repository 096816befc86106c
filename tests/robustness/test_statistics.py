"""Measures of robustness and intervals, against cases computed by hand and against plain loops."""

import math

import numpy as np
import pytest

from caeav_hf.robustness.statistics import (
    absolute_robustness,
    corruption_errors,
    known_mean,
    percentile_interval,
    relative_corruption_errors,
    relative_robustness,
    resample_counts,
    share_better,
    student_interval,
)


# A model and a reference at two kinds and two levels.
CLEAN, SCORES = np.array(0.8), np.array([[0.6, 0.4], [0.8, 0.2]])
REFERENCE_CLEAN, REFERENCE = np.array(0.5), np.array([[0.5, 0.3], [0.4, 0.1]])


def test_robustness_of_accuracies() -> None:
    assert absolute_robustness(CLEAN, SCORES) == pytest.approx(np.array([[0.8, 0.6], [1.0, 0.4]]))
    assert relative_robustness(CLEAN, SCORES) == pytest.approx(SCORES / 0.8)
    percent = absolute_robustness(100 * CLEAN, 100 * SCORES, scale=100)
    assert percent == pytest.approx(absolute_robustness(CLEAN, SCORES))
    assert np.isnan(relative_robustness(np.array(0.0), SCORES)).all()


def test_robustness_of_errors() -> None:
    errors = absolute_robustness(1 - CLEAN, 1 - SCORES, sign=-1)
    assert errors == pytest.approx(absolute_robustness(CLEAN, SCORES))
    # An error that doubles has lost all of its clean value, one that triples twice that.
    assert relative_robustness(np.array(0.2), np.array([[0.2, 0.4, 0.6]]), sign=-1) == pytest.approx(
        np.array([[1.0, 0.0, -1.0]])
    )


def test_corruption_errors() -> None:
    # (0.4 + 0.6) / (0.5 + 0.7) and (0.2 + 0.8) / (0.6 + 0.9).
    expected = np.array([1 / 1.2, 1 / 1.5])
    assert corruption_errors(SCORES, REFERENCE) == pytest.approx(expected)
    assert corruption_errors(100 * SCORES, 100 * REFERENCE, scale=100) == pytest.approx(expected)
    assert corruption_errors(1 - SCORES, 1 - REFERENCE, sign=-1) == pytest.approx(expected)
    # (0.2 + 0.4) / (0.0 + 0.2) and (0.0 + 0.6) / (0.1 + 0.4).
    relative = relative_corruption_errors(CLEAN, SCORES, REFERENCE_CLEAN, REFERENCE)
    assert relative == pytest.approx(np.array([3.0, 1.2]))
    assert np.isnan(relative_corruption_errors(CLEAN, SCORES, np.array(0.1), REFERENCE)).tolist() == [True, True]


def test_measures_of_resamples_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    clean, scores, reference_clean, reference = (rng.random(shape) for shape in ((7,), (7, 3, 5), (7,), (7, 3, 5)))
    together = (
        absolute_robustness(clean, scores),
        relative_robustness(clean, scores),
        corruption_errors(scores, reference),
        relative_corruption_errors(clean, scores, reference_clean, reference),
    )
    for number in range(7):
        one = (clean[number], scores[number], reference_clean[number], reference[number])
        apart = (
            absolute_robustness(*one[:2]),
            relative_robustness(*one[:2]),
            corruption_errors(one[1], one[3]),
            relative_corruption_errors(*one),
        )
        for of_all, of_one in zip(together, apart, strict=True):
            np.testing.assert_allclose(of_all[number], of_one)


def test_a_level_without_a_score_is_left_out() -> None:
    assert known_mean(np.array([[1.0, math.nan, 3.0], [math.nan] * 3])).tolist()[0] == 2.0
    assert math.isnan(known_mean(np.array([math.nan])))
    scores, reference = np.array([[0.6, math.nan]]), np.array([[0.5, math.nan]])
    assert corruption_errors(scores, reference) == pytest.approx(np.array([0.8]))


def test_resamples_draw_as_many_clips() -> None:
    counts = resample_counts(9, 500, seed=1)
    assert counts.shape == (500, 9)
    assert (counts.sum(1) == 9).all()
    assert counts.mean() == 1
    # Each count is binomial: variance 9 * 1/9 * 8/9.
    assert counts.var() == pytest.approx(8 / 9, rel=0.1)
    assert (resample_counts(9, 500, seed=1) == counts).all()
    assert (resample_counts(9, 500, seed=2) != counts).any()


def test_bootstrap_interval_of_a_mean() -> None:
    """The bootstrap's interval of a mean of many values is the normal one."""
    values = np.random.default_rng(0).normal(size=400)
    low, high = percentile_interval(resample_counts(400, 4000) @ values / 400)
    half = 1.96 * values.std() / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.01),
        pytest.approx(values.mean() + half, abs=0.01),
    )
    assert percentile_interval(np.arange(1001.0)) == (25, 975)
    assert percentile_interval(np.array([math.nan, 2.0])) == (2, 2)
    assert all(map(math.isnan, percentile_interval(np.array([math.nan]))))


def test_interval_over_seeds() -> None:
    center, half = student_interval([1.0, 2.0, 3.0])
    assert (center, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert math.isnan(student_interval([1.0])[1])
    assert student_interval(list(range(12)))[1] == pytest.approx(2.262 * np.std(range(12), ddof=1) / math.sqrt(12))


def test_share_of_resamples() -> None:
    difference = np.array([-1.0, 0.0, 1.0, 2.0, math.nan])
    assert share_better(difference) == 2.5 / 4
    assert share_better(difference, sign=-1) == 1.5 / 4
