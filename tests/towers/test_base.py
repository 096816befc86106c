"""The towers compute what timm, Transformers and open_clip compute, and load what these save."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import save_for_hf
from torch import nn
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
)

from caeav_hf import CaeAvError, CaeAvForEventLocalization, CaeAvModel
from caeav_hf.configuration_cae_av import (
    CaeAvAudioConfig,
    CaeAvConfig,
    CaeAvSwinConfig,
    CaeAvTextConfig,
    CaeAvVisionConfig,
)
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.towers.base import Tower, TowerReader
from caeav_hf.towers.clip_text import ClipTextTower
from caeav_hf.towers.htsat import HtsatTower
from caeav_hf.towers.loading import FRONT_END, load_tower
from caeav_hf.towers.swin import SwinTower
from caeav_hf.towers.swin_v2 import SwinV2Tower
from tests.lanes import slow_after
from tests.modeling.helpers import as_double, toy_batch


SWIN = {"img_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 16, "layers": 1, "width": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
}


def run(tower: Tower, inputs: torch.Tensor) -> torch.Tensor:
    reader = TowerReader(tower)
    return reader.final_norm(reader.walk(reader.embed(inputs)).finish())


def shake(module: nn.Module) -> nn.Module:
    """Leave no parameter at 0 or 1, where an error would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@torch.no_grad()
def test_blocks_between_two_that_interact_run_in_twos_within_a_stage() -> None:
    sizes = {"depths": [1, 5], "num_heads": [1, 2], "pretrained_window_sizes": [0, 0]}
    config = CaeAvVisionConfig(image_size=32, embed_dim=16, window_size=4, **sizes)
    reader, images = TowerReader(shake(SwinV2Tower(config))), torch.randn(2, 3, 32, 32)
    calls = []

    def count(function: Any, tokens: torch.Tensor, *blocks: Any) -> torch.Tensor:
        calls.append(len(blocks))
        return function(tokens, *blocks)

    walk = reader.walk(reader.embed(images), count)
    walk.tokens = walk.reach(4)(walk.tokens)
    assert calls == [1, 2, 1]
    torch.testing.assert_close(walk.finish(), reader.walk(reader.embed(images)).finish())


@settings(max_examples=8, deadline=None)
@given(
    grid=st.sampled_from([8, 12, 16, 20]),
    window=st.sampled_from([3, 4, 5, 8]),
    depth=st.integers(1, 3),
    pretrained=st.sampled_from([0, 6]),
)
def test_swin_v2_equals_timm(grid: int, window: int, depth: int, pretrained: int) -> None:
    """Shifted windows, windows that do not divide the grid, and windows larger than the later grids."""
    torch.manual_seed(0)
    config = CaeAvVisionConfig(
        image_size=4 * grid,
        embed_dim=8,
        depths=(depth, 2),
        num_heads=(1, 2),
        window_size=window,
        pretrained_window_sizes=(pretrained, pretrained),
    )
    tower = shake(SwinV2Tower(config))
    pixels = torch.randn(2, 3, 4 * grid, 4 * grid)
    with torch.no_grad():
        torch.testing.assert_close(
            run(tower, pixels), tower.forward_features(pixels).flatten(1, 2), atol=1e-5, rtol=1e-4
        )


