"""Equality up to rounding, as between loads of a model, batch sizes, processes and threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


# Far above the rounding of toy models in float32, about 1e-7 of their outputs, and far below any effect.
TOLERANCE = 1e-5


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same_result(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """
    Compare results of a pipeline: labels, names and times exactly, scores and arrays of them to a tolerance.

    Of masks those pixels are compared whose probability is not that of the default threshold.
    """
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        if "masks" in expected:
            sure = np.abs(expected["probabilities"] - 0.5) > tolerance
            np.testing.assert_array_equal(found["masks"][sure], expected["masks"][sure])
        for key in expected.keys() - {"masks"}:
            assert_same_result(found[key], expected[key], 0 if key in ("start", "end", "duration") else tolerance)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_result(one, other, tolerance)
    elif isinstance(expected, (float, np.floating, np.ndarray)):
        if not np.issubdtype(np.asarray(expected).dtype, np.floating):
            tolerance = 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    else:
        assert found == expected


def assert_same_clip(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare items of a data set: the log-mel in dB, which is computed, to a tolerance, all else exactly."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name == "input_features":
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)
        else:
            assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name
