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
    rows, parts = result["rows"], benchmark["PARTS"]
    assert sum(rows[name]["processor_share"] for name in parts) == pytest.approx(1)
    assert all(row["clock"] > 0 and row["processor"] > 0 for row in rows.values())
    whole, several = benchmark["WHOLE"], benchmark["several_name"](2)
    # The parts are those of a call: one that is missing, or measured for another clip, would leave a difference.
    assert rows[whole]["processor"] == pytest.approx(sum(rows[name]["processor"] for name in parts), rel=0.5)
    assert set(result["not_the_model"]) == {whole, several}
    printed = capsys.readouterr().out
    assert all(name.strip() in printed for name in rows)
