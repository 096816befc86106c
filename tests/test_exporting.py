"""Every task's model as a graph: what `torch.export` and onnxruntime compute is what the model computes."""

import json
import sys

import numpy as np
import pytest
import torch

from caeav_hf import CaeAvError, CaeAvProcessor
from caeav_hf.cli import main as caeav
from caeav_hf.exporting import NamedOutputs, example_inputs, export_onnx, export_program, onnx_difference
from tests.modeling.helpers import toy_answering_model, toy_model, toy_parsing_model, toy_segmentation_model


# One block a stage, so that tracing takes seconds.
SMALL = {
    "vision_config": {"depths": (1, 1, 1, 1)},
    "audio_config": {"depths": (1, 1, 1, 1)},
    "adapter_stages": (1, 4),
    "num_cross_modal_experts": 1,
    "num_unimodal_experts": 1,
}

MODELS = {
    "ave": toy_model,
    "avs_ms3": toy_segmentation_model,
    "avvp": lambda **values: toy_parsing_model(visual_3d_size=6, **values),
    "avqa": toy_answering_model,
}


@pytest.mark.parametrize("task", MODELS)
def test_the_graph_computes_what_the_model_does(task, tmp_path):
    model = MODELS[task](**SMALL)
    description = export_onnx(model, tmp_path / "model.onnx")
    assert onnx_difference(model, tmp_path / "model.onnx") < 1e-4
    assert description["inputs"]["pixel_values_videos"]["shape"][:2] == ["batch", "frames"]
    # Of other weights it is not the graph.
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1)
    assert onnx_difference(model, tmp_path / "model.onnx") > 1e-3
