"""The benchmark of a long video, on a short one."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.training.toy_files import toy_corpus, toy_model


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_long_video_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    arguments = ["--model", str(toy_model()), "--corpus", str(toy_corpus()), "--hours", "0.02"]
    monkeypatch.setattr(sys, "argv", ["streaming.py", *arguments, "--out", str(tmp_path)])
    runpy.run_path(str(BENCHMARKS / "streaming.py"), run_name="__main__")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seconds"] == 80
    for stride in ("stride 5", "stride 10"):
        assert results[stride]["gaps"] == []
        assert results[stride]["memory (GB)"]["most"] > 0
    # Without overlap, a window is a clip, whose sound alone was encoded again.
    assert results["stride 10"]["labels as in short clips"] > 0.8
    assert results["stride 10"]["differences of scores"]["mean"] < 0.05
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
