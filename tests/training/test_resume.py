"""A killed run resumes bit for bit like an uninterrupted one, although loaded tensors are at other addresses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.errors import CaeAvError
from caeav_hf.training.build import build_processor, load_trained_model, undo_loading
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from tests.lanes import slow_after
from tests.training.tiny_training import TinyData, TinyModel, tiny_recipe, tiny_trainer
from tests.training.toy_files import toy_model


RECIPE = tiny_recipe(save_steps=5, max_steps=10, epochs=9)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resume(folder, recipe=RECIPE, **data):
    checkpoint = find_checkpoint(folder)
    state = read_loop_state(checkpoint)
    train = data.pop("train", None) or TinyData(14)
    trainer = tiny_trainer(
        folder, recipe, train=train, model=load_trained_model(TinyModel, checkpoint), resume=checkpoint, **data
    )
    torch.rand(7)  # random numbers drawn before resuming must not matter
    trainer.resume(checkpoint, state)
    return trainer


def final_state(folder):
    checkpoint = find_checkpoint(folder)
    weights = load_file(checkpoint / "model-00001-of-00002.safetensors")
    training = checkpoint / "training_state"
    optimizer = torch.load(training / "optimizer.pt", weights_only=True)["optimizer"]
    moments = {
        f"{number}.{name}": value for number, item in optimizer["state"].items() for name, value in item.items()
    }
    loop = json.loads((training / "loop.json").read_text())
    loop.pop("best_checkpoint")
    for record in loop["history"]:
        record.pop("seconds")
    random = torch.load(training / "random-0.pt", weights_only=True)
    return {**weights, **moments, "random": random["torch"]}, loop


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny_trainer(folder, RECIPE, train=TinyData(14)).fit()
    return final_state(folder)


MOMENTS = [
    "between checkpoints",
    "while a checkpoint is written",
    "before a checkpoint is linked",
    "between last and best",
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the folders of runs killed at each moment."""
    folders = {moment: tmp_path_factory.mktemp("killed") for moment in MOMENTS}
    runs = [str(part) for moment, folder in folders.items() for part in (folder, moment)]
    program = Path(__file__).with_name("killed_run.py")
    done = subprocess.run([sys.executable, program, *runs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_exactly(killed, uninterrupted, moment):
    tmp_path = killed[moment]
    # Every folder named as a checkpoint is complete, even before any cleanup.
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        TinyModel.from_pretrained(checkpoint)
        if (checkpoint / "training_state").exists():
            read_loop_state(checkpoint)
    trainer = resume(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".partial-*"))
    trainer.fit()
    tensors, loop = final_state(tmp_path)
    expected_tensors, expected_loop = uninterrupted
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected_tensors[name]), name
    assert loop == expected_loop
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [record["step"] for record in loop["history"]]
    assert (tmp_path / "checkpoints" / "best").resolve().is_dir()


@pytest.mark.parametrize("max_steps", slow_after(1, [4, 3]))  # inside an epoch, and at the end of one
def test_a_run_that_stops_between_its_last_step_and_the_evaluation_is_evaluated(tmp_path, max_steps, monkeypatch):
    recipe = tiny_recipe(save_steps=1, max_steps=max_steps, epochs=9)
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    tiny_trainer(uninterrupted, recipe, train=TinyData(9)).fit()
    trainer = tiny_trainer(stopped, recipe, train=TinyData(9))
    evaluate_and_save = trainer._evaluate_and_save

    def stop(started):
        if trainer.state.step == max_steps:
            raise KeyboardInterrupt
        evaluate_and_save(started)

    monkeypatch.setattr(trainer, "_evaluate_and_save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resume(stopped, recipe, train=TinyData(9)).fit()
    assert final_state(stopped)[1] == final_state(uninterrupted)[1]
    assert find_checkpoint(stopped).name == find_checkpoint(uninterrupted).name
    assert {record["step"] for record in final_state(stopped)[1]["history"]} >= {3, max_steps}
    # A finished run stays as it is.
    assert len(resume(stopped, recipe, train=TinyData(9)).fit().history) == max_steps - 2


def test_a_resumed_run_saves_configurations_as_they_were(tmp_path):
    folder = toy_model()
    model = load_trained_model(CaeAvForEventLocalization, folder)
    processor = build_processor(model, folder)
    undo_loading(model, processor, folder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((folder / name).read_text()), name


def test_resuming_inside_an_epoch_does_not_read_its_first_clips_again(tmp_path):
    recipe = tiny_recipe(max_steps=2, epochs=9)
    first = TinyData(14)
    tiny_trainer(tmp_path, recipe, train=first).fit()
    second = TinyData(14)
    resume(tmp_path, tiny_recipe(max_steps=4, epochs=9), train=second).fit()
    assert len(first.read) == 8
    assert sorted(first.read + second.read) == list(range(14))


@pytest.mark.slow
def test_a_longer_recipe_resumes_where_the_shorter_one_ended(tmp_path):
    tiny_trainer(tmp_path / "short", tiny_recipe(epochs=2)).fit()
    resume(tmp_path / "short", tiny_recipe(epochs=4), train=TinyData()).fit()
    tiny_trainer(tmp_path / "long", tiny_recipe(epochs=4)).fit()
    short, long = final_state(tmp_path / "short"), final_state(tmp_path / "long")
    assert all(torch.equal(short[0][name], long[0][name]) for name in long[0])
    assert short[1] == long[1]


def test_the_order_of_clips_cannot_change_inside_an_epoch(tmp_path):
    tiny_trainer(tmp_path, tiny_recipe(max_steps=2, epochs=9), train=TinyData(14)).fit()
    with pytest.raises(CaeAvError, match="only between epochs"):
        resume(tmp_path, tiny_recipe(max_steps=4, epochs=9, seed=1))


def test_the_batches_can_change_inside_an_epoch(tmp_path):
    first, second = TinyData(14), TinyData(14)
    tiny_trainer(tmp_path, tiny_recipe(max_steps=1, epochs=9), train=first).fit()
    resume(tmp_path, tiny_recipe(max_steps=3, epochs=9, batch_size=3), train=second).fit()
    assert len(first.read) == 4
    assert sorted(first.read + second.read) == list(range(14))


def test_a_finished_run_resumes_to_nothing(tmp_path):
    tiny_trainer(tmp_path, tiny_recipe(epochs=2)).fit()
    train = TinyData()
    resume(tmp_path, tiny_recipe(epochs=2), train=train).fit()
    assert train.read == []


@pytest.mark.slow
def test_the_same_run_gives_the_same_numbers(tmp_path):
    for name in ("one", "two"):
        tiny_trainer(tmp_path / name, tiny_recipe()).fit()
    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert one[1] == two[1]


def test_a_folder_without_training_state_cannot_be_resumed(tmp_path):
    with pytest.raises(CaeAvError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path)


def test_a_broken_training_state_is_named(tmp_path):
    tiny_trainer(tmp_path, tiny_recipe(epochs=1)).fit()
    (find_checkpoint(tmp_path) / "training_state" / "optimizer.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CaeAvError, match="training_state"):
        resume(tmp_path, tiny_recipe(epochs=2), train=TinyData())
