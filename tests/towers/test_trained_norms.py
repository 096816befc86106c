"""Layer norms of frozen towers that are trained with the adapters."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel
from caeav_hf.assets import toy_towers
from tests.modeling.helpers import randomise, toy_batch, toy_model
from tests.same import assert_close


def trained_in_towers(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if "_tower." in name and parameter.requires_grad}


@pytest.mark.parametrize("method", ["lavish", "dg_sct"])
@pytest.mark.parametrize("which", ["none", "final", "all"])
def test_which_norms_are_trained(which: str, method: str) -> None:
    model = toy_model(method=method, trained_tower_norms=which)
    final = {f"model.vision_tower.norm.{name}" for name in ("weight", "bias")}
    found = trained_in_towers(model)
    if which == "all":
        assert final < found
        expected = {name for name in model.state_dict() if "_tower." in name and "norm" in name.split(".")[-2]}
        # HTS-AT's batch norm keeps its statistics, and no head reads the sound after its final norm.
        unread = {name for name in expected if "batch_norm" in name or "audio_encoder.norm." in name}
        assert found == expected - unread
        assert bool(unread) == (method == "dg_sct")
    else:
        assert found == (final if which == "final" else set())


def test_a_step_trains_them_and_nothing_else_of_the_tower() -> None:
    model = toy_model(method="lavish", trained_tower_norms="all").train()
    assert not model.model.vision_tower.training
    before = {name: tensor.clone() for name, tensor in model.named_parameters() if "_tower." in name}
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    model(**toy_batch(model.config)).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.named_parameters() if name in before and (tensor != before[name]).any()}
    assert changed == trained_in_towers(model)


def test_an_adapter_only_checkpoint_holds_them(tmp_path: Path) -> None:
    vision = toy_towers()["vision"]
    build = {"size": "toy", "method": "lavish", "trained_tower_norms": "all"}
    model = CaeAvForEventLocalization.from_backbones(vision, None, None, **build)
    randomise(model).save_pretrained(tmp_path, adapter_only=True)
    stored = {name for name in load_file(tmp_path / "model.safetensors") if "_tower." in name}
    assert stored == trained_in_towers(model)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert trained_in_towers(loaded) == stored
    batch = toy_batch(model.config)
    with torch.no_grad():
        assert_close(loaded(**batch).frame_log_probs, model(**batch).frame_log_probs)
    # Frozen tensors must still equal the source's.
    with torch.no_grad():
        model.model.vision_tower.patch_embed.proj.weight[0] += 1
    with pytest.raises(CaeAvError, match="the vision tower of this model is not, or no longer"):
        model.save_pretrained(tmp_path / "other", adapter_only=True)


def test_question_answering_of_lavish_trains_all() -> None:
    assert CaeAvConfig.from_preset("avqa", method="lavish").trained_tower_norms == "all"
    with torch.device("meta"):
        model = CaeAvModel(CaeAvConfig.from_preset("avqa", method="lavish"))
    assert sum(norm.weight.numel() + norm.bias.numel() for norm in model.trained_tower_norms().values()) == 81_024
