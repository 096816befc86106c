"""The command that adds SSUFormer's parts one after the other: its runs, tables and trivial scores."""

import importlib
import itertools
import json
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def understanding(monkeypatch: pytest.MonkeyPatch):
    """The module of the command, on a few clips."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("understanding")
    monkeypatch.setattr(module, "CLIPS", 8)
    monkeypatch.setattr(module, "SPLIT", (2, 1, 1))

    def in_this_process(function, runs, logs, processes) -> None:
        """Stand in for the processes, which the test of the methods' benchmark starts."""
        for file, arguments in runs.items():
            if not file.exists():
                function(*arguments)

    monkeypatch.setattr(module, "execute", in_this_process)
    return module


def test_each_variant_adds_one_part(understanding) -> None:
    ladder = [understanding.switches(variant) for variant in understanding.PARTS]
    assert ladder[0] == {"focal_gamma": 0.0, "use_mcm": False, "use_rcc": False, "use_mohe": False}
    assert ladder[-1] == {"focal_gamma": 2.0, "use_mcm": True, "use_rcc": True, "use_mohe": True}
    for before, after in itertools.pairwise(ladder):
        assert sum(before[name] != after[name] for name in before) == 1


def test_parts_of_another_clip_replace_only_these(understanding) -> None:
    class Clips(list):
        processor, column = None, None

    clips = Clips({"video_id": name, "sound": f"sound of {name}"} for name in "abcd")
    found = understanding.WithForeign(clips, ["sound"])
    sounds = [(found[index]["video_id"], found[index]["sound"][-1]) for index in range(len(found))]
    assert sounds == [("a", "c"), ("b", "d"), ("c", "a"), ("d", "b")]


@pytest.mark.slow  # whole runs
def test_the_command_continues_and_writes_its_tables(
    understanding, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*further: str, epochs: int = 3) -> str:
        choice = ["--variants", "baseline", "+ MoHE", "--seeds", "0", "--epochs", str(epochs), *further]
        monkeypatch.setattr("sys.argv", ["understanding.py", "--out", str(tmp_path), *choice])
        understanding.main()
        return (tmp_path / "understanding.md").read_text()

    table = run()
    files = sorted((tmp_path / "results").iterdir())
    assert [file.stem for file in files] == ["+ MoHE, seed 0", "baseline, seed 0"]
    whole, baseline = (json.loads(file.read_text()) for file in files)
    assert list(whole["foreign"]) == ["sound", "picture", "text"]
    assert not baseline["foreign"]
    assert whole["trained_parameters"] > baseline["trained_parameters"]
    assert min(whole["training_seconds"], whole["wall_seconds"]) > 0
    assert 0 <= whole["scores"]["j"] <= 1
    assert f"| + MoHE | 0 | {whole['scores']['j']:.3f} | " in table
    rows = [line for line in table.splitlines() if line.startswith(("| own clip | ", "| other "))]
    assert len(rows) == 4
    guesses = json.loads((tmp_path / "understanding.json").read_text())["guesses"]
    assert f"| nothing segmented | | {guesses['nothing segmented']['j']:.3f} | " in table
    assert (tmp_path / "understanding.png").stat().st_size > 10_000

    # Only a run without its result is done again.
    written = files[0].stat().st_mtime_ns
    files[1].unlink()
    assert run("--summarize").count("| baseline | ") == 0
    run()
    assert files[0].stat().st_mtime_ns == written
    assert files[1].exists()
    with pytest.raises(SystemExit, match="expected --epochs 3"):
        run(epochs=4)
