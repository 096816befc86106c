"""Every row of the paper's tables trains on the toy corpus by a flag of `train.py`."""

import json
import math
from pathlib import Path

import pytest
from transformers import pipeline

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.pipelines import register
from caeav_hf.training.command import main
from tests.training.toy_files import toy_clips, toy_data


pytestmark = pytest.mark.slow  # whole runs


ROWS = {
    "AVMoE": ["interaction=avmoe", "use_case=false", "agreement_loss_weight=0"],
    "CASTE": ["use_case=false"],
    "CASE": ["interaction=avmoe", "agreement_loss_weight=0"],
    "no losses": ["caption_loss_weight=0", "alignment_loss_weight=0", "entropy_loss_weight=0"],
    "CASTE between": ["caste_position=between"],
    "CASTE after": ["caste_position=after"],
    "shared tower": ["shared_tower=true"],
    "official": ["formulation=official"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of decoded clips that all runs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_by_a_flag(row: str, cache: Path, tmp_path: Path) -> None:
    flags = {"--task": "ave", "--size": "toy", "--data": toy_data(), "--output-dir": tmp_path / "run"}
    flags |= {"--cache-dir": cache, "--batch-size": 2, "--accumulation-steps": 1, "--max-steps": 2}
    arguments = [str(part) for pair in flags.items() for part in pair]
    assert main([*arguments, "--model-config", *ROWS[row]]) == 0
    record = json.loads((tmp_path / "run" / "history.jsonl").read_text())
    assert record["step"] == 2
    assert math.isfinite(record["train/loss"])
    config = CaeAvForEventLocalization.from_pretrained(tmp_path / "run" / "checkpoints" / "best").config
    for change in ROWS[row]:
        name, value = change.split("=")
        assert str(getattr(config, name)).lower() == value
    assert ("train/caption" in record) == config.use_case
    assert ("train/agreement" in record) == bool(config.agreement_loss_weight)


def test_stg_cma_trains_along_a_cosine_and_answers_in_a_pipeline(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = {"--task": "ave", "--method": "stg_cma", "--size": "toy", "--data": toy_data(), "--cache-dir": cache}
    flags |= {"--output-dir": tmp_path / "run", "--batch-size": 2, "--accumulation-steps": 1, "--epochs": 3}
    flags |= {"--min-learning-rate": 1e-5, "--lr-warmup-epochs": 1, "--learning-rate": 1e-3}
    # The augmentation of the full-size recipe, and the mean of the last epochs.
    flags |= {"--rand-augment": "rand-m7-n4", "--crop-area": 0.08, "--erasing": 0.25, "--sound-mixing": 0.5}
    flags |= {"--average-from-epoch": 1, "--shots": 1, "--epochs": 2}
    assert main([str(part) for pair in flags.items() for part in pair]) == 0
    record = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    assert record["epoch"] == 2
    average = tmp_path / "run" / "checkpoints" / "average"
    assert f"mean of 2 epochs: {average}" in capsys.readouterr().out
    out = tmp_path / "scores.json"
    assert main(["--evaluate", str(average), "--split", "test", "--out", str(out)]) == 0
    assert 0 <= json.loads(out.read_text())["accuracy"] <= 1
    assert math.isfinite(record["train/loss"])
    best = tmp_path / "run" / "checkpoints" / "best"
    config = CaeAvForEventLocalization.from_pretrained(best).config
    assert (config.interaction, config.shared_tower) == ("stg_cma", True)
    assert config.vision_config.model_type == "cae_av_swin"
    register()
    result = pipeline("audio-visual-event-localization", model=str(best), device="cpu")(toy_clips(1)[0])
    assert len(result["segments"]) == 10
