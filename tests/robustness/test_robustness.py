"""Scoring on graded test sets: the command, its files, and that it continues where it was stopped."""

import csv
import json
import logging
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from caeav_hf import CaeAvConfig, CaeAvForQuestionAnswering, CaeAvProcessor
from caeav_hf.cli import main
from caeav_hf.cli.robustness import methods_of
from caeav_hf.data.misalign import KINDS
from caeav_hf.data.shards import load_rows
from caeav_hf.errors import CaeAvError
from caeav_hf.robustness import ScoringOptions, measure_robustness, scoring
from caeav_hf.robustness.records import Record
from caeav_hf.robustness.report import detection
from caeav_hf.tasks.agreement import agreement_auc
from caeav_hf.training import Recipe
from caeav_hf.training.run import score
from caeav_hf.visualization.robustness import plot_robustness
from tests.training.toy_files import question_data, question_model, toy_data, toy_model


pytestmark = pytest.mark.slow


OPTIONS = ScoringOptions(kinds=("mute",), levels=(5,), batch_size=2, device="cpu", show_progress=False)


def records_of(folder: Path) -> dict[str, Record]:
    return {str(path.relative_to(folder)): Record.load(path) for path in sorted(folder.rglob("*.safetensors"))}


def check_same(found: dict[str, Record], expected: dict[str, Record]) -> None:
    """Compare counts exactly, and agreements to rounding, in which two loads of a model differ."""
    for name, record in found.items():
        for part in ("rows", "clips", "affected"):
            np.testing.assert_array_equal(getattr(record, part), getattr(expected[name], part))
        for field, column in record.sums.columns.items():
            np.testing.assert_array_equal(column, expected[name].sums.columns[field])
        np.testing.assert_allclose(record.agreement, expected[name].agreement, atol=1e-4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Score two untrained models by the command."""
    out = tmp_path_factory.mktemp("robustness") / "out"
    models = [f"CAE-AV={toy_model()}", f"LAVisH={toy_model('lavish')}"]
    choice = ["--kinds", "delay", "mute", "--levels", "5", "--batch-size", "2", "--resamples", "50"]
    paths = ["--data", str(toy_data()), "--out", str(out)]
    assert main(["robustness", *models, *paths, *choice, "--device", "cpu"]) == 0
    return out


@pytest.fixture(scope="module")
def results(measured: Path) -> dict:
    return json.loads((measured / "robustness.json").read_text())


def test_the_clean_score_is_that_of_an_evaluation(results: dict) -> None:
    recipe = Recipe(task="ave", size="toy", data=str(toy_data()), eval_batch_size=2)
    expected = score(toy_model(), recipe, "test")
    found = results["methods"]["CAE-AV"]
    assert found["clean"]["value"] == pytest.approx(expected["accuracy"])
    assert found["model_scores"][0]["all_clean_scores"] == {"accuracy": pytest.approx(expected["accuracy"])}
    assert results["clips"] == expected["clips"] == 3


def test_measures_follow_from_the_scores(results: dict) -> None:
    assert list(results["kinds"]) == ["delay", "mute"]
    for method in results["methods"].values():
        clean = method["clean"]["value"]
        for kind in method["kinds"].values():
            values = [level["value"] for level in kind["levels"].values()]
            assert kind["mean_score"]["value"] == pytest.approx(np.mean(values))
            assert kind["absolute_robustness"]["value"] == pytest.approx(1 - clean + np.mean(values))
            if clean:
                assert kind["relative_robustness"]["value"] == pytest.approx(np.mean(values) / clean)
        means = [kind["mean_score"]["value"] for kind in method["kinds"].values()]
        assert method["overall"]["mean_score"]["value"] == pytest.approx(np.mean(means))
        assert method["interval"] == "clips (bootstrap)"
    (pair,) = results["comparisons"]
    one, other = (results["methods"][name] for name in (pair["first"], pair["second"]))
    assert (pair["first"], pair["second"]) == ("CAE-AV", "LAVisH")
    difference = one["overall"]["mean_score"]["value"] - other["overall"]["mean_score"]["value"]
    assert pair["overall"]["difference"] == pytest.approx(difference)
    assert pair["overall"]["low"] <= difference <= pair["overall"]["high"]


def test_table_and_csv_hold_what_the_json_holds(measured: Path, results: dict) -> None:
    with (measured / "robustness.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (1 + 2)
    for line in lines:
        method = results["methods"][line["method"]]
        found = method["clean"] if line["kind"] == "clean" else method["kinds"][line["kind"]]["levels"][line["level"]]
        assert [float(line[name]) for name in ("accuracy", "low", "high")] == pytest.approx(list(found.values()))
    table = (measured / "robustness.md").read_text()
    assert "| kind, mean over levels | CAE-AV | LAVisH |" in table
    for kind, about in results["kinds"].items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {about['title']} |") and "[" in line]
        for method, cell in zip(results["methods"].values(), row.split("|")[2:-1], strict=True):
            assert float(cell.split()[0]) == round(100 * method["kinds"][kind]["mean_score"]["value"], 1)
    # LAVisH has no agreement.
    (row,) = [line for line in table.splitlines() if line.startswith("| all kinds |") and line.endswith(" - |")]
    assert f"{results['methods']['CAE-AV']['detection']['overall']['auc']:.2f}" in row


def test_the_picture_shows_every_kind_and_method(measured: Path, results: dict) -> None:
    assert (measured / "robustness.png").stat().st_size > 10_000
    figure = plot_robustness(results)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in panels] == [KINDS[kind].title for kind in results["kinds"]]
    for axis, kind in zip(panels, results["kinds"], strict=True):
        for curve, method in zip(axis.containers, results["methods"].values(), strict=True):
            values = [method["clean"], *method["kinds"][kind]["levels"].values()]
            np.testing.assert_allclose(
                curve.lines[0].get_ydata(orig=False), [100 * value["value"] for value in values]
            )
            np.testing.assert_allclose(np.round(curve.lines[0].get_xdata(orig=False)), [0, 5])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CAE-AV", "LAVisH"]
    with pytest.raises(CaeAvError, match="at least one kind"):
        plot_robustness({**results, "kinds": {}})


def test_detection_compares_affected_segments_with_all_others(measured: Path, results: dict) -> None:
    (model,) = scoring.score_models([toy_model()], toy_data(), measured, OPTIONS).models
    found = detection(model, [("mute", 5)])
    assert found is not None
    clean, muted = model.load(("clean", 0)), model.load(("mute", 5))
    assert muted.affected.all()
    assert clean.agreement is not None
    assert muted.agreement is not None
    agreement = torch.from_numpy(np.concatenate([one.agreement[:, -1].ravel() for one in (clean, muted)]))
    is_matching = torch.arange(len(agreement)) < len(agreement) // 2
    assert found["mute", 5] is not None
    assert found["mute", 5]["auc"] == pytest.approx(agreement_auc(agreement, is_matching))
    assert found["mute", 5]["share_affected"] == 0.5
    in_json = results["methods"]["CAE-AV"]["detection"]["kinds"]["mute"]["5"]
    assert in_json["auc_by_stage"] == pytest.approx(found["mute", 5]["auc_by_stage"])
    assert results["methods"]["LAVisH"]["detection"] is None


def test_a_stopped_run_continues(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Record.save, []

    def save_one(self: Record, path: Path, fingerprint: dict) -> None:
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path, fingerprint)

    monkeypatch.setattr(Record, "save", save_one)
    arguments = ({"CAE-AV": [toy_model()]}, toy_data(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        # The cache tells the clips of each condition apart.
        measure_robustness(*arguments, options=replace(OPTIONS, cache_dir=tmp_path.with_name("cache")))
    written = {path: path.stat().st_mtime_ns for path in saved}
    saved.clear()
    measure_robustness(*arguments, options=replace(OPTIONS, cache_dir=tmp_path.with_name("cache")), resamples=10)
    assert [path.name for path in saved] == ["mute-5.safetensors"]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    # The same as of a run that was not stopped, in which another model was scored besides.
    check_same(records_of(tmp_path), records_of(measured))

    # A finished run needs no model.
    saved.clear()
    monkeypatch.setattr(scoring, "load_trained_model", None)
    first = (tmp_path / "robustness.json").read_bytes()
    measure_robustness(*arguments, options=OPTIONS, resamples=10)
    assert not saved
    assert (tmp_path / "robustness.json").read_bytes() == first


def test_a_killed_run_continues(measured: Path, tmp_path: Path) -> None:
    def killed() -> None:
        replace, count = Path.replace, iter(range(1))

        def replace_or_die(self: Path, target: Path) -> Path:
            if next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = replace_or_die  # type: ignore[method-assign]
        scoring.score_models([toy_model()], toy_data(), tmp_path, OPTIONS)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(records_of(tmp_path)) == 1
    scoring.score_models([toy_model()], toy_data(), tmp_path, OPTIONS)
    assert len(records_of(tmp_path)) == 2
    check_same(records_of(tmp_path), records_of(measured))


def test_other_models_data_and_seeds_are_not_mixed(
    measured: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model, data = tmp_path / "out", tmp_path / "run", tmp_path / "data"
    shutil.copytree(measured, out)
    shutil.copytree(toy_model(), model)
    shutil.copytree(toy_data(), data)
    name = f"run-{scoring.model_digest(model)[:8]}"
    next((out / "scores").glob("model_None-*")).rename(out / "scores" / name)
    monkeypatch.setattr(logging.getLogger("caeav_hf"), "propagate", True)
    assert scoring.score_models([model], toy_data(), out, OPTIONS).models[0].records.name == name
    for change, options in (
        ("seed 0, not 1", {"seed": 1}),
        ("mixed_precision 'no', not 'bf16'", {"mixed_precision": "bf16"}),
        ("split 'test', not 'train'", {"split": "train"}),
    ):
        changed = ScoringOptions(kinds=("mute",), levels=(5,), device="cpu", **options)
        with pytest.raises(CaeAvError, match=f"{'data' if 'split' in options else change}"):
            scoring.score_models([model], toy_data(), out, changed)
    shard = next((data / "data").glob("test-*"))
    table = datasets.Dataset.from_parquet(str(shard))
    table.select([0, 1]).to_parquet(shard)
    with pytest.raises(CaeAvError, match="was scored with data"):
        scoring.score_models([model], data, out, OPTIONS)
    # Another model gets scores of its own.
    weights = load_file(model / "model.safetensors")
    weights["model.head.none"] = torch.zeros(1)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert scoring.model_digest(model) != name[4:]
    with pytest.raises(CaeAvError):
        scoring.score_models([model, "no/such/folder/anywhere"], toy_data(), out, OPTIONS)
    assert f"{model}: has changed since it was scored" in caplog.text


def test_a_broken_clip_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data(), data)
    shard = next((data / "data").glob("test-*"))
    rows = datasets.Dataset.from_parquet(str(shard))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no clip")
    features = rows.features

    def break_second(row: dict, index: int) -> dict:
        return {**row, "media": {"path": str(broken), "bytes": None}} if index == 1 else row

    rows.map(break_second, with_indices=True, features=features).to_parquet(shard)
    options = ScoringOptions(kinds=("mute",), levels=(5,), batch_size=2, device="cpu", show_progress=False)
    found = measure_robustness({"CAE-AV": [toy_model()]}, data, tmp_path / "out", options=options, resamples=10)
    assert (found["clips"], found["clips_resampled"]) == (3, 2)
    (folder,) = (tmp_path / "out" / "scores").iterdir()
    assert all(Record.load(path).rows.tolist() == [0, 2] for path in folder.iterdir())


def test_seeds_of_a_method_and_questions(tmp_path: Path) -> None:
    """Questions about a clip are one clip; several models of a method have an interval over seeds."""
    answers = load_rows(question_data(), "test").features["answer_label"].names
    config = CaeAvConfig.from_preset("avqa", size="toy", id2label=dict(enumerate(answers)))
    models = [tmp_path / f"seed {seed}" for seed in range(2)]
    for seed, folder in enumerate(models):
        torch.manual_seed(seed)
        model = CaeAvForQuestionAnswering(config)
        with torch.no_grad():  # make answers differ between questions
            model.head.classifier.weight.mul_(20)
        model.save_pretrained(folder)
        CaeAvProcessor.from_config(config).save_pretrained(folder)
    options = ScoringOptions(kinds=("delay",), levels=(5,), device="cpu", models_at_a_time=1, show_progress=False)
    found = measure_robustness({"both": models}, question_data(), tmp_path / "out", options=options, resamples=10)
    both = found["methods"]["both"]
    assert both["interval"] == "seeds (Student's t)"
    single = [model["clean"]["value"] for model in both["model_scores"]]
    assert both["clean"]["value"] == pytest.approx(np.mean(single))
    half = 12.706 * np.std(single, ddof=1) / 2**0.5
    assert both["clean"]["high"] == pytest.approx(np.mean(single) + half)
    assert found["clips"] == 2
    expected = score(models[1], Recipe(task="avqa", size="toy", data=str(question_data()), eval_batch_size=8), "test")
    assert both["model_scores"][1]["all_clean_scores"]["accuracy"] == pytest.approx(expected["accuracy"])


def test_affected_segments_of_decoded_ones() -> None:
    """A model may read fewer segments than the rows describe, and clips may be shorter."""

    def affected(sampling: str, masks: list[list[bool]]) -> list[list[int]]:
        segments = [False, False, True, True, True, False]
        clips = SimpleNamespace(
            rows=SimpleNamespace(column_names=["misalignment"]),
            column=lambda name: [{"affected_segments": segments}] * 2,
            processor=SimpleNamespace(frame_sampling=sampling),
        )
        return scoring._affected(clips, [np.array(mask) for mask in masks], [0, 1]).tolist()

    assert affected("consecutive", [[True] * 4, [True, True, True, False]]) == [[0, 0, 1, 1], [0, 0, 1, -1]]
    assert affected("consecutive", [[True] * 8] * 2)[0] == [0, 0, 1, 1, 1, 0, 0, 0]
    assert affected("spread", [[True] * 3, [True] * 3])[0] == [0, 1, 0]


def test_families_are_kinds() -> None:
    options = ScoringOptions(kinds=("correlated", "mute"), levels=(5, 2))
    families = {KINDS[kind].family for kind in options.chosen_kinds if kind != "mute"}
    assert families == {"correlated"}
    assert len(options.chosen_kinds) == 1 + sum(kind.family == "correlated" for kind in KINDS.values())
    assert options.conditions()[:3] == [("clean", 0), ("mute", 2), ("mute", 5)]
    assert ScoringOptions().chosen_kinds == tuple(KINDS)


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert methods_of(["runs/a/checkpoints/best", "B=runs/b"], ["C=x,y"]) == {
        "a": ["runs/a/checkpoints/best"],
        "B": ["runs/b"],
        "C": ["x", "y"],
    }
    where = ["--data", str(toy_data()), "--out", str(tmp_path)]
    for expected, arguments in {
        "at least one MODEL": [],
        "two models or groups are called 'a'": ["runs/a", "a=other"],
        "--group expects": ["--group", "name"],
        "`kinds` must be some of": [str(toy_model()), "--kinds", "echo"],
        "`batch_size` must be": [str(toy_model()), "--batch-size", "0"],
        "`reference` must be one of": [str(toy_model()), "--reference", "nobody"],
        "no such folder": ["no/such/model"],
        "models of one task": [f"a={toy_model()}", f"b={question_model()}"],
        "data/nowhere-*.parquet": [str(toy_model()), "--split", "nowhere"],
    }.items():
        assert main(["robustness", *arguments, *where]) == 2
        assert expected in capsys.readouterr().err
