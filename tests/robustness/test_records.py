"""Stored sums of a metric give its scores on any resample of the clips."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from caeav_hf.errors import CaeAvError
from caeav_hf.robustness.records import Record, StackedSums, read_fingerprint
from caeav_hf.task import get_task
from caeav_hf.tasks.event_localization.metric import EventSums
from caeav_hf.tasks.question_answering.metric import AnswerSums
from caeav_hf.tasks.segmentation.metric import segmentation_sums
from caeav_hf.tasks.sound_source_understanding.metric import UnderstandingSums, description_sums
from caeav_hf.tasks.video_parsing.metric import video_parsing_sums


def sums_of(task: str, count: int = 12) -> list:
    """Make the metric's sums of random clips."""
    rng = np.random.default_rng(0)
    if task == "ave":
        return [EventSums(int(right), 10) for right in rng.integers(0, 11, count)]
    if task == "avvp":
        return [video_parsing_sums(*rng.integers(0, 2, (4, 1, 3, 10))) for _ in range(count)]
    if task == "avs_ms3":
        torch.manual_seed(0)
        return [segmentation_sums(torch.randn(2, 8, 8), torch.rand(2, 8, 8) > 0.6) for _ in range(count)]
    if task == "ra_ssu":
        torch.manual_seed(0)
        words = ["a bell rings on the left", "a dog barks", "a bell rings", ""]
        texts = [rng.choice(words, (2, 3)).tolist() for _ in range(count)]
        masks = sums_of("avs_ms3", count)
        return [UnderstandingSums(mask, description_sums(*pair)) for mask, pair in zip(masks, texts, strict=True)]
    names = [["accuracy", f"accuracy/{kind}"] for kind in rng.choice(["Audio", "Visual"], count)]
    return [AnswerSums(Counter(n if rng.random() > 0.4 else []), Counter(n)) for n in names]


def record_of(task: str, clips: list[int] | None = None) -> Record:
    sums = sums_of(task)
    return Record(
        rows=np.arange(12),
        clips=np.arange(12) if clips is None else np.asarray(clips),
        sums=StackedSums.stack(sums, get_task(task)),
        affected=np.zeros((12, 10), np.int8),
        agreement=None if task == "avqa" else np.random.default_rng(1).random((12, 4, 10), np.float32),
    )


@pytest.mark.parametrize("task", ["ave", "avvp", "avs_ms3", "avqa", "ra_ssu"])
def test_stored_sums_score_every_resample(task: str, tmp_path: Path) -> None:
    sums, record = sums_of(task), record_of(task)
    record.save(tmp_path / "a" / "clean.safetensors", {"seed": 3})
    stored = Record.load(tmp_path / "a" / "clean.safetensors")
    assert read_fingerprint(tmp_path / "a" / "clean.safetensors") == {"seed": 3}
    for name in ("rows", "clips", "affected"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(record, name))
    assert (stored.agreement is None) == (record.agreement is None)
    drawn = np.random.default_rng(2).integers(0, 12, (5, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn]).astype(float)
    for row, total in zip(drawn, stored.sums.totals(weights), strict=True):
        expected = get_task(task).scores([sums[clip] for clip in row])
        found = get_task(task).scores([total])
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx([expected[name] for name in found])


@pytest.mark.parametrize("absent", ["masks", "descriptions"])
def test_what_a_model_does_not_predict_is_left_out(absent: str, tmp_path: Path) -> None:
    task, sums = get_task("ra_ssu"), [replace(clip, **{absent: None}) for clip in sums_of("ra_ssu")]
    clips = np.arange(12)
    stacked = StackedSums.stack(sums, task)
    Record(clips, clips, stacked, np.zeros((12, 3), np.int8), None).save(tmp_path / "clean.safetensors", {})
    (total,) = Record.load(tmp_path / "clean.safetensors").sums.totals(np.ones((1, 12)))
    assert getattr(total, absent) is None
    assert task.scores([total]) == pytest.approx(task.scores(sums))


def test_questions_about_a_clip_are_drawn_together() -> None:
    sums, clips = sums_of("avqa"), [0, 0, 0, 2, 2, 2, 5, 5, 5, 5, 7, 7]
    by_clip = record_of("avqa", clips).sums.by_clip(np.asarray(clips), 8)
    weights = np.zeros((1, 8))
    weights[0, [0, 5]] = 1, 2
    expected = sums[:3] + 2 * sums[6:10]
    assert get_task("avqa").scores(by_clip.totals(weights)) == pytest.approx(get_task("avqa").scores(expected))


@pytest.mark.parametrize("nothing", [AnswerSums(Counter(), Counter()), EventSums(0, 0)])
def test_a_condition_in_which_nothing_counts_has_no_score(nothing, tmp_path: Path) -> None:
    task = get_task("avqa" if isinstance(nothing, AnswerSums) else "ave")
    sums = StackedSums.stack([nothing] * 3, task)
    clips = np.arange(3)
    Record(clips, clips, sums, np.zeros((3, 1), np.int8), None).save(tmp_path / "mute-5.safetensors", {})
    (total,) = Record.load(tmp_path / "mute-5.safetensors").sums.totals(np.ones((1, 3)))
    with pytest.raises(CaeAvError, match="all of them are -100"):
        task.scores([total])


@dataclass(frozen=True)
class LargestSums:
    largest: float

    def __add__(self, other: "LargestSums") -> "LargestSums":
        return LargestSums(max(self.largest, other.largest))

    def scores(self) -> dict[str, float]:
        return {"largest": self.largest}


def test_other_metrics_are_refused() -> None:
    task = replace(get_task("ave"), metric=lambda outputs, inputs: [], best_metric="largest")
    with pytest.raises(CaeAvError, match="LargestSums; expected a dataclass"):
        StackedSums.stack([LargestSums(1.0), LargestSums(2.0)], task)
    with pytest.raises(CaeAvError, match="int; expected a dataclass"):
        StackedSums.stack([1, 2], task)


def test_a_file_decides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clean.safetensors"
    record_of("ave").save(path, {})
    arrays = load_file(path)
    for name in ("subprocess:Popen", "no_such_module:EventSums", "caeav_hf.task:Card"):
        described = json.dumps({"class": name.split(":"), "keys": {}})
        save_file(arrays, path, {"fingerprint": "{}", "sums": described})
        with pytest.raises(CaeAvError, match="another metric"):
            Record.load(path)
    record_of("ra_ssu").save(path, {})
    arrays = load_file(path)
    described = json.dumps(
        {
            "class": [UnderstandingSums.__module__, "UnderstandingSums"],
            "keys": {},
            "parts": {"masks": ["subprocess", "Popen"], "descriptions": None},
        }
    )
    save_file(arrays, path, {"fingerprint": "{}", "sums": described})
    with pytest.raises(CaeAvError, match="another metric"):
        Record.load(path)
    path.write_bytes(b"cut off")
    for read in (Record.load, read_fingerprint):
        with pytest.raises(CaeAvError, match=r"cannot be read.*remove it"):
            read(path)


def test_a_record_whose_arrays_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "clean.safetensors"
    for changes in ({"clips": np.arange(11)}, {"rows": np.zeros(12)}, {"affected": np.zeros((3, 10), np.int8)}):
        replace(record_of("ave"), **changes).save(path, {})
        with pytest.raises(CaeAvError, match=r"clean\.safetensors.* remove it"):
            Record.load(path)
