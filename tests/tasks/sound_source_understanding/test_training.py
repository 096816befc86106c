"""A run on clips with masks and descriptions: the usual loop, the scores of both, resuming."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from caeav_hf.training import Recipe, train
from caeav_hf.training.command import main


pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def described(avs_parquet, tmp_path_factory) -> Path:
    """Give every second of a small corpus a description, and one none."""
    folder = tmp_path_factory.mktemp("described")
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_parquet(str(avs_parquet["ms3"] / "data" / f"{split}-*.parquet"))
        texts = [["a bell is ringing", "", "a bell on the left", None, "a drum"]] * len(rows)
        feature = datasets.List(datasets.Value("string"))
        rows = rows.add_column("descriptions", texts, feature=feature)
        (folder / "data").mkdir(exist_ok=True)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def recipe(data: Path, folder: Path, **changes) -> Recipe:
    values = {"unfreeze_vision_epoch": 1, "num_integration_layers": 1, "max_description_length": 8}
    return Recipe(
        task="ra_ssu",
        size="toy",
        data=str(data),
        output_dir=str(folder),
        epochs=2,
        batch_size=2,
        accumulation_steps=1,
        learning_rate=1e-3,
        model_config=values,
        **changes,
    )


def test_a_run_resumes_to_the_same_weights(described, tmp_path, capsys) -> None:
    whole = train(recipe(described, tmp_path / "whole"))
    history = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert len(history) == 2
    terms = {"train/segmentation", "train/description", "train/consistency"}
    scores = {"eval/j", "eval/bleu_4", "eval/rouge_l", "eval/meteor", "eval/silent_accuracy", "eval/understanding"}
    assert terms | scores <= history[0].keys()
    part = recipe(described, tmp_path / "part", max_steps=2)
    train(part)
    resumed = train(recipe(described, tmp_path / "part"), resume=tmp_path / "part")
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # The tower of frames is trained from the second epoch on, so it is stored with the rest.
    weights = load_file(whole.best_checkpoint / "model-00001-of-00002.safetensors")
    assert any(name.startswith("model.vision_tower.") for name in weights)
    assert not any(name.startswith("model.region_tower.") for name in weights)
    capsys.readouterr()
    assert main(["--evaluate", str(whole.best_checkpoint), "--split", "validation", "--data", str(described)]) == 0
    printed = json.loads(capsys.readouterr().out)
    best = max(record["eval/understanding"] for record in history)
    assert printed["understanding"] == pytest.approx(best, abs=1e-5)
