"""The method of docs/extending.md, which is one file outside the package: it is trained, explained and saved."""

import copy
import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel, CaeAvProcessor
from caeav_hf.exporting import export_program
from caeav_hf.modeling import interaction
from tests.modeling.helpers import toy_batch, toy_model
from tests.same import assert_close


DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
SECTION = re.search(r"^## A method\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
FILE, USE, SCRIPT = re.findall(r"```python\n(.*?)```", SECTION[1], re.DOTALL)
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", SECTION[1], re.DOTALL)
SAVED = Path(__file__).parents[1] / "fixtures" / "compatibility" / "saved"


@pytest.fixture(scope="module", autouse=True)
def method(tmp_path_factory: pytest.TempPathFactory):
    """Import the document's file; restore the registry afterwards."""
    folder = tmp_path_factory.mktemp("method")
    (folder / "gated_mean.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(interaction, "_INTERACTIONS", dict(interaction._INTERACTIONS))
        yield importlib.import_module("gated_mean")
    sys.modules.pop("gated_mean", None)


@pytest.fixture(scope="module")
def model(method: ModuleType) -> CaeAvForEventLocalization:
    """Build the document's model, with its zero-initialized scales opened."""
    torch.manual_seed(0)
    names: dict = {}
    exec(USE, names)
    with torch.no_grad():
        for layer in names["model"].modules():
            if isinstance(layer, method.GatedMean):
                assert layer.scale == 0
                layer.scale.fill_(1)
    return names["model"].eval()


def test_a_step_trains_every_layer_and_the_loss_is_weighed(model: CaeAvForEventLocalization) -> None:
    model = copy.deepcopy(model).train()
    outputs = model(**toy_batch(model.config))
    assert model.loss_weights["openness"] == 0.05
    weighed = sum(model.loss_weights.get(name, 1.0) * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, weighed)
    expected = torch.stack([layer.mean() for layer in outputs.explained["openness"]]).mean()
    torch.testing.assert_close(outputs.loss_dict["openness"], expected)
    outputs.loss.backward()
    layers = {name: p for name, p in model.named_parameters() if ".interactions." in name}
    assert layers
    assert all(parameter.grad.any() for parameter in layers.values())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert not torch.equal(model(**toy_batch(model.config)).loss, outputs.loss)


@torch.no_grad()
def test_its_output_has_its_name(model: CaeAvForEventLocalization) -> None:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    outputs = model(**toy_batch(model.config), frame_mask=mask)
    openness = outputs.explained["openness"]
    assert [layer.shape for layer in openness] == [(2, 4, 2)] * sum(model.config.audio_depths)
    for layer in openness:
        assert ((layer[mask] > 0) & (layer[mask] < 1)).all()
        assert not layer[~mask].any()
    assert outputs.agreement is None
    assert outputs.router_probs is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reductoin": 4}, r"unknown option 'reductoin'; expected some of reduction, openness_loss_weight"),
        ({"reduction": 0}, r"'gated_mean': `reduction` must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    config = CaeAvConfig.from_preset("ave", size="toy", interaction="gated_mean", interaction_options=options)
    with pytest.raises(CaeAvError, match=message):
        CaeAvModel(config)


def test_methods_without_options_take_none() -> None:
    with pytest.raises(CaeAvError, match="'cae_av': unknown option 'reduction'; it has no options"):
        CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", interaction_options={"reduction": 4}))


def test_a_method_without_agreement_has_no_loss_of_it() -> None:
    config = CaeAvConfig.from_preset("ave", size="toy", interaction="gated_mean", agreement_loss_weight=0.1)
    with pytest.raises(CaeAvError, match=r"`agreement_loss_weight` .* must be 0 with `interaction` 'gated_mean'"):
        CaeAvModel(config)


def test_a_loss_needs_a_weight(model: CaeAvForEventLocalization) -> None:
    model = copy.deepcopy(model)
    del model.loss_weights["openness"]
    with pytest.raises(CaeAvError, match=r"the loss 'openness' .* expected an option `openness_loss_weight`"):
        model(**toy_batch(model.config))


@torch.no_grad()
def test_it_is_saved_and_loaded(model: CaeAvForEventLocalization, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["interaction_options"] == {"reduction": 4, "openness_loss_weight": 0.05}
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    batch = toy_batch(model.config)
    assert_close(again(**batch).loss, model(**batch).loss)


def test_gradient_checkpointing_changes_no_gradient(model: CaeAvForEventLocalization) -> None:
    gradients = []
    for switch in (False, True):
        copied = copy.deepcopy(model)
        if switch:
            copied.gradient_checkpointing_enable()
        torch.manual_seed(0)
        copied.train()(**toy_batch(copied.config)).loss.backward()
        gradients.append(copied.model.interactions[0][0].to_visual.down.weight.grad)
    assert_close(*gradients)


@pytest.mark.slow
def test_its_output_is_exported(model: CaeAvForEventLocalization) -> None:
    program = export_program(model, captions=None, outputs=["class_logits", "openness"])
    names = ("pixel_values_videos", "input_features")
    batch = {name: value for name, value in toy_batch(model.config).items() if name in names}
    batch["frame_mask"] = torch.ones(2, 4, dtype=torch.bool)
    found = program.module()(**batch)
    with torch.no_grad():
        expected = model(**batch)
    assert_close(found["openness"], torch.stack(expected.explained["openness"]))
    assert_close(found["class_logits"], expected.class_logits)


@pytest.mark.slow
def test_a_run_draws_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe with the document's changes, on the small data set and the small towers of the fixtures."""
    shutil.copytree(SAVED / "prepared", tmp_path / "data")
    recipe = yaml.safe_load(RECIPE)
    config = CaeAvConfig.from_pretrained(SAVED / "whole", **recipe["model_config"])
    CaeAvForEventLocalization(config).save_pretrained(tmp_path / "model")
    CaeAvProcessor.from_pretrained(SAVED / "whole").save_pretrained(tmp_path / "model")
    recipe |= {"model": str(tmp_path / "model"), "data": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "epochs": 1, "batch_size": 2}))
    monkeypatch.setattr("sys.argv", ["train_gated_mean.py", "--recipe", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as ended:
        exec(SCRIPT, {})
    assert ended.value.code == 0
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["train/openness"] < 1


def test_weights_of_the_last_pair_pool_the_tokens() -> None:
    @interaction.register_interaction("first_token")
    class FirstToken(interaction.InteractionLayer):
        def forward(self, visual, audio, visual_block, audio_block, frames):
            output = interaction.InteractionOutput(visual_block(visual), audio_block(audio))
            if self.position.is_last:
                output.visual_pooling = torch.eye(visual.shape[1])[:1].expand(len(visual), -1)
            return output

    model = toy_model(interaction="first_token", use_case=False)
    with torch.no_grad():
        outputs = model.model(**{k: v for k, v in toy_batch(model.config).items() if "features" in k or "pixel" in k})
        normed = model.model.vision_tower.final_norm(outputs.visual_hidden_state)
    assert_close(outputs.visual_pooler_output, normed[:, :, 0])
    assert_close(outputs.audio_pooler_output, outputs.audio_hidden_state.mean(2))


def test_positions_of_the_pairs() -> None:
    """Six visual and two audio blocks in the third stage: these pair with the third and the sixth visual one."""
    model = toy_model(vision_config={"depths": (1, 1, 6, 1)}, use_case=False)
    positions = [layer.position for stage in model.model.interactions for layer in stage]
    assert [position.stage for position in positions] == [1, 2, 3, 3, 4]
    assert [position.is_first for position in positions] == [True, True, True, False, True]
    assert [position.is_last for position in positions] == [False] * 4 + [True]
    assert [position.visual.index for position in positions] == [0, 1, 4, 7, 8]
    assert [position.audio.index for position in positions] == [0, 1, 2, 3, 4]
    assert [position.visual.index_in_stage for position in positions] == [0, 0, 2, 5, 0]
    assert {(position.visual.depth, position.audio.depth) for position in positions} == {(9, 5)}
    assert [position.visual.num_heads for position in positions] == [1, 2, 4, 4, 8]
    for position in positions:
        for block in (position.visual, position.audio):
            assert block.grid[0] * block.grid[1] == block.num_tokens


def test_a_loss_of_the_model_is_not_replaced(method: ModuleType) -> None:
    @interaction.register_interaction("greedy")
    class Greedy(method.GatedMeanInteraction):
        @classmethod
        def loss_weights(cls, config: CaeAvConfig) -> dict[str, float]:
            return {**super().loss_weights(config), "caption": 1.0}

    with pytest.raises(CaeAvError, match="names a loss 'caption'"):
        CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", interaction="greedy"))
