"""Windows on an absolute grid, and the mean of their scores."""

import numpy as np
import pytest

from caeav_hf.errors import CaeAvError
from caeav_hf.media.segment_stream import Segment
from caeav_hf.streaming.windows import ScoreJoiner, WindowCutter


SIZE = 6


def segment(index: int) -> Segment:
    return Segment(index, np.zeros((1, 1, 3), np.uint8), index + 0.5, np.zeros(4, np.float32), True)


def cut(first: int, last: int, stride: int) -> list[tuple[int, list[int]]]:
    cutter = WindowCutter(SIZE, stride)
    windows = [cutter.push(segment(index)) for index in range(first, last)]
    windows.append(cutter.close())
    return [(w.start, [one.index for one in w.segments]) for w in windows if w is not None]


def scored(first: int, last: int, stride: int, seen_from: int = 0) -> dict[int, float]:
    """Join scores that depend on a segment, on its place in the window and on all others of the window."""
    joiner, means = ScoreJoiner(SIZE), {}
    values = np.random.default_rng(0).random(100)
    for start, indices in cut(first, last, stride):
        content = values[np.array(indices) + seen_from]
        scores = content + 0.1 * (np.arange(len(indices)) + indices[0] - start) + content.mean()
        joiner.add(
            start, indices[0], {"score": scores.astype(np.float32), "place": [index - start for index in indices]}
        )
        if (joined := joiner.take(start + stride)) is not None:
            means |= dict(enumerate(joined[1]["score"].tolist(), start=joined[0]))
    joined = joiner.take(1000)
    if joined is not None:
        means |= dict(enumerate(joined[1]["score"].tolist(), start=joined[0]))
    assert list(means) == list(range(first, last))
    return means


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 12, 20])
def test_every_segment_is_in_a_window(stride: int, first: int, length: int) -> None:
    windows = cut(first, first + length, stride)
    assert {index for _, indices in windows for index in indices} == set(range(first, first + length))
    for start, indices in windows:
        assert start % stride == 0
        assert indices == list(range(max(start, first), min(start + SIZE, first + length)))
    # No window is short but at the ends, and there by less than the stride, unless the whole run is.
    assert all(len(indices) == SIZE for _, indices in windows[1:-1])
    if length >= 2 * SIZE:
        assert all(len(indices) > SIZE - stride for _, indices in windows)
    assert [start for start, _ in windows] == sorted({start for start, _ in windows})


@pytest.mark.parametrize("stride", [1, 2, 3, 6])
@pytest.mark.parametrize("later", [1, 2, 3, 7])
def test_scores_do_not_depend_on_where_reading_starts(stride: int, later: int) -> None:
    whole, part = scored(0, 40, stride), scored(later, 40, stride)
    inner = range(later + SIZE - 1, 40)
    assert [part[index] for index in inner] == [whole[index] for index in inner]


@pytest.mark.parametrize(("stride", "later", "same"), [(1, 1, True), (1, 4, True), (3, 6, True), (3, 4, False)])
def test_a_recording_that_begins_later_has_its_own_grid(stride: int, later: int, same: bool) -> None:
    whole, part = scored(0, 40, stride), scored(0, 40 - later, stride, seen_from=later)
    inner = range(later + SIZE, 30)
    equal = [part[index - later] == pytest.approx(whole[index], abs=1e-6) for index in inner]
    assert all(equal) == same


def test_a_single_window_keeps_its_scores() -> None:
    joiner = ScoreJoiner(SIZE)
    scores = np.random.default_rng(1).random((SIZE, 3)).astype(np.float32)
    joiner.add(12, 12, {"score": scores, "name": list("abcdef")})
    assert joiner.take(12) is None
    first, joined = joiner.take(100)
    assert first == 12
    np.testing.assert_array_equal(joined["score"].astype(np.float32), scores)
    assert joined["name"] == list("abcdef")


def test_what_cannot_be_averaged_is_that_of_the_window_around() -> None:
    joiner = ScoreJoiner(SIZE)
    for start in (0, 3, 6):
        joiner.add(start, start, {"window": [start] * SIZE})
    assert joiner.take(12)[1]["window"] == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 6]


@pytest.mark.parametrize("stride", [0, 7, -1])
def test_the_stride_lies_within_a_window(stride: int) -> None:
    with pytest.raises(CaeAvError, match="`stride` must be from 1 to the 6 segments"):
        WindowCutter(SIZE, stride)
