"""LoRA on the towers: gradients, caches, and saving, loading and merging by peft."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from caeav_hf import CaeAvError, CaeAvForEventLocalization, CaeAvForQuestionAnswering
from caeav_hf.assets import toy_towers
from caeav_hf.towers.frozen import trained_names
from caeav_hf.towers.lora import tower_lora_config
from tests.lanes import slow_after
from tests.modeling.helpers import as_double, randomise, toy_answering_model, toy_batch
from tests.same import assert_close


pytestmark = pytest.mark.slow


ALL = ("vision", "audio", "text")


@pytest.fixture(scope="module")
def base() -> CaeAvForEventLocalization:
    torch.manual_seed(0)
    return randomise(CaeAvForEventLocalization.from_backbones(**toy_towers(), size="toy")).eval()


@pytest.fixture
def model(base: CaeAvForEventLocalization) -> CaeAvForEventLocalization:
    return copy.deepcopy(base)


def shake(model: torch.nn.Module) -> None:
    """Randomise LoRA, which is initially zero, so that it has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    batch = toy_batch(model.config)
    batch.pop("labels")
    output = model.eval()(**batch)
    return torch.cat([output.event_logits.flatten(), output.class_logits.flatten()])


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    return model.train()(**toy_batch(model.config)).loss


def test_every_matrix_gets_a_gradient_and_the_towers_none(model: CaeAvForEventLocalization) -> None:
    before = trained_names(model)
    unchanged = logits(model)
    model.add_lora(tower_lora_config(rank=2, towers=ALL))
    assert_close(logits(model), unchanged)
    shake(model)
    loss_of(model).backward()
    lora = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for tower in ALL:
        assert any(f".{tower}_tower." in name for name in lora)
    for name, parameter in lora.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in before or name in lora), name


