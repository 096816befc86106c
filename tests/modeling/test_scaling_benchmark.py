"""The benchmark of growth with clips and frames: what it calls linear, and what it leaves out."""

import importlib
import json
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch):
    """The module of the command."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scaling")


def test_growth_that_is_not_linear_deviates_from_its_line(scaling) -> None:
    frames = [5, 10, 20, 60]
    straight = scaling.fit_line(frames, [0.5 + 0.2 * count for count in frames])
    assert straight == pytest.approx({"constant": 0.5, "slope": 0.2, "deviation": 0.0})
    assert scaling.fit_line(frames, [0.2 * count + 0.01 * count**2 for count in frames])["deviation"] > 0.1


def test_cost_per_frame_is_compared_within_a_turn(scaling) -> None:
    one, two = scaling.Case(scaling.FORWARD, 1, 5), scaling.Case(scaling.FORWARD, 2, 5)
    # The second turn is on a machine half as fast.
    times = {one: [1.0, 2.0], two: [1.5, 3.0]}
    found = scaling.describe_series([one, two], "clips", times, dict.fromkeys(times, 1.0), {one: 1e9, two: 2e9})
    assert [row["relative_cost_per_frame"] for row in found["rows"]] == pytest.approx([1.0, 0.75])
    assert [row["clips_per_second"] for row in found["rows"]] == pytest.approx([1 / 1.5, 2 / 2.25])
    assert found["line_of_gmac"]["deviation"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_the_command_measures_and_draws(scaling, monkeypatch, tmp_path: Path) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    sizes = ["--size", "toy", "--clips", "1", "2", "--train-clips", "1", "--batch-frames", "2", "--repeats", "1"]
    sizes += ["--frames", "2", "4", "8"]
    monkeypatch.setattr("sys.argv", ["scaling.py", *sizes, "--out", str(out), "--plot", str(plot)])
    scaling.main()
    found = json.loads(out.read_text())
    assert found["left_out"] == []
    longer = found["cases"]["forward"]["frames"]
    assert [row["frames"] for row in longer["rows"]] == [2, 4, 8]
    assert longer["line_of_gmac"]["slope"] > 0
    assert longer["line_of_gmac"]["deviation"] < 0.01
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_case_that_needs_too_much_memory_is_left_out(scaling, monkeypatch) -> None:
    sizes = {"batch_size": 1, "frames": 1, "repeats": 1, "seed": 0, "threads": 1, "device": "cpu"}
    runner = scaling.Runner(scaling.Settings("ave", "toy", None, None, **sizes), "fp32")
    small, large = scaling.Case(scaling.FORWARD, 1, 1), scaling.Case(scaling.FORWARD, 1, 3)
    memory = iter((1.0, 1.5))
    monkeypatch.setattr(scaling, "peak_memory", lambda device: next(memory))
    times, peaks, left_out = scaling.measure(runner, [small, large], repeats=1, memory_limit=2.4)
    assert (list(times), peaks, left_out) == ([small], {small: 1.5}, {large: 2.5})
