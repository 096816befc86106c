"""Runs on clips with classes of the whole clip: the same loop, F-scores of segments and events."""

import json

import pytest
import torch

from caeav_hf import CaeAvForVideoParsing
from caeav_hf.data import CaeAvDataset
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.tasks.video_parsing.metric import video_parsing_scores
from caeav_hf.toy import CLASSES
from caeav_hf.training.command import main
from tests.training.toy_files import parsing_data


pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "parsing"
    flags = {"--data": parsing_data(), "--output-dir": folder, "--epochs": 2, "--batch-size": 2}
    arguments = [str(part) for pair in flags.items() for part in pair]
    assert main(["--task", "avvp", "--size", "toy", *arguments]) == 0
    return folder


def test_a_run_records_the_scores_of_segments_and_events(trained):
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 2), (2, 4)]
    expected = {f"eval/{level}/{kind}" for level in ("segment", "event") for kind in ("audio", "type", "event")}
    assert expected <= history[0].keys()
    assert history[1]["train/task"] < history[0]["train/task"]
    best = max(history, key=lambda record: record["eval/segment/type"])
    assert (trained / "checkpoints" / "best").resolve().name == f"step-{best['step']:08d}"


def test_scoring_is_the_metric_of_clips_one_by_one(trained, capsys):
    best = trained / "checkpoints" / "best"
    assert main(["--evaluate", str(best), "--split", "test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = CaeAvForVideoParsing.from_pretrained(best).eval()
    assert [model.config.id2label[number] for number in range(8)] == list(CLASSES)
    data = CaeAvDataset(parsing_data(), CaeAvProcessor.from_pretrained(best), split="test")
    parts: list[list] = [[], [], [], []]
    for clip in data:
        inputs = {
            name: value[None] for name, value in clip.items() if name != "video_id" and not name.endswith("labels")
        }
        with torch.no_grad():
            outputs = model(**inputs)
        for part, modality in zip(parts, ("audio", "visual"), strict=False):
            frames, whole = outputs[f"{modality}_frame_probs"][0], outputs[f"{modality}_probs"][0]
            part.append(((frames >= 0.5) & (whole >= 0.5)).T)
        for part, modality in zip(parts[2:], ("audio", "visual"), strict=True):
            part.append(clip[f"{modality}_labels"].T)
    scores = video_parsing_scores(*(torch.stack(part) for part in parts))
    for level in ("segment", "event"):
        for kind, value in scores[level].items():
            assert printed[f"{level}/{kind}"] == pytest.approx(value, abs=1e-3)
