"""The tower of docs/extending.md, which is one file outside the package: it reads frames and sound, and is saved."""

import copy
import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from caeav_hf import (
    CaeAvConfig,
    CaeAvError,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
)
from caeav_hf.cli import main
from caeav_hf.data import CaeAvDataset
from caeav_hf.modeling import interaction
from caeav_hf.modeling.avmoe import AVMoEInteraction
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.towers import base
from caeav_hf.towers.loading import load_tower, save_tower
from caeav_hf.towers.lora import tower_lora_config
from caeav_hf.training.frozen_weights import cast_linear_layers
from tests.lanes import slow_after
from tests.modeling.helpers import randomise, toy_batch, toy_model
from tests.same import assert_close
from tests.training.toy_files import toy_data


DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
SECTION = re.search(r"^## A tower\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
FILE, USE, LOAD = re.findall(r"```python\n(.*?)```", SECTION[1], re.DOTALL)

VISION = {"model_type": "patch_transformer"}
SOUND = {"model_type": "patch_transformer_sound", "num_mel_bins": 32, "tile_seconds": 1}


@pytest.fixture(scope="module", autouse=True)
def tower(tmp_path_factory: pytest.TempPathFactory):
    """Import the document's file; restore the registries afterwards."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / "patch_transformer.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(base, "_TOWERS", dict(base._TOWERS))
        patch.setattr(CONFIG_MAPPING, "_extra_content", dict(CONFIG_MAPPING._extra_content))
        yield importlib.import_module("patch_transformer")
    sys.modules.pop("patch_transformer", None)


def gradients(model: CaeAvForEventLocalization) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(**toy_batch(model.config)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("interaction", slow_after(1, ["cae_av", "avmoe"]))
@pytest.mark.parametrize(
    "towers", [{"vision_config": VISION}, {"audio_config": SOUND}, {"vision_config": VISION, "audio_config": SOUND}]
)
def test_a_step_in_every_place(towers: dict[str, Any], interaction: str) -> None:
    """With Swin-V2 or HTS-AT, which have other numbers of stages and blocks, and with itself."""
    model = toy_model(**towers, interaction=interaction, adapter_stages=[1]).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("_tower." in name for name in trained)
    before = model(**toy_batch(model.config)).loss
    before.backward()
    torch.optim.SGD(trained.values(), 0.1).step()
    assert model(**toy_batch(model.config)).loss != before


def test_the_documents_model_is_saved_and_loaded(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(USE, names)
    model = names["model"].eval()
    assert [len(stage) for stage in model.model.interactions] == [3]
    model.save_pretrained(tmp_path)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert type(again.config.vision_config).__name__ == "PatchTransformerConfig"
    assert type(again.config.audio_config).__name__ == "PatchTransformerSoundConfig"
    batch = toy_batch(model.config)
    with torch.no_grad():
        expected, outputs = model(**batch), again(**batch)
    assert_close(outputs.class_logits, expected.class_logits)
    vision = model.model.vision_tower
    tokens = vision.norm(expected.visual_hidden_state)
    assert_close(expected.visual_pooler_output, tokens[:, :, 0])
    assert model.get_input_embeddings() is vision.patches
    processor = CaeAvProcessor.from_config(model.config)
    assert (processor.video_processor.size["height"], processor.feature_extractor.feature_size) == (32, 32)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CaeAvForEventLocalization, Path]:
    """Return the document's pretrained model, and the folder with its files."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_for_hf(vit, str(folder / "timm"), model_args=sizes, safe_serialization=True)
    names: dict[str, Any] = {"timm_folder": folder / "timm"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(USE, names)
        exec(LOAD, names)
    found = names["pretrained"].model.audio_tower.state_dict()
    assert all(
        torch.equal(found[name], value) for name, value in names["model"].model.audio_tower.state_dict().items()
    )
    return names["pretrained"], folder


def test_weights_of_timm(pretrained: tuple[CaeAvForEventLocalization, Path]) -> None:
    model, folder = pretrained
    pixels = torch.randn(2, 3, 32, 32)
    timm_model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    reader = base.TowerReader(model.model.vision_tower)
    with torch.no_grad():
        tokens = reader.final_norm(reader.walk(reader.embed(pixels)).finish())
        torch.testing.assert_close(tokens, timm_model.forward_features(pixels), atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for tower in model.model.towers() for parameter in tower.parameters())


def test_adapter_only_checkpoints(pretrained: tuple[CaeAvForEventLocalization, Path]) -> None:
    model, folder = pretrained
    again = CaeAvForEventLocalization.from_pretrained(folder / "adapters")
    batch = toy_batch(model.config)
    with torch.no_grad():
        assert_close(again(**batch).class_logits, model(**batch).class_logits)
    weights = load_file(folder / "adapters" / "model.safetensors")
    assert weights
    assert not any("_tower." in name for name in weights)
    other = copy.deepcopy(model.model.audio_tower)
    nn.init.ones_(other.class_token)
    save_tower(other, folder / "other")
    with pytest.raises(CaeAvError, match=r"audio tower .* not the one"):
        CaeAvForEventLocalization.from_pretrained(folder / "adapters", towers={"audio": folder / "other"})


def test_wrong_pretrained_towers(pretrained: tuple[CaeAvForEventLocalization, Path]) -> None:
    model, folder = pretrained
    with pytest.raises(CaeAvError, match="'patch_transformer_sound', expected a 'cae_av_audio'"):
        load_tower("audio", folder / "sound_tower", overrides={"model_type": "cae_av_audio"})
    with pytest.raises(CaeAvError, match=r"is a VisionTransformer, expected a model that one of SwinV2Tower converts"):
        load_tower("vision", folder / "timm", overrides={"model_type": "cae_av_vision"})
    (folder / "broken").mkdir()
    model.config.vision_config.save_pretrained(folder / "broken")
    with pytest.raises(CaeAvError, match=r"`vision`: cannot load .*broken"):
        load_tower("vision", folder / "broken")


@pytest.mark.slow
def test_caeav_prepare(pretrained: tuple[CaeAvForEventLocalization, Path], tmp_path: Path) -> None:
    model, folder = pretrained
    shutil.copytree(folder / "adapters", tmp_path / "model")
    CaeAvProcessor.from_config(model.config).save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--num-proc", "1"]
    assert main(["prepare", str(toy_data()), *arguments]) == 0
    processor = CaeAvProcessor.from_pretrained(tmp_path / "model")
    clip = CaeAvDataset(tmp_path / "out", processor, split="train")[0]
    assert clip["pixel_values_videos"].shape[1:] == (3, 32, 32)
    assert clip["input_features"].shape[-1] == 32


def test_modules_of_a_frozen_tower_that_keep_their_precision(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(vision_config=VISION).train()
    monkeypatch.setattr(tower.PatchTransformer, "full_precision_modules", ("output",))
    cast_linear_layers(torch.bfloat16, model.model.vision_tower)
    layer = model.model.vision_tower.layers[0]
    assert (layer.qkv.weight.dtype, layer.output.weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_lora(pretrained: tuple[CaeAvForEventLocalization, Path], tmp_path: Path, tower: Any) -> None:
    model = CaeAvForEventLocalization.from_pretrained(pretrained[1] / "adapters")
    batch = toy_batch(model.config)
    model.add_lora(tower_lora_config(rank=2, model=model))
    adapted = {name.rsplit(".lora_", 1)[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert {".".join(name.split(".")[1:]) for name in adapted} == {
        f"{kind}_tower.layers.{block}.{layer}"
        for kind in ("vision", "audio")
        for block in range(3)
        for layer in ("qkv", "output")
    }
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "lora_B" in name)
    randomise(model)
    model.save_pretrained(tmp_path, adapter_only=True)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(again(**batch).class_logits, model.eval()(**batch).class_logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower.PatchTransformer, "lora_targets", None)
        with pytest.raises(CaeAvError, match=r"vision tower, a PatchTransformer, names no `lora_targets`"):
            tower_lora_config(model=model)


def test_values_of_a_tower_survive_although_they_are_defaults_of_another(tmp_path: Path) -> None:
    values = {**VISION, "patch_size": 4, "image_size": 192, "num_hidden_layers": 2}
    config = CaeAvConfig.from_preset("ave", size="toy", vision_config=values)
    config.save_pretrained(tmp_path)
    again = CaeAvConfig.from_pretrained(tmp_path)
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
    assert again.visual_stages == config.visual_stages


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = toy_model(vision_config=VISION, attention_dropout=0.0, branch_dropout=0.0, head_dropout=0.0).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name])


def test_heads_that_read_tokens_leave_the_class_token_out() -> None:
    segmentation = CaeAvForSegmentation(CaeAvConfig.from_preset("avs_s4", size="toy", vision_config=VISION))
    batch = {
        name: value
        for name, value in toy_batch(segmentation.config).items()
        if name in ("pixel_values_videos", "input_features")
    }
    with torch.no_grad():
        assert segmentation(**batch).logits.shape[-2:] == (64, 64)
        answering = CaeAvForQuestionAnswering(CaeAvConfig.from_preset("avqa", size="toy", vision_config=VISION))
        outputs = answering(**batch, question_ids=torch.randint(1, 90, (2, 4)))
    assert outputs.grounding.shape[-1] == 16


@pytest.mark.parametrize("vision", [VISION, None], ids=["patch_transformer", "swin_v2"])
def test_a_shared_tower_reads_sound_of_other_sides(vision: dict | None) -> None:
    """Different numbers of tokens in the two streams of one tower."""
    sound = {"num_mel_bins": 32, "spectrogram_frames": 64}
    towers = {"audio_config": sound, **({} if vision is None else {"vision_config": vision})}
    model = toy_model(shared_tower=True, adapter_stages=[1], **towers)
    outputs = model(**toy_batch(model.config))
    visual, audio = model.config.visual_stages[-1], model.config.audio_stages[-1]
    assert visual.num_tokens != audio.num_tokens
    assert outputs.visual_hidden_state.shape[2:] == (visual.num_tokens, visual.hidden_size)
    assert outputs.audio_hidden_state.shape[2:] == (audio.num_tokens, audio.hidden_size)
    outputs.loss.backward()
    processor = CaeAvProcessor.from_config(model.config)
    sound = processor.feature_extractor(torch.zeros(16_000).numpy(), sampling_rate=16_000)["input_features"]
    assert sound.shape[-2:] == (64, 32)


def test_a_method_changes_the_tokens_before_the_first_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a method with a learned table for each stream."""
    monkeypatch.setattr(interaction, "_INTERACTIONS", dict(interaction._INTERACTIONS))

    @interaction.register_interaction("tables")
    class Tables(AVMoEInteraction):
        @classmethod
        def shared_modules(cls, config):
            sizes = (config.visual_stages[0].hidden_size, config.audio_stages[0].hidden_size)
            return {"tables": nn.ParameterList(nn.Parameter(torch.zeros(1, 1, size)) for size in sizes)}

        @classmethod
        def embed(cls, config, visual, audio, frames, shared):
            visual_table, audio_table = shared["tables"]
            return visual + visual_table, audio + audio_table

    model = toy_model(interaction="tables", vision_config=VISION).eval()
    batch = toy_batch(model.config)
    plain = toy_model(interaction="avmoe", vision_config=VISION).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "tables" not in name})
    outputs = model(**batch, output_hidden_states=True)
    assert_close(outputs.loss, plain(**batch).loss)
    outputs.loss.backward()
    assert all(table.grad.any() for table in model.model.tables)
    with torch.no_grad():
        model.model.tables[0].fill_(1.0)
        moved = model(**batch, output_hidden_states=True)
    assert_close(moved.visual_hidden_states[0], outputs.visual_hidden_states[0] + 1)
    assert not torch.allclose(moved.loss, outputs.loss)


def test_without_a_text_tower(tmp_path: Path) -> None:
    model = toy_model(use_text_tower=False).eval()
    assert not any("text_tower" in name for name in model.state_dict())
    batch = toy_batch(model.config)
    with pytest.raises(CaeAvError, match="use_text_tower"):
        model(**batch)
    ids = [name for name in batch if name.endswith("caption_ids")]
    features = {name.replace("ids", "embeds"): torch.randn(*batch[name].shape, 64) for name in ids}
    batch = {**{name: value for name, value in batch.items() if name not in ids}, **features}
    model.save_pretrained(tmp_path)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(again(**batch).loss, model(**batch).loss)


def test_unregistered_towers() -> None:
    with pytest.raises(CaeAvError, match=r"vision_config.*'resnet_of_tomorrow'.*registers it"):
        CaeAvConfig.from_preset("ave", size="toy", vision_config={"model_type": "resnet_of_tomorrow"})


@pytest.mark.parametrize(
    ("visual", "audio", "pairs"),
    [
        # Table I's towers, stage by stage.
        ([1, 1, 3], [1, 1, 1], [[(0, 0)], [(1, 1)], [(4, 2)]]),
        ([12], [2, 2, 6, 2], [[(i, i) for i in part] for part in ([0, 1], [2, 3], range(4, 10), [10, 11])]),
        ([4], [1, 1], [[(1, 0)], [(3, 1)]]),
        ([1, 1], [4], [[(0, 1)], [(1, 3)]]),
        ([2, 3], [2, 2], [[(0, 0), (1, 1)], [(2, 2), (4, 3)]]),
    ],
)
def test_pairs(visual: list[int], audio: list[int], pairs: list[list[tuple[int, int]]]) -> None:
    assert base.pair_blocks(visual, audio) == pairs
