"""Runs on a few clips of each class: the protocol, resuming, scores, the card, and clips of LLP."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvForFewShotLocalization, CaeAvProcessor
from caeav_hf.data import CaeAvDataset
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.build import load_split
from caeav_hf.training.command import main
from tests.training.toy_files import parsing_data, toy_clips, toy_data


pytestmark = pytest.mark.slow  # whole runs


def flags(**values) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on one clip of each class, stopped early and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "few"
    common = flags(task="ave_few_shot", size="toy", data=toy_data(), output_dir=folder, shots=1, epochs=1)
    assert main([*common, *flags(batch_size=2, save_steps=1, max_steps=1)]) == 0
    assert main(["--resume", str(folder), "--max-steps", "3"]) == 0
    return folder


def test_only_the_first_clips_of_each_class_are_trained_on() -> None:
    recipe = load_recipe(find_recipe("ave_few_shot", "toy"), {"data": str(toy_data())})
    all_labels = load_split(recipe, "train", None).column("label")
    chosen = load_split(recipe, "train", None, shots=1).column("label")
    assert Counter(chosen) == dict.fromkeys(all_labels, 1)
    assert list(chosen) == list(dict.fromkeys(all_labels))


def test_scores_are_those_of_clips_one_by_one(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = trained / "checkpoints" / "last"
    assert main(["--evaluate", str(last), "--split", "test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = CaeAvForFewShotLocalization.from_pretrained(last).eval()
    right = []
    for item in CaeAvDataset(toy_data(), CaeAvProcessor.from_pretrained(last), split="test", task="ave_few_shot"):
        inputs = {k: v[None] for k, v in item.items() if k in ("pixel_values_videos", "input_features", "frame_mask")}
        with torch.no_grad():
            predicted = model(**inputs).logits[0].argmax(-1)
        right += (predicted == item["labels"])[item["labels"] != -100].tolist()
    assert printed["accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_checkpoint_classifies_by_new_names(trained: Path) -> None:
    classify = pipeline(
        "audio-visual-zero-shot-classification", model=str(trained / "checkpoints" / "best"), device="cpu"
    )
    (result,) = classify([toy_clips(1)[0]], candidate_labels=["a bell", "a whale"])
    assert {entry["label"] for entry in result} == {"a bell", "a whale"}


def test_the_card_says_what_the_model_is(trained: Path) -> None:
    card = (trained / "checkpoints" / "best" / "README.md").read_text()
    assert "zero-shot-classification" in card
    assert "few-shot audio-visual event localization" in card
    assert "candidate_labels" in card
    assert "captions=" not in card


def test_half_precision_and_lora(tmp_path: Path) -> None:
    """In a process of its own, since Accelerate's precision is that of the process."""
    common = flags(task="ave_few_shot", size="toy", data=toy_data(), shots=1, epochs=1, max_steps=1, batch_size=2)
    command = [sys.executable, "train.py", *common, *flags(output_dir=tmp_path / "run", mixed_precision="bf16")]
    subprocess.run([*command, "--lora-rank", "2"], check=True, cwd=Path(__file__).parents[3])
    model = CaeAvForFewShotLocalization.from_pretrained(tmp_path / "run" / "checkpoints" / "last")
    adapted = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert any("vision_tower.layers" in name for name in adapted)
    assert any("audio_tower" in name for name in adapted)


def test_clips_of_one_class_of_llp(tmp_path: Path) -> None:
    folder = tmp_path / "llp"
    common = flags(task="avvp_few_shot_classification", size="toy", data=parsing_data(), output_dir=folder)
    assert main([*common, *flags(shots=1, epochs=1, batch_size=2)]) == 0
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert 0 <= history[-1]["eval/accuracy"] <= 1