@settings(max_examples=6, deadline=None)
@given(grid=st.sampled_from([8, 12, 16, 20]), window=st.sampled_from([3, 4, 5, 8]), depth=st.integers(1, 3))
@torch.no_grad()
def test_swin_equals_timm(grid: int, window: int, depth: int) -> None:
    torch.manual_seed(0)
    config = CaeAvSwinConfig(image_size=4 * grid, embed_dim=8, depths=(depth, 2), num_heads=(1, 2), window_size=window)
    tower = shake(SwinTower(config))
    pixels = torch.randn(2, 3, 4 * grid, 4 * grid)
    torch.testing.assert_close(run(tower, pixels), tower.forward_features(pixels).flatten(1, 2), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_swin_reads_inputs_of_another_size() -> None:
    """Like a tower of that size with the same weights: timm's windows shrink if one covers the grid."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    tower = shake(SwinTower(CaeAvSwinConfig(image_size=32, **sizes)))
    other = SwinTower(CaeAvSwinConfig(image_size=48, **sizes)).eval()
    other.load_state_dict(tower.state_dict())
    features = torch.randn(2, 1, 48, 48)
    reader = TowerReader(tower, (48, 48), reads_spectrograms=True)
    found = reader.final_norm(reader.walk(reader.embed(features)).finish())
    torch.testing.assert_close(found, run(other, features.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_odd_grids_are_those_of_timm() -> None:
    tower = SwinV2Tower(CaeAvVisionConfig(image_size=48, embed_dim=16, num_heads=(1, 2, 4, 8), window_size=4))
    grids = [layer.output_resolution for layer in tower.layers]
    assert [stage.grid for stage in tower.config.stages()] == grids == [(12, 12), (6, 6), (3, 3), (2, 2)]
    assert run(tower, torch.randn(1, 3, 48, 48)).shape == (1, 4, 128)


@pytest.mark.parametrize(("spec_size", "window"), [(64, 2), (64, 4), (128, 4)])
def test_htsat_equals_transformers(spec_size: int, window: int) -> None:
    torch.manual_seed(0)
    config = CaeAvAudioConfig(
        spec_size=spec_size,
        num_mel_bins=32,
        patch_embeds_hidden_size=8,
        hidden_size=16 if spec_size == 64 else 32,
        depths=(2, 2) if spec_size == 64 else (2, 1, 2),
        num_attention_heads=(1, 2) if spec_size == 64 else (1, 2, 4),
        window_size=window,
    )
    tower = shake(HtsatTower(config))
    mels = 10 * torch.randn(2, 1, 101, 32)
    with torch.no_grad():
        # Transformers regroups its last tokens; its mean over them is that of ours.
        expected = tower(input_features=mels).pooler_output
        torch.testing.assert_close(run(tower, mels).mean(1), expected, atol=1e-5, rtol=1e-4)


def test_text_tower_equals_open_clip() -> None:
    torch.manual_seed(0)
    reference = shake(open_clip.model._build_text_tower(16, CLIP["text_cfg"], quick_gelu=True))
    reference.output_tokens = True
    sizes = {"vocab_size": 600, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    tower = ClipTextTower(CaeAvTextConfig(**sizes)).eval()
    state = reference.state_dict()
    state.pop("text_projection")
    tower.load_state_dict(state)
    ids = torch.randint(1, 600, (3, 77))
    with torch.no_grad():
        _, expected = reference(ids)
        torch.testing.assert_close(tower(ids), expected, atol=1e-5, rtol=1e-5)
        # Causal: a caption cut to its own length gives the same features.
        torch.testing.assert_close(tower(ids[:, :20]), expected[:, :20], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save random small towers by the libraries that made them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("towers")
    vision = shake(timm.create_model("swinv2_tiny_window8_256", num_classes=3, **SWIN))
    save_for_hf(vision, str(root / "vision"), model_args=SWIN, safe_serialization=True)
    swin = shake(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **SWIN))
    save_for_hf(swin, str(root / "swin"), model_args=SWIN, safe_serialization=True)
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(root / "resnet"), safe_serialization=True)
    sizes = {
        "spec_size": 64,
        "num_mel_bins": 32,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 4, 8],
        "window_size": 2,
    }
    shake(ClapAudioModel(ClapAudioConfig(**sizes))).save_pretrained(root / "audio")
    text = ClapTextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    shake(ClapModel(ClapConfig(audio_config=sizes, text_config=text.to_dict()))).save_pretrained(root / "clap")
    (root / "text").mkdir()
    (root / "text" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    clip = shake(open_clip.create_model(f"local-dir:{root / 'text'}", load_weights=False))
    torch.save(clip.state_dict(), root / "text" / "open_clip_pytorch_model.bin")
    return {name: root / name for name in ("vision", "swin", "resnet", "audio", "clap", "text")}


@pytest.mark.parametrize("audio", ["audio", "clap"])
def test_a_tower_without_a_feature_extractor_has_the_front_end_of_hts_at(folders: dict[str, Path], audio: str) -> None:
    config = load_tower("audio", folders[audio]).config
    assert CaeAvAudioConfig(**config) == CaeAvAudioConfig(
        **{name: value for name, value in config.items() if name not in FRONT_END}
    )


@pytest.fixture(scope="module", params=slow_after(1, ["rand_trunc", "fusion"]))
def clap(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a CLAP model with its feature extractor, saved by itself or within a processor."""
    folder = tmp_path_factory.mktemp("clap")
    shutil.copytree(folders["clap"], folder, dirs_exist_ok=True)
    extractor = ClapFeatureExtractor(feature_size=32, frequency_min=50, truncation=request.param)
    if request.param == "fusion":
        (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor.to_dict()}))
    else:
        extractor.save_pretrained(folder)
    return folder


