"""Scores of descriptions: printed values, sums over frames, and no downloads."""

import socket

import pytest
import torch

from caeav_hf.errors import DataError
from caeav_hf.metrics import (
    DescriptionSums,
    SoundSourceUnderstandingScores,
    description_scores,
    description_sums,
    segmentation_scores,
)


PAIRS = [
    ("the cat is meowing", "the cat is purring loudly", 0.680297, 0.718157),
    ("a car is passing by", "a car is passing by", 1.0, 0.996),
    (
        "the woman on the right is playing the violin",
        "the women on the right plays the violins",
        0.582061,
        0.755561,
    ),
]


@pytest.mark.parametrize(("reference", "prediction", "rouge_l", "meteor"), PAIRS)
def test_printed_values(reference: str, prediction: str, rouge_l: float, meteor: float, monkeypatch) -> None:
    def refused(*_):
        raise AssertionError("the metric must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    scores = description_scores([prediction], [reference])
    assert scores["rouge_l"] == pytest.approx(rouge_l, abs=5e-7)
    assert scores["meteor"] == pytest.approx(meteor, abs=5e-7)


def test_bleu_of_the_corpus() -> None:
    scores = description_scores([pair[1] for pair in PAIRS], [pair[0] for pair in PAIRS])
    expected = (0.722222, 0.620633, 0.543441, 0.434572)
    assert [scores[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=5e-7)
    parts = [description_sums([prediction], [reference]) for reference, prediction, *_ in PAIRS]
    assert sum(parts, DescriptionSums()).scores() == pytest.approx(scores)


def test_empty_texts() -> None:
    scores = description_scores(["", "a dog", "", "A  dog!"], ["", "", "a dog", "a dog"])
    assert scores["silent_accuracy"] == 0.5
    assert scores["exact_match"] == 0.5
    assert scores["rouge_l"] == 0.5
    # Two words of four are predicted: the brevity penalty is exp(1 - 4 / 2).
    assert scores["bleu_1"] == pytest.approx(0.36787944)
    assert scores["bleu_4"] == 0
    silent = description_scores([""], [""])
    assert silent["bleu_4"] is None
    assert silent["meteor"] is None
    assert description_scores([""], ["a dog"])["bleu_1"] == 0
    with pytest.raises(DataError, match="2 predictions for 1"):
        description_scores(["", ""], [""])


# Three batches of clips; the last frame of each clip is not annotated, and one before is silent.
BATCHES = [
    {
        "mask_logits": torch.randn(1, 3, 1, *size, generator=torch.Generator().manual_seed(seed)),
        "masks": torch.tensor([1, 0, -100], dtype=torch.int8)[None, :, None, None].expand(1, 3, *size),
        "predictions": [[prediction, "", "anything"]],
        "references": [[reference, "", None]],
    }
    for seed, (size, (reference, prediction, *_)) in enumerate(zip([(4, 4), (4, 4), (6, 5)], PAIRS, strict=True))
]


def expected_over(batches) -> dict:
    pairs = [(batch["predictions"][0][frame], batch["references"][0][frame]) for batch in batches for frame in (0, 1)]
    scores = description_scores(*zip(*pairs, strict=True))
    masks = [segmentation_scores(batch["mask_logits"], batch["masks"]) for batch in batches]
    scores |= {name: sum(one[name] for one in masks) / len(masks) for name in ("j", "f")}
    return pytest.approx({**scores, "understanding": (scores["j"] + scores["rouge_l"]) / 2})


def of_clips(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if name != "f_whole_set"}


def test_the_metric_accumulates_batches(tmp_path) -> None:
    metric = SoundSourceUnderstandingScores(cache_dir=str(tmp_path))
    for batch in BATCHES:
        metric.add_batch(**batch)
    assert of_clips(metric.compute()) == expected_over(BATCHES)
    # Computing empties it.
    assert of_clips(metric.compute(**BATCHES[2])) == expected_over(BATCHES[2:])
    metric.add(**{name: value[0] for name, value in BATCHES[0].items()})
    assert of_clips(metric.compute()) == expected_over(BATCHES[:1])


def test_the_metric_scores_either_half(tmp_path) -> None:
    metric = SoundSourceUnderstandingScores(cache_dir=str(tmp_path))
    batch = BATCHES[0]
    masks = metric.compute(mask_logits=batch["mask_logits"], masks=batch["masks"])
    assert masks == {**segmentation_scores(batch["mask_logits"], batch["masks"]), "understanding": masks["j"]}
    texts = metric.compute(predictions=batch["predictions"], references=batch["references"])
    assert texts == {**texts, "understanding": texts["rouge_l"]}
    assert "j" not in texts
    for wrong, match in (
        ({"masks": batch["masks"]}, "`mask_logits` and `masks`, got only one"),
        ({"predictions": [["a"]], "references": [["a", "b"]]}, r"got \[1\] predictions and \[2\] references"),
    ):
        with pytest.raises(DataError, match=match):
            metric.add_batch(**wrong)
    with pytest.raises(DataError, match="or all four"):
        metric.add_batch()


def test_the_metric_accumulates_over_processes(over_two_processes) -> None:
    results = over_two_processes(SoundSourceUnderstandingScores, BATCHES)
    assert of_clips(results[0]) == expected_over(BATCHES)
    assert results[1] is None
