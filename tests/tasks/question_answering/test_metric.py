"""The accuracy of question answering: by hand, by property, and accumulated over batches and processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.tasks.question_answering.metric import QuestionAnsweringAccuracy, question_answering_accuracy


LOGITS = np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0], [0.0, 0.0, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
LABELS = np.array([1, 0, 0, 2, 1])
TYPES = ["Audio", "Audio", "Visual", "Audio-Visual", "Audio-Visual"]
SUBTYPES = ["Counting", "Comparative", "Counting", "Counting", "Counting"]
SCORES = {
    "accuracy": 3 / 5,
    "per_type": {"Audio": 1.0, "Audio-Visual": 0.5, "Visual": 0.0},
    "per_subtype": {
        "Audio-Visual/Counting": 0.5,
        "Audio/Comparative": 1.0,
        "Audio/Counting": 1.0,
        "Visual/Counting": 0.0,
    },
    "num_questions": 5,
}


def test_scores_by_hand():
    assert question_answering_accuracy(LOGITS, LABELS, TYPES, SUBTYPES) == SCORES
    assert question_answering_accuracy(LOGITS.argmax(1), LABELS, TYPES, SUBTYPES) == SCORES


def test_types_may_be_left_out():
    alone = {"accuracy": 3 / 5, "per_type": {}, "per_subtype": {}, "num_questions": 5}
    assert question_answering_accuracy(LOGITS, LABELS) == alone
    assert question_answering_accuracy(LOGITS, LABELS, TYPES)["per_subtype"] == {}


def test_ignored_questions_do_not_count():
    labels = np.where(LOGITS.argmax(1) == LABELS, LABELS, -100)
    scores = question_answering_accuracy(LOGITS, labels, TYPES, SUBTYPES)
    assert scores["accuracy"] == 1.0
    assert scores["num_questions"] == 3
    assert "Visual" not in scores["per_type"]
    broken = LOGITS.copy()
    broken[labels == -100] = np.nan
    assert question_answering_accuracy(broken, labels)["accuracy"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_any_type(dtype):
    logits = torch.tensor(LOGITS, requires_grad=True).to(dtype)
    assert question_answering_accuracy(logits, torch.tensor(LABELS), TYPES, SUBTYPES) == SCORES


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from("AVX")), min_size=1, max_size=30))
def test_accuracy_is_the_mean_of_the_types_by_their_sizes(questions):
    predicted, labels, types = (list(column) for column in zip(*questions, strict=True))
    scores = question_answering_accuracy(predicted, labels, types)
    parts = [scores["per_type"][kind] * types.count(kind) for kind in set(types)]
    assert scores["accuracy"] == pytest.approx(sum(parts) / len(types))
    assert scores["accuracy"] == pytest.approx(np.mean(np.array(predicted) == np.array(labels)))
    order = np.random.default_rng(0).permutation(len(types))
    shuffled = [[column[i] for i in order] for column in (predicted, labels, types)]
    assert question_answering_accuracy(*shuffled) == scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS[0], LABELS), r"got shapes \(3,\) and \(5,\)"),
        ((LOGITS, LABELS[:, None]), "expected `predictions`"),
        ((np.zeros((0, 3)), np.zeros(0, int)), "expected `predictions`"),
        ((LOGITS, LABELS + 1), "`labels` must be indices of answers from 0, below 3, got 3"),
        ((LOGITS, -LABELS), "`labels` must be indices of answers"),
        ((LOGITS, LABELS + 0.5), "`labels` .* must be integers, got float64"),
        ((LOGITS[:, 0], LABELS), "`predictions` .* must be integers, got float64"),
        ((LOGITS * np.nan, LABELS), "not numbers"),
        ((LOGITS, LABELS * 0 - 100), "no question that counts: all of its 5 are -100"),
        ((LOGITS, LABELS, TYPES[:3]), r"`types` must have one value per question \(5\), got 3"),
        ((LOGITS, LABELS, None, SUBTYPES), "`subtypes` were given without `types`"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(DataError, match=message):
        question_answering_accuracy(*arguments)


# As a metric


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_batches_add_up(tmp_path_factory, sizes):
    metric = QuestionAnsweringAccuracy(cache_dir=str(tmp_path_factory.mktemp("metric")))
    order = np.arange(sum(sizes)) % 5
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        metric.add_batch(
            predictions=torch.tensor(LOGITS[part]),
            labels=LABELS[part],
            types=[TYPES[i] for i in part],
            subtypes=[SUBTYPES[i] for i in part],
        )
    whole = question_answering_accuracy(
        LOGITS[order], LABELS[order], [TYPES[i] for i in order], [SUBTYPES[i] for i in order]
    )
    assert metric.compute() == whole


def test_single_questions_and_one_batch(tmp_path):
    metric = QuestionAnsweringAccuracy(cache_dir=str(tmp_path))
    for logits, label, kind, subtype in zip(LOGITS, LABELS, TYPES, SUBTYPES, strict=True):
        metric.add(predictions=logits, labels=label, types=kind, subtypes=subtype)
    assert metric.compute() == SCORES
    assert metric.compute(predictions=LOGITS, labels=LABELS, types=TYPES, subtypes=SUBTYPES) == SCORES
    metric.add_batch(predictions=LOGITS, labels=LABELS)
    assert metric.compute()["per_type"] == {}
    with pytest.raises(DataError, match="expected `predictions`"):
        metric.add_batch(predictions=LOGITS, labels=LABELS[:2])


def test_processes_add_up(over_two_processes):
    halves = [
        {"predictions": LOGITS[half], "labels": LABELS[half], "types": TYPES[half], "subtypes": SUBTYPES[half]}
        for half in (slice(0, None, 2), slice(1, None, 2))
    ]
    assert over_two_processes(QuestionAnsweringAccuracy, halves) == {0: SCORES, 1: None}
