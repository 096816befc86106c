"""PVT-v2 as a tower: equal to Transformers' model, its size, and loading."""

from pathlib import Path

import pytest
import torch
from transformers import PvtV2Config, PvtV2ForImageClassification, PvtV2Model

from caeav_hf import CaeAvError
from caeav_hf.configuration_cae_av import CaeAvPvtV2Config
from caeav_hf.towers.base import TowerReader, build_tower
from caeav_hf.towers.loading import load_tower
from caeav_hf.towers.pvt_v2 import PvtV2Tower


SMALL = {
    "image_size": 70,
    "depths": [1, 2, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "mlp_ratios": [2, 2, 2, 2],
}


def test_its_maps_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    model = PvtV2Model(PvtV2Config(**SMALL)).double().eval()
    tower = build_tower(CaeAvPvtV2Config(**SMALL)).double().eval()
    tower.load_state_dict(model.state_dict())
    frames = torch.randn(2, 3, 70, 70, dtype=torch.float64)
    with torch.no_grad():
        expected = model(frames, output_hidden_states=True).hidden_states
        maps = TowerReader(tower).feature_maps(frames)
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 18, 18), (16, 9, 9), (24, 5, 5), (32, 3, 3)]
    for found, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, other)
    with pytest.raises(CaeAvError, match="70x70"):
        tower.embed(torch.zeros(1, 3, 64, 64))


def test_its_published_size() -> None:
    with torch.device("meta"):
        tower = PvtV2Tower(CaeAvPvtV2Config())
    assert sum(parameter.numel() for parameter in tower.parameters()) == 81_443_008
    assert [stage.grid for stage in tower.config.stages()] == [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.parametrize("kind", ["vision", "region"])
def test_it_is_loaded_from_a_folder_of_transformers(tmp_path: Path, kind: str) -> None:
    classifier = PvtV2ForImageClassification(PvtV2Config(**SMALL))
    classifier.save_pretrained(tmp_path)
    loaded = load_tower(kind, tmp_path)
    assert loaded.model_type == "cae_av_pvt_v2"
    tower = build_tower(CaeAvPvtV2Config(**loaded.config))
    tower.load_state_dict(loaded.state)
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), classifier.pvt_v2.parameters(), strict=True))


def test_its_configuration_comes_back(tmp_path: Path) -> None:
    config = CaeAvPvtV2Config(**SMALL)
    config.save_pretrained(tmp_path)
    assert CaeAvPvtV2Config.from_pretrained(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(Exception, match="one value per stage"):
        CaeAvPvtV2Config(depths=(1, 1))
    with pytest.raises(Exception, match="stage 1 has sides of at least 8"):
        CaeAvPvtV2Config(image_size=16).stages()
