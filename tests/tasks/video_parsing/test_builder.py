"""The LLP builder: parsing, irregularities, media checks, 3D features, and reading by `datasets`."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caeav_hf.data import BuildReport, LlpBuilder
from caeav_hf.errors import DataError
from caeav_hf.labels import LLP_CATEGORIES
from caeav_hf.tasks.video_parsing.builder import (
    LLP_EVENT_FILES,
    LLP_SPLIT_FILES,
    read_categories,
    read_clips,
    read_events,
)
from caeav_hf.toy import CLASSES
from tests.corpora import build_llp, keep_stream, run_script


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


@pytest.fixture
def copy(llp_corpus, tmp_path) -> Path:
    shutil.copytree(llp_corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_rows_are_those_of_the_annotations(llp_corpus, llp_parquet):
    loaded = datasets.load_dataset(str(llp_parquet))
    captions = json.loads((llp_corpus / "captions.json").read_text())
    events = {m: table(llp_corpus / "annotations" / name) for m, name in LLP_EVENT_FILES.items()}
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 8, "validation": 4, "test": 4}
    for split, name in LLP_SPLIT_FILES.items():
        for row, (filename, names) in zip(loaded[split], table(llp_corpus / "annotations" / name), strict=True):
            video_id, start, end = filename.rsplit("_", 2)
            segments = {}
            for modality, lines in events.items():
                seconds = [[] for _ in range(10)]
                for clip, onset, offset, category in lines:
                    for second in range(int(onset), int(offset)) if clip == filename else ():
                        seconds[second] = sorted([*seconds[second], CLASSES.index(category)])
                segments[f"{modality}_segment_labels"] = None if split == "train" else seconds
            assert row == {
                "video_id": video_id,
                "filename": filename,
                "start": float(start),
                "end": float(end),
                "event_labels": [CLASSES.index(name) for name in names.split(",")],
                **segments,
                "visual_3d": None,
                "media": {"path": str((llp_corpus / "media" / f"{filename}.mp4").resolve()), "bytes": None},
                "frames": [],
                "audio": None,
                "media_start": None,
                "media_end": None,
                "visual_caption": captions[filename]["visual"],
                "audio_caption": captions[filename]["audio"],
            }
    features = loaded["train"].features
    assert features["event_labels"].feature == datasets.ClassLabel(names=list(CLASSES))
    assert features["audio_segment_labels"].feature.feature == datasets.ClassLabel(names=list(CLASSES))
    assert list(datasets.load_dataset(str(llp_parquet), split="test", streaming=True)) == list(loaded["test"])


def test_clips_may_be_named_by_their_video_and_embedded(copy, tmp_path):
    captions = json.loads((copy / "captions.json").read_text())
    clips = sorted((copy / "media").iterdir())
    for path in clips:
        path.rename(path.with_name(f"{path.stem.rsplit('_', 2)[0]}.mp4"))
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({name.rsplit("_", 2)[0]: caption for name, caption in captions.items()}))
    report = build_llp(copy, tmp_path / "out", embed_media=True, captions=str(file))
    assert not len(report.notes)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="validation")
    for row in rows:
        path = copy / "media" / f"{row['video_id']}.mp4"
        assert row["media"] == {"path": path.name, "bytes": path.read_bytes()}
        assert row["visual_caption"] == captions[row["filename"]]["visual"]


def test_missing_and_broken_clips_are_counted(copy, tmp_path):
    media = copy / "media"
    clips = [filename for filename, _ in table(copy / "annotations" / "AVVP_train.csv")]
    whole = (media / f"{clips[2]}.mp4").read_bytes()
    (media / f"{clips[0]}.mp4").unlink()
    (media / f"{clips[1]}.mp4").write_bytes(b"no clip at all")
    (media / f"{clips[2]}.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "whole.mp4").write_bytes((media / f"{clips[3]}.mp4").read_bytes())
    keep_stream(tmp_path / "whole.mp4", media / f"{clips[3]}.mp4", "video")
    report = build_llp(copy, tmp_path / "out")
    skipped = report.skipped["train"].as_dict()
    assert {reason: item["examples"] for reason, item in skipped.items()} == {
        "missing": [f"{clips[0]}.mp4"],
        "unreadable": [f"{clips[1]}.mp4", f"{clips[2]}.mp4"],
        "no_audio_stream": [f"{clips[3]}.mp4"],
    }
    assert report.written == {"train": 4, "validation": 4, "test": 4}
    with pytest.raises(DataError, match="4 of 16 rows"):
        build_llp(copy, tmp_path / "strict", strict=True)


def test_features_of_a_3d_network_go_into_the_rows(copy, tmp_path):
    folder = tmp_path / "visual_3d"
    folder.mkdir()
    clips = sorted(path.stem for path in (copy / "media").iterdir())
    features = {clip: torch.randn(10, 6, generator=torch.Generator().manual_seed(i)) for i, clip in enumerate(clips)}
    for clip in clips:
        save_file({"visual_3d": features[clip]}, folder / f"{clip}.safetensors")
    (folder / f"{clips[0]}.safetensors").unlink()
    (folder / f"{clips[1]}.safetensors").write_bytes(b"nothing")
    save_file({"visual_3d": torch.zeros(6)}, folder / f"{clips[2]}.safetensors")
    save_file({"other": torch.zeros(10, 6)}, folder / f"{clips[3]}.safetensors")
    report = build_llp(copy, tmp_path / "out", visual_3d=str(folder))
    assert report.as_dict()["splits"]["train"]["skipped"] == {
        "missing_visual_3d": {"count": 1, "examples": [f"{clips[0]}.safetensors"]},
        "unreadable_visual_3d": {"count": 3, "examples": [f"{clip}.safetensors" for clip in clips[1:4]]},
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text())["visual_3d"] == str(folder)
    for split in ("train", "test"):
        for row in datasets.load_dataset(str(tmp_path / "out"), split=split):
            torch.testing.assert_close(torch.tensor(row["visual_3d"]), features[row["filename"]])


def test_features_may_be_those_that_the_authors_give_out(copy, tmp_path):
    folder = tmp_path / "visual_3d"
    folder.mkdir()
    rng, features = np.random.default_rng(0), {}
    for index, path in enumerate(sorted((copy / "media").iterdir())):
        video_id = path.stem.rsplit("_", 2)[0]
        features[video_id] = rng.standard_normal((10, 6)).astype([np.float32, np.float64, np.float16][index % 3])
        np.save(folder / f"{video_id}.npy", features[video_id])
    broken = sorted(features)[:4]
    np.save(folder / f"{broken[0]}.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(folder / f"{broken[1]}.npy", np.zeros((10, 6), int))
    (folder / f"{broken[2]}.npy").write_bytes(b"")
    (folder / f"{broken[3]}.npy").write_bytes(b"no array")
    report = build_llp(copy, tmp_path / "out", visual_3d=str(folder))
    skipped = report.skipped["train"].as_dict()
    assert skipped == {"unreadable_visual_3d": {"count": 4, "examples": [f"{name}.npy" for name in broken]}}
    for row in datasets.load_dataset(str(tmp_path / "out"), split="validation"):
        np.testing.assert_allclose(row["visual_3d"], features[row["video_id"]], rtol=1e-6)
    with pytest.raises(DataError, match=r"none: no such folder \(`visual_3d`\)"):
        build_llp(copy, tmp_path / "out", visual_3d=str(tmp_path / "none"))


def test_peculiarities_are_kept_and_counted(copy, tmp_path):
    annotations = copy / "annotations"
    (clip, names), (other, _), *_ = table(annotations / "AVVP_test_pd.csv")
    train = table(annotations / "AVVP_train.csv")[0][0]
    absent = next(name for name in CLASSES if name not in names.split(","))
    for name, line in {
        "AVVP_eval_audio.csv": f"{clip}\t0\t4\t{absent}\n{clip}\t2\t6\t{absent}\n{clip}\t6\t7\t{absent}\n"
        f"{clip}\t9\t9\t{absent}\n{clip}\t9\t0\t{absent}\nmisspelt_0_10`\t0\t10\t{absent}\n"
        f"{train}\t0\t10\t{absent}\n",
        "AVVP_train.csv": "nowhere_8.5_18.5\tbell,bell\n",
    }.items():
        with (annotations / name).open("a") as file:
            file.write(line)
    for name in LLP_EVENT_FILES.values():
        lines = (annotations / name).read_text().splitlines(keepends=True)
        (annotations / name).write_text("".join(line for line in lines if not line.startswith(f"{other}\t")))
    report = build_llp(copy, tmp_path / "out")
    notes = report.notes.as_dict()
    assert {reason: item["count"] for reason, item in notes.items()} == {
        "class_listed_twice": 1,
        "clip_whose_events_have_other_classes": 1,
        "clip_without_events": 1,
        "event_of_a_clip_in_no_split": 2,
        "event_of_no_length": 1,
        "event_that_ends_before_it_begins": 1,
        "event_that_overlaps_another_of_its_class": 1,
        "in_split_only": 1,
    }
    assert notes["event_of_a_clip_in_no_split"]["examples"][0] == "misspelt_0_10` (audio, 0 to 10 s)"
    assert notes["clip_without_events"]["examples"] == [other]
    rows = {row["filename"]: row for row in datasets.load_dataset(str(tmp_path / "out"), split="test")}
    heard = [CLASSES.index(absent) in second for second in rows[clip]["audio_segment_labels"]]
    assert heard == [True] * 7 + [False] * 3
    assert rows[other]["audio_segment_labels"] is None
    assert report.skipped["train"].as_dict()["missing"]["examples"] == ["nowhere_8.5_18.5.mp4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one_0_10", r":3: expected filename, event_labels, separated by tabs, got \['one_0_10'\]"),
        ("one_0_10\t", ":3: expected filename"),
        ("one_0_10\tbell\tdrum", ":3: expected filename"),
        ("one_0_10\tbell,gong", ":3: unknown class 'gong'"),
        ("one_0_10\tbell, drum", ":3: unknown class ' drum'"),
        ("one\tbell", ":3: expected a clip's name <VideoID>_<start>_<end>, got 'one'"),
        ("../one_0_10\tbell", ":3: expected a clip's name"),
        ("two_0_10\tbell", ":3: two_0_10 is in line 2 already"),
    ],
)
def test_a_bad_clip_is_named(tmp_path, line, message):
    file = tmp_path / "AVVP_train.csv"
    file.write_text(f"filename\tevent_labels\ntwo_0_10\tdrum\n{line}\n")
    with pytest.raises(DataError, match=message) as error:
        read_clips(file, CLASSES, BuildReport())
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one_0_10\t0\tbell", ":2: expected filename, onset, offset, event_labels"),
        ("one_0_10\t0\t11\tbell", ":2: expected onset and offset in whole seconds from 0 to 10, got '0' and '11'"),
        ("one_0_10\t-1\t4\tbell", ":2: expected onset and offset"),
        ("one_0_10\t0.5\t4\tbell", ":2: expected onset and offset"),
        ("one_0_10\t0\t4\tgong", ":2: unknown class 'gong'"),
    ],
)
def test_a_bad_event_is_named(tmp_path, line, message):
    file = tmp_path / "AVVP_eval_audio.csv"
    file.write_text(f"filename\tonset\toffset\tevent_labels\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_events(file, CLASSES, BuildReport())


def test_forms_that_are_read_as_published(tmp_path):
    file, report = tmp_path / "AVVP_train.csv", BuildReport()
    file.write_bytes(b"\xef\xbb\xbffilename\tevent_labels\r\n-a_1_101.8_111.8\tdrum,bell\r\n\r\n")
    assert [tuple(clip) for clip in read_clips(file, CLASSES, report)] == [("-a_1_101.8_111.8", (1, 0))]
    assert report.files["AVVP_train.csv"]["lines"] == 1
    file.write_text("a_0_10\tdrum\n")
    with pytest.raises(DataError, match="expected a header with filename, event_labels, separated by tabs"):
        read_clips(file, CLASSES, report)


def test_files_that_are_missing_are_named(copy, tmp_path):
    (copy / "annotations" / "AVVP_dataset_full.csv").unlink()
    assert build_llp(copy, tmp_path / "out").written == {"train": 8, "validation": 4, "test": 4}
    (copy / "annotations" / "AVVP_eval_visual.csv").unlink()
    with pytest.raises(DataError, match=r"AVVP_eval_visual\.csv: no such annotation file"):
        build_llp(copy, tmp_path / "out")
    assert read_categories(copy / "annotations") == CLASSES
    assert read_categories(tmp_path) == LLP_CATEGORIES


def test_command_line(copy, tmp_path, capsys):
    out = str(tmp_path / "out")
    next((copy / "media").iterdir()).unlink()
    arguments = ["--annotations", str(copy / "annotations"), "--media", str(copy / "media"), "--out", out]
    assert run_script("llp.py", *arguments) == 0
    assert "of 8 rows in 1 shards" in capsys.readouterr().out
    assert run_script("llp.py", *arguments, "--strict") == 2
    assert "1 of 16 rows" in capsys.readouterr().err


@pytest.mark.skipif("CAEAV_ANNOTATIONS" not in os.environ, reason="CAEAV_ANNOTATIONS does not name the real files")
def test_the_real_files():
    folder, report = Path(os.environ["CAEAV_ANNOTATIONS"]) / "llp", BuildReport()
    assert read_categories(folder) == LLP_CATEGORIES
    entries = LlpBuilder(annotations=str(folder)).read_entries(folder, report)
    assert {split: len(rows) for split, rows in entries.items()} == {"train": 10_000, "validation": 649, "test": 1_200}
    assert {name: file["lines"] for name, file in report.files.items()} == {
        "AVVP_train.csv": 10_000,
        "AVVP_val_pd.csv": 649,
        "AVVP_test_pd.csv": 1_200,
        "AVVP_eval_audio.csv": 4_131,
        "AVVP_eval_visual.csv": 2_495,
        "AVVP_dataset_full.csv": 11_849,
    }
    assert {reason: item["count"] for reason, item in report.notes.as_dict().items()} == {
        "class_listed_twice": 1,
        "clip_whose_events_have_other_classes": 85,
        "event_of_a_clip_in_no_split": 28,
        "event_of_no_length": 4,
        "event_that_ends_before_it_begins": 1,
        "event_that_overlaps_another_of_its_class": 22,
    }
    assert {label for rows in entries.values() for entry in rows for label in entry.row["event_labels"]} == set(
        range(25)
    )
    first = entries["test"][0].row
    assert first == {
        "video_id": "4YdbENYcIyE",
        "filename": "4YdbENYcIyE_23_33",
        "start": 23.0,
        "end": 33.0,
        "event_labels": [22],
        "audio_segment_labels": [[22]] * 4 + [[]] * 6,
        "visual_segment_labels": [[22]] * 10,
    }
