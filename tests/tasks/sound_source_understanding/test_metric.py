"""Scores of descriptions: printed values, sums over frames, and no downloads."""

import socket

import pytest

from caeav_hf.errors import DataError
from caeav_hf.tasks.sound_source_understanding.metric import DescriptionSums, description_scores, description_sums


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
