"""Whole runs on real clips: training, kills, resuming, scoring, the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.data import AveBuilder, CaeAvDataset
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.towers.frozen import trained_names
from caeav_hf.training import Recipe
from caeav_hf.training.build import load_trained_model, read_captions
from caeav_hf.training.command import main
from caeav_hf.training.run import score
from tests.lanes import METHODS
from tests.training.toy_files import toy_corpus, toy_data, toy_model


pytestmark = pytest.mark.slow


TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def arguments(folder, cache, *more):
    fixed = {
        "--task": "ave",
        "--size": "toy",
        "--model": toy_model(),
        "--data": toy_data(),
        "--output-dir": folder,
        "--cache-dir": cache,
        "--batch-size": 2,
        "--accumulation-steps": 1,
    }
    return [str(part) for pair in fixed.items() for part in pair] + [str(part) for part in more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """Train for two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "ave"
    more = ["--batch-size", 4, "--accumulation-steps", 2, "--epochs", 2, "--report-to", "tensorboard"]
    assert main(arguments(folder, cache, *more)) == 0
    return folder


def test_a_run_trains_the_adapters_only(trained):
    before = CaeAvForEventLocalization.from_pretrained(toy_model()).state_dict()
    model = load_trained_model(CaeAvForEventLocalization, trained / "checkpoints" / "last")
    names = trained_names(model)
    assert not any("tower" in name for name in names)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name not in names)
    # The recipe trains the agreement, for which the model had no calibration.
    assert all(name.startswith("model.agreement_calibration.") for name in names - before.keys())
    changed = [name for name in names & before.keys() if not torch.equal(after[name], before[name])]
    assert any(name.startswith("head.") for name in changed)
    assert any(name.startswith("model.interactions.") for name in changed)
    assert any(name.startswith("model.case.") for name in changed)


def test_a_run_records_what_it_did(trained):
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 2), (2, 4)]
    assert {"train/loss", "train/task", "train/caption", "train/entropy", "eval/accuracy"} <= history[0].keys()
    assert list((trained / "trackers").rglob("events.out.tfevents.*"))


