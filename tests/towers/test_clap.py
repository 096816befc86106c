"""CLAP with its text branch: the embeddings of Transformers' own model, and models trained for fusion."""

from pathlib import Path

import pytest
import torch
from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

from caeav_hf import CaeAvAudioConfig, CaeAvError
from caeav_hf.processing import CaeAvFeatureExtractor
from caeav_hf.towers.base import TowerReader, build_tower
from caeav_hf.towers.clap_text import ClapTextTower
from caeav_hf.towers.loading import load_tower
from tests.same import assert_close


AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 32,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 64,
    "window_size": 2,
    "depths": [1, 1, 1],
    "num_attention_heads": [1, 2, 4],
    "projection_dim": 12,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "projection_dim": 12,
    "max_position_embeddings": 40,
}


def make_clap(folder: Path, fusion: bool = False) -> ClapModel:
    torch.manual_seed(0)
    audio = {**AUDIO, **({"enable_fusion": True} if fusion else {})}
    config = ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=12)
    assert isinstance(config.audio_config, ClapAudioConfig)
    clap = ClapModel(config).eval()
    torch.nn.init.constant_(clap.logit_scale_a, 1.25)
    clap.save_pretrained(folder)
    return clap


@torch.no_grad()
def test_texts_are_embedded_as_by_clap(tmp_path: Path) -> None:
    clap, loaded = make_clap(tmp_path), load_tower("audio_text", tmp_path)
    tower = ClapTextTower(ClapTextConfig(**loaded.config)).eval()
    tower.load_state_dict(loaded.state)
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 7, 2, 1, 1]])
    expected = clap.get_text_features(input_ids=ids, attention_mask=(ids != 1).long()).pooler_output
    found = torch.nn.functional.normalize(tower.embed_prompts(ids), dim=-1)
    assert_close(found, torch.nn.functional.normalize(expected, dim=-1))
    assert tower.logit_scale == 1.25
    # Other texts of the same shape are not confused with the cached ones.
    assert not torch.equal(tower.embed_prompts(ids), tower.embed_prompts(ids.flip(0)))
    tower.text_projection.linear2.bias.add_(1)
    changed = torch.nn.functional.normalize(tower.embed_prompts(ids), dim=-1)
    assert not torch.equal(changed, found)


@pytest.mark.parametrize("fusion", [False, True])
@torch.no_grad()
def test_sounds_are_embedded_as_by_clap(tmp_path: Path, fusion: bool) -> None:
    clap, loaded = make_clap(tmp_path, fusion), load_tower("audio", tmp_path, projects=True)
    config = CaeAvAudioConfig(**{name: value for name, value in loaded.config.items() if name != "model_type"})
    assert not config.enable_fusion
    tower = build_tower(config).eval()
    tower.load_state_dict(loaded.state)
    sounds = torch.randn(2, 1, 101, 32)
    options = {"is_longer": torch.zeros(2, 1, dtype=torch.bool)} if fusion else {}
    inputs = sounds.expand(-1, 4, -1, -1) if fusion else sounds
    expected = clap.get_audio_features(input_features=inputs, **options).pooler_output
    reader = TowerReader(tower)
    found = tower.project(reader.pool(reader.final_norm(reader.walk(reader.embed(sounds)).finish())))
    normalise = torch.nn.functional.normalize
    assert_close(normalise(found, dim=-1), normalise(expected, dim=-1))


def test_htsat_alone_has_no_text_branch(tmp_path: Path) -> None:
    make_clap(tmp_path).audio_model.save_pretrained(tmp_path / "audio")
    for kind in ("audio", "audio_text"):
        with pytest.raises(CaeAvError, match="expected `clap`"):
            load_tower(kind, tmp_path / "audio", projects=True)


def test_mel_filters_of_another_rate() -> None:
    """The filters are those of 48 kHz, the frames those of 32 kHz: a tone seems higher by the ratio of both."""
    own = CaeAvFeatureExtractor(tile_seconds=1)
    other = CaeAvFeatureExtractor(tile_seconds=1, filter_sampling_rate=48_000)
    faster = CaeAvFeatureExtractor(tile_seconds=1, sampling_rate=48_000, hop_length=480)
    assert (other.mel_filters == faster.mel_filters).all()
    time = torch.arange(32_000) / 32_000
    tone, higher = torch.sin(2 * torch.pi * 1000 * time), torch.sin(2 * torch.pi * 1500 * time)

    def loudest(extractor: CaeAvFeatureExtractor, sound: torch.Tensor) -> int:
        features = extractor(sound, sampling_rate=32_000)["input_features"]
        return int(features.mean((0, 1, 2, 3)).argmax())

    assert loudest(other, tone) == loudest(own, higher) != loudest(own, tone)
    assert CaeAvFeatureExtractor.from_dict(other.to_dict()).filter_sampling_rate == 48_000
