"""The accuracy of event localization: by hand, by property, and accumulated over batches and processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.tasks.event_localization.metric import (
    EventLocalizationAccuracy,
    event_localization_accuracy,
    event_localization_scores,
)


# Two clips of four segments, three classes, background 3; predicted are [1, 3, 1, 3] and [3, 2, 2, 2].
EVENT = np.array([[2.0, -1.0, 0.1, 0.0], [-3.0, 0.5, 4.0, 1e-9]])
CLASSES = np.array([[0.0, 3.0, 1.0], [-1.0, -2.0, -0.5]])
LABELS = np.array([[1, 3, 3, 3], [3, 2, 0, 2]])


def test_accuracy_by_hand():
    # Wrong are clip 0, segment 2 (event where there is none) and clip 1, segment 2 (class 2 for 0).
    assert event_localization_accuracy(EVENT, CLASSES, LABELS) == 6 / 8


def test_a_logit_of_zero_is_background_and_the_smallest_positive_one_is_not():
    assert event_localization_accuracy([[0.0]], [[1.0, 0.0]], [[2]]) == 1.0
    assert event_localization_accuracy([[1e-30]], [[1.0, 0.0]], [[0]]) == 1.0


def test_ignored_segments_do_not_count():
    labels = LABELS.copy()
    labels[0, 2] = labels[1, 2] = -100
    assert event_localization_accuracy(EVENT, CLASSES, labels) == 1.0


def test_scores_by_hand():
    scores = event_localization_scores(EVENT, CLASSES, LABELS)
    assert scores == {
        "accuracy": 6 / 8,
        "foreground_accuracy": 3 / 4,
        "background_accuracy": 3 / 4,
        "per_class": {0: 0.0, 1: 1.0, 2: 1.0, 3: 3 / 4},
        "num_segments": 8,
    }
    named = event_localization_scores(EVENT, CLASSES, LABELS, {0: "bell", 1: "drum", 2: "siren"})
    assert named["per_class"] == {"bell": 0.0, "drum": 1.0, "siren": 1.0, "background": 3 / 4}


def test_scores_without_foreground():
    scores = event_localization_scores([[-1.0, 1.0]], [[0.0]], [[1, 1]])
    assert scores["foreground_accuracy"] is None
    assert scores["background_accuracy"] == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors_of_any_type(dtype):
    event, classes = torch.tensor(EVENT).clamp(-1e4, 1e4), torch.tensor(CLASSES, requires_grad=True)
    event[1, 3] = 1.0
    assert event_localization_accuracy(event.to(dtype), classes.to(dtype), torch.tensor(LABELS)) == 6 / 8


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), clips=st.integers(1, 5), segments=st.integers(1, 6), classes=st.integers(1, 4))
def test_agrees_with_the_definition_word_for_word(seed, clips, segments, classes):
    rng = np.random.default_rng(seed)
    event, class_logits = rng.normal(size=(clips, segments)), rng.normal(size=(clips, classes))
    labels = rng.integers(0, classes + 1, (clips, segments))
    labels[rng.uniform(size=labels.shape) < 0.2] = -100
    labels[0, 0] = classes
    right = counted = 0
    for clip in range(clips):
        for segment in range(segments):
            if labels[clip, segment] == -100:
                continue
            probability = 1 / (1 + np.exp(-event[clip, segment]))
            answer = classes if probability <= 0.5 else int(np.argmax(class_logits[clip]))
            right += answer == labels[clip, segment]
            counted += 1
    scores = event_localization_scores(event, class_logits, labels)
    assert scores["accuracy"] == pytest.approx(right / counted)
    assert scores["accuracy"] == event_localization_accuracy(event, class_logits, labels)
    assert scores["num_segments"] == counted
    shares = {label: np.mean(labels[labels != -100] == label) for label in scores["per_class"]}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert scores["accuracy"] == pytest.approx(sum(shares[c] * value for c, value in scores["per_class"].items()))


@pytest.mark.parametrize(
    ("event", "classes", "labels", "message"),
    [
        (EVENT[0], CLASSES, LABELS, "got \\(4,\\)"),
        (EVENT, CLASSES[:1], LABELS, r"\(1, 3\)"),
        (EVENT, CLASSES, LABELS[:, :2], r"\(2, 2\)"),
        (EVENT, CLASSES, LABELS + 1, "got 4"),
        (EVENT, CLASSES, LABELS - 1, "got -1"),
        (EVENT, CLASSES, LABELS.astype(float), "integers"),
        (EVENT, CLASSES, np.full_like(LABELS, -100), "no segment that counts"),
        (EVENT * np.nan, CLASSES, LABELS, "NaN"),
    ],
)
def test_bad_input_is_refused(event, classes, labels, message):
    with pytest.raises(DataError, match=message):
        event_localization_accuracy(event, classes, labels)


def test_not_a_number_in_an_ignored_clip_is_no_error():
    event = np.array([[1.0, 1.0], [np.nan, np.nan]])
    assert event_localization_accuracy(event, [[1.0], [np.nan]], [[0, 1], [-100, -100]]) == 0.5


def test_names_must_fit_the_classes():
    with pytest.raises(DataError, match="3 classes"):
        event_localization_scores(EVENT, CLASSES, LABELS, {0: "bell"})


def test_metric_accumulates_batches_of_different_lengths(tmp_path):
    metric = EventLocalizationAccuracy(cache_dir=str(tmp_path))
    metric.add_batch(event_logits=torch.tensor(EVENT), class_logits=torch.tensor(CLASSES), labels=torch.tensor(LABELS))
    metric.add_batch(event_logits=[[5.0] * 6], class_logits=[[1.0, 0.0, 0.0]], labels=[[0] * 5 + [-100]])
    result = metric.compute(id2label={0: "bell", 1: "drum", 2: "siren"})
    assert result["accuracy"] == pytest.approx(11 / 13)
    assert result["num_segments"] == 13
    assert result["per_class"]["bell"] == pytest.approx(5 / 6)
    # Computing empties it.
    result = metric.compute(event_logits=[[5.0]], class_logits=[[1.0, 0.0, 0.0]], labels=[[0]])
    assert result["accuracy"] == 1.0


def test_metric_takes_bfloat16_and_names_a_bad_batch(tmp_path):
    metric = EventLocalizationAccuracy(cache_dir=str(tmp_path))
    event, classes = torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 3, dtype=torch.bfloat16)
    with pytest.raises(DataError, match="got 7"):
        metric.add_batch(event_logits=event, class_logits=classes, labels=torch.tensor([[0, 7]]))
    metric.add_batch(event_logits=event, class_logits=classes, labels=torch.tensor([[0, 3]]))
    assert metric.compute()["accuracy"] == 0.5


def test_metric_accumulates_over_processes(over_two_processes):
    results = over_two_processes(
        EventLocalizationAccuracy,
        [
            {"event_logits": EVENT[i : i + 1], "class_logits": CLASSES[i : i + 1], "labels": LABELS[i : i + 1]}
            for i in range(len(LABELS))
        ],
    )
    assert results[0]["accuracy"] == 6 / 8
    assert results[1] is None


# Log-probabilities of head `mlp`: most probable are [1, 3, 0, 3] and [3, 2, 2, 1]. In the second clip's first segment
# background (.4) beats each class, though something happens with a probability of .6.
FRAMES = np.log(
    [
        [[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.5, 0.1, 0.1, 0.3], [0.2, 0.1, 0.1, 0.6]],
        [[0.3, 0.2, 0.1, 0.4], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.6, 0.2, 0.1]],
    ]
)


def test_frame_classes_decide_where_they_are_given(tmp_path):
    labels = np.array([[1, 3, 0, 3], [3, 2, 0, -100]])
    event = np.log(np.exp(FRAMES[..., :-1]).sum(-1)) - FRAMES[..., -1]
    classes = np.log(np.exp(FRAMES[..., :-1]).sum(1))
    assert event_localization_accuracy(event, classes, labels, FRAMES) == 6 / 7
    # Summarised like the other head's logits they say less: one class per clip, and events by a threshold of 0.5.
    assert event_localization_accuracy(event, classes, labels) == 4 / 7
    scores = event_localization_scores(event, classes, labels, frame_log_probs=torch.tensor(FRAMES))
    assert (scores["foreground_accuracy"], scores["background_accuracy"]) == (3 / 4, 1)
    assert scores["per_class"] == {0: 1 / 2, 1: 1, 2: 1, 3: 1}
    metric = EventLocalizationAccuracy(cache_dir=str(tmp_path))
    for i in range(2):
        columns = {"event_logits": event[i : i + 1], "class_logits": classes[i : i + 1], "labels": labels[i : i + 1]}
        metric.add_batch(**columns, frame_log_probs=FRAMES[i : i + 1])
    assert metric.compute() == scores
    metric.add(event_logits=event[0], class_logits=classes[0], labels=labels[0], frame_log_probs=FRAMES[0])
    assert metric.compute()["accuracy"] == 1
    with pytest.raises(DataError, match=r"`frame_log_probs` \(2, 4, 4\), got \(2, 4, 3\)"):
        event_localization_accuracy(event, classes, labels, FRAMES[..., 1:])
    with pytest.raises(DataError, match="NaN"):
        event_localization_accuracy(event, classes, labels, FRAMES * np.nan)


def test_training_scores_frame_classes():
    from caeav_hf.task import get_task

    task = get_task("ave")
    frames = torch.tensor(FRAMES).float()
    event = frames[..., :-1].logsumexp(-1) - frames[..., -1]
    clips = []
    # A clip of four segments and one of two.
    for clip, labels in enumerate([[1, 3, 0, 3], [3, 0]]):
        length = slice(0, len(labels))
        values = {
            "event_logits": event[clip : clip + 1, length],
            "class_logits": frames[clip : clip + 1, length, :-1].logsumexp(1),
        }
        for frame_log_probs in (frames[clip : clip + 1, length], None):
            outputs = type("Outputs", (), {**values, "frame_log_probs": frame_log_probs})
            clips.append(task.sums(outputs, {"labels": torch.tensor([labels])})[0])
    assert task.scores(clips[::2])["accuracy"] == pytest.approx(5 / 6)
    assert task.scores(clips[1::2])["accuracy"] == pytest.approx(3 / 6)