def clap_model(folders: dict[str, Path], clap: Path, **overrides: Any) -> CaeAvForEventLocalization:
    return CaeAvForEventLocalization.from_backbones(
        vision=folders["vision"], audio=clap, text=folders["text"], size="toy", **overrides
    )


@pytest.mark.parametrize("segment_seconds", slow_after(1, [3.0, 1.0, 10.0]))
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_clap_brings_its_front_end(folders: dict[str, Path], clap: Path, segment_seconds: float, padding: str) -> None:
    overrides: dict[str, Any] = {} if padding == "repeatpad" else {"audio_config": {"tile_padding": padding}}
    config = clap_model(folders, clap, segment_seconds=segment_seconds, **overrides).config
    audio = config.audio_config
    assert (audio.sampling_rate, audio.hop_length, audio.fft_window_size) == (48_000, 480, 1024)
    assert (audio.frequency_min, audio.frequency_max, audio.num_mel_bins) == (50, 14_000, 32)
    ours = CaeAvProcessor.from_config(config).feature_extractor
    reference = ClapFeatureExtractor.from_pretrained(clap)
    times = np.arange(round(segment_seconds * 48_000)) / 48_000
    # Bands far below the tone hold rounding errors in single precision.
    for waveform in (0.5 * np.sin(2 * np.pi * 440 * times), np.random.default_rng(0).uniform(-0.5, 0.5, len(times))):
        waveform = waveform.astype(np.float32)
        expected = reference(waveform, sampling_rate=48_000, padding=padding, return_tensors="pt")["input_features"]
        given = ours(waveform, sampling_rate=48_000)["input_features"]
        assert given.shape == (1, 1, 1, 1001, 32)
        torch.testing.assert_close(given[0, 0, 0], expected[0, 0].float(), atol=1e-4, rtol=0)


def test_front_end_of_clap_is_kept_and_may_be_overridden(folders: dict[str, Path], clap: Path, tmp_path: Path) -> None:
    model = clap_model(folders, clap, audio_config={"hop_length": 400, "tile_seconds": 5})
    audio = model.config.audio_config
    assert (audio.sampling_rate, audio.hop_length, audio.tile_seconds) == (48_000, 400, 5)
    model.save_pretrained(tmp_path, adapter_only=True)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert {name: getattr(again.config.audio_config, name) for name in FRONT_END} == {
        name: getattr(audio, name) for name in FRONT_END
    }


