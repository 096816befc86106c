"""The task and the metric of docs/extending.md, outside the package: trained, evaluated, saved, run as a pipeline."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization
from caeav_hf import task as registry
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.pipelines import register
from caeav_hf.task import FRAMES, Target, get_task, tasks
from tests.media_factory import sweep, tone, write_clip


DOCUMENT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def blocks(section: str) -> list[str]:
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", text[1], re.DOTALL)


FILE, DATA, USE = blocks("A task")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory):
    """Make a folder with the document's file and data; restore the registries afterwards."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "correspondence.py").write_text(FILE)
    clips = [
        (write_clip(folder / f"clip{number}.mp4", seconds=2, sound=sweep if number % 2 else tone()), number % 2)
        for number in range(4)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(registry, "_REGISTERED", {})
        register()
        exec(DATA, {"clips": clips})
        yield folder
    sys.modules.pop("correspondence", None)
    PIPELINE_REGISTRY.supported_tasks.pop("audio-visual-correspondence", None)


@pytest.fixture(scope="module")
def own(workplace: Path) -> ModuleType:
    assert "correspondence" not in tasks()
    return importlib.import_module("correspondence")


@pytest.fixture(scope="module")
def used(own: ModuleType) -> dict:
    """Run the document's last block and return its variables."""
    names: dict = {}
    exec(USE, names)
    return names


@pytest.mark.slow
def test_it_is_trained_and_evaluated(used: dict) -> None:
    result = used["result"]
    assert result.state.step == 4
    history = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    assert all(0 <= record["eval/accuracy"] <= 1 and record["eval/clips"] == 4 for record in history)
    config = CaeAvConfig.from_pretrained(result.best_checkpoint)
    assert (config.task, config.adapter_stages, config.num_latent_tokens) == ("correspondence", [2, 4], 4)
    assert config.id2label == {0: "mismatched", 1: "matching"}
    card = (result.best_checkpoint / "README.md").read_text()
    assert "audio-visual correspondence" in card
    assert 'pipeline("audio-visual-correspondence"' in card


@pytest.mark.slow
def test_it_is_loaded_and_run(used: dict, workplace: Path) -> None:
    trained, loaded = used["result"].model.state_dict(), used["model"].state_dict()
    assert trained.keys() == loaded.keys()
    (result,) = used["classify"](["clip1.mp4"])
    assert result["label"] in ("mismatched", "matching")
    assert 0.5 <= result["score"] <= 1
    # The task of the pipeline follows from the checkpoint.
    assert type(pipeline(model=str(used["result"].best_checkpoint))) is type(used["classify"])
    with pytest.raises(CaeAvError, match="is a checkpoint of CorrespondenceModel"):
        CaeAvForEventLocalization.from_pretrained(used["result"].best_checkpoint)


def test_rows_are_known_by_their_column(own: ModuleType) -> None:
    data = CaeAvDataset("pairs", None, split="train")
    assert data._make_item.task is get_task("correspondence")
    with pytest.raises(CaeAvError, match="pairs: has no column segment_labels, which task ave needs"):
        CaeAvDataset("pairs", None, split="train", task="ave")


def test_targets_are_padded_as_they_say() -> None:
    clips = [
        {"pixel_values_videos": torch.ones(n, 3, 8, 8), "input_features": torch.ones(n, 1, 4, 4), **targets}
        for n, targets in (
            (2, {"speed": torch.ones(2), "answer": torch.ones(3, dtype=torch.int64)}),
            (3, {"speed": torch.ones(3), "answer": torch.ones(1, dtype=torch.int64)}),
        )
    ]
    targets = {"speed": Target(padding=0.5, axis=FRAMES), "answer": Target(padding=7, axis="words")}
    batch = CaeAvCollator(targets=targets)(clips)
    assert batch["speed"].tolist() == [[1, 1, 0.5], [1, 1, 1]]
    assert batch["answer"].tolist() == [[1, 1, 1], [1, 7, 7]]
    with pytest.raises(CaeAvError, match="one length T"):
        CaeAvCollator(targets=targets)([{**clips[0], "speed": torch.ones(3)}])
    assert "speed" not in CaeAvCollator()(clips)


def test_an_unregistered_task() -> None:
    with pytest.raises(StrictDataclassError, match=r"`task` must be one of ave, .*, got 'loudness'"):
        CaeAvConfig(task="loudness")
    with pytest.raises(ValueError, match="got 'loudness'"):
        CaeAvConfig.from_preset("loudness")
    with pytest.raises(CaeAvError, match="there is a task 'ave' already"):
        registry.register_task(get_task("ave"))


def test_a_metric_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    (block,) = blocks("A metric")
    exec(block, {"__name__": "foreground"})
    task = get_task("ave")
    outputs = type("Outputs", (), {})()
    outputs.event_logits = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    outputs.class_logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    sums = task.sums(outputs, {"labels": torch.tensor([[1, 1, 2], [0, -100, 1]])})
    assert task.scores(sums) == {"foreground": 2 / 4}
    assert task.scores(task.sums(outputs, {"labels": torch.full((2, 3), 2)})) == {}
    assert task.best_metric == "foreground"
