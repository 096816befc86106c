"""Two processes train and score as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caeav_hf.training.checkpointing import find_checkpoint
from tests.training.distributed_run import TASKS
from tests.training.tiny_training import tiny_model


pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch was built without distributed training"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of what the program has left."""
    folder = tmp_path_factory.mktemp("distributed")
    program = Path(__file__).with_name("distributed_run.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def found(runs, number, task):
    return json.loads((runs / number / task / "found.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_the_number_of_processes_changes_no_loss_and_no_metric(runs, task):
    one, two = (found(runs, number, task) for number in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["steps"]) == 10
    for first, second in zip(one["steps"], two["steps"], strict=True):
        assert second == {name: pytest.approx(value, abs=1e-5) for name, value in first.items()}
    for first, second in zip(one["history"], two["history"], strict=True):
        assert {"train/loss", "train/caption", "train/entropy", "train/alignment"} <= first.keys()
        compared = {name: value for name, value in first.items() if name != "seconds"}
        expected = {
            name: value if name.startswith("eval/") else pytest.approx(value, abs=1e-5)
            for name, value in compared.items()
        }
        assert {name: value for name, value in second.items() if name != "seconds"} == expected


def test_running_statistics_are_those_of_all_processes(runs):
    one, two = (torch.load(runs / number / "ave" / "weights.pt", weights_only=True) for number in ("one", "two"))
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
    # Every process left its own random generators to resume from.
    state = find_checkpoint(runs / "two" / "tiny") / "training_state"
    assert {path.name for path in state.glob("random-*.pt")} == {"random-0.pt", "random-1.pt"}


def test_only_what_is_trained_is_sent(runs):
    trained = sum(
        parameter.numel() for parameter in tiny_model(batch_norm=False).parameters() if parameter.requires_grad
    )
    assert found(runs, "two", "tiny")["sent"] == [trained]
