"""Every task's model as a graph: `torch.export` and onnxruntime agree with the model."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from caeav_hf import CaeAvError, CaeAvProcessor, exporting
from caeav_hf.cli import main as caeav
from caeav_hf.exporting import NamedOutputs, example_inputs, export_onnx, export_program, onnx_difference
from caeav_hf.modeling.avmoe import AVMoE
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.quantization import NOT_QUANTIZED, int8_config
from tests.media_factory import write_clip
from tests.modeling.helpers import toy_answering_model, toy_model, toy_parsing_model, toy_segmentation_model
from tests.modeling.test_stg_cma import KINDS


# Two stages, with and without adapters, with and without shifted windows: tracing takes most of the time.
SMALL = {
    "vision_config": {"depths": (2, 1), "num_heads": (1, 2), "pretrained_window_sizes": (0, 0)},
    "audio_config": {"depths": (2, 1), "num_attention_heads": (1, 2), "hidden_size": 32},
    "text_config": {"num_hidden_layers": 1},
    "adapter_stages": (2,),
    "num_cross_modal_experts": 1,
    "num_unimodal_experts": 1,
    "unimodal_grouping_depth": 1,
    "cross_modal_grouping_depth": 1,
}

# For graphs of heads, on the towers alone: the graph of event localization holds the rest.
SMALLEST = {
    **SMALL,
    "interaction": "avmoe",
    "adapter_stages": (),
    "vision_config": {**SMALL["vision_config"], "depths": (1, 1)},
    "audio_config": {**SMALL["audio_config"], "depths": (1, 1)},
    "use_case": False,
}

MODELS = {
    "ave": toy_model,
    "avs_ms3": toy_segmentation_model,
    "avvp": lambda **values: toy_parsing_model(visual_3d_size=6, **values),
    "avqa": toy_answering_model,
}


def saved(model, folder: Path) -> str:
    """Save a model and its processor, and return the folder."""
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return str(folder)


def assert_near(model, found: dict, inputs: dict) -> None:
    with torch.no_grad():
        expected = NamedOutputs(model, found)(**inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_onnxruntime_computes_what_an_adapter_does(tmp_path):
    """With its optimizations, one of which gives wrong products of transposed tensors and vectors."""
    import onnxruntime

    model = toy_model(**SMALL)
    adapter = next(module for module in model.modules() if isinstance(module, AVMoE))
    # Few enough latents for the map that is never formed.
    assert adapter.cross_modal_map.factors(model.config.num_latent_tokens)

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.adapter = adapter

        def forward(self, states, other):
            return self.adapter(states, other, FrameLayout(1, 2))

    tokens, other_tokens = adapter.cross_modal_map.tokens.weight.shape
    size, other_size = adapter.cross_modal_map.channels.weight.shape
    inputs = torch.randn(2, tokens, size), torch.randn(2, other_tokens, other_size)
    torch.onnx.export(Adapter().eval(), inputs, tmp_path / "adapter.onnx", dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "adapter.onnx")
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected = Adapter().eval()(*inputs)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in MODELS if task != "ave"])
def test_the_graph_computes_what_the_model_does(task, tmp_path, monkeypatch):
    model = MODELS[task](**SMALLEST)
    program = export_program(model)
    graph = program.module()
    for size in ((3, 5), (1, 1), (1, 4)):
        inputs = example_inputs(model, *size, seed=1)
        assert_near(model, graph(**inputs), inputs)
    # Tracing takes longest.
    monkeypatch.setattr(exporting, "export_program", lambda *arguments: program)
    description = export_onnx(model, tmp_path / "model.onnx")
    assert description["task"] == task
    assert onnx_difference(model, tmp_path / "model.onnx") < 1e-4
    # A model with other weights has another graph.
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1)
    assert onnx_difference(model, tmp_path / "model.onnx") > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_stg_cma_as_a_graph(kind, tmp_path, monkeypatch):
    """Its attention along time and its exchange have shapes that depend on both numbers of clips and of frames."""
    sizes = {"vision_config": {"depths": (2, 1), "num_heads": (1, 2)}} if kind == "swin" else KINDS["vit"]
    model = toy_model(method="stg_cma", interaction_options={"exchange": True}, **sizes)
    program = export_program(model)
    for size in ((3, 5), (1, 1), (1, 4)):
        inputs = example_inputs(model, *size, seed=1)
        assert_near(model, program.module()(**inputs), inputs)
    if kind == "swin":
        monkeypatch.setattr(exporting, "export_program", lambda *arguments: program)
        export_onnx(model, tmp_path / "model.onnx")
        assert onnx_difference(model, tmp_path / "model.onnx") < 1e-4


@pytest.mark.slow
def test_the_command_writes_what_the_processor_feeds(tmp_path, capsys):
    import onnxruntime

    # Plain areas of a picture have equal tokens, among which a selection is arbitrary, so all tokens are kept here.
    model = toy_model(**SMALL, topk_ratio=1.0)
    file = tmp_path / "new" / "model.onnx"
    assert caeav(["export", saved(model, tmp_path / "model"), "--onnx", str(file)]) == 0
    printed = re.search(r"largest difference .*: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert printed is not None
    assert float(printed[1]) <= 1e-4
    session = onnxruntime.InferenceSession(str(file))
    description = json.loads(session.get_modelmeta().custom_metadata_map["caeav_hf"])
    processor = CaeAvProcessor.from_pretrained(tmp_path / "model")
    clips = [str(write_clip(tmp_path / f"{seconds}.mp4", seconds=seconds)) for seconds in (3, 2)]
    inputs = processor(clips, visual_captions=["a bell", "rain"], audio_captions=["a bell rings", "it rains"])
    assert list(description["inputs"]) == list(inputs)
    assert not inputs["frame_mask"].all()
    for name, value in inputs.items():
        stated = description["inputs"][name]
        assert stated["dtype"] == str(value.dtype).removeprefix("torch.")
        assert [length for length in stated["shape"] if isinstance(length, int)] == list(value.shape[2:])
    found = session.run(description["outputs"], {name: value.numpy() for name, value in inputs.items()})
    outputs = {name: torch.from_numpy(value) for name, value in zip(description["outputs"], found, strict=True)}
    assert_near(model, outputs, inputs)
    with torch.no_grad():
        expected = processor.post_process_event_localization(model(**inputs))
    results = processor.post_process_event_localization(outputs, frame_mask=inputs["frame_mask"])
    assert [result["segments"] for result in results] == [result["segments"] for result in expected]
    assert results[1]["agreement"] == pytest.approx(expected[1]["agreement"], abs=1e-4)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == missing else object())
    assert caeav(["export", str(tmp_path), "--onnx", str(tmp_path / "model.onnx")]) == 2
    assert f'ONNX needs {missing}: pip install "caeav-hf[export]"' in capsys.readouterr().err


def test_a_file_of_another_model_is_an_error(tmp_path, monkeypatch, capsys):
    folder = saved(toy_model(**SMALL), tmp_path / "model")
    monkeypatch.setattr(exporting, "export_onnx", lambda model, file: None)
    monkeypatch.setattr(exporting, "onnx_difference", lambda model, file: float("nan"))
    assert caeav(["export", folder, "--onnx", str(tmp_path / "model.onnx")]) == 2
    assert "model.onnx: differs from the model by nan" in capsys.readouterr().err


def test_unknown_outputs_are_named():
    with pytest.raises(CaeAvError, match=r"\['banana'\]; the model has .*event_logits"):
        export_program(toy_model(**SMALL), outputs=("event_logits", "banana"))


@pytest.mark.slow
def test_int8_weights_of_linear_maps(tmp_path):
    model = toy_model(**{**SMALL, "text_config": {"num_hidden_layers": 3}})  # mostly linear maps
    inputs = example_inputs(model)
    model.save_pretrained(tmp_path / "model")
    small = type(model).from_pretrained(tmp_path / "model", quantization_config=int8_config())
    linear = {name for name, module in small.named_modules() if isinstance(module, torch.nn.Linear)}
    kept = {name for name in linear if "Int8" not in type(small.get_submodule(name).weight).__name__}
    assert kept == {name for name in linear if any(re.match(pattern, name) for pattern in NOT_QUANTIZED)}
    with torch.no_grad():
        expected, found = model(**inputs), small(**inputs)
    for name in ("visual_hidden_state", "audio_hidden_state", "class_logits"):
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        # Rounded weights also choose some other tokens as the most salient.
        assert 0 < error < 0.25, name

    small.save_pretrained(tmp_path / "small")
    before, after = (tmp_path / name / "model.safetensors" for name in ("model", "small"))
    assert after.stat().st_size < 0.6 * before.stat().st_size
    again = type(model).from_pretrained(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).class_logits, found.class_logits)
