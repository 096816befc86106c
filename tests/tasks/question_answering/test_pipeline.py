"""The pipeline of question answering on real files."""

import dataclasses
import json
from itertools import combinations

import datasets
import numpy as np
import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvConfig, CaeAvForQuestionAnswering, CaeAvProcessor
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.pipelines import AudioVisualQuestionAnsweringPipeline
from caeav_hf.processing import build_question_tokenizer
from tests.lanes import METHODS, slow_after
from tests.media_factory import write_clip
from tests.same import assert_same_result
from tests.training.toy_files import question_model, toy_clips


TASK = "audio-visual-question-answering"
QUESTIONS = ["How many instruments are sounding?", "Is the cello on the left?"]
CAPTIONS = {"visual_caption": "A red star spins.", "audio_caption": "A bell rings over noise."}


@pytest.fixture(scope="module")
def answer(request):
    return pipeline(TASK, model=str(question_model(getattr(request, "param", None))), device="cpu")


@pytest.fixture(scope="module")
def expected(answer):
    """Return results by clip and question, one at a time."""
    return {
        (clip, question): answer({"video": clip, "question": question})
        for clip in toy_clips(2)
        for question in QUESTIONS
    }


def assert_same(result, expected):
    """Assert equality up to rounding: another batch size changes the order of sums in matrix products."""
    assert result.keys() - {"file", "duration"} == expected.keys() - {"file", "duration"}
    assert result["question"] == expected["question"]
    scores = [{item["answer"]: item["score"] for item in one["answers"]} for one in (result, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for name in ("visual_attention", "audio_attention", "timestamps"):
        assert result[name] == pytest.approx(expected[name], abs=1e-5)
    np.testing.assert_allclose(result["grounding"], expected["grounding"], atol=1e-5)


@pytest.mark.parametrize("answer", slow_after(1, [None, *METHODS]), indirect=True)
def test_answers_are_those_of_model_and_processor(answer, expected):
    assert isinstance(answer, AudioVisualQuestionAnsweringPipeline)
    clip = toy_clips(1)[0]
    result = expected[clip, QUESTIONS[0]]
    with torch.no_grad():
        outputs = answer.model(**answer.processor(videos=[clip], questions=QUESTIONS[0]))
    (by_hand,) = answer.processor.post_process_question_answering(outputs)
    assert_same_result(result["answers"], by_hand["answers"])
    assert len(result["answers"]) == 5
    assert result["file"] == clip
    assert result["question"] == QUESTIONS[0]
    segments = answer.model.config.num_frames
    assert len(result["visual_attention"]) == len(result["timestamps"]) == len(result["grounding"]) == segments
    assert result["grounding"].sum((1, 2)) == pytest.approx(np.ones(segments), abs=1e-5)


def test_questions_matter_and_so_do_clips(expected):
    scores = [{item["answer"]: item["score"] for item in result["answers"]} for result in expected.values()]
    for one, other in combinations(scores, 2):
        assert one != pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("answer", slow_after(1, [None, *METHODS]), indirect=True)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_of_clips_and_questions(answer, expected, batch_size):
    items = [{"video": clip, "question": question} for clip, question in expected]
    for result, one in zip(answer(items, batch_size=batch_size), expected.values(), strict=True):
        assert result["file"] == one["file"]
        assert_same(result, one)


def test_an_iterator_is_read_as_results_are_taken(answer, expected):
    items = ({"video": clip, "question": question} for clip, question in expected)
    results = answer(items)
    assert not isinstance(results, list)
    assert_same(next(iter(results)), next(iter(expected.values())))


@pytest.mark.slow
def test_rows_of_a_data_set(answer, expected):
    rows = datasets.Dataset.from_list([{"video": clip, "question": question} for clip, question in expected])
    for given in (rows, rows.to_iterable_dataset()):
        results = answer(given, batch_size=3)
        assert not isinstance(results, list)
        for result, one in zip(results, expected.values(), strict=True):
            assert_same(result, one)


def test_several_questions_about_a_clip(answer, expected):
    first, second = toy_clips(2)
    results = answer([{"video": first, "question": QUESTIONS}, {"video": second, "question": QUESTIONS[1]}], top_k=6)
    assert results[0].keys() == {"file", "duration", "has_audio", "analyzed", "questions"}
    results += answer([{"video": first, "question": QUESTIONS}, second], question=QUESTIONS[1], batch_size=2)
    for several, single in (results[:2], results[2:]):
        for question, result in zip(QUESTIONS, several["questions"], strict=True):
            assert result["answers"][0]["answer"] == expected[first, question]["answers"][0]["answer"]
            assert result["question"] == question
        assert single["answers"][0]["answer"] == expected[second, QUESTIONS[1]]["answers"][0]["answer"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_clip_passes_the_encoder_once_for_all_its_questions(answer, num_workers):
    seen = []
    hook = answer.model.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        answer([{"video": clip, "question": QUESTIONS * 3} for clip in toy_clips(2)], num_workers=num_workers)
    finally:
        hook.remove()
    assert seen == [1, 1]


def test_questions_as_arguments(answer, expected):
    clip = toy_clips(1)[0]
    assert_same(answer(clip, question=QUESTIONS[1]), expected[clip, QUESTIONS[1]])
    # Values given with a clip take precedence over those of the call.
    assert_same(answer({"video": clip, "question": QUESTIONS[0]}, question=QUESTIONS[1]), expected[clip, QUESTIONS[0]])
    with_captions = answer({"video": clip, "question": QUESTIONS[0], **CAPTIONS})
    assert_same(answer(clip, question=QUESTIONS[0], **CAPTIONS), with_captions)
    lists = answer([clip], question=QUESTIONS[0], **{name: [text] for name, text in CAPTIONS.items()})
    assert_same(lists[0], with_captions)


@pytest.mark.slow
def test_segments_lie_all_over_a_long_clip(answer, tmp_path):
    path = write_clip(tmp_path / "long.mp4", seconds=30.0, fps=4, size=(32, 48))
    result = answer({"video": str(path), "question": QUESTIONS[0]})
    segments = answer.model.config.num_frames
    assert result["timestamps"] == pytest.approx((np.arange(segments) + 0.5) * 30 / segments, abs=0.26)
    assert result["analyzed"] == {"start": 0.0, "end": pytest.approx(30.0, abs=0.1), "segments": segments}
    assert answer({"video": str(path), "question": QUESTIONS[0]}, windows="all")["answers"] == result["answers"]
    with pytest.raises(CaeAvError, match="spread over the whole clip"):
        answer({"video": str(path), "question": QUESTIONS[0]}, windows="first")


def test_consecutive_segments_of_a_longer_clip_are_windows(tmp_path):
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("avqa", size="toy", frame_sampling="consecutive", num_frames=4)
    answer = pipeline(TASK, model=CaeAvForQuestionAnswering(config), device="cpu")
    path = str(write_clip(tmp_path / "long.mp4", seconds=10.0, fps=4, size=(32, 48)))
    clip, rate = answer.load_clip(path), answer.processor.sampling_rate
    parts = [
        dataclasses.replace(
            clip,
            frames=clip.frames[start : start + 4],
            frame_times=clip.frame_times[start : start + 4],
            waveform=clip.waveform[start * rate : (start + 4) * rate],
        )
        for start in (0, 4, 8)
    ]
    count = config.num_labels
    windows = answer([{"video": part, "question": QUESTIONS} for part in parts], top_k=count)
    result = answer([{"video": path, "question": QUESTIONS}, {"video": parts[0], "question": QUESTIONS[0]}], top_k=3)
    assert result[0]["analyzed"] == {"start": 0.0, "end": 10.0, "segments": 10}
    for number, question in enumerate(result[0]["questions"]):
        each = [window["questions"][number] for window in windows]
        expected = np.zeros(count)
        for share, one in zip((0.4, 0.4, 0.2), each, strict=True):
            for item in one["answers"]:
                expected[item["label_id"]] += share * item["score"]
        best = np.argsort(-expected)[:3]
        assert [item["label_id"] for item in question["answers"]] == best.tolist()
        assert [item["score"] for item in question["answers"]] == pytest.approx(expected[best].tolist(), abs=1e-5)
        assert sum(question["visual_attention"]) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(
            question["grounding"], np.concatenate([one["grounding"] for one in each]), atol=1e-5
        )
        assert len(question["timestamps"]) == len(question["audio_attention"]) == 10
    assert_same(result[1], {**answer({"video": parts[0], "question": QUESTIONS[0]}, top_k=3), "file": path})
    first = answer({"video": path, "question": QUESTIONS[0]}, windows="first")
    assert first["analyzed"] == {"start": 0.0, "end": 4.0, "segments": 4}
    assert first["answers"][0]["answer"] == windows[0]["questions"][0]["answers"][0]["answer"]


def test_results_are_json_without_arrays(answer, expected):
    clip = toy_clips(1)[0]
    for question in (QUESTIONS, QUESTIONS[0]):
        result = answer({"video": clip, "question": question}, return_arrays=False)
        assert json.loads(json.dumps(result)) == result
    assert isinstance(expected[clip, QUESTIONS[0]]["grounding"], np.ndarray)
    np.testing.assert_allclose(result["grounding"], expected[clip, QUESTIONS[0]]["grounding"], atol=1e-5)


def test_a_question_without_a_known_word_is_an_error(answer, expected):
    clip = toy_clips(1)[0]
    with pytest.raises(
        CaeAvError, match=r"'zxcv qwer', has no word that the model knows; expected some of its \d+ words"
    ):
        answer({"video": clip, "question": "zxcv qwer"})
    with pytest.raises(CaeAvError, match=r"question 1, 'zxcv qwer'"):
        answer({"video": clip, "question": [QUESTIONS[0], "zxcv qwer"]})
    assert "zxcv" in answer({"video": clip, "question": "zxcv"}, on_error="skip")["error"]
    assert answer({"video": clip, "question": f"{QUESTIONS[0]} zxcv"})["answers"]
    tokenizer = build_question_tokenizer(QUESTIONS)  # its unknown word is not padding
    own = CaeAvProcessor.from_config(answer.model.config, question_tokenizer=tokenizer)
    with pytest.raises(CaeAvError, match=r"expected some of its 10 words: the, are, cello"):
        own(questions="zxcv qwer")
    assert own.tokenize_questions(["zxcv qwer"])["question_mask"].sum() == 2  # data may hold such a question


def test_broken_clips_and_missing_questions(answer, tmp_path):
    broken, clip = tmp_path / "broken.mp4", toy_clips(1)[0]
    broken.write_bytes(b"this is no clip")
    items = [{"video": path, "question": QUESTIONS} for path in (str(broken), clip)]
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        answer(items)
    results = answer(items, on_error="skip", batch_size=2)
    assert "cannot be read" in results[0]["error"]
    assert len(results[1]["questions"]) == 2
    assert "error" in answer(items[:1], on_error="skip")[0]
    for missing in (clip, {"video": clip}, {"video": clip, "question": []}, {"video": clip, "question": None}):
        with pytest.raises(CaeAvError, match=r"has no question.*expected"):
            answer(missing)
    with pytest.raises(CaeAvError, match=r"has no word$"):
        answer(clip, question="???")
    with pytest.raises(CaeAvError, match=r"`video`.*`question`.*got query"):
        answer({"video": clip, "query": "What?"})
    with pytest.raises(CaeAvError, match="top_k"):
        answer(clip, question=QUESTIONS[0], top_k=0)


@pytest.mark.slow
def test_a_folder_brings_its_own_words(answer, tmp_path):
    model = CaeAvForQuestionAnswering.from_pretrained(question_model())
    tokenizer = build_question_tokenizer(QUESTIONS)
    model.save_pretrained(tmp_path)
    CaeAvProcessor.from_config(model.config, question_tokenizer=tokenizer).save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert loaded.processor.question_tokenizer.get_vocab() == tokenizer.get_vocab()
    loaded.save_pretrained(tmp_path / "again")
    again = pipeline(TASK, model=str(tmp_path / "again"), device="cpu")
    clip = toy_clips(1)[0]
    assert_same(again(clip, question=QUESTIONS[0]), loaded(clip, question=QUESTIONS[0]))