@pytest.mark.parametrize("checkpointing", slow_after(1, [False, True]))
def test_gradients_are_those_of_the_weights_beside(model: CaeAvForEventLocalization, checkpointing: bool) -> None:
    """W + s B A has, by the chain rule, the gradients s B' G and s G A' where G is that of the whole weight."""
    model.add_lora(tower_lora_config(rank=2, alpha=6))
    shake(model.double())
    whole = copy.deepcopy(model)
    whole.merge_lora()
    for name in ("vision_tower", "audio_tower"):
        getattr(whole.model, name).requires_grad_(True)
    batch = as_double(toy_batch(model.config))
    if checkpointing:
        model.gradient_checkpointing_enable()
    for one in (model, whole):
        torch.manual_seed(0)  # of dropout
        one.train()(**batch).loss.backward()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert len(layers) == 2 * 5 + 4 * 5
    for name, layer in layers.items():
        gradient = whole.get_submodule(name).weight.grad
        first, second = layer.lora_A.default.weight, layer.lora_B.default.weight
        torch.testing.assert_close(first.grad, 3 * second.T @ gradient, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(second.grad, 3 * gradient @ first.T, rtol=1e-4, atol=1e-9)


def test_negatives_of_question_answering_train_it() -> None:
    model: CaeAvForQuestionAnswering = toy_answering_model()
    model.add_lora(tower_lora_config(rank=2, towers=["vision"]))
    shake(model)
    batch = toy_batch(model.config)
    negative = torch.randn_like(batch["pixel_values_videos"])
    output = model(
        batch["pixel_values_videos"],
        batch["input_features"],
        torch.ones(2, 3, dtype=torch.long),
        pixel_values_negative=negative,
        labels=torch.tensor([0, 1]),
    )
    output.match_logits_negative.sum().backward()
    grads = [p.grad for name, p in model.named_parameters() if "vision_tower" in name and "lora_B" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_checkpoints_hold_it(model: CaeAvForEventLocalization, tmp_path: Path) -> None:
    model.add_lora(tower_lora_config(rank=2, alpha=4, dropout=0.1, towers=ALL))
    shake(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "small", adapter_only=True)
    assert set(load_file(tmp_path / "small/model.safetensors")) == {
        name for name in trained_names(model) if "relative_position_index" not in name
    }
    for folder in ("whole", "small"):
        again = CaeAvForEventLocalization.from_pretrained(tmp_path / folder)
        assert_close(logits(again), expected)
        assert trained_names(again) == trained_names(model)
        assert again.config.lora == model.config.lora


def test_a_new_model_begins_with_lora_at_zero(model: CaeAvForEventLocalization) -> None:
    config = copy.deepcopy(model.config)
    config.lora = {"r": 2, "target_modules": r"vision_tower\..*\.qkv"}
    new = CaeAvForEventLocalization(config)
    matrices = {name: p for name, p in new.named_parameters() if "lora_" in name}
    assert {name.split(".")[-3] for name in matrices} == {"lora_A", "lora_B"}
    assert all(bool(p.any()) == ("lora_A" in name) for name, p in matrices.items())


def test_merging(model: CaeAvForEventLocalization, tmp_path: Path) -> None:
    untouched = logits(model)
    model.add_lora(tower_lora_config(rank=2, towers=ALL))
    with pytest.raises(CaeAvError, match="already has LoRA"):
        model.add_lora(tower_lora_config())
    shake(model)
    expected = logits(model)
    assert not torch.allclose(expected, untouched, atol=1e-3)
    unloaded = copy.deepcopy(model)
    unloaded.unload_lora()
    assert_close(logits(unloaded), untouched)
    model.merge_lora()
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    # Its towers have no source now.
    with pytest.raises(CaeAvError, match=r"vision tower .* not, or no longer"):
        model.save_pretrained(tmp_path, adapter_only=True)
    model.save_pretrained(tmp_path)
    assert_close(logits(CaeAvForEventLocalization.from_pretrained(tmp_path)), logits(model))


def test_peft_reads_what_it_saves(model: CaeAvForEventLocalization, base, tmp_path: Path) -> None:
    with pytest.raises(CaeAvError, match="no LoRA"):
        model.save_lora(tmp_path)
    model.add_lora(tower_lora_config(rank=2))
    shake(model)
    model.save_lora(tmp_path)
    expected = logits(model)
    assert_close(logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), expected)


@pytest.mark.parametrize("target_modules", [["qkv", "query", "value", "c_fc"], "all-linear"])
def test_peft_alone(model: CaeAvForEventLocalization, base, target_modules, tmp_path: Path) -> None:
    """peft's own interface: wrap, save, load, disable, merge; "all-linear" includes the cached position biases."""
    untouched = logits(model)  # fills all caches
    elsewhere = r".*(interactions|case|head|caption_mapper|projections|text_tower.*out_proj|audio_projection).*"
    config = LoraConfig(r=2, target_modules=target_modules, exclude_modules=elsewhere)
    wrapped = get_peft_model(model, config)
    # PyTorch uses other kernels if nothing is trained, so the last bits differ.
    assert_close(logits(wrapped), untouched)
    untouched = logits(wrapped)
    shake(wrapped)
    adapted = logits(wrapped)
    assert not torch.allclose(adapted, untouched, atol=1e-3)
    with wrapped.disable_adapter():
        assert_close(logits(wrapped), untouched)
    assert_close(logits(wrapped), adapted)
    wrapped.save_pretrained(tmp_path)
    again = copy.deepcopy(base)
    assert_close(logits(again), untouched)
    # Merged at once: no cached values may remain.
    merged = PeftModel.from_pretrained(again, tmp_path).merge_and_unload()
    assert isinstance(merged, CaeAvForEventLocalization)
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)
    loss_of(wrapped).backward()
    trained = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert all(parameter.grad is not None for parameter in trained.values())


def test_dropout_of_lora_is_that_of_training(model: CaeAvForEventLocalization) -> None:
    model.add_lora(tower_lora_config(rank=2, dropout=0.5))
    shake(model)
    assert_close(logits(model), logits(model))
    batch = toy_batch(model.config)
    tower = model.train().model.vision_tower
    assert not tower.training
    tokens = tower.embed(batch["pixel_values_videos"].flatten(0, 1))
    block = tower.blocks(0)[0]
    assert not torch.allclose(block.attention(tokens), block.attention(tokens), atol=1e-4)


def test_wrong_targets(model: CaeAvForEventLocalization) -> None:
    for config, message in (
        (LoraConfig(target_modules=["down"]), "for the towers"),
        (LoraConfig(target_modules=["nowhere"]), "nowhere"),
        (LoraConfig(r=0, target_modules=["qkv"]), "positive"),
    ):
        with pytest.raises(CaeAvError, match=message):
            model.add_lora(config)
        assert model.config.lora is None
    with pytest.raises(CaeAvError, match="some of vision, audio, text, got video"):
        tower_lora_config(towers=["video"])


def test_in_place_of_the_adapters() -> None:
    towers = toy_towers()
    model = CaeAvForEventLocalization.from_backbones(**towers, size="toy", interaction="avmoe", adapter_stages=[])
    assert not list(model.model.interactions.parameters())
    model.add_lora(tower_lora_config(rank=2))
    loss_of(model).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_B" in n)
