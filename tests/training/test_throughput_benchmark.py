"""The comparison of revisions, with the benchmark of speed and memory that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_revision_is_measured(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository, not only its files")
    out = tmp_path / "commits.json"
    options = ["--size", "toy", "--frames", "2", "--repeats", "1", "--threads", "1", "--precisions", "fp32"]
    command = [sys.executable, "benchmarks/commits.py", "HEAD", "--turns", "1", "--out", str(out), "--", *options]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    medians = json.loads(out.read_text())["medians"]["HEAD"]
    assert list(medians) == ["fp32 floor forward", "fp32 model forward", "fp32 model training step"]
    assert medians["fp32 floor forward"]["ratio"] == 1
    for case, values in medians.items():
        assert 0 < values["limit_seconds"] < values["seconds"]
        assert 0 < values["peak_gb"] < 8
        assert case in printed
