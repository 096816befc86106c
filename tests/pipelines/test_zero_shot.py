"""Zero-shot classification: Transformers' output, any labels, batches, segments, errors, and its picture."""

from pathlib import Path

import pytest
from transformers import pipeline

from caeav_hf import CaeAvError
from caeav_hf.pipelines import AudioVisualZeroShotClassificationPipeline, register
from caeav_hf.toy import CLASSES
from caeav_hf.visualization import plot_labels
from tests.media_factory import write_clip
from tests.same import assert_same_result
from tests.training.toy_files import few_shot_model, toy_clips


LABELS = ["bell", "drum", "bird"]


@pytest.fixture(scope="module")
def classify():
    register()
    return pipeline("audio-visual-zero-shot-classification", model=str(few_shot_model()), device="cpu")


@pytest.mark.slow
def test_the_output_is_that_of_transformers(classify) -> None:
    assert isinstance(classify, AudioVisualZeroShotClassificationPipeline)
    result = classify(toy_clips(1)[0], candidate_labels=LABELS)
    assert [set(entry) for entry in result] == [{"score", "label"}] * 3
    assert sorted(entry["label"] for entry in result) == sorted(LABELS)
    scores = [entry["score"] for entry in result]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert classify(toy_clips(1)[0], candidate_labels=LABELS, top_k=1) == result[:1]
    assert_same_result(classify(toy_clips(1)[0], candidate_labels="bell, drum, bird"), result)


def test_lists_and_batches_give_what_clips_give(classify) -> None:
    clips = toy_clips(3)
    alone = [classify(clip, candidate_labels=LABELS) for clip in clips]
    assert_same_result(classify(clips, candidate_labels=LABELS), alone)
    assert_same_result(classify(clips, candidate_labels=LABELS, batch_size=2), alone)


def test_the_order_of_the_labels_changes_nothing(classify) -> None:
    clip = toy_clips(1)[0]
    assert_same_result(classify(clip, candidate_labels=LABELS[::-1]), classify(clip, candidate_labels=LABELS))


def test_without_labels_the_models_own_classes_are_scored(classify) -> None:
    assert sorted(entry["label"] for entry in classify(toy_clips(1)[0])) == sorted(CLASSES)


def test_a_template_describes_the_sound(classify) -> None:
    clip = toy_clips(1)[0]
    other = classify(clip, candidate_labels=LABELS, hypothesis_template="silence {} silence")
    assert other != classify(clip, candidate_labels=LABELS)


def test_segments_of_all_windows(classify, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_clip(path, seconds=12)
    result = classify(str(path), candidate_labels=LABELS, return_segments=True)
    assert [len(entry["segments"]) for entry in result] == [12] * 3
    assert [sum(parts) for parts in zip(*(entry["segments"] for entry in result), strict=True)] == pytest.approx(
        [1] * 12
    )
    clip = classify.load_clip(str(path))
    figure = plot_labels(clip, result, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size > 1000
    texts = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert texts == [entry["label"] for entry in result]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": ["bell", " "]}, "candidate_labels"),
        ({"candidate_labels": ["bell", "bell"]}, "differ"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a sound"}, "hypothesis_template"),
        ({"candidate_labels": LABELS, "top_k": 0}, "top_k"),
        ({"labels": LABELS}, "unknown arguments labels"),
    ],
)
def test_wrong_arguments_are_named(classify, arguments: dict, message: str) -> None:
    with pytest.raises(CaeAvError, match=message):
        classify(toy_clips(1)[0], **arguments)


def test_a_broken_clip_can_be_skipped(classify, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no clip")
    results = classify([str(broken), toy_clips(1)[0]], candidate_labels=LABELS, on_error="skip")
    assert "error" in results[0]
    assert len(results[1]) == 3


def test_pictures_need_segments(classify) -> None:
    clip = classify.load_clip(toy_clips(1)[0])
    with pytest.raises(CaeAvError, match="return_segments"):
        plot_labels(clip, classify(toy_clips(1)[0], candidate_labels=LABELS))
