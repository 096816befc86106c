"""Tokens of frozen towers that are stored: same results, nothing read by mistake, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from caeav_hf import CaeAvError
from caeav_hf.training.command import main
from caeav_hf.training.recipe import Recipe
from tests.modeling.helpers import toy_batch, toy_model, toy_segmentation_model
from tests.tasks.sound_source_understanding.helpers import NO_DROPOUT, small_batch, small_model
from tests.training.toy_files import toy_data


LATER = {"interaction": "avmoe", "adapter_stages": (2,), "router_noise_std": 0.0}


def losses(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch and the gradients."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model.train()(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def refuse(*_):
    raise AssertionError("the tower reads the clip again")


@pytest.mark.parametrize("changes", [LATER, {**LATER, "adapter_stages": ()}], ids=["second stage", "head alone"])
def test_known_clips_skip_the_towers_and_give_the_same_loss_and_gradients(changes, monkeypatch, tmp_path: Path):
    model = toy_model(**changes)
    batch = toy_batch(model.config)
    batch["frame_mask"] = torch.tensor([[True, True, False, False], [True] * 4])
    expected = losses(model, batch)
    model.model.use_tower_cache(tmp_path)
    assert_close(losses(model, batch), expected, rtol=1e-6, atol=1e-7)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2

    monkeypatch.setattr(model.model, "embed_frames", refuse)
    assert_close(losses(model, batch), expected, rtol=1e-6, atol=1e-7)
    # In another batch, where a clip has other neighbours and no padding.
    alone = {name: tensor[1:] for name, tensor in batch.items() if name != "frame_mask"}
    with torch.no_grad():
        found = model.eval()(**alone)
    model.model.tower_cache = None
    monkeypatch.undo()
    with torch.no_grad():
        assert_close(found.frame_log_probs, model(**alone).frame_log_probs, rtol=1e-5, atol=1e-6)


def test_other_weights_frames_and_sounds_are_computed_and_broken_files_written_again(tmp_path: Path):
    model = toy_model(**LATER)
    batch = toy_batch(model.config, batch_size=1)
    model.model.use_tower_cache(tmp_path)

    def check(count: int) -> None:
        cache = model.model.tower_cache
        with torch.no_grad():
            found = model(**batch).loss
            model.model.tower_cache = None
            assert_close(found, model(**batch).loss, rtol=1e-6, atol=1e-7)
        model.model.tower_cache = cache
        assert len(list(tmp_path.rglob("*.safetensors"))) == count

    check(1)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    check(1)
    assert path.read_bytes() == whole
    batch["pixel_values_videos"][0, 1] += 0.1
    check(2)
    batch["input_features"][0, 1] += 1.0
    check(3)
    with torch.no_grad():
        next(model.model.audio_tower.parameters()).add_(0.1)
    check(4)


@pytest.mark.slow
def test_segmentation_reads_the_maps_of_all_stages(monkeypatch, tmp_path: Path):
    model = toy_segmentation_model(**LATER)
    batch = toy_batch(model.config)
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch).logits
        model.model.use_tower_cache(tmp_path)
        model(**batch)
        monkeypatch.setattr(model.model, "embed_frames", refuse)
        assert_close(model(**batch).logits, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_ssuformer_stores_maps_and_sounds_until_its_tower_is_trained(monkeypatch, tmp_path: Path):
    model = small_model(**NO_DROPOUT, unfreeze_vision_epoch=1)
    batch = small_batch(model.config)
    expected = losses(model, batch)
    model.model.use_tower_cache(tmp_path)
    losses(model, batch)
    with monkeypatch.context() as patch:
        for tower in (model.model.vision_tower, model.model.audio_tower):
            patch.setattr(tower, "embed", refuse)
        assert_close(losses(model, batch), expected, rtol=1e-5, atol=1e-6)
    model.start_epoch(1)
    assert any("vision_tower" in name for name in losses(model, batch)[1])


def test_a_trained_first_layer_and_augmentation_are_refused(tmp_path: Path):
    for changes in ({}, {"interaction": "avmoe"}, {**LATER, "trained_tower_norms": "all"}):
        with pytest.raises(CaeAvError, match="`tower_cache` needs a model whose first layers are not trained"):
            toy_model(**changes).model.use_tower_cache(tmp_path)
    with pytest.raises(CaeAvError, match=r"'tower_cache' must be null with augmentation \(spec_augment\)"):
        Recipe(tower_cache="towers", spec_augment=True)


@pytest.mark.slow
def test_a_run_with_the_cache_is_the_same(monkeypatch, tmp_path: Path):
    def run(name: str, *arguments: str) -> list[dict]:
        flags = {"--task": "ave", "--size": "toy", "--data": toy_data(), "--output-dir": tmp_path / name}
        flags |= {"--cache-dir": tmp_path / "clips", "--batch-size": 2, "--accumulation-steps": 1, "--epochs": 2}
        flat = [str(part) for pair in flags.items() for part in pair]
        changes = ["--model-config", "interaction=avmoe", "adapter_stages=[2]", "agreement_loss_weight=0"]
        assert main([*flat, *arguments, *changes]) == 0
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]

    expected = run("without")
    cache = ["--tower-cache", str(tmp_path / "towers")]
    for name in ("first", "second"):
        for found, record in zip(run(name, *cache), expected, strict=True):
            assert found == pytest.approx(record, rel=1e-4, abs=1e-6)
    # Clips of both splits, each once.
    assert len(list((tmp_path / "towers").rglob("*.safetensors"))) == 13
