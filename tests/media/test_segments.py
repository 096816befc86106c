"""Number of segments of a clip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav_hf.media.segments import count_segments


@given(
    whole=st.integers(1, 100),
    rest=st.floats(-0.5, 0.49),
    segment=st.sampled_from([0.5, 0.96, 1.0, 2.0, 6.0]),
    most=st.integers(1, 20),
)
def test_count_segments(whole, rest, segment, most):
    duration = (whole + rest) * segment
    count = count_segments(duration, segment)
    assert count == whole + (rest > 0.1 + 1e-4) or abs(rest - 0.1) < 1e-4
    assert count_segments(duration, segment, most) == min(count, most)


@pytest.mark.parametrize(
    ("duration", "count"), [(0.0, 1), (0.02, 1), (10.02, 10), (10.1, 10), (10.11, 11), (9.95, 10)]
)
def test_count_segments_of_round_durations(duration, count):
    assert count_segments(duration) == count
