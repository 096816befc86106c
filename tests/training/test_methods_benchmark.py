"""The command that compares the methods: its table, and that it continues where it was stopped."""

import importlib
import json
from pathlib import Path

import pytest

from caeav_hf.training.build import load_split
from caeav_hf.training.recipe import Recipe


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch):
    """The module of the command, on a few clips."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("methods")
    monkeypatch.setattr(module, "CLIPS", {"ave": 16})
    monkeypatch.setattr(module, "SPLIT", (2, 1, 1))
    return module


def run(methods, monkeypatch: pytest.MonkeyPatch, out: Path, steps: int = 1) -> None:
    choice = ["--tasks", "ave", "--levels", "hard", "--methods", "head_alone", "lavish", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", ["methods.py", "--out", str(out), "--steps", str(steps), *choice])
    methods.main()


def test_intervals_are_written_with_their_mean() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        runs = importlib.import_module("runs")
    assert (runs.text([1.0, 2.0, 3.0], sign="+"), runs.text([-0.01])) == ("+2.0 ± 2.5", "0.0")


def test_models_of_their_own_have_rows_where_there_are_recipes(methods) -> None:
    assert methods.has_row("ave", "lavish")
    for name, (method, _) in methods.OTHER_MODELS.items():
        rows = {task for task in methods.BUILDERS if methods.has_row(task, name)}
        assert rows == {"avs_s4", "avs_ms3"}
        assert all(methods.find_recipe(task, "toy", method).is_file() for task in rows)
        assert methods.head_alone("avs_ms3", name) == "ssuformer_decoder_alone"


@pytest.mark.slow
def test_the_command_continues_and_writes_its_table(methods, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(methods, monkeypatch, tmp_path)
    folder = tmp_path / "ave" / "hard"
    files = sorted((folder / "results").iterdir())
    assert [file.stem for file in files] == [
        f"{name}, seed {seed}" for name in ("head_alone", "lavish") for seed in (0, 1)
    ]
    found = {file.stem: json.loads(file.read_text()) for file in files}
    alone, lavish = found["head_alone, seed 0"], found["lavish, seed 0"]
    assert alone["trained_parameters"] == alone["trained_in_head"]
    assert lavish["trained_parameters"] > lavish["trained_in_head"]
    assert all(one["memory_mb"] > 0 and one["training_seconds"] > 0 for one in found.values())
    written = {file: file.stat().st_mtime_ns for file in files}

    # A run without its result is done again, the others are not.
    files[2].unlink()
    run(methods, monkeypatch, tmp_path)
    assert [file for file in files if file.stat().st_mtime_ns != written[file]] == [files[2]]
    again = json.loads(files[2].read_text())
    assert again["score"] == pytest.approx(lavish["score"], abs=1e-6)

    table = (tmp_path / "methods.md").read_text()
    labels = [
        label
        for row in load_split(Recipe(data=str(folder / "dataset")), "test", None).rows
        for label in row["segment_labels"]
    ]
    background = 100 * labels.count(max(labels)) / len(labels)
    assert f"| the most frequent label | {background:.1f} |" in table
    assert "| LAVisH | " in table
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="expected --steps 1"):
        run(methods, monkeypatch, tmp_path, steps=2)
