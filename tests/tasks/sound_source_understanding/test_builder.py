"""The builder of sound source understanding: rows, lengths, errors of the descriptions, resumption."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import pytest

from caeav_hf import CaeAvProcessor
from caeav_hf.data import BuildReport, CaeAvCollator, CaeAvDataset
from caeav_hf.data.rows import task_of_rows
from caeav_hf.errors import DataError
from caeav_hf.task import get_task
from caeav_hf.tasks.sound_source_understanding.builder import read_descriptions
from tests.corpora import build_ssu, run_script

from .helpers import small_config


@pytest.fixture
def copied(ssu_corpus, tmp_path) -> Path:
    shutil.copytree(ssu_corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def descriptions_of(corpus: Path) -> dict[str, list[str | None]]:
    return json.loads((corpus / "annotations" / "descriptions.json").read_text())


def write_descriptions(corpus: Path, **changes) -> None:
    """Replace the descriptions of some clips; `None` leaves a clip out."""
    texts = {**descriptions_of(corpus), **changes}
    texts = {name: items for name, items in texts.items() if items is not None}
    (corpus / "annotations" / "descriptions.json").write_text(json.dumps(texts))


def test_rows_are_those_of_the_files(ssu_corpus, ssu_parquet) -> None:
    loaded = datasets.load_dataset(str(ssu_parquet))
    with open(ssu_corpus / "annotations" / "meta_data.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    texts, captions = descriptions_of(ssu_corpus), json.loads((ssu_corpus / "captions.json").read_text())
    media = (ssu_corpus / "media").resolve()
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "validation": 2, "test": 2}
    for split, rows in loaded.items():
        folder = {"validation": "val"}.get(split, split)
        for row, line in zip(rows, (line for line in lines if line["split"] == folder), strict=True):
            name = line["name"]

            def images(place: str, name: str = name) -> list[dict]:
                return [{"path": str(media / place / f"{name}_{n}.png"), "bytes": None} for n in range(1, 6)]

            assert row == {
                "video_id": name,
                "category": line["category"],
                "media": None,
                "frames": images(f"visual_frames/{name}"),
                "audio": {"path": str(media / "audio_wav" / folder / f"{name}.wav"), "bytes": None},
                "masks": images(f"gt_masks/{folder}/{name}"),
                "mask_frames": list(range(5)),
                "descriptions": texts[name],
                "visual_caption": captions[name]["visual"],
                "audio_caption": captions[name]["audio"],
            }
            assert all(Path(file["path"]).is_file() for file in (*row["frames"], row["audio"], *row["masks"]))
    report = json.loads((ssu_parquet / "report.json").read_text())
    assert report["files"]["descriptions.json"]["clips"] == 8
    assert not any(split["skipped"] for split in report["splits"].values())


def test_what_is_not_annotated_has_no_target(copied, tmp_path) -> None:
    name = next(iter(descriptions_of(copied)))
    texts = ["", None, "a bell is ringing", "a", "b"]
    write_descriptions(copied, **{name: texts})
    (copied / "media" / "gt_masks" / "train" / name / f"{name}_4.png").unlink()
    report = build_ssu(copied, tmp_path / "out")
    assert report.lost["train"].as_dict()["missing_mask"]["count"] == 1
    processor = CaeAvProcessor.from_config(small_config())
    data = CaeAvDataset(tmp_path / "out", processor, split="train")
    assert task_of_rows(data.rows.column_names).name == "ra_ssu"
    assert data.rows[0]["descriptions"] == texts
    batch = CaeAvCollator(targets=get_task("ra_ssu").targets)([data[0], data[1]])
    assert batch["pixel_values_videos"].shape[:2] == (2, 5)
    assert batch["visual_caption_ids"].shape[0] == 2
    assert (batch["description_ids"][0] != -100).any(-1).tolist() == [True, False, True, True, True]
    assert processor.batch_decode(batch["description_ids"][0], skip_special_tokens=True) == [t or "" for t in texts]
    assert (batch["labels"][0] != -100).flatten(1).any(-1).tolist() == [True, True, True, False, True]
    # Start and end, since nothing sounds.
    assert (batch["description_ids"][0, 0] != -100).sum() == 2


def test_clips_of_another_length_are_skipped(copied, tmp_path) -> None:
    first, second, third, *_ = descriptions_of(copied)
    write_descriptions(copied, **{first: ["a"] * 4, second: ["a"] * 6})
    (copied / "media" / "audio_wav" / "train" / f"{third}.wav").unlink()
    assert build_ssu(copied, tmp_path / "out").skipped["train"].as_dict() == {
        "descriptions_of_another_length": {
            "count": 1,
            "examples": [f"visual_frames/{first}/{first}_5.png (4 descriptions)"],
        },
        "missing_audio": {"count": 1, "examples": [f"audio_wav/train/{third}.wav"]},
        "missing_frame": {"count": 1, "examples": [f"visual_frames/{second}/{second}_6.png"]},
    }
    report = build_ssu(copied, tmp_path / "videos", from_videos=True)
    assert report.skipped["train"].as_dict()["descriptions_of_another_length"] == {
        "count": 2,
        "examples": [f"videos/{first}.mp4 (5 s, 4 descriptions)", f"videos/{second}.mp4 (5 s, 6 descriptions)"],
    }
    rows = datasets.load_dataset(str(tmp_path / "videos"), split="train")
    assert rows[0]["media"]["path"] == str((copied / "media" / "videos" / f"{third}.mp4").resolve())
    assert rows[0]["frames"] == []
    assert len(rows[0]["masks"]) == 5


def test_another_build_writes_only_what_has_changed(copied, tmp_path) -> None:
    *_, last = descriptions_of(copied)
    write_descriptions(copied)
    assert build_ssu(copied, tmp_path / "out").written_shards == 3
    assert build_ssu(copied, tmp_path / "out").written_shards == 0
    write_descriptions(copied, **{last: ["changed"] * 5})
    assert build_ssu(copied, tmp_path / "out").written_shards == 1
    rows = datasets.load_dataset(str(tmp_path / "out"), split="test")
    assert rows[-1]["descriptions"] == ["changed"] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toy00000001": None}, r"descriptions\.json: has no descriptions of toy00000001"),
        (
            {"toy9": ["x"]},
            r"descriptions\.json: has descriptions of toy9, which meta_data\.csv does not list",
        ),
    ],
)
def test_names_are_those_of_the_table(copied, tmp_path, change, message) -> None:
    write_descriptions(copied, **change)
    with pytest.raises(DataError, match=message):
        build_ssu(copied, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"expected a JSON file"),
        ("[]", "lists of texts by name, got a list"),
        ('{"a": "text"}', "texts and nulls for a, one for each second"),
        ('{"a": []}', "texts and nulls for a"),
        ('{"a": ["x", 3]}', "texts and nulls for a"),
        ('{"a": ["x"], "b": ["y"], "a": ["z"]}', "'a' is there twice"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message) -> None:
    file = tmp_path / "descriptions.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_descriptions(file, BuildReport())
    assert str(error.value).startswith(str(file))
    with pytest.raises(DataError, match="no such annotation file"):
        read_descriptions(tmp_path / "none.json", BuildReport())


def test_command_line(copied, tmp_path, capsys) -> None:
    arguments = ["--annotations", str(copied / "annotations"), "--media", str(copied / "media")]
    assert run_script("ra_ssu.py", *arguments, "--out", str(tmp_path / "out"), "--from-videos") == 0
    assert "train: 4 of 4 rows in 1 shards" in capsys.readouterr().out
    (copied / "annotations" / "descriptions.json").unlink()
    assert run_script("ra_ssu.py", *arguments, "--out", str(tmp_path / "out")) == 2
    assert "descriptions.json: no such annotation file" in capsys.readouterr().err
