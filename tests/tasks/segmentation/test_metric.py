"""J and F of segmentation: by hand, against the definition word for word, and accumulated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.tasks.segmentation import metric as module
from caeav_hf.tasks.segmentation.metric import SegmentationScores, segmentation_scores, segmentation_sums


def logits_of(probabilities) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64)).float()


PERFECT = dict.fromkeys(("j", "f", "f_whole_set"), pytest.approx(1))


def approx(scores: dict[str, float | None]) -> dict:
    return {name: None if value is None else pytest.approx(value) for name, value in scores.items()}


def word_for_word(logits: torch.Tensor, masks: torch.Tensor) -> dict[str, float | None]:
    """Compute the definition of (B, T, H, W) clip by clip, frame by frame and threshold by threshold."""
    ious, all_curves, best = [], [], []
    for clip_logits, clip_masks in zip(logits.float(), masks, strict=True):
        curves = []
        for frame, mask in zip(clip_logits, clip_masks, strict=True):
            predicted = frame.sigmoid() > 0.5
            if mask.any():
                both = [bool(a) and bool(b) for a, b in zip(predicted.flatten(), mask.flatten(), strict=True)]
                either = [bool(a) or bool(b) for a, b in zip(predicted.flatten(), mask.flatten(), strict=True)]
                ious.append(sum(both) / sum(either))
            else:
                ious.append(float((~predicted).float().mean()))
                continue
            curve = []
            for threshold in torch.linspace(0, 1 - 1e-10, 255):
                predicted = frame.sigmoid() >= threshold
                hits = float((predicted & (mask == 1)).sum())
                if not hits:
                    curve.append(0.0)
                    continue
                precision, recall = hits / float(predicted.sum()), hits / float(mask.sum())
                curve.append(1.3 * precision * recall / (0.3 * precision + recall))
            curves.append(curve)
        if curves:
            best.append(np.mean(curves, axis=0).max())
        all_curves += curves
    if not best:
        return {"j": float(np.mean(ious)), "f": None, "f_whole_set": None}
    whole_set = float(np.mean(all_curves, axis=0).max())
    return {"j": float(np.mean(ious)), "f": float(np.mean(best)), "f_whole_set": whole_set}


def test_scores_by_hand():
    # Two of the three predicted pixels are among the three of the target: IoU 2 / 4.
    masks = torch.tensor([[[1, 1, 1], [0, 0, 0]]])
    logits = logits_of([[[0.9, 0.8, 0.3], [0.7, 0.1, 0.2]]])
    scores = segmentation_scores(logits, masks)
    assert scores["j"] == pytest.approx(2 / 4)
    # Best above .7: precision 1, recall 2 / 3.
    assert scores["f"] == pytest.approx(1.3 * (2 / 3) / (0.3 + 2 / 3))


def test_an_empty_target_scores_its_true_negatives_and_no_f():
    masks = torch.zeros(2, 2, 2, dtype=torch.int8)
    logits = torch.full((2, 2, 2), -1.0)
    logits[1, 0, 0] = 1.0
    assert segmentation_scores(logits, masks) == {
        "j": pytest.approx((1 + 3 / 4) / 2),
        "f": None,
        "f_whole_set": None,
    }


def test_perfect_and_opposite_masks():
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert segmentation_scores(masks * 100.0 - 50, masks) == PERFECT
    opposite = segmentation_scores(50 - masks * 100.0, masks)
    assert opposite["j"] == 0
    # At threshold 0 everything is predicted: precision 1 / 4 and 1, recall 1.
    assert opposite["f"] == pytest.approx((1.3 * 0.25 / (0.3 * 0.25 + 1) + 1) / 2)


def test_f_is_averaged_over_a_clips_frames_before_the_maximum_is_taken():
    # The first frame is best cut above .2, the second below .2: no threshold suits both.
    masks = torch.tensor([[[1, 0]], [[1, 1]]])
    logits = logits_of([[[0.9, 0.2]], [[0.9, 0.1]]])
    half = 1.3 * 0.5 / (0.3 * 0.5 + 1), 1.3 * 0.5 / (0.3 + 0.5)
    one_clip, two_clips = segmentation_scores(logits, masks), segmentation_scores(logits[:, None], masks[:, None])
    shared = pytest.approx(max(1 + half[1], half[0] + 1) / 2)
    # As the frames of one clip they share a threshold; as two clips each has its own.
    assert one_clip["f"] == one_clip["f_whole_set"] == two_clips["f_whole_set"] == shared
    assert two_clips["f"] == pytest.approx(1)
    assert one_clip["j"] == two_clips["j"]


def test_a_clip_counts_once_however_many_targets_it_has():
    # One clip with two targets, all found, and one with one target, of which half is found whatever the threshold.
    masks = torch.tensor([[[[1, 1]], [[1, 1]], [[0, 0]]], [[[0, 0]], [[0, 0]], [[1, 0]]], [[[0, 0]]] * 3])
    logits = torch.full(masks.shape, 3.0)
    poor = 1.3 * 0.5 / (0.3 * 0.5 + 1)
    scores = segmentation_scores(logits, masks)
    assert scores["f"] == pytest.approx((1 + poor) / 2)
    assert scores["f_whole_set"] == pytest.approx((1 + 1 + poor) / 3)


def test_one_half_is_not_above_one_half_but_reaches_a_threshold():
    masks = torch.ones(1, 1, 1)
    assert segmentation_scores(torch.zeros(1, 1, 1), masks) == {**PERFECT, "j": 0.0}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    clips=st.integers(1, 3),
    frames=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    scale=st.sampled_from([0.1, 2.0, 40.0]),
    filled=st.sampled_from([0.0, 0.2, 0.9]),
)
def test_agrees_with_the_definition_word_for_word(seed, clips, frames, height, width, scale, filled):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(clips, frames, height, width, generator=generator)
    masks = (torch.rand(clips, frames, height, width, generator=generator) < filled).to(torch.int8)
    expected = word_for_word(logits, masks)
    assert segmentation_scores(logits, masks) == approx(expected)
    # One clip alone: both F are the same.
    alone = segmentation_scores(logits[0], masks[0])
    assert alone == approx(word_for_word(logits[:1], masks[:1]))
    assert alone["f"] == (None if alone["f"] is None else pytest.approx(alone["f_whole_set"]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 6))
def test_scores_do_not_depend_on_order_or_on_how_clips_are_divided(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 3, 4, 5, generator=generator)
    masks = torch.rand(7, 3, 4, 5, generator=generator) < 0.3
    whole = segmentation_scores(logits, masks)
    parts = (segmentation_sums(logits[:cut], masks[:cut]) + segmentation_sums(logits[cut:], masks[cut:])).scores()
    order = torch.randperm(7, generator=generator)
    shuffled = segmentation_scores(logits[order], masks[order])
    for other in (parts, shuffled):
        assert other == approx(whole)
    for value in whole.values():
        assert 0 <= value <= 1
    # All clips have equally many targets here, so separate thresholds can only help.
    assert whole["f"] >= whole["f_whole_set"] - 1e-12
    # More of the target at the same false alarms is never worse.
    better = segmentation_scores(torch.where(masks, logits + 1, logits), masks)
    assert better["j"] >= whole["j"] - 1e-12


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(3, 3, 8, 8, generator=generator), torch.rand(3, 3, 8, 8, generator=generator) < 0.4
    whole = segmentation_scores(logits, masks)
    for pixels in (1, 64, 130, 200):
        monkeypatch.setattr(module, "_CHUNK_PIXELS", pixels)
        assert segmentation_scores(logits, masks) == approx(whole)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float32, torch.bool])
def test_masks_of_any_type_and_shape(dtype):
    masks = torch.tensor([[[1, 1, 1], [0, 0, 0]]])
    logits = logits_of([[[0.9, 0.8, 0.3], [0.7, 0.1, 0.2]]])
    expected = segmentation_scores(logits, masks)
    assert segmentation_scores(logits.double(), masks.to(dtype)) == expected
    assert segmentation_scores(logits.numpy(), masks.to(dtype).numpy()) == expected
    assert segmentation_scores(logits.tolist(), masks.tolist()) == expected
    # (B, T, 1, H, W) and (B, T, H, W).
    assert segmentation_scores(logits[None, :, None], masks.to(dtype)[None]) == expected
    halves = segmentation_scores(logits.bfloat16().requires_grad_(), masks.to(dtype))
    assert halves["j"] == expected["j"]


def test_ignored_frames_do_not_count():
    masks = torch.tensor([[[1, 0]], [[-100, -100]], [[0, 0]]], dtype=torch.int8)
    logits = torch.tensor([[[3.0, -3.0]], [[torch.nan, 5.0]], [[-1.0, -1.0]]])
    assert segmentation_scores(logits, masks) == PERFECT
    assert segmentation_sums(logits, masks).frames == 2


@pytest.mark.parametrize(
    ("logits", "masks", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), r"\(T, H, W\)"),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), r"\(1, 2, 2\) and \(1, 2, 3\)"),
        (torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 2, 2, 2), r"\(1, 2, 3, 2, 2\)"),
        (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2), "one shape"),
        (torch.zeros(1, 1, 2), torch.tensor([[[0, 255]]]), "got 255"),
        (torch.zeros(1, 1, 2), torch.full((1, 1, 2), 156, dtype=torch.uint8), "got 156"),
        (torch.zeros(1, 1, 2), torch.tensor([[[0, -100]]]), "got -100"),
        (torch.zeros(1, 1, 2), torch.tensor([[[0.5, 1.0]]]), "got 0.5"),
        (torch.full((1, 1, 2), torch.nan), torch.ones(1, 1, 2), "NaN"),
        (torch.zeros(1, 1, 2), torch.full((1, 1, 2), -100), "no frame that counts"),
    ],
)
def test_bad_input_is_refused(logits, masks, message):
    with pytest.raises(DataError, match=message):
        segmentation_scores(logits, masks)


# Three batches of clips, of two sizes.
BATCHES = [
    (torch.randn(2, 3, 1, *size, generator=torch.Generator().manual_seed(seed)), seed)
    for seed, size in enumerate([(4, 4), (4, 4), (6, 5)])
]


def masks_of(logits: torch.Tensor, seed: int) -> torch.Tensor:
    masks = (torch.rand(logits[:, :, 0].shape, generator=torch.Generator().manual_seed(seed)) < 0.4).to(torch.int8)
    masks[0, 1] = -100
    return masks


def expected_over(batches) -> dict[str, float]:
    sums = [segmentation_sums(logits, masks_of(logits, seed)) for logits, seed in batches]
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    by_hand = [
        segmentation_scores(clip, mask)
        for logits, seed in batches
        for clip, mask in zip(logits, masks_of(logits, seed), strict=True)
    ]
    assert total.scores()["f"] == pytest.approx(np.mean([clip["f"] for clip in by_hand]))
    return {**approx(total.scores()), "num_frames": total.frames}


def test_metric_accumulates_batches(tmp_path):
    metric = SegmentationScores(cache_dir=str(tmp_path))
    for logits, seed in BATCHES:
        metric.add_batch(mask_logits=logits, masks=masks_of(logits, seed))
    assert metric.compute() == expected_over(BATCHES)
    # Computing empties it.
    logits, seed = BATCHES[2]
    assert metric.compute(mask_logits=logits, masks=masks_of(logits, seed)) == expected_over(BATCHES[2:])
    metric.add(mask_logits=logits[0, :1], masks=masks_of(logits, seed)[0, :1])
    assert metric.compute()["num_frames"] == 1


def test_metric_names_a_bad_batch_and_keeps_the_good_ones(tmp_path):
    metric = SegmentationScores(cache_dir=str(tmp_path))
    metric.add_batch(mask_logits=torch.ones(1, 2, 2), masks=torch.ones(1, 2, 2))
    with pytest.raises(DataError, match="got 7"):
        metric.add_batch(mask_logits=torch.ones(1, 2, 2), masks=torch.full((1, 2, 2), 7))
    # All of its frames ignored: adds nothing, and is no error.
    metric.add_batch(mask_logits=torch.ones(1, 2, 2), masks=torch.full((1, 2, 2), -100))
    assert metric.compute() == {**PERFECT, "num_frames": 1}


def test_metric_accumulates_over_processes(over_two_processes):
    results = over_two_processes(
        SegmentationScores, [{"mask_logits": logits, "masks": masks_of(logits, seed)} for logits, seed in BATCHES]
    )
    assert results[0] == expected_over(BATCHES)
    assert results[1] is None
