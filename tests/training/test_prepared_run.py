"""Runs on prepared clips equal the runs on their source files."""

import json

import pytest

from caeav_hf.cli import main as caeav
from caeav_hf.training.command import main
from tests.training.toy_files import question_data, toy_data


pytestmark = pytest.mark.slow  # whole runs


def history(folder, data, task, *flags):
    arguments = ["--task", task, "--size", "toy", "--data", str(data), "--output-dir", str(folder), *flags]
    assert main([*arguments, "--epochs", "1", "--max-steps", "1"]) == 0
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def prepared(data, task, out):
    arguments = ["--task", task, "--size", "toy", "--out", str(out), "--format", "png", "--num-proc", "1"]
    assert caeav(["prepare", str(data), *arguments]) == 0
    return out


def test_losses_and_metrics_are_those_of_the_files(tmp_path):
    flags = ["--flip-frames", "--mixup", "--spec-augment"]
    expected = history(tmp_path / "files", toy_data(), "ave", *flags)
    data = prepared(toy_data(), "ave", tmp_path / "data")
    for line, one in zip(
        history(tmp_path / "prepared", data, "ave", *flags, "--num-workers", "2"), expected, strict=True
    ):
        assert line == {
            name: pytest.approx(value, abs=1e-4) if name.startswith("train/") else value for name, value in one.items()
        }


def test_questions_are_trained_on_from_the_one_copy_of_their_clip(tmp_path):
    data = prepared(question_data(), "avqa", tmp_path / "data")
    (line,) = history(tmp_path / "run", data, "avqa", "--no-use-captions", "--batch-size", "4")
    assert line["train/dropped_clips"] == 0
    assert "eval/accuracy/Visual" in line
