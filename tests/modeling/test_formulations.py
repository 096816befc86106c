"""Differences between the two formulations: layers, initial values, and inputs of modules."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.modeling.case import CASE
from caeav_hf.modeling.frames import FrameLayout
from tests.modeling.helpers import randomise, toy_batch, toy_model, toy_segmentation_model


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_start_of_castes_projections(formulation: str) -> None:
    """The official ones start at N(0, 0.001), the paper's like linear maps; the spatial gate always at the former."""
    torch.manual_seed(0)
    spatial = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", size="toy", formulation=formulation))
    spatial = spatial.model.interactions[3][0].visual_caste.spatial
    expected = 0.001 if formulation == "official" else (3 * 128) ** -0.5
    for projection in (spatial.key_projection, spatial.value_projection, spatial.output_projection):
        assert projection.weight.std().item() == pytest.approx(expected, rel=0.1)
        assert bool(projection.bias.any()) == (formulation == "paper")
    assert spatial.gate_projection.weight.std().item() == pytest.approx(0.001, rel=0.3)
    assert not spatial.gate_projection.bias.any()


@torch.no_grad()
@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_which_map_the_decoder_reads_last(formulation: str) -> None:
    """The tokens after CASE in the paper formulation (Appendix B), those before it in the official one."""
    model = toy_segmentation_model(formulation=formulation)
    before = []
    model.model.case.register_forward_hook(lambda _, args, __: before.append(args[0]))
    batch = toy_batch(model.config, num_frames=2)
    del batch["labels"]
    outputs = model(**batch)
    after = outputs.visual_hidden_state
    tokens = after if formulation == "paper" else FrameLayout(2, 2).to_grid(before[0])
    assert not torch.allclose(before[0].view_as(after), after)
    torch.testing.assert_close(outputs.visual_feature_maps[-1], model.model.vision_tower.final_norm(tokens))


def test_training_selects_as_evaluation_does() -> None:
    """In the paper formulation the same hard Top-K; the official one draws."""
    stream = randomise(CASE(CaeAvConfig.from_preset("ave", size="toy", topk_ratio=0.5))).visual_stream
    tokens, bar = torch.zeros(1, 8, 128), 0.01 * torch.randn(1, 8, 128)
    arguments = (tokens, bar, torch.zeros(1), torch.ones(()))
    expected, selected, _ = stream.eval().inject(*arguments)
    stream.train()
    for _ in range(5):
        injected, again, _ = stream.inject(*arguments)
        assert torch.equal(again, selected)
        assert torch.equal(injected, expected)


def test_layers_of_the_official_formulation_alone() -> None:
    names = {
        formulation: set(CASE(CaeAvConfig.from_preset("ave", size="toy", formulation=formulation)).state_dict())
        for formulation in ("paper", "official")
    }
    extra = {name.split(".")[1] for name in names["official"] - names["paper"]}
    assert extra == {"temporal_norm", "caption_feed_forward"}
    assert {name.split(".")[1] for name in names["paper"] - names["official"]} == {"gamma"}


def test_old_checkpoints_of_the_paper_formulation_load(tmp_path, caplog) -> None:
    """They hold two layers that the paper formulation had before, which are ignored without a warning."""
    model = toy_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for stream in ("visual", "audio"):
        norm = f"model.case.{stream}_stream.temporal_norm"
        layer = f"model.case.{stream}_stream.caption_feed_forward"
        weights |= {f"{norm}.weight": torch.ones(128), f"{norm}.bias": torch.zeros(128)}
        weights |= {f"{layer}.hidden.weight": torch.zeros(256, 128), f"{layer}.norm.bias": torch.zeros(128)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    again, report = CaeAvForEventLocalization.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert "temporal_norm" not in caplog.text
    loaded = again.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
