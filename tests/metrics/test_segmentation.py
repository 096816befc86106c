"""J and F of segmentation: by hand, against the definition word for word, and accumulated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.metrics import SegmentationScores, segmentation_scores, segmentation_sums
from caeav_hf.metrics import segmentation as module


def logits_of(probabilities) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64)).float()


def word_for_word(logits: torch.Tensor, masks: torch.Tensor) -> dict[str, float | None]:
    """The definition, frame by frame and threshold by threshold."""
    ious, curves = [], []
    for frame, mask in zip(logits.float(), masks, strict=True):
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
    return {"j": float(np.mean(ious)), "f": float(np.mean(curves, axis=0).max()) if curves else None}


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
    assert segmentation_scores(logits, masks) == {"j": pytest.approx((1 + 3 / 4) / 2), "f": None}


def test_perfect_and_opposite_masks():
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert segmentation_scores(masks * 100.0 - 50, masks) == {"j": pytest.approx(1), "f": pytest.approx(1)}
    opposite = segmentation_scores(50 - masks * 100.0, masks)
    assert opposite["j"] == 0
    # At threshold 0 everything is predicted: precision 1 / 4 and 1, recall 1.
    assert opposite["f"] == pytest.approx((1.3 * 0.25 / (0.3 * 0.25 + 1) + 1) / 2)


def test_f_is_averaged_over_frames_before_the_maximum_is_taken():
    # The first frame is best cut above .2, the second below .2: no threshold suits both.
    masks = torch.tensor([[[1, 0]], [[1, 1]]])
    logits = logits_of([[[0.9, 0.2]], [[0.9, 0.1]]])
    alone = [segmentation_scores(logits[i : i + 1], masks[i : i + 1])["f"] for i in range(2)]
    assert alone == [pytest.approx(1), pytest.approx(1)]
    half = 1.3 * 0.5 / (0.3 * 0.5 + 1), 1.3 * 0.5 / (0.3 + 0.5)
    assert segmentation_scores(logits, masks)["f"] == pytest.approx(max(1 + half[1], half[0] + 1) / 2)


def test_one_half_is_not_above_one_half_but_reaches_a_threshold():
    masks = torch.ones(1, 1, 1)
    assert segmentation_scores(torch.zeros(1, 1, 1), masks) == {"j": 0.0, "f": pytest.approx(1)}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    scale=st.sampled_from([0.1, 2.0, 40.0]),
    filled=st.sampled_from([0.0, 0.2, 0.9]),
)
def test_agrees_with_the_definition_word_for_word(seed, frames, height, width, scale, filled):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(frames, height, width, generator=generator)
    masks = (torch.rand(frames, height, width, generator=generator) < filled).to(torch.int8)
    scores, expected = segmentation_scores(logits, masks), word_for_word(logits, masks)
    assert scores["j"] == pytest.approx(expected["j"])
    assert scores["f"] == (None if expected["f"] is None else pytest.approx(expected["f"]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 6))
def test_scores_do_not_depend_on_order_or_on_how_frames_are_divided(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 4, 5, generator=generator)
    masks = torch.rand(7, 4, 5, generator=generator) < 0.3
    whole = segmentation_scores(logits, masks)
    parts = (segmentation_sums(logits[:cut], masks[:cut]) + segmentation_sums(logits[cut:], masks[cut:])).scores()
    order = torch.randperm(7, generator=generator)
    shuffled = segmentation_scores(logits[order], masks[order])
    for other in (parts, shuffled):
        assert other == {name: pytest.approx(value) for name, value in whole.items()}
    for value in whole.values():
        assert 0 <= value <= 1
    # More of the target at the same false alarms is never worse.
    better = segmentation_scores(torch.where(masks, logits + 1, logits), masks)
    assert better["j"] >= whole["j"] - 1e-12


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(9, 8, 8, generator=generator), torch.rand(9, 8, 8, generator=generator) < 0.4
    whole = segmentation_scores(logits, masks)
    for pixels in (1, 64, 200):
        monkeypatch.setattr(module, "_CHUNK_PIXELS", pixels)
        assert segmentation_scores(logits, masks) == {name: pytest.approx(value) for name, value in whole.items()}


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
    assert segmentation_scores(logits, masks) == {"j": pytest.approx(1), "f": pytest.approx(1)}
    assert segmentation_sums(logits, masks).frames == 2


@pytest.mark.parametrize(
    ("logits", "masks", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), r"\(N, H, W\)"),
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


# Three batches of frames, of two sizes.
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
    return {**{name: pytest.approx(value) for name, value in total.scores().items()}, "num_frames": total.frames}


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
    assert metric.compute() == {"j": 1.0, "f": pytest.approx(1), "num_frames": 1}


def test_metric_accumulates_over_processes(over_two_processes):
    results = over_two_processes(
        SegmentationScores, [{"mask_logits": logits, "masks": masks_of(logits, seed)} for logits, seed in BATCHES]
    )
    assert results[0] == expected_over(BATCHES)
    assert results[1] is None
