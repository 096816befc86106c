"""VGGish: its input and its network against NumPy, its size, and loading."""

from pathlib import Path

import numpy as np
import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvError
from caeav_hf.configuration_cae_av import CaeAvVggishConfig
from caeav_hf.processing import CaeAvFeatureExtractor
from caeav_hf.towers.base import TowerReader, build_tower
from caeav_hf.towers.loading import load_tower, save_tower
from caeav_hf.towers.vggish import VggishTower


SMALL = {"hidden_sizes": (4, 6, 8, 10), "intermediate_size": 12, "hidden_size": 5}
FRONT_END = {
    "feature_size": 64,
    "sampling_rate": 16_000,
    "fft_window_size": 400,
    "hop_length": 160,
    "frequency_min": 125,
    "frequency_max": 7500,
    "tile_seconds": 1,
    "mel_scale": "vggish",
}


def small_tower() -> VggishTower:
    torch.manual_seed(0)
    return build_tower(CaeAvVggishConfig(**SMALL)).eval()


def mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def reference_features(samples: np.ndarray) -> np.ndarray:
    """Compute the log-mel frames of one second, frame by frame and band by band."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = np.linspace(mel(125), mel(7500), 66)
    bins = mel(np.arange(257) * 16_000 / 512)
    weights = np.zeros((257, 64))
    for band in range(64):
        low, peak, high = edges[band : band + 3]
        weights[:, band] = np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    frames = [np.abs(np.fft.rfft(samples[160 * n : 160 * n + 400] * window, 512)) @ weights for n in range(96)]
    return np.log(np.stack(frames) + 0.01)


def reference_network(tower: VggishTower, features: np.ndarray) -> np.ndarray:
    """Embed one spectrogram (96, 64) with loops over kernel positions."""
    maps = features[None]
    state = {name: tensor.double().numpy() for name, tensor in tower.state_dict().items()}
    layer = 0
    for depth in (1, 1, 2, 2):
        for _ in range(depth):
            weight, bias = state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]
            padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
            total = np.zeros((len(weight), *maps.shape[1:])) + bias[:, None, None]
            for row in range(3):
                for column in range(3):
                    part = padded[:, row : row + maps.shape[1], column : column + maps.shape[2]]
                    total += np.einsum("oc,chw->ohw", weight[:, :, row, column], part)
            maps = np.maximum(total, 0)
            layer += 2
        channels, height, width = maps.shape
        maps = maps.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))
        layer += 1
    vector = maps.transpose(1, 2, 0).reshape(-1)
    for index in (0, 2, 4):
        vector = np.maximum(state[f"embeddings.{index}.weight"] @ vector + state[f"embeddings.{index}.bias"], 0)
    return vector


def sound(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(16_000 * seconds)).astype(np.float32)


def test_its_input_equals_numpy() -> None:
    extractor = CaeAvFeatureExtractor(**FRONT_END, spectrogram_dtype="float64")
    samples = sound(2.0)
    features = extractor(samples, sampling_rate=16_000)["input_features"]
    assert features.shape == (1, 2, 1, 96, 64)
    for second in range(2):
        expected = reference_features(samples[16_000 * second :][:16_000].astype(np.float64))
        np.testing.assert_allclose(features[0, second, 0].numpy(), expected, rtol=0, atol=1e-6)
    single = CaeAvFeatureExtractor(**FRONT_END)(samples, sampling_rate=16_000)["input_features"]
    torch.testing.assert_close(single, features, rtol=0, atol=1e-4)


def test_short_segments_are_filled_with_silence() -> None:
    extractor = CaeAvFeatureExtractor(**{**FRONT_END, "segment_seconds": 0.5})
    features = extractor(sound(0.5), sampling_rate=16_000)["input_features"]
    assert features.shape == (1, 1, 1, 96, 64)
    assert torch.equal(features[0, 0, 0, 50:], torch.full((46, 64), 0.01).log())
    short = CaeAvFeatureExtractor(**FRONT_END, spectrogram_frames=16)
    assert short(sound(), sampling_rate=16_000)["input_features"].shape == (1, 1, 1, 16, 64)


def test_its_network_equals_numpy() -> None:
    tower = small_tower().double()
    features = np.random.default_rng(1).normal(size=(2, 96, 64))
    with torch.no_grad():
        tokens = tower.embed(torch.from_numpy(features)[:, None])
    assert tokens.shape == (2, 1, 5)
    assert tokens.any()
    for own, one in zip(tokens[:, 0], features, strict=True):
        np.testing.assert_allclose(own.numpy(), reference_network(tower, one), rtol=1e-9, atol=1e-12)


def test_it_is_a_tower_without_blocks() -> None:
    tower = small_tower()
    reader = TowerReader(tower)
    features = torch.randn(3, 1, 96, 64)
    with torch.no_grad():
        tokens = reader.walk(reader.embed(features)).finish()
        assert torch.equal(reader.pool(reader.final_norm(tokens)), tower.embed(features)[:, 0])
    with pytest.raises(CaeAvError, match=r"input_features.*\(1, 96, 64\)"):
        tower.embed(torch.zeros(1, 1, 101, 64))
    with pytest.raises(Exception, match=r"audio_config.*no blocks"):
        CaeAvConfig.from_preset("ave", "toy", audio_config={"model_type": "cae_av_vggish"})


def test_its_public_size() -> None:
    with torch.device("meta"):
        tower = VggishTower(CaeAvVggishConfig())
    assert sum(parameter.numel() for parameter in tower.parameters()) == 72_141_184


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_it_is_loaded(tmp_path: Path, kind: str) -> None:
    tower = small_tower()
    source = tmp_path / "tower"
    if kind == "folder":
        save_tower(tower, source)
    else:
        source = tmp_path / "vggish.pth"
        torch.save({**tower.state_dict(), "pproc.pca_means": torch.zeros(5)}, source)
    loaded = load_tower("audio", source)
    assert loaded.model_type == "cae_av_vggish"
    again = build_tower(CaeAvVggishConfig(**{k: v for k, v in loaded.config.items() if k in SMALL}))
    again.load_state_dict(loaded.state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tower.parameters(), strict=True))
    assert loaded.config["mel_scale"] == "vggish"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depths": (1, 1)}, "one value per group"), ({"hidden_sizes": (1,) * 8, "depths": (1,) * 8}, "too many groups")],
)
def test_wrong_sizes_are_named(change: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        CaeAvVggishConfig(**change)
