"""The benchmark of the way from a file to a result, with a toy model and a small clip."""

import json
import runpy
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_way_from_a_file_to_a_result_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    arguments = ["--size", "toy", "--width", "160", "--height", "96", "--clips", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["file_to_result.py", *arguments, "--out", str(tmp_path / "result.json")])
    benchmark = runpy.run_path(str(BENCHMARKS / "file_to_result.py"), run_name="__main__")
    result = json.loads((tmp_path / "result.json").read_text())
    parts, calls = result["parts"], result["calls"]
    for kind in benchmark["KINDS"]:
        assert sum(parts[name][kind]["share"] for name in benchmark["PARTS"]) == pytest.approx(1)
        assert all(row[kind]["seconds"] > 0 for row in parts.values())
    # The parts are those of a call: one that is missing, or measured for another clip, would leave a difference.
    whole = sum(parts[name]["processor"]["seconds"] for name in benchmark["PARTS"])
    assert calls["one clip"]["processor"] == pytest.approx(whole, rel=0.5)
    assert list(calls) == ["one clip", "2 clips"]
    for row in calls.values():
        assert 0 < row["model"] < row["seconds"]
        assert row["outside_the_model"] == pytest.approx(1 - row["model"] / row["seconds"])
    printed = capsys.readouterr().out
    assert all(name.strip() in printed for name in (*parts, *calls))
