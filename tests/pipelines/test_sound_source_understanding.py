"""Sound source understanding: masks and sentences with their times, windows, batches, lengths, captions, errors."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from caeav_hf.pipelines import SoundSourceUnderstandingPipeline, register
from caeav_hf.tasks.sound_source_understanding.results import description_intervals
from tests.same import assert_same_result
from tests.training.toy_files import mask_clips, understanding_model


TASK = "sound-source-understanding"


@pytest.fixture(scope="module")
def understand() -> SoundSourceUnderstandingPipeline:
    register()
    return pipeline(TASK, model=str(understanding_model()), device="cpu", max_length=8)


@pytest.fixture(scope="module")
def expected(understand) -> list[dict]:
    return [understand(clip) for clip in mask_clips(2)]


def test_results_are_those_of_model_and_processor(understand, expected) -> None:
    assert isinstance(understand, SoundSourceUnderstandingPipeline)
    result, clip = expected[0], mask_clips(1)[0]
    assert result["masks"].shape == result["probabilities"].shape == (5, 64, 64)
    assert len(result["descriptions"]) == len(result["timestamps"]) == 5
    # The model's three segments are one window, the remaining two another.
    whole = load_clip(clip, num_segments=5, sampling_rate=understand.processor.sampling_rate)
    first, second = (understand._cut(whole, start, end) for start, end in ((0, 3), (3, 5)))
    by_hand = []
    for window in (first, second):
        with torch.no_grad():
            outputs = understand.model(**understand.processor(videos=[window]), max_length=8)
        by_hand += understand.processor.post_process_sound_source_understanding(outputs, [(64, 64)])
    assert result["descriptions"] == [text for window in by_hand for text in window["descriptions"]]
    np.testing.assert_allclose(
        result["probabilities"], np.concatenate([window["probabilities"] for window in by_hand]), atol=1e-5
    )
    assert result["intervals"] == description_intervals(result["descriptions"], 1.0)


def test_batches_and_other_sources(understand, expected) -> None:
    clips = mask_clips(2)
    for result, one in zip(understand(clips, batch_size=2), expected, strict=True):
        assert_same_result(result["probabilities"], one["probabilities"])
        assert result["descriptions"] == one["descriptions"]
    clip = load_clip(clips[0], num_segments=5, sampling_rate=understand.processor.sampling_rate)
    given = {"clip": clip.frames, "audio": clip.waveform, "sampling_rate": clip.sampling_rate}
    assert understand(given)["descriptions"] == expected[0]["descriptions"]
    assert len(understand(clips[0], windows="first")["descriptions"]) == 3
    lists = understand(clips[0], return_arrays=False)
    assert json.loads(json.dumps(lists))["masks"] == expected[0]["masks"].tolist()


def test_lengths_threshold_and_captions(understand, expected) -> None:
    clip = mask_clips(1)[0]
    ids = understand.processor.tokenize_descriptions([expected[0]["descriptions"]])["description_ids"]
    assert ids.shape[-1] > 5
    short = understand(clip, max_new_tokens=3, threshold=1.0)
    same = understand(clip, max_length=4)
    assert short["descriptions"] == same["descriptions"]
    assert all(
        long.startswith(text) and text != long
        for text, long in zip(short["descriptions"], expected[0]["descriptions"], strict=True)
    )
    assert not short["masks"].any()
    captioned = understand(clip, visual_caption="a dog barks and a bird sings")
    assert captioned["descriptions"] != expected[0]["descriptions"]
    listed = understand([clip, clip], visual_caption=["a dog barks and a bird sings", None], batch_size=2)
    assert listed[0]["descriptions"] == captioned["descriptions"]
    assert listed[1]["descriptions"] == expected[0]["descriptions"]


def test_models_of_masks_and_of_descriptions() -> None:
    clip = mask_clips(1)[0]
    results = {}
    for outputs in ("masks", "descriptions"):
        run = pipeline(TASK, model=str(understanding_model(outputs)), device="cpu")
        results[outputs] = run(clip)
        if outputs == "masks":
            with pytest.raises(CaeAvError, match="predicts masks alone"):
                run(clip, max_length=5)
    assert results["masks"].keys() - results["descriptions"].keys() == {"masks", "probabilities"}
    assert results["descriptions"].keys() - results["masks"].keys() == {"descriptions", "intervals"}


def test_what_is_wrong_is_said(understand, tmp_path) -> None:
    clip = mask_clips(1)[0]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no clip")
    for match, arguments in (
        ("unknown arguments top_k; expected.*threshold", {"top_k": 1}),
        ("not both", {"max_length": 5, "max_new_tokens": 5}),
        ("whole number, got 2.5", {"max_length": 2.5}),
        ("`max_length` must give descriptions of 2 to 77 ids", {"max_length": 1}),
        ("`max_new_tokens` must give", {"max_new_tokens": 1000}),
        ("threshold", {"threshold": 2.0}),
    ):
        with pytest.raises(CaeAvError, match=match):
            understand(clip, **arguments)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        understand(str(broken))
    assert "error" in understand([str(broken)], on_error="skip")[0]


def test_intervals_are_runs_of_one_sentence() -> None:
    assert description_intervals(["a", "a", "", "b", "a"], 0.5) == [
        {"description": "a", "start": 0.0, "end": 1.0},
        {"description": "b", "start": 1.5, "end": 2.0},
        {"description": "a", "start": 2.0, "end": 2.5},
    ]
    assert description_intervals(["", ""], 1.0) == []
