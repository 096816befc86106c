"""Contents of checkpoints."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from caeav_hf.towers.frozen import trained_names
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from caeav_hf.training.sharding import full_state_dicts, load_optimizer_state
from tests.training.tiny_training import TinyModel, tiny_model, tiny_recipe, tiny_trainer


def test_trained_names_are_adapters_heads_and_their_statistics():
    names = trained_names(tiny_model())
    assert names == {
        *("adapter.weight", "adapter.bias", "head.weight", "head.bias", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    }


def test_a_checkpoint_is_a_model_folder(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe())
    trainer.fit()
    for name in ("last", "best"):
        loaded = TinyModel.from_pretrained(tmp_path / "checkpoints" / name)
        assert (tmp_path / "checkpoints" / name / "processor_config.json").is_file()
    last = TinyModel.from_pretrained(tmp_path / "checkpoints" / "last").state_dict()
    assert all(torch.equal(last[name], tensor) for name, tensor in trainer.bare_model.state_dict().items())
    assert not loaded.training
    assert not (tmp_path / "checkpoints" / "average").exists()  # only on request


def test_frozen_weights_are_stored_once_and_have_no_optimizer_state(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=4))
    trainer.fit()
    checkpoints = tmp_path / "checkpoints"
    frozen = checkpoints / "last" / "model-00002-of-00002.safetensors"
    (shared,) = checkpoints.glob("frozen-*.safetensors")
    assert os.path.samefile(frozen, shared)
    assert all(name.startswith("tower.") for name in load_file(frozen))
    assert not any(
        name.startswith("tower.") for name in load_file(checkpoints / "last/model-00001-of-00002.safetensors")
    )
    optimizer = torch.load(checkpoints / "last/training_state/optimizer.pt", weights_only=True)["optimizer"]
    trained = [parameter for parameter in trainer.bare_model.parameters() if parameter.requires_grad]
    assert len(optimizer["state"]) == len(trained) == 6


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=5, save_steps=1))
    worse = iter([1.0, 0.5, 2.0, 3.0, 4.0])
    object.__setattr__(trainer, "task", _with_values(trainer.task, worse))
    trainer.fit()
    checkpoints = tmp_path / "checkpoints"
    folders = sorted(path.name for path in checkpoints.glob("step-*"))
    assert folders == [trainer.state.best_checkpoint, (checkpoints / "last").resolve().name]
    assert (checkpoints / "best").resolve().name == trainer.state.best_checkpoint
    # The best model stays loadable; only the newest one can be resumed.
    assert not (checkpoints / "best" / "training_state").exists()
    TinyModel.from_pretrained(checkpoints / "best")


def _with_values(task, values):
    class Sums:
        def __add__(self, other):
            return self

        def scores(self):
            return {"error": next(values)}

    return replace(task, metric=lambda outputs, inputs: [Sums() for _ in inputs["labels"]])


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    tiny_trainer(tmp_path, tiny_recipe(epochs=1)).fit()
    TinyModel.from_pretrained(tmp_path / "checkpoints" / "last")


@pytest.mark.parametrize("has_stepped", [False, True])
def test_what_had_no_gradient_yet_has_no_optimizer_state(has_stepped):
    model = tiny_model()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), weight_decay=0.1)
    if has_stepped:
        model.head(torch.randn(3, 8)).sum().backward()
        optimizer.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, saved = full_state_dicts(model, optimizer)
    assert saved["state"].keys() == ({"head.weight", "head.bias"} if has_stepped else set())
    assert len(optimizer.state) == len(saved["state"])
    other = tiny_model(seed=1)
    resumed = torch.optim.Adam((p for p in other.parameters() if p.requires_grad), weight_decay=0.1)
    other.load_state_dict(weights)
    load_optimizer_state(other, resumed, saved)
    assert len(resumed.state) == len(saved["state"])
    for parameter, values in zip(optimizer.state, resumed.state.values(), strict=True):
        assert all(torch.equal(values[name], value) for name, value in optimizer.state[parameter].items())
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_mean_of_the_last_epochs_is_a_model_too(tmp_path):
    ends = []

    def trainer_of(folder, **arguments):
        trainer = tiny_trainer(folder, tiny_recipe(epochs=4, average_from_epoch=2, save_steps=1), **arguments)
        save = trainer._save

        def noted(name, is_averaged=False):
            if is_averaged:
                ends.append({key: value.clone() for key, value in trainer.bare_model.state_dict().items()})
            save(name, is_averaged)

        trainer._save = noted
        return trainer

    trainer_of(tmp_path / "whole").fit()
    assert len(ends) == 3
    found = TinyModel.from_pretrained(tmp_path / "whole" / "checkpoints" / "average").state_dict()
    for name, value in found.items():
        expected = torch.stack([end[name].double() for end in ends]).mean(0)
        if name.startswith("tower.") or not value.is_floating_point():
            expected = ends[-1][name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert (tmp_path / "whole" / "checkpoints" / "average" / "processor_config.json").is_file()

    # A run that is interrupted inside an epoch, and goes on, takes the same mean.
    stopped = trainer_of(tmp_path / "again")
    stopped.recipe = replace(stopped.recipe, max_steps=8)
    stopped.fit()
    assert 0 < stopped.state.averaged_epochs < 3
    last = find_checkpoint(tmp_path / "again")
    resumed = trainer_of(tmp_path / "again", model=TinyModel.from_pretrained(last), resume=last)
    resumed.resume(last, read_loop_state(last))
    resumed.fit()
    again = TinyModel.from_pretrained(tmp_path / "again" / "checkpoints" / "average").state_dict()
    assert all(torch.equal(again[name], found[name]) for name in found)