def test_extractors_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["clap"], tmp_path, dirs_exist_ok=True)
    ClapFeatureExtractor(feature_size=64).save_pretrained(tmp_path)
    with pytest.raises(CaeAvError, match="has 64 mel bands, its model reads 32"):
        load_tower("audio", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
    with pytest.raises(CaeAvError, match="is a WhisperFeatureExtractor, expected a ClapFeatureExtractor"):
        load_tower("audio", tmp_path)


@pytest.mark.parametrize("audio", slow_after(1, ["clap", "audio"]))
def test_from_backbones(folders: dict[str, Path], audio: str, tmp_path: Path) -> None:
    model = CaeAvForEventLocalization.from_backbones(
        vision=folders["vision"],
        audio=folders[audio],
        text=folders["text"],
        size="toy",
        num_labels=5,
        audio_config={"hop_length": 400},
    )
    config = model.config
    assert config.vision_config.embed_dim == 16
    assert config.vision_config.image_size == 64
    assert config.text_config.vocab_size == 600
    assert config.text_config.hidden_act == "quick_gelu"
    assert config.audio_config.hop_length == 400
    assert config.num_labels == 5
    original = timm.create_model(f"local-dir:{folders['vision']}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = original.forward_features(pixels).flatten(1, 2)
        torch.testing.assert_close(run(model.model.vision_tower, pixels), expected, atol=1e-5, rtol=1e-4)
    assert all(not p.requires_grad for tower in model.model.towers() for p in tower.parameters())
    model.save_pretrained(tmp_path)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    batch = toy_batch(config)
    batch["labels"] = batch["labels"].clamp(max=5)
    for name in ("visual_caption_ids", "audio_caption_ids"):
        batch[name] = batch[name].clamp(max=599)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).loss, model(**batch).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_on_a_swin_of_version_1(folders: dict[str, Path], tmp_path: Path) -> None:
    towers = {"vision": folders["swin"], "audio": folders["audio"]}
    model = CaeAvForEventLocalization.from_backbones(
        **towers, text=None, size="toy", use_text_tower=False, use_case=False
    )
    assert isinstance(model.config.vision_config, CaeAvSwinConfig)
    original = timm.create_model(f"local-dir:{folders['swin']}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = original.forward_features(pixels).flatten(1, 2)
    torch.testing.assert_close(run(model.model.vision_tower, pixels), expected, atol=1e-5, rtol=1e-4)
    # In double precision: the narrow norms of these random towers enlarge rounding.
    batch = as_double(toy_batch(model.config))
    expected = model.double()(**batch).loss
    for adapter_only in (False, True):
        model.float().save_pretrained(tmp_path / str(adapter_only), adapter_only=adapter_only)
        again = CaeAvForEventLocalization.from_pretrained(tmp_path / str(adapter_only))
        # timm's own initialisation does not draw the tables of the windows again.
        tables = {k: v for k, v in again.state_dict().items() if k.endswith("relative_position_bias_table")}
        assert tables
        assert all(torch.equal(v, model.float().state_dict()[k]) for k, v in tables.items())
        torch.testing.assert_close(again.double()(**batch).loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": "no_such_model"}, "vision.*no_such_model"),
        ({"vision": "org/model"}, "vision.*org/model"),
        ({"vision": "resnet"}, "vision.*ResNet.*SwinV2Tower.*converts"),
        ({"audio": "vision"}, "audio"),
        ({"text": "no-such-clip/openai"}, "text.*no-such-clip"),
        ({"text": "ViT-B-32"}, "text.*ViT-B-32"),
        ({"vision_config": {"depths": [1]}}, "vision_config"),
        ({"audio_config": {"depths": [1]}}, "audio_config"),
    ],
)
def test_from_backbones_errors(
    folders: dict[str, Path], change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    arguments = {"vision": folders["vision"], "audio": folders["audio"], "text": folders["text"], "size": "toy"}
    change = {key: folders.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(CaeAvError, match=message):
        CaeAvModel.from_backbones(**{**arguments, **change})


def test_configuration_rejects_by_field_name() -> None:
    wrong = {
        "topk_ratio": 1.5,
        "adapter_stages": (0, 3),
        "num_frames": 0,
        "formulation": "printed",
        "gate_dim": "wide",
        "case_num_heads": 7,
        "adapter_groups": 3,
        "contrastive_temperature": 0.0,
        "entropy_loss_weight": -1.0,
        "num_cross_modal_experts": -1,
        "nonexistent": 1,
        "vision_config": {"num_heads": (1, 2)},
        "audio_config": {"frequency_max": 33_000},
        "text_config": {"vocab_size": 100},
    }
    fields = {"vision_config": "num_heads", "audio_config": "frequency_max", "text_config": "vocab_size"}
    for name, value in wrong.items():
        with pytest.raises((ValueError, StrictDataclassError), match=fields.get(name, name)):
            CaeAvConfig.from_preset("ave", size="toy", **{name: value})
    with pytest.raises(ValueError, match="task"):
        CaeAvConfig.from_preset("asr")
    with pytest.raises(CaeAvError, match="interaction"):
        CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", interaction="unknown"))