def test_scoring_is_the_metric_computed_by_hand(trained, tmp_path, capsys):
    best, out = trained / "checkpoints" / "best", tmp_path / "scores.json"
    assert main(["--evaluate", str(best), "--split", "test", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == printed
    model = CaeAvForEventLocalization.from_pretrained(best).eval()
    processor = CaeAvProcessor.from_pretrained(best)
    right = total = 0
    for row in CaeAvDataset(toy_data(), processor, split="test").rows:
        inputs = processor(
            videos=[row["media"]["path"]],
            visual_captions=[row["visual_caption"]],
            audio_captions=[row["audio_caption"]],
        )
        with torch.no_grad():
            outputs = model(**inputs)
        for event, label in zip(outputs.event_logits[0], row["segment_labels"], strict=True):
            predicted = outputs.class_logits[0].argmax() if event > 0 else model.config.num_labels
            right += int(predicted == label)
            total += 1
    assert printed["accuracy"] == pytest.approx(right / total)
    assert (printed["clips"], printed["dropped_clips"]) == (3, 0)


def test_a_clip_that_is_gone_is_counted(trained, tmp_path):
    media = shutil.copytree(toy_corpus() / "media", tmp_path / "media")
    annotations = str(toy_corpus() / "annotations")
    AveBuilder(annotations=annotations, media=str(media), cache_dir=str(tmp_path / "cache")).build(tmp_path / "data")
    processor = CaeAvProcessor.from_pretrained(toy_model())
    lost = CaeAvDataset(tmp_path / "data", processor, split="test").rows[0]["media"]["path"]
    Path(lost).unlink()
    metrics = score(trained / "checkpoints" / "best", Recipe(size="toy", data=str(tmp_path / "data")), "test")
    assert (metrics["clips"], metrics["dropped_clips"]) == (2, 1)


def test_captions_are_read_once(trained):
    model = load_trained_model(CaeAvForEventLocalization, toy_model())
    processor = CaeAvProcessor.from_pretrained(toy_model())
    data = CaeAvDataset(toy_data(), processor, split="test")
    features = read_captions(model, processor, [data, data], show_progress=False)
    texts = {row[side] for row in data.rows for side in ("visual_caption", "audio_caption")}
    assert len(features.features) == len(texts)
    row = data.rows[0]
    inputs = dict(processor(visual_captions=[row["visual_caption"]], audio_captions=[row["audio_caption"]]))
    ready = features.insert(inputs)
    assert set(ready) == {
        *("visual_caption_embeds", "visual_caption_mask", "audio_caption_embeds", "audio_caption_mask")
    }
    kept = inputs["visual_caption_mask"].bool()
    direct = model.cae_av.get_caption_features(inputs["visual_caption_ids"])
    torch.testing.assert_close(ready["visual_caption_embeds"][kept], direct[kept], rtol=1e-4, atol=1e-5)
    unknown = dict(processor(visual_captions=["never read before"], audio_captions=[row["audio_caption"]]))
    assert {"visual_caption_ids", "audio_caption_embeds"} <= set(features.insert(unknown))


@pytest.mark.parametrize("method", [None, METHODS[0]])
def test_a_run_killed_at_any_time_resumes_to_the_same_weights(tmp_path, cache, method):
    more = ["--epochs", 99, *([] if method is None else ["--model", "null", "--method", method])]
    command = [sys.executable, TRAIN, *arguments(tmp_path / "killed", cache, "--save-steps", 2, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    last = tmp_path / "killed" / "checkpoints" / "last"
    while process.poll() is None and not (last.exists() and last.resolve().name >= "step-00000004"):
        time.sleep(0.02)
    time.sleep(0.3)  # it may be anywhere then
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]

    reached = int(last.resolve().name.split("-")[1])
    assert main(["--resume", str(tmp_path / "killed"), "--max-steps", str(reached + 3)]) == 0
    assert main(arguments(tmp_path / "whole", cache, *more, "--max-steps", reached + 3)) == 0
    resumed, whole = (load(tmp_path / name / "checkpoints" / "last") for name in ("killed", "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def load(checkpoint):
    training = torch.load(checkpoint / "training_state" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    moments = {f"{number}.{name}": value for number, item in training.items() for name, value in item.items()}
    return {**load_file(checkpoint / "model-00001-of-00002.safetensors"), **moments}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "/no/such/data"], "/no/such/data"),
        (["--eval-split", "weekend"], "weekend"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model-config", "topk_ratio=7"], "topk_ratio"),
        (["--mixed-precision", "fp16"], "fp16"),
        (["--task", "cooking"], "cooking"),
        (["--resume", "/no/such/run"], "/no/such/run"),
        (["--model", "null", "--vision-tower", "x"], "audio_tower, text_tower"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path, cache, capsys, more, message):
    if "fp16" in more and torch.cuda.is_available():
        pytest.skip("fp16 is right where there is a GPU")
    assert main(arguments(tmp_path / "run", cache, *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: error: ")]
    assert message in line
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_a_model_of_other_classes_is_refused(trained, tmp_path, capsys):
    model = CaeAvForEventLocalization.from_pretrained(trained / "checkpoints" / "best")
    model.config.id2label = {number: f"class {number}" for number in range(8)}
    model.save_pretrained(tmp_path / "other")
    flags = ["--task", "ave", "--size", "toy", "--data", str(toy_data())]
    assert main(["--evaluate", str(tmp_path / "other"), *flags]) == 2
    assert "class 0" in capsys.readouterr().err


def test_a_run_with_lora_resumes(tmp_path, cache, capsys):
    lora = ["--lora-rank", 2, "--lora-dropout", 0.1, "--lora-towers", "vision,text"]
    assert main(arguments(tmp_path, cache, "--model", "null", *lora, "--max-steps", 1)) == 0
    last = tmp_path / "checkpoints" / "last"
    model = load_trained_model(CaeAvForEventLocalization, last)
    matrices = {name: tensor for name, tensor in model.state_dict().items() if "lora_B" in name}
    assert {name.split(".")[1] for name in matrices} == {"vision_tower", "text_tower"}
    # They are initialized to zero, so captions have no effect at first.
    matrices = {name: tensor for name, tensor in matrices.items() if "vision" in name}
    assert all(tensor.any() for tensor in matrices.values())
    assert main(["--resume", str(tmp_path), "--max-steps", "2"]) == 0
    resumed = load_trained_model(CaeAvForEventLocalization, last).state_dict()
    assert all(not torch.equal(resumed[name], tensor) for name, tensor in matrices.items())
    assert main(arguments(tmp_path / "again", cache, "--model", last, *lora)) == 2
    assert "already has LoRA" in capsys.readouterr().err
