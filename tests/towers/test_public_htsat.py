"""Public checkpoints of HTS-AT become audio towers."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from caeav_hf import CaeAvError, CaeAvForEventLocalization
from caeav_hf.conversion import htsat_from_public
from caeav_hf.towers.htsat import HtsatTower
from tests.golden import GoldenCase, assert_equal


TOY_TOWERS = Path(__file__).parents[2] / "src" / "caeav_hf" / "assets" / "toy_towers"


def lightning_state(classes: int = 527, sampling_rate: int = 32_000) -> dict[str, Tensor]:
    """Return the keys of a public checkpoint, sizes and weights of the reference case."""
    filters = mel_filter_bank(513, 64, 50, 14_000, sampling_rate, norm="slaney", mel_scale="slaney")
    state = dict(GoldenCase("htsat_small").state)
    state |= {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "logmel_extractor.melW": torch.tensor(filters).float(),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "tscam_conv.weight": torch.zeros(classes, 64, 2, 3),
        "tscam_conv.bias": torch.zeros(classes),
        "head.weight": torch.zeros(classes, classes),
    }
    return {f"sed_model.{key}": value for key, value in state.items()}


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize(
    ("classes", "rate", "hop"),
    [(527, 32_000, 320), (50, 32_000, 320), (35, 16_000, 160)],
    ids=["AudioSet", "ESC", "SCV2"],
)
@torch.no_grad()
def test_public_checkpoints(classes: int, rate: int, hop: int) -> None:
    state = lightning_state(classes, rate)
    config, tensors, report = htsat_from_public(state)
    assert (config.sampling_rate, config.hop_length, config.fft_window_size) == (rate, hop, 1024)
    assert (config.frequency_min, config.frequency_max, config.tile_seconds) == (50, 14_000, 10)
    assert set(report.mapped) | set(report.ignored) == {key.removeprefix("sed_model.") for key in state}
    assert len(report.ignored) == 7
    config, tensors, _ = htsat_from_public(state, {"spec_size": 128})
    tower = HtsatTower(config).eval()
    tower.load_state_dict(tensors)
    case = GoldenCase("htsat_small")
    tokens = tower.embed(case.outputs["logmel"][:, None])
    for stage in range(4):
        tokens = tower.enter_stage(stage, tokens)
        for block in tower.blocks(stage):
            tokens = block(tokens)
    assert_equal(tokens, case.outputs["stage3"])


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_filters_of_another_front_end() -> None:
    state = lightning_state(sampling_rate=16_000)
    with pytest.raises(CaeAvError, match=r"logmel_extractor\.melW.*sampling_rate"):
        htsat_from_public(state)
    config, *_ = htsat_from_public(state, {"sampling_rate": 16_000, "hop_length": 160})
    assert config.sampling_rate == 16_000


def test_as_a_backbone(tmp_path: Path) -> None:
    """A Lightning checkpoint, including callbacks, by its file name."""
    path = tmp_path / "HTSAT_AudioSet_Saved_1.ckpt"
    state = lightning_state()
    # As many blocks as the toy tower of the frames has.
    dropped = r"layers\.(?:[013]\.blocks\.1|2\.blocks\.[2-5])\."
    state = {key: value for key, value in state.items() if not re.search(dropped, key)}
    torch.save({"epoch": 3, "callbacks": {Callback: {"best": 0.4}}, "state_dict": state}, path)
    towers = {"vision": TOY_TOWERS / "vision", "text": TOY_TOWERS / "text", "audio": path}
    model = CaeAvForEventLocalization.from_backbones(
        **towers, task="ave", size="toy", audio_config={"tile_seconds": 2}
    )
    assert model.config.audio_config.sampling_rate == 32_000
    assert model.config.audio_config.tile_seconds == 2
    weight = model.model.audio_tower.audio_encoder.layers[3].blocks[0].output.dense.weight
    assert torch.equal(weight, state["sed_model.layers.3.blocks.0.mlp.fc2.weight"])
    torch.save({**state, "sed_model.surprise": torch.zeros(1)}, path)
    with pytest.raises(CaeAvError, match=r"`audio`.*Saved_1.*surprise"):
        CaeAvForEventLocalization.from_backbones(**towers, task="ave", size="toy")


class Callback:
    """A class that a checkpoint may name, and that must not run."""

    def __init__(self) -> None:
        raise AssertionError("a checkpoint's class was made")
