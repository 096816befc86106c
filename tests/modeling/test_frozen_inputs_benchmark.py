"""The benchmark of what comes before the first trained layer."""

import importlib
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_later_trained_layers_leave_more_to_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("frozen_inputs")
    sizes = {"batch_size": 2, "frames": 2, "repeats": 1, "seed": 0, "threads": 1, "device": "cpu"}
    found = {}
    for name in ("AVMoE", "AVMoE, last stage", "head alone"):
        task, method, changes = benchmark.CONFIGURATIONS[name]
        found[name] = benchmark.measure(benchmark.Settings(task, "toy", method, None, **sizes), changes)
    shares = [values["gmac_before"] / values["gmac"] for values in found.values()]
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    assert [values["mb_per_clip"] is None for values in found.values()] == [True, False, False]
    assert "head alone" in benchmark.report({"configurations": found})
