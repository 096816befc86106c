"""Training with `torch.compile`, with backends that trace both passes but run them uncompiled."""

import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvModel
from caeav_hf.training.command import main
from tests.modeling.helpers import randomise, toy_batch
from tests.training.tiny_training import TinyModel, tiny_recipe, tiny_trainer
from tests.training.toy_files import toy_data


# Tracing every layer is slow.
SMALL = {
    "vision_config": {"depths": (1, 1), "num_heads": (1, 2), "pretrained_window_sizes": (0, 0)},
    "audio_config": {"depths": (1, 1), "num_attention_heads": (1, 2), "hidden_size": 32},
    "adapter_stages": (1,),
    "num_cross_modal_experts": 1,
    "num_unimodal_experts": 1,
    "use_case": False,
}


@pytest.fixture(autouse=True)
def _reset_compiler():
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_encoder_is_one_graph_with_the_same_gradients_and_statistics():
    batch = toy_batch(CaeAvConfig.from_preset("ave", size="toy"))
    # In double precision, since the graph may sum in another order.
    inputs = {name: batch[name].double() for name in ("pixel_values_videos", "input_features")}
    results = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        model = randomise(CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", **SMALL))).train().double()
        model.cae_av.keep_constants(torch.float64)
        run = model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
        torch.manual_seed(0)
        outputs = run(**inputs)
        states = (outputs.visual_hidden_state, outputs.audio_hidden_state)
        sum(state.square().mean() for state in states).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert any("interactions.0.0.visual_attention_adapter" in name for name in gradients)
        results.append({"visual": states[0].detach(), **gradients, **dict(model.named_buffers())})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        torch.testing.assert_close(
            results[1][name], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_the_encoder_with_masks_and_captions_is_one_graph():
    torch.manual_seed(0)
    model = randomise(CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", **{**SMALL, "use_case": True}))).eval()
    inputs = toy_batch(model.config)
    del inputs["labels"]
    # Padding in the middle too, and a clip without a caption.
    inputs["frame_mask"] = torch.tensor([[True, False, True, False], [True] * 4])
    inputs["visual_caption_mask"][1] = 0
    with torch.no_grad():
        expected = model(**inputs)
        found = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    assert found.keys() == expected.keys()
    for name in ("visual_hidden_state", "audio_hidden_state", "caption_agreement", "agreement"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_and_leaves_ordinary_checkpoints(tmp_path):
    trainers = []
    for backend in (None, "eager"):
        trainer = tiny_trainer(tmp_path / str(backend), tiny_recipe(torch_compile=backend))
        trainer.fit()
        trainers.append(trainer)
    assert type(trainers[1].model) is not TinyModel
    assert type(trainers[1].bare_model) is TinyModel
    expected = trainers[0].bare_model.state_dict()
    stored = TinyModel.from_pretrained(tmp_path / "eager" / "checkpoints" / "last").state_dict()
    assert stored.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(stored[name], expected[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--torch-compile", "nothing"], "'NOTHING' is not a valid DynamoBackend"),
        (
            ["--torch-compile", "inductor", "--gradient-checkpointing"],
            "'gradient_checkpointing' must be false with torch_compile",
        ),
    ],
)
def test_what_cannot_be_compiled_is_said_at_once(flags, message, tmp_path, capsys):
    arguments = ["--task", "ave", "--size", "toy", "--data", str(toy_data()), "--output-dir", str(tmp_path / "run")]
    assert main([*arguments, *flags]) == 2
    assert message in capsys.readouterr().err
