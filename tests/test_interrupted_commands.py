"""The benchmark of interrupted commands, in small: kills of a builder and of an export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_commands_continue_after_a_kill_and_leave_nothing(tmp_path):
    commands = ["build ave", "export"]
    arguments = ["--kills", "2", "--operations", "--clips", "16", "--out", str(tmp_path), "--only", *commands]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kills.py"), *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "kill before operations.json").read_text()) == {}
    table = (tmp_path / "kill before operations.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == [*(f"`{name}`" for name in commands), "all"]
    kills, fresh, of_two, exact = (int(cell) for cell in table[-1].split(" | ")[2:6])
    assert (kills, fresh, of_two, exact) == (2, 0, 0, 2)
