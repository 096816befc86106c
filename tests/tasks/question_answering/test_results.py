"""From answer logits and attention to answers, and to when and where the model looked."""

import numpy as np
import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvProcessor


@pytest.fixture(scope="module")
def processor():
    labels = {0: "yes", 1: "no", 2: "two", 3: "left"}
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy", id2label=labels))


def outputs(**changes):
    made = {
        "logits": torch.tensor([[0.0, 3.0, 1.0, -1.0], [5.0, 0.0, 0.0, 1.0]]),
        "visual_attention": torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]]),
        "audio_attention": torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]),
        "grounding": torch.arange(24.0).reshape(2, 3, 4),
        "frame_mask": torch.tensor([[True, True, True], [True, True, False]]),
    }
    return made | changes


def test_answers_are_sorted_and_named(processor):
    first, second = processor.post_process_question_answering(outputs(), top_k=2)
    assert [(answer["answer"], answer["label_id"]) for answer in first["answers"]] == [("no", 1), ("two", 2)]
    expected = torch.tensor([0.0, 3.0, 1.0, -1.0]).softmax(0)
    assert [answer["score"] for answer in first["answers"]] == pytest.approx(expected[[1, 2]].tolist())
    assert [answer["answer"] for answer in second["answers"]] == ["yes", "left"]
    every, _ = processor.post_process_question_answering(outputs(), top_k=100)
    assert sum(answer["score"] for answer in every["answers"]) == pytest.approx(1)


def test_attention_and_grounding_are_those_of_real_segments(processor):
    first, second = processor.post_process_question_answering(outputs())
    assert first["visual_attention"] == pytest.approx([0.2, 0.3, 0.5])
    assert second["audio_attention"] == [1.0, 0.0]
    np.testing.assert_array_equal(first["grounding"], np.arange(12).reshape(3, 2, 2))
    assert second["grounding"].shape == (2, 2, 2)
    assert second["grounding"].dtype == np.float32


def test_answers_alone_are_enough(processor):
    result, _ = processor.post_process_question_answering({"logits": outputs()["logits"]})
    assert result["answers"][0]["answer"] == "no"
    assert result["grounding"] is result["visual_attention"] is result["audio_attention"] is None


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"top_k": 0}, "top_k"),
        ({"logits": torch.zeros(4)}, {}, "logits"),
        ({"logits": torch.zeros(2, 6)}, {}, "id2label"),
        ({"grounding": torch.zeros(2, 3, 5)}, {}, "square grid"),
        ({"frame_mask": torch.ones(2, 4)}, {}, "frame_mask"),
    ],
)
def test_bad_input(processor, changes, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        processor.post_process_question_answering(outputs(**changes), **{"top_k": 6, **arguments})
