"""A run on clips with masks and descriptions: the usual loop, the scores of both, resuming."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from caeav_hf import CaeAvProcessor, SsuFormerForSoundSourceUnderstanding
from caeav_hf.data import CaeAvDataset
from caeav_hf.training import Recipe, train
from caeav_hf.training.command import main


# Narrow, so that decoding and the tower of frames cost little.
SMALL = {"unfreeze_vision_epoch": 1, "num_integration_layers": 1, "max_description_length": 8}


def recipe(data: Path, folder: Path, **changes) -> Recipe:
    return Recipe(
        task="ra_ssu",
        size="toy",
        data=str(data),
        output_dir=str(folder),
        epochs=2,
        batch_size=2,
        accumulation_steps=1,
        learning_rate=1e-3,
        model_config=SMALL,
        **changes,
    )


def test_a_recipe_trains_from_the_command_line(ssu_parquet, tmp_path) -> None:
    flags = {"--task": "ra_ssu", "--size": "toy", "--data": ssu_parquet, "--output-dir": tmp_path / "run"}
    flags |= {"--batch-size": 2, "--eval-batch-size": 2, "--max-steps": 2}
    arguments = [str(part) for pair in flags.items() for part in pair]
    assert main([*arguments, "--model-config", *(f"{name}={value}" for name, value in SMALL.items())]) == 0
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    terms = {"train/segmentation", "train/description", "train/consistency"}
    scores = {"eval/j", "eval/bleu_4", "eval/rouge_l", "eval/meteor", "eval/silent_accuracy", "eval/understanding"}
    assert terms | scores <= record.keys()
    assert all(math.isfinite(record[name]) for name in terms | scores)
    checkpoint = tmp_path / "run" / "checkpoints" / "best"
    model = SsuFormerForSoundSourceUnderstanding.from_pretrained(checkpoint)
    assert model.config.num_integration_layers == 1
    # It starts at 0, and the first step, at the beginning of the warm-up, leaves it there.
    assert model.description_decoder.transformer.ln_f.bias.any()
    processor = CaeAvProcessor.from_pretrained(checkpoint)
    # Every description of the corpus survives its ids.
    data = CaeAvDataset(ssu_parquet, processor, split="test")
    for item, row in zip((data[0], data[1]), data.rows, strict=True):
        assert processor.batch_decode(item["description_ids"], skip_special_tokens=True) == row["descriptions"]


@pytest.mark.slow  # a run of its own
def test_bfloat16_keeps_the_loss_and_float32_weights(ssu_parquet, tmp_path) -> None:
    results = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()  # it is global and keeps the last precision
        steps = recipe(ssu_parquet, tmp_path / precision, mixed_precision=precision, max_steps=1)
        result = train(steps)
        assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
        results[precision] = result.state.history[0]
    for name in ("loss", "segmentation", "description", "consistency"):
        assert results["bf16"][f"train/{name}"] == pytest.approx(results["no"][f"train/{name}"], rel=0.03)


@pytest.mark.slow  # whole runs
def test_a_run_resumes_to_the_same_weights(ssu_parquet, tmp_path, capsys) -> None:
    whole = train(recipe(ssu_parquet, tmp_path / "whole"))
    history = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert len(history) == 2
    part = recipe(ssu_parquet, tmp_path / "part", max_steps=2)
    train(part)
    resumed = train(recipe(ssu_parquet, tmp_path / "part"), resume=tmp_path / "part")
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # The tower of frames is trained from the second epoch on, so it is stored with the rest.
    weights = load_file(whole.best_checkpoint / "model-00001-of-00002.safetensors")
    assert any(name.startswith("model.vision_tower.") for name in weights)
    assert not any(name.startswith("model.region_tower.") for name in weights)
    capsys.readouterr()
    assert main(["--evaluate", str(whole.best_checkpoint), "--split", "validation", "--data", str(ssu_parquet)]) == 0
    printed = json.loads(capsys.readouterr().out)
    best = max(record["eval/understanding"] for record in history)
    assert printed["understanding"] == pytest.approx(best, abs=1e-5)
