"""The command that measures the robustness of all methods on the toy corpora."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from caeav_hf.data.shards import load_rows
from caeav_hf.task import get_task
from tests.training.toy_files import mask_data, parsing_data, toy_data


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """The module of the command, on a few clips."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("robustness")
    monkeypatch.setattr(module, "CLIPS", {"ave": 16})
    monkeypatch.setattr(module, "STEPS", {"ave": 1})
    monkeypatch.setattr(module, "TEST_CLIPS", 6)

    def in_this_process(function, runs, logs, processes) -> None:
        """Stand in for the processes, which the test of the methods' benchmark starts."""
        for file, arguments in runs.items():
            if not file.exists():
                function(*arguments)

    monkeypatch.setattr(module, "execute", in_this_process)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "data", "baseline"),
    [("ave", toy_data, "events"), ("avvp", parsing_data, "parsing"), ("avs_ms3", mask_data, "segmentation")],
)
def test_the_constant_guess_is_the_baseline(benchmark, task: str, data, baseline: str) -> None:
    folder, model = data(), SimpleNamespace(task=get_task(task))
    expected = next(iter(getattr(importlib.import_module("baselines"), baseline)(str(folder)).values()))
    rows = load_rows(folder, "test")
    found = get_task(task).scores(benchmark.guess_sums(model, rows, np.arange(len(rows))))
    expected = expected if task != "avvp" else expected["segment"]["type"]
    assert found[get_task(task).best_metric] == pytest.approx(expected)


@pytest.mark.slow
def test_the_command_continues_and_writes_its_tables(
    benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variant = "CAE-AV + agreement"
    choice = ["--tasks", "ave", "--variants", variant, "--seeds", "0", "--kinds", "mute", "--levels", "5"]
    monkeypatch.setattr("sys.argv", ["robustness.py", "--out", str(tmp_path), *choice])
    benchmark.main()
    results = {
        corpus: json.loads((tmp_path / "ave" / corpus / "robustness.json").read_text())
        for corpus in ("misaligned", "aligned")
    }
    for found in results.values():
        assert list(found["methods"]) == [variant, "constant guess"]
        # Without any sound, every segment is background.
        guess = found["methods"]["constant guess"]
        assert guess["kinds"]["mute"]["levels"]["5"]["value"] == 1
        assert 0 < guess["clean"]["value"] < 1
        assert found["methods"][variant]["detection"]["overall"] is not None
    table = (tmp_path / "robustness.md").read_text()
    one, other = (found["methods"][variant]["clean"]["value"] for found in results.values())
    assert f"| clean | {100 * (one - other) + 0.0:+.1f} |" in table

    kept = [*tmp_path.glob("ave/*/trained/*.json"), *tmp_path.glob("ave/scores/*/*.safetensors")]
    assert len(kept) == 2 + 3 * 2
    written = {file: file.stat().st_mtime_ns for file in kept}
    benchmark.main()
    assert {file: file.stat().st_mtime_ns for file in kept} == written
