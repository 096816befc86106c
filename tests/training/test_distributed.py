"""Training and evaluation on two processes, compared with one."""

import json

import pytest
import torch
from accelerate import Accelerator

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.task import get_task
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state, restore_training_state
from caeav_hf.training.order import epoch_batches
from caeav_hf.training.schedule import build_optimizer
from tests.training.distributed_run import JOBS, KILLED_RECIPE, SHARDED, toy_task
from tests.training.tiny_training import TinyData, TinyModel, run_program, tiny_model, tiny_recipe, tiny_trainer


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed training"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder with the output of the program."""
    return run_program("distributed_run.py", tmp_path_factory.mktemp("distributed"))


def found(runs, number, task):
    return json.loads((runs / number / task / "found.json").read_text())


@pytest.mark.parametrize("job", JOBS)
def test_the_number_of_processes_changes_no_loss_and_no_metric(runs, job):
    one, two = (found(runs, number, job) for number in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    # Including two steps of the second epoch. Later, rounding errors of the float32 losses grow too large.
    assert len(one["steps"]) == (8 if job.startswith("avqa") else 5)
    for first, second in zip(one["steps"], two["steps"], strict=True):
        assert second == {name: pytest.approx(value, abs=1e-5) for name, value in first.items()}
    for first, second in zip(one["history"], two["history"], strict=True):
        terms = {"train/caption", "train/entropy", "train/alignment"} if JOBS[job][1] is None else set()
        if job == "ra_ssu":
            terms = {"train/segmentation", "train/description", "train/consistency", "eval/meteor"}
        assert {"train/loss", *terms} <= first.keys()
        compared = {name: value for name, value in first.items() if name != "seconds"}
        # Accuracies must be equal; among many pixels, rounding moves a few over the threshold.
        of_pixels = {"eval/j", "eval/f", "eval/f_whole_set", "eval/understanding"}
        expected = {
            name: pytest.approx(value, abs=1e-3 if name in of_pixels else 1e-5)
            if name in of_pixels or not name.startswith("eval/")
            else value
            for name, value in compared.items()
        }
        assert {name: value for name, value in second.items() if name != "seconds"} == expected


@pytest.mark.parametrize("job", ["ave", "ave_dg_sct", "ave_lavish"])
def test_running_statistics_are_those_of_all_processes(runs, job):
    one, two = (torch.load(runs / number / job / "weights.pt", weights_only=True) for number in ("one", "two"))
    names = [name for name in one if "batch_norm_" in name and "running_" in name]
    assert names
    for name in names:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)


def test_two_processes_do_what_one_does_with_twice_the_batch(runs):
    one, two = (found(runs, number, "tiny") for number in ("one", "two"))
    weights_of_one, weights_of_two = (
        torch.load(runs / number / "tiny" / "weights.pt", weights_only=True) for number in ("one", "two")
    )
    for name, tensor in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=1e-4, atol=1e-6)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first["train/dropped_clips"] == 2
        assert (second["step"], second["train/dropped_clips"]) == (first["step"], first["train/dropped_clips"])
        assert (second["eval/clips"], second["eval/dropped_clips"]) == (7, 0)
        assert second["eval/error"] == pytest.approx(first["eval/error"], rel=1e-4)
        assert second["train/loss"] == pytest.approx(first["train/loss"], rel=1e-4)
    # Every process saved its random generators.
    state = find_checkpoint(runs / "two" / "tiny") / "training_state"
    assert {path.name for path in state.glob("random-*.pt")} == {"random-0.pt", "random-1.pt"}


def test_only_what_is_trained_is_sent(runs):
    parameters = tiny_model(batch_norm=False).parameters()
    assert found(runs, "two", "tiny")["sent"] == [sum(p.numel() for p in parameters if p.requires_grad)]


@pytest.mark.parametrize("job", SHARDED)
def test_divided_weights_train_as_whole_ones_and_come_together(runs, job):
    task, sharding, steps = SHARDED[job]
    one, divided = found(runs, "one", task), found(runs, "two", job)
    for first, second in zip(one["steps"][:steps], divided["steps"], strict=True):
        assert second == {name: pytest.approx(value, abs=1e-5) for name, value in first.items()}
    # The checkpoint is an ordinary model folder with the gathered weights.
    checkpoint = find_checkpoint(runs / "two" / job)
    model = get_task(task).model_class.from_pretrained(checkpoint)
    weights = torch.load(runs / "two" / job / "weights.pt", weights_only=True)
    assert model.state_dict().keys() == weights.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    # Each process holds half of the sharded parameters; sharding towers shards more.
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "_tower." not in name)
    share = divided["here"] / trained
    assert share > 0.55 if sharding == "towers" else share == pytest.approx(0.5, abs=0.02)


def test_divided_optimizer_state_comes_together(runs):
    checkpoint = find_checkpoint(runs / "two" / "sharded")
    model = CaeAvForEventLocalization.from_pretrained(checkpoint)
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(build_optimizer(model, tiny_recipe()))
    restore_training_state(checkpoint, model, optimizer, accelerator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert set(optimizer.state) == set(trained)
    for parameter in trained:
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    assert max(state["step"].item() for state in optimizer.state.values()) == 2


def test_a_run_killed_on_two_processes_resumes_on_one(runs, tmp_path):
    folder = runs / "two" / "killed"
    checkpoint = find_checkpoint(folder)
    state = read_loop_state(checkpoint)
    assert (state.epoch, state.step, state.clips_done) == (0, 3, 12)
    data = TinyData(22)
    recipe = tiny_recipe(batch_size=4, **KILLED_RECIPE)
    resumed = tiny_trainer(folder, recipe, train=data, model=TinyModel.from_pretrained(checkpoint), resume=checkpoint)
    resumed.resume(checkpoint, state)
    resumed.fit()
    order = [[clip for (clip,) in epoch_batches(22, 1, seed=0, epoch=epoch)] for epoch in (0, 1)]
    assert data.read == order[0][12:] + order[1]
    model = tiny_model(dropout=0.0, batch_norm=False)
    alone = tiny_trainer(tmp_path, recipe, train=TinyData(22), model=model)
    alone.fit()
    for name, tensor in alone.bare_model.state_dict().items():
        torch.testing.assert_close(resumed.bare_model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    for first, second in zip(alone.state.history, resumed.state.history, strict=True):
        assert second["train/loss"] == pytest.approx(first["train/loss"], rel=1e-4)


def test_computing_layers_again_changes_nothing_but_memory(runs, tmp_path):
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    sizes = []
    for switch in (False, True):
        kept = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            toy_task("ave", tmp_path / str(switch), 1, max_steps=2, gradient_checkpointing=switch)
        sizes.append(kept)
    assert sizes[1] < sizes[0] / 2
    one = found(runs, "one", "ave")
    again = json.loads((tmp_path / "True" / "found.json").read_text())
    for first, second in zip(one["steps"][:2], again["steps"], strict=True):
        assert second == {name: pytest.approx(value, abs=1e-6) for name, value in first.items()}
