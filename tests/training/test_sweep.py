"""Sweeps: what a file may say, which trials it makes, and that an interrupted one goes on."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from caeav_hf import CaeAvError
from caeav_hf.cli import main
from caeav_hf.training import run
from caeav_hf.training.recipe import RECIPES
from caeav_hf.training.sweep import Sweep, load_sweep, run_sweep
from tests.training.toy_files import toy_data, toy_model


SWEEPS = RECIPES.parent / "sweeps"


def write(path: Path, **content) -> Path:
    path.write_text(yaml.safe_dump({"recipe": "ave_toy", **content}, sort_keys=False))
    return path


def test_a_grid_has_every_combination():
    sweep = Sweep("ave_toy", {"learning_rate": [0.1, 0.2], "seed": [0, 1, 2]})
    trials = sweep.trials_of()
    assert len(trials) == 6
    assert trials[0] == {"learning_rate": 0.1, "seed": 0}
    assert {(trial["learning_rate"], trial["seed"]) for trial in trials} == {
        (a, b) for a in (0.1, 0.2) for b in (0, 1, 2)
    }


def test_random_trials_are_within_their_ranges_and_the_same_each_time():
    parameters = {
        "learning_rate": {"min": 1e-5, "max": 1e-1, "log": True},
        "weight_decay": {"min": 0.5, "max": 0.75},
        "epochs": {"min": 2, "max": 4},
        "batch_size": [1, 8],
    }
    sweep = Sweep("ave_toy", parameters, search="random", trials=200)
    trials = sweep.trials_of()
    assert trials == sweep.trials_of()
    assert trials != Sweep("ave_toy", parameters, search="random", trials=200, seed=1).trials_of()
    # More trials are the same ones and further ones.
    assert Sweep("ave_toy", parameters, search="random", trials=201).trials_of()[:200] == trials
    assert all(1e-5 <= trial["learning_rate"] <= 1e-1 and 0.5 <= trial["weight_decay"] <= 0.75 for trial in trials)
    assert {trial["epochs"] for trial in trials} == {2, 3, 4}
    assert {trial["batch_size"] for trial in trials} == {1, 8}
    # As many in a factor of ten as in the next.
    small = sum(trial["learning_rate"] < 1e-3 for trial in trials)
    assert 70 < small < 130


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "recipe and parameters"),
        ({"parameters": {"learning_rate": [1]}, "grid": 1}, "recipe and parameters"),
        ({"parameters": {"learning_rate": [1]}, "search": "bayes"}, "grid or random, got 'bayes'"),
        ({"parameters": {}}, "parameters must be a mapping"),
        ({"parameters": {"learning_speed": [1]}}, "'learning_speed' is no recipe value"),
        ({"parameters": {"learning_rate.x": [1]}}, "'learning_rate.x' is no recipe value"),
        ({"parameters": {"output_dir": ["x"]}}, "'output_dir' is no recipe value"),
        ({"parameters": {"learning_rate": []}}, "learning_rate must be a list of choices, got"),
        ({"parameters": {"learning_rate": {"min": 1, "max": 2}}}, "learning_rate must be a list of choices, got"),
        (
            {"parameters": {"learning_rate": {"min": 0, "max": 1, "log": True}}, "search": "random"},
            "min < max .above 0 with log., got",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    path = write(tmp_path / "sweep.yaml", **content)
    with pytest.raises(CaeAvError, match=f"sweep.yaml.*{message}"):
        load_sweep(path)
    with pytest.raises(CaeAvError, match=re.escape("nowhere.yaml")):
        load_sweep(tmp_path / "nowhere.yaml")


def test_sweeps_of_the_package_are_right():
    assert [len(load_sweep(path).trials_of()) for path in sorted(SWEEPS.glob("*.yaml"))] == [12, 4]


@pytest.mark.slow
def test_a_sweep_trains_ranks_and_goes_on(tmp_path, capsys, monkeypatch):
    parameters = {"model_config.topk_ratio": [0.3, 7], "learning_rate": [1e-3, 2e-3]}
    path = write(tmp_path / "sweep.yaml", parameters=parameters, values={"max_steps": 1, "batch_size": 4})
    out = tmp_path / "out"
    command = ["sweep", str(path), "--out", str(out), "--data", str(toy_data()), "--model", str(toy_model())]
    assert main(command) == 2  # half of them cannot be
    printed = capsys.readouterr()
    assert printed.err.count("topk_ratio") >= 2
    assert f"best run: {out}/trial-00" in printed.out
    with open(out / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows[:2])
    recipe = yaml.safe_load((out / "trial-001" / "recipe.yaml").read_text())
    changed = {"agreement_loss_weight": 0.3, "topk_ratio": 0.3}
    assert (recipe["learning_rate"], recipe["model_config"], recipe["max_steps"]) == (2e-3, changed, 1)

    # Only what is not done yet is done the next time.
    asked = []

    def train(recipe, resume=None):
        asked.append((Path(recipe.output_dir).name, resume))
        Path(recipe.output_dir).mkdir(exist_ok=True)
        value = {"trial-002": 0.1, "trial-003": 0.9}.get(Path(recipe.output_dir).name, 0.5)
        history = [{"eval/accuracy": value, "epoch": 1, "step": 1}]
        return SimpleNamespace(state=SimpleNamespace(best_value=value, history=history))

    monkeypatch.setattr(run, "train", train)
    (out / "trial-001" / "result.json").unlink()
    assert main(command) == 0
    assert asked == [("trial-001", out / "trial-001"), ("trial-002", None), ("trial-003", None)]
    assert capsys.readouterr().out.endswith(f"best run: {out}/trial-003\n")
    with pytest.raises(CaeAvError, match="holds another sweep"):
        run_sweep(load_sweep(path), out, {"data": str(toy_data()), "model": str(toy_model()), "seed": 5})
