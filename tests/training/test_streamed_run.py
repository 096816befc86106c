"""Training on streamed rows: on two processes as on one, and resumed as uninterrupted."""

import json

import pytest
import torch

from caeav_hf.cli import main as caeav
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import prepare_clips
from caeav_hf.errors import CaeAvError
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from caeav_hf.training.command import main
from caeav_hf.training.recipe import Recipe
from tests.training import streamed_run
from tests.training.tiny_training import run_program
from tests.training.toy_files import question_data, toy_data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder with the output of the program."""
    folder = tmp_path_factory.mktemp("streamed")
    (folder / "raw").symlink_to(toy_data(), target_is_directory=True)
    for task, data, out in (("ave", toy_data(), "prepared"), ("avqa", question_data(), "questions")):
        processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset(task, size="toy", num_frames=3))
        prepare_clips(data, processor, folder / out, shard_clips=3)
    return run_program("streamed_run.py", folder)


def found(folder):
    return json.loads((folder / "found.json").read_text())


def assert_same_steps(steps, expected):
    for step, other in zip(steps, expected, strict=True):
        assert step == {name: pytest.approx(value, abs=1e-5) for name, value in other.items()}


@pytest.mark.slow
@pytest.mark.parametrize("job", ["raw", "prepared", "questions"])
def test_the_number_of_processes_changes_no_loss_and_no_metric(runs, job):
    one, two = (found(runs / number / job) for number in ("1", "2"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["steps"]) == streamed_run.STEPS
    assert_same_steps(two["steps"], one["steps"])
    if job != "questions":
        # The losses of whole epochs are means over all clips, so they reveal missing or repeated clips.
        assert [record["epoch"] for record in one["history"]] == [1, 2]
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second == {
            name: value if name == "seconds" else pytest.approx(value, abs=1e-5) for name, value in first.items()
        } | {"seconds": second["seconds"]}
        assert first["train/dropped_clips"] == first["eval/dropped_clips"] == 0


@pytest.mark.slow
def test_a_run_killed_on_two_processes_resumes_on_one(runs, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    checkpoint = find_checkpoint(runs / "2" / "prepared_killed")
    state = read_loop_state(checkpoint)
    assert (state.epoch, state.step, state.clips_done) == (1, 4, 4)
    assert state.order["shuffle_buffer"] == 4
    streamed_run.train(runs, "prepared_killed", 1, resume=checkpoint)
    whole, rest = found(runs / "1" / "prepared"), found(runs / "1" / "prepared_killed")
    assert_same_steps(rest["steps"], whole["steps"][4:])
    jobs = ("prepared", "prepared_killed")
    weights = [torch.load(runs / "1" / job / "weights.pt", weights_only=True) for job in jobs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_command_streams_and_resumes(tmp_path):
    data = str(tmp_path / "data")
    assert caeav(["prepare", str(toy_data()), "--task", "ave", "--size", "toy", "--out", data]) == 0
    arguments = ["--task", "ave", "--size", "toy", "--data", data, "--streaming", "--num-workers", "1"]
    arguments += ["--batch-size", "2", "--accumulation-steps", "1", "--flip-frames", "--spec-augment"]
    histories = []
    for name, steps in (("whole", [3]), ("parts", [1, 3])):
        folder = str(tmp_path / name)
        for number, count in enumerate(steps):
            more = ["--resume", folder] if number else [*arguments, "--output-dir", folder]
            assert main([*more, "--max-steps", str(count)]) == 0
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        histories.append({key: value for key, value in json.loads(lines[-1]).items() if key != "seconds"})
    assert histories[1] == {
        name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
        for name, value in histories[0].items()
    }
    changed = ["--resume", str(tmp_path / "parts"), "--shuffle-buffer", "64", "--max-steps", "4"]
    assert main(changed) == 2


def test_sound_of_other_clips_cannot_be_mixed_in():
    with pytest.raises(CaeAvError, match="'mixup' must be false with streaming"):
        Recipe(streaming=True, mixup=True)
