"""Models at odd addresses: stored tensors are identical, outputs agree up to rounding."""

import copy

import pytest
import torch

from caeav_hf import CaeAvProcessor
from caeav_hf.pipelines import (
    AudioVisualEventLocalizationPipeline,
    AudioVisualQuestionAnsweringPipeline,
    AudioVisualSegmentationPipeline,
    AudioVisualVideoParsingPipeline,
)
from caeav_hf.task import get_task
from caeav_hf.training.build import aligned, load_trained_model
from tests.lanes import slow_after
from tests.odd_offsets import ALIGNMENT, at_odd_offsets
from tests.same import assert_same_result
from tests.training.toy_files import mask_clips, mask_model, parsing_model, question_model, toy_clips, toy_model


TASKS = {
    "ave": (toy_model, AudioVisualEventLocalizationPipeline),
    "avs_ms3": (mask_model, AudioVisualSegmentationPipeline),
    "avvp": (parsing_model, AudioVisualVideoParsingPipeline),
    "avqa": (question_model, AudioVisualQuestionAnsweringPipeline),
}


def offsets(model):
    """Return the offset of each tensor from a 64-byte boundary, in elements."""
    return [
        tensor.data_ptr() % ALIGNMENT / tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    ]


def load(task):
    """Load a model whose tensors lie where PyTorch puts them."""
    folder, pipeline = TASKS[task]
    return load_trained_model(get_task(task).model_class, folder()), folder(), pipeline


def test_tensors_lie_at_odd_offsets_and_go_back():
    model = torch.nn.BatchNorm1d(33).half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(offset % 2 == 1 for offset in offsets(at_odd_offsets(model)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(offsets(aligned(model)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_model_that_tests_load_lies_there():
    task, (folder, _) = "ave", TASKS["ave"]
    loaded = get_task(task).model_class.from_pretrained(folder())
    assert all(offset % 2 == 1 for offset in offsets(loaded))


@pytest.mark.parametrize("task", slow_after(1, TASKS))
def test_results_stay_but_for_rounding(task):
    """Pipelines of one clip, since matrix products of one row take other code paths."""
    model, folder, pipeline = load(task)
    odd = at_odd_offsets(copy.deepcopy(model))
    clip = (mask_clips if task == "avs_ms3" else toy_clips)(1)[0]
    asked = {"question": "How many instruments are there?"} if task == "avqa" else {}
    results = [
        pipeline(each, processor=CaeAvProcessor.from_pretrained(folder), device="cpu")(clip, **asked)
        for each in (model, odd)
    ]
    assert_same_result(*results)
