"""CLIP's vision transformer: equality with timm and open_clip, its hook, and its loading."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassClassValidationError
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.models import save_for_hf
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization
from caeav_hf.configuration_cae_av import CaeAvVitConfig
from caeav_hf.task import get_task
from caeav_hf.towers.base import TowerReader, build_tower
from caeav_hf.towers.loading import load_tower
from caeav_hf.towers.renaming import CLIP_VIT, rename
from tests.modeling.helpers import randomise, task_batch, toy_batch, toy_model, toy_segmentation_model
from tests.same import assert_close


SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def run(tower: torch.nn.Module, images: Tensor, size: tuple[int, int] | None = None, **reader) -> Tensor:
    """Return all tokens after the final norm."""
    reads = TowerReader(tower, size, **reader)
    return reads.final_norm(reads.walk(reads.embed(images)).finish())


def assert_loaded(folder: Path, images: Tensor, expected: Tensor) -> None:
    loaded = load_tower("vision", folder)
    tower = build_tower(CaeAvVitConfig(**{k: v for k, v in loaded.config.items() if k != "model_type"}))
    tower.load_state_dict(loaded.state)
    assert_close(run(tower.eval(), images), expected)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_tokens_are_those_of_timm(tmp_path: Path, act: str) -> None:
    torch.manual_seed(0)
    name = "vit_base_patch32_clip_quickgelu_224" if act == "quick_gelu" else "vit_base_patch32_clip_224"
    model = timm.create_model(name, num_classes=12, **TIMM).eval()
    images = torch.randn(2, 3, 32, 32)
    save_for_hf(model, tmp_path, model_args=TIMM, safe_serialization=True)
    with torch.no_grad():
        assert_loaded(tmp_path, images, model.forward_features(images))


def test_read_out_is_that_of_clip() -> None:
    torch.manual_seed(0)
    clip = OpenClipVisionTransformer(32, 8, 16, 3, 2, 4.0, output_dim=12).eval()
    tower = build_tower(CaeAvVitConfig(**SIZES, projection_dim=12, hidden_act="gelu")).eval()
    shapes = {name: value.shape for name, value in tower.state_dict().items()}
    renamed = {rename(key, CLIP_VIT): value for key, value in clip.state_dict().items()}
    tower.load_state_dict({name: value.view(shapes[name]) for name, value in renamed.items()})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(tower.project(tower.pool(run(tower, images))), clip(images))


def test_without_a_projection_is_an_error() -> None:
    with pytest.raises(CaeAvError, match="no projection"):
        build_tower(CaeAvVitConfig(**SIZES)).project(torch.zeros(1, 16))


def test_other_sizes_resize_the_positions() -> None:
    tower = build_tower(CaeAvVitConfig(**SIZES)).eval()
    with torch.no_grad():
        tokens = run(tower, torch.randn(2, 1, 32, 64), (32, 64), reads_spectrograms=True)
        same = run(tower, torch.randn(2, 1, 32, 32), (32, 32), reads_spectrograms=True)
    assert tokens.shape == (2, 1 + 4 * 8, 16)
    assert same.shape == (2, 1 + 4 * 4, 16)
    with pytest.raises(CaeAvError, match="32x32 pixels, got 32x64"):
        tower.embed(torch.randn(2, 3, 32, 64))


def test_the_hook_stands_between_positions_and_first_norm() -> None:
    tower = build_tower(CaeAvVitConfig(**SIZES)).eval()
    torch.nn.init.constant_(tower.norm_pre.weight, 2.0)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        embedded = tower.embed(images)
        assert_close(embedded[:, :1], (tower.cls_token + tower.pos_embed[:, :1]))
        assert_close(tower.enter_stage(0, embedded), tower.norm_pre(embedded), 0)


def test_group_attention_with_a_bias() -> None:
    """A bias that forbids all others leaves each token its own value."""
    tower = build_tower(CaeAvVitConfig(**SIZES)).eval()
    groups = torch.randn(3, 5, 16)
    bias = torch.full((5, 5), -torch.inf).fill_diagonal_(0)
    layer, block = tower.layers[0], tower.blocks(0)[0]
    with torch.no_grad():
        value = layer.attn.qkv(layer.norm1(groups))[..., 32:]
        assert_close(block.group_attention(groups, bias), layer.attn.proj(value))


def test_a_model_on_it_is_trained_and_saved(tmp_path: Path) -> None:
    model = toy_model(vision_config={"model_type": "cae_av_vit", **SIZES}, interaction="avmoe", adapter_stages=[1, 3])
    batch = toy_batch(model.config)
    assert model(**batch).visual_pooler_output.shape == (2, 4, 16)
    model.train()(**batch).loss.backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "vision_tower" in name)
    model.eval().save_pretrained(tmp_path)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert again.config.vision_config.model_type == "cae_av_vit"
    with torch.no_grad():
        assert_close(again(**batch).class_logits, model(**batch).class_logits, 0)


METHODS = ("cae_av", "avmoe", "dg_sct", "lavish")
ON_VIT = {"vision_config": {"model_type": "cae_av_vit", **SIZES}}
# Segmentation by LAVisH is published with one width for each of four scales.
NEEDED = {("lavish", task): {"head_map_sizes": (16,)} for task in ("avs_s4", "avs_ms3")}


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *(("ave", method) for method in METHODS),
        *(
            pytest.param(task, method, marks=pytest.mark.slow)
            for task in ("avvp", "avs_s4", "avs_ms3", "avqa")
            for method in METHODS
            if (task, method) != ("avs_s4", "dg_sct")
        ),
    ],
)
def test_methods_train_on_it(task: str, method: str) -> None:
    torch.manual_seed(0)
    small = {"avvp": {"num_labels": 7}, "avqa": {"num_labels": 5, "question_vocab_size": 20}}.get(task, {})
    values = {**ON_VIT, **small, **NEEDED.get((method, task), {})}
    config = CaeAvConfig.from_preset(task, size="toy", method=method, **values)
    model = randomise(get_task(task).model_class(config)).train()
    outputs = model(**task_batch(config, num_frames=3))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    gradients = {n: p.grad for n, p in model.named_parameters() if ".interactions." in n and p.requires_grad}
    assert gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    if task.startswith("avs_"):
        # One scale, the grid of the patches, from which the decoder makes masks of the usual size.
        assert outputs.logits.shape == (2, 3, 1, config.mask_size, config.mask_size)


def test_what_needs_a_grid_is_refused_on_it() -> None:
    with pytest.raises(CaeAvError, match="`resize` 'bicubic' of DG-SCT needs towers whose tokens are all patches"):
        toy_segmentation_model(task="avs_s4", method="dg_sct", **ON_VIT)


@pytest.mark.parametrize("task", ["avs_s4", "avs_ms3"])
def test_a_head_of_several_scales_is_refused_on_it(task: str) -> None:
    with pytest.raises(
        StrictDataclassClassValidationError,
        match=r"`head_map_sizes` of CaeAvConfig needs one value per stage .* \(1\)",
    ):
        CaeAvConfig.from_preset(task, size="toy", method="lavish", **ON_VIT)


def test_wrong_sizes_name_the_field() -> None:
    with pytest.raises(
        StrictDataclassClassValidationError, match="`patch_size` \\(5\\) of CaeAvVitConfig must divide `image_size`"
    ):
        CaeAvVitConfig(image_size=32, patch_size=5)
    with pytest.raises(CaeAvError, match="CaeAvVitConfig has no field `depth`"):
        CaeAvConfig.from_preset("ave", vision_config={"model_type": "cae_av_vit", "depth": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_base_patch16_clip_quickgelu_224", {"depth": 2, "img_size": 32, "embed_dim": 32, "num_heads": 4}),
        ("vit_large_patch14_clip_quickgelu_224", {"depth": 3, "img_size": 28, "embed_dim": 32, "num_heads": 2}),
        ("swin_base_patch4_window7_224", {"depths": [2, 1], "img_size": 32, "embed_dim": 16, "num_heads": [2, 4]}),
        ("swin_large_patch4_window7_224", {"depths": [1, 2], "img_size": 56, "embed_dim": 12, "num_heads": [1, 2]}),
    ],
)
def test_towers_of_stg_cma_from_a_folder_and_from_the_hub(
    name: str, sizes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache of the Hub's client instead of the Hub."""
    torch.manual_seed(0)
    model, commit = timm.create_model(name, num_classes=0, **sizes).eval(), "a" * 40
    repository = tmp_path / "hub" / "models--org--tower"
    save_for_hf(model, repository / "snapshots" / commit, model_args=sizes, safe_serialization=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    images = torch.randn(2, 3, sizes["img_size"], sizes["img_size"])
    with torch.no_grad():
        expected = model.forward_features(images)
    expected = expected.flatten(1, 2) if expected.ndim == 4 else expected
    arguments = {"audio": None, "text": None, "task": "ave", "size": "toy", "method": "stg_cma", "num_frames": 2}
    for source in (str(repository / "snapshots" / commit), "hf-hub:org/tower"):
        built = CaeAvForEventLocalization.from_backbones(source, **arguments)
        with torch.no_grad():
            torch.testing.assert_close(run(built.model.vision_tower, images), expected, atol=1e-5, rtol=1e-4)
        assert built.config.tower_sources["vision"]["revision"] == (commit if source.startswith("hf-hub") else None)
        assert run_once(built).isfinite().all()


@torch.no_grad()
def run_once(model: CaeAvForEventLocalization) -> Tensor:
    batch = toy_batch(model.config, num_frames=2)
    return model(**{name: batch[name] for name in ("pixel_values_videos", "input_features")}).frame_log_probs
