"""Runs on clips with masks: the same loop, J and F."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from caeav_hf import CaeAvConfig, CaeAvForSegmentation
from caeav_hf.data import AvsBenchBuilder, CaeAvDataset
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.task import get_task
from caeav_hf.training.command import main
from tests.training.toy_files import mask_corpus, mask_data, mask_model, toy_data


pytestmark = pytest.mark.slow  # whole runs


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "ms3"
    flags = {"--model": mask_model(), "--data": mask_data(), "--output-dir": folder, "--epochs": 2, "--batch-size": 2}
    arguments = [str(part) for pair in flags.items() for part in pair]
    assert main(["--task", "avs_ms3", "--size", "toy", *arguments]) == 0
    return folder


def test_a_run_records_j_and_f(trained):
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 2), (2, 4)]
    assert {"train/task", "train/matching", "train/load_balancing"} <= history[0].keys()
    assert {"eval/j", "eval/f", "eval/f_whole_set"} <= history[0].keys()
    best = max(history, key=lambda record: record["eval/j"])
    assert (trained / "checkpoints" / "best").resolve().name == f"step-{best['step']:08d}"


def test_scoring_is_the_metric_computed_by_hand(trained, capsys):
    checkpoint = trained / "checkpoints" / "best"
    assert main(["--evaluate", str(checkpoint), "--split", "test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = CaeAvForSegmentation.from_pretrained(checkpoint).eval()
    processor = CaeAvProcessor.from_pretrained(checkpoint)
    side = processor.mask_size
    overlaps, measures, best = [], [], []
    for row in CaeAvDataset(mask_data(), processor, split="test").rows:
        name = row["video_id"]
        media = mask_corpus() / "media"
        frames = [
            np.asarray(Image.open(media / f"visual_frames/{name}/{name}.mp4_{number}.png").convert("RGB"))
            for number in range(1, 6)
        ]
        inputs = processor(
            videos=[np.stack(frames)],
            audio=[str(media / f"audio_wav/test/{name}.wav")],
            visual_captions=[row["visual_caption"]],
            audio_captions=[row["audio_caption"]],
        )
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, :, 0].sigmoid().numpy()
        first = len(measures)
        for number, probability in enumerate(probabilities, start=1):
            mask = Image.open(media / f"gt_masks/test/{name}/{name}_{number}.png").convert("L")
            truth = np.asarray(mask.resize((side, side), Image.Resampling.NEAREST)) > 0
            predicted = probability > 0.5
            if truth.any():
                overlaps.append((truth & predicted).sum() / (truth | predicted).sum())
                curve = []
                for threshold in np.linspace(0, 1 - 1e-10, 255):
                    above = probability >= threshold
                    hits = (above & truth).sum()
                    precision, recall = hits / max(above.sum(), 1), hits / truth.sum()
                    curve.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
                measures.append(curve)
            else:
                overlaps.append(1 - predicted.mean())
        best.append(np.mean(measures[first:], axis=0).max())
    assert len(measures) < len(overlaps) == 15
    assert printed["j"] == pytest.approx(np.mean(overlaps), abs=1e-4)
    assert printed["f"] == pytest.approx(np.mean(best), abs=1e-4)
    assert printed["f_whole_set"] == pytest.approx(np.mean(measures, axis=0).max(), abs=1e-4)
    assert (printed["clips"], printed["dropped_clips"]) == (3, 0)


def test_what_is_left_of_a_damaged_corpus_is_trained_on(tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(mask_corpus(), corpus)
    names = [scene for scene, truth in read_json(corpus / "toy.json")["clips"].items() if truth["split"] == "train"]
    masks = [corpus / "media" / "gt_masks" / "train" / name / f"{name}_2.png" for name in names]
    masks[0].unlink()
    with Image.open(masks[1]) as mask:
        mask.resize((96, 96)).save(masks[1])
    with Image.open(masks[2]) as mask:
        mask.convert("P").save(masks[2])
    Image.new("L", (64, 64)).save(masks[2].with_stem(f"{names[2]}_3"))
    (corpus / "media" / "audio_wav" / "train" / f"{names[3]}.wav").unlink()
    builder = AvsBenchBuilder(
        setting="ms3",
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        cache_dir=str(tmp_path / "cache"),
    )
    builder.build(tmp_path / "data")
    report = read_json(tmp_path / "data" / "report.json")
    assert report["splits"]["train"]["written"] == 3
    assert report["splits"]["train"]["skipped"]["missing_audio"]["count"] == 1
    assert report["splits"]["train"]["lost"]["missing_mask"]["count"] == 1
    assert {"mask_of_another_size", "palette_mask", "empty_mask"} <= report["notes"].keys()
    flags = ["--model", str(mask_model()), "--data", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")]
    assert main(["--task", "avs_ms3", "--size", "toy", *flags, "--epochs", "1", "--batch-size", "3"]) == 0
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert record["train/task"] > 0
    assert (record["train/dropped_clips"], record["eval/clips"]) == (0, 3)


def test_what_is_kept_of_a_clip_is_small():
    task = get_task("avs_s4")
    logits, labels = torch.randn(2, 5, 1, 64, 64), torch.randint(0, 2, (2, 5, 64, 64), dtype=torch.int8)
    labels[0, 1:] = -100  # as single-source training labels it
    outputs = type("Outputs", (), {"logits": logits})
    clips = task.sums(outputs, {"labels": labels})
    assert all(sum(np.size(value) for value in vars(clip).values()) < 300 for clip in clips)
    assert [clip.frames for clip in clips] == [1, 5]
    empty = task.sums(outputs, {"labels": torch.zeros_like(labels)})
    assert task.scores(empty).keys() == {"j"}
    assert task.scores(clips).keys() == {"j", "f", "f_whole_set"}
    alone = [task.scores([clip])["f"] for clip in clips]
    assert task.scores(clips)["f"] == pytest.approx(np.mean(alone))


def test_no_epochs_score_and_save_the_model_as_it_begins(tmp_path):
    flags = ["--model", str(mask_model()), "--data", str(mask_data()), "--output-dir", str(tmp_path / "run")]
    assert main(["--task", "avs_ms3", "--size", "toy", *flags, "--epochs", "0"]) == 0
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert (record["epoch"], record["step"]) == (0, 0)
    assert 0 <= record["eval/j"] <= 1
    saved = CaeAvForSegmentation.from_pretrained(tmp_path / "run" / "checkpoints" / "best").state_dict()
    began = CaeAvForSegmentation.from_pretrained(mask_model()).state_dict()
    assert all(torch.equal(saved[name], began[name]) for name in began)


def test_a_model_takes_the_task_it_is_trained_on(tmp_path):
    flags = ["--model", str(mask_model()), "--data", str(mask_data()), "--output-dir", str(tmp_path / "run")]
    assert main(["--task", "avs_s4", "--size", "toy", *flags, "--epochs", "0"]) == 0
    assert CaeAvConfig.from_pretrained(tmp_path / "run" / "checkpoints" / "last").task == "avs_s4"


@pytest.mark.parametrize(
    ("task", "data", "column"), [("avs_ms3", toy_data, "masks"), ("ave", mask_data, "segment_labels")]
)
def test_data_of_another_task_is_refused(tmp_path, capsys, task, data, column):
    flags = ["--data", str(data()), "--output-dir", str(tmp_path / "run")]
    assert main(["--task", task, "--size", "toy", *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: error: ")]
    assert column in line
