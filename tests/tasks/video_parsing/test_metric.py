"""The scores of video parsing: by hand, against the definition word for word, and accumulated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.tasks.video_parsing.metric import VideoParsingScores, video_parsing_scores, video_parsing_sums


NAMES = ("pred_audio", "pred_visual", "target_audio", "target_visual")


def runs(row) -> list[set[int]]:
    """Return the runs of consecutive positive segments, as sets of segments."""
    found: list[set[int]] = []
    for t, positive in enumerate(row):
        if positive and t and row[t - 1]:
            found[-1].add(t)
        elif positive:
            found.append({t})
    return found


def count_segments(predicted, target) -> tuple[int, int, int]:
    hits = sum(bool(p) and bool(t) for p, t in zip(predicted, target, strict=True))
    return hits, int(sum(predicted)) - hits, int(sum(target)) - hits


def count_events(predicted, target) -> tuple[int, int, int]:
    predicted, target = runs(predicted), runs(target)

    def met(run, others) -> bool:
        return any(len(run & other) / len(run | other) >= 0.5 for other in others)

    hits = sum(met(run, target) for run in predicted)
    return hits, len(predicted) - hits, sum(not met(run, predicted) for run in target)


def f1(counts) -> float:
    scores = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts if tp + fp + fn]
    return sum(scores) / len(scores) if scores else 1.0


def word_for_word(pred_audio, pred_visual, target_audio, target_visual) -> dict[str, dict[str, float]]:
    """Compute the definition clip by clip and class by class."""
    result = {}
    for level, count in (("segment", count_segments), ("event", count_events)):
        totals = dict.fromkeys(("audio", "visual", "audio_visual", "type", "event"), 0.0)
        for pa, pv, ta, tv in zip(pred_audio, pred_visual, target_audio, target_visual, strict=True):
            audio = [count(p, t) for p, t in zip(pa, ta, strict=True)]
            visual = [count(p, t) for p, t in zip(pv, tv, strict=True)]
            both = [count(p, t) for p, t in zip(pa * pv, ta * tv, strict=True)]
            added = [tuple(a + v for a, v in zip(x, y, strict=True)) for x, y in zip(audio, visual, strict=True)]
            scores = {"audio": f1(audio), "visual": f1(visual), "audio_visual": f1(both), "event": f1(added)}
            scores["type"] = (scores["audio"] + scores["visual"] + scores["audio_visual"]) / 3
            totals = {name: total + scores[name] for name, total in totals.items()}
        result[level] = {name: 100 * total / len(pred_audio) for name, total in totals.items()}
    return result


def close(scores):
    return {level: {name: pytest.approx(value) for name, value in of.items()} for level, of in scores.items()}


def rows(*texts: str) -> np.ndarray:
    """Return one clip (1, C, T) from one line of 0 and 1 per class."""
    return np.array([[[int(char) for char in text] for text in texts]])


def test_segments_by_hand():
    # Class 0 is heard in 3 seconds, 2 of which are predicted, with one wrong one: F1 = 4 / (4 + 1 + 1).
    # Class 1 is heard nowhere, but predicted once: 0. Class 2 is nowhere at all and does not count.
    pred_audio, target_audio = rows("011100", "000001", "000000"), rows("001110", "000000", "000000")
    # Class 0 is seen in the first two seconds of which one is predicted: F1 = 2 / 3.
    pred_visual, target_visual = rows("010000", "000000", "000000"), rows("110000", "000000", "000000")
    scores = video_parsing_scores(pred_audio, pred_visual, target_audio, target_visual)["segment"]
    audio, visual = (4 / 6 + 0) / 2, 2 / 3
    # Nothing is both; of the prediction one second of class 0 is: a false positive.
    assert scores["audio"] == pytest.approx(100 * audio)
    assert scores["visual"] == pytest.approx(100 * visual)
    assert scores["audio_visual"] == 0
    assert scores["type"] == pytest.approx(100 * (audio + visual) / 3)
    # Class 0: TP 2 + 1, FP 1 + 0, FN 1 + 1; class 1: nothing but a false positive.
    assert scores["event"] == pytest.approx(100 * (6 / (6 + 1 + 2) + 0) / 2)


def test_events_by_hand():
    # The first run of the target meets a predicted one with IoU 2 / 4, the second one with 1 / 3; a predicted run
    # meets nothing: TP 1, FP 2, FN 1.
    target, predicted = rows("1110001110"), rows("0111000010")
    predicted[0, 0, 5] = 1
    nothing = np.zeros_like(target)
    scores = video_parsing_scores(predicted, nothing, target, nothing)["event"]
    assert scores["audio"] == pytest.approx(100 * 2 / (2 + 2 + 1))
    assert scores["visual"] == scores["audio_visual"] == 100  # neither predicted nor there
    assert scores["event"] == scores["audio"]


def test_half_a_run_is_enough_and_less_is_not():
    nothing = np.zeros((1, 1, 10), int)
    for predicted, score in (("0011000000", 100), ("0010000000", 0)):
        scores = video_parsing_scores(rows(predicted), nothing, rows("1111000000"), nothing)
        assert scores["event"]["audio"] == score


def test_one_run_may_meet_several_only_where_each_overlap_is_half_of_the_union():
    # Two runs of two in the target, the prediction bridges them: IoU 2 / 5 with either.
    nothing = np.zeros((1, 1, 7), int)
    scores = video_parsing_scores(rows("0111110"), nothing, rows("0110110"), nothing)
    assert scores["event"]["audio"] == 0
    assert scores["segment"]["audio"] == pytest.approx(100 * 8 / 9)


def test_perfect_opposite_and_nothing():
    generator = torch.Generator().manual_seed(1)
    audio, visual = (torch.rand(6, 4, 10, generator=generator) < 0.3 for _ in range(2))
    audio[0] = visual[0] = False
    perfect = video_parsing_scores(audio, visual, audio, visual)
    assert all(score == pytest.approx(100) for level in perfect.values() for score in level.values())
    nothing = video_parsing_scores(audio & False, visual & False, audio, visual)
    # Only the clip in which there is nothing scores.
    assert nothing["segment"]["audio"] == nothing["event"]["visual"] == pytest.approx(100 / 6)
    assert video_parsing_scores(~audio, ~visual, audio, visual)["segment"]["type"] == pytest.approx(0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 10)),
    density=st.floats(0, 1),
    agreement=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_the_definition(shape, density, agreement, seed):
    rng = np.random.default_rng(seed)
    target_audio, target_visual = rng.uniform(size=(2, *shape)) < density
    pred_audio, pred_visual = (
        np.where(rng.uniform(size=shape) < agreement, target, rng.uniform(size=shape) < density)
        for target in (target_audio, target_visual)
    )
    arrays = [array.astype(int) for array in (pred_audio, pred_visual, target_audio, target_visual)]
    assert video_parsing_scores(*arrays) == close(word_for_word(*arrays))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_scores_do_not_depend_on_the_order_of_clips_and_classes(seed):
    rng = np.random.default_rng(seed)
    arrays = rng.uniform(size=(4, 5, 3, 8)) < 0.4
    whole = video_parsing_scores(*arrays)
    assert video_parsing_scores(*arrays[:, ::-1, ::-1]) == close(whole)
    # Time may run backwards, too.
    assert video_parsing_scores(*arrays[..., ::-1]) == close(whole)
    # And a class that is nowhere changes nothing.
    more = np.concatenate([arrays, np.zeros((4, 5, 1, 8), bool)], axis=2)
    assert video_parsing_scores(*more) == close(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool])
def test_any_type_of_number(dtype):
    arrays = np.random.default_rng(0).uniform(size=(4, 3, 2, 6)) < 0.5
    expected = video_parsing_scores(*arrays)
    assert video_parsing_scores(*(torch.tensor(array).to(dtype) for array in arrays)) == expected
    assert video_parsing_scores(*arrays.astype(int).tolist()) == expected


def test_ignored_segments_and_clips_do_not_count():
    rng = np.random.default_rng(2)
    arrays = (rng.uniform(size=(4, 3, 2, 6)) < 0.5).astype(int)
    expected = video_parsing_scores(*arrays)
    padded = np.concatenate([arrays, np.ones((4, 3, 2, 3), int)], axis=3)
    padded = np.concatenate([padded, np.ones((4, 1, 2, 9), int)], axis=1)
    padded[2:, :, :, 6:] = padded[2:, 3] = -100
    # One target that is unknown is enough.
    padded[3, :, :, 8] = 0
    assert video_parsing_scores(*padded) == close(expected)
    assert video_parsing_sums(*padded).clips == 3
    padded[2:] = -100
    assert video_parsing_sums(*padded).clips == 0
    with pytest.raises(DataError, match="no segment that counts"):
        video_parsing_scores(*padded)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pred_audio", np.zeros((1, 2)), r"one shape \(N, C, T\), got pred_audio \(1, 2\)"),
        ("target_visual", np.zeros((1, 2, 4)), r"target_visual \(1, 2, 4\)"),
        ("pred_visual", np.full((1, 2, 3), 0.5), r"`pred_visual` must be 0 and 1.*got 0.5"),
        ("pred_audio", np.full((1, 2, 3), np.nan), "got nan"),
        ("pred_audio", np.full((1, 2, 3), -100), "`pred_audio` must"),
        ("target_audio", np.array([[[0, 1, 0], [-100, 0, 0]]]), "in all classes of a segment, got -100"),
    ],
)
def test_bad_input_is_refused(name, value, message):
    arrays = {key: np.zeros((1, 2, 3), int) for key in NAMES} | {name: value}
    with pytest.raises(DataError, match=message):
        video_parsing_scores(**arrays)


def batches() -> list[dict[str, torch.Tensor]]:
    """Return three batches of clips, of two lengths; parts of the last are unknown."""
    made = []
    for seed, shape in enumerate([(2, 3, 10), (3, 3, 10), (2, 3, 6)]):
        arrays = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        made.append(dict(zip(NAMES, arrays.to(torch.int64), strict=True)))
    made[2]["target_audio"][0] = -100
    return made


def expected_over(parts) -> dict:
    total = sum((video_parsing_sums(**part) for part in parts[1:]), video_parsing_sums(**parts[0]))
    return {**close(total.scores()), "num_clips": total.clips}


def test_metric_accumulates_batches(tmp_path):
    metric = VideoParsingScores(cache_dir=str(tmp_path))
    parts = batches()
    for part in parts:
        metric.add_batch(**part)
    assert metric.compute() == expected_over(parts)
    # Computing empties it.
    assert metric.compute(**parts[2]) == expected_over(parts[2:])
    metric.add(**{name: values[1] for name, values in parts[0].items()})
    assert metric.compute()["num_clips"] == 1


def test_metric_names_a_bad_batch_and_keeps_the_good_ones(tmp_path):
    metric = VideoParsingScores(cache_dir=str(tmp_path))
    part = batches()[0]
    metric.add_batch(**part)
    with pytest.raises(DataError, match="`pred_visual`"):
        metric.add_batch(**{**part, "pred_visual": part["pred_visual"] + 5})
    with pytest.raises(DataError, match="there is no pred_visual"):
        metric.compute(**{**part, "pred_visual": None})
    assert metric.compute() == expected_over([part])


def test_metric_accumulates_over_processes(over_two_processes):
    results = over_two_processes(VideoParsingScores, batches())
    assert results[0] == expected_over(batches())
    assert results[1] is None
