"""The AVE builder: parsing, media checks, report, shards and what `datasets` reads back."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from caeav_hf.data import AveBuilder, BuildReport
from caeav_hf.data.schema import event_segment_labels
from caeav_hf.errors import DataError
from caeav_hf.labels import AVE_CATEGORIES
from caeav_hf.tasks.event_localization.builder import read_annotations, read_categories
from caeav_hf.toy import CLASSES
from tests.corpora import build, keep_stream, run_script


SPLITS = ("train", "validation", "test")
NAMES = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}


@pytest.fixture
def broken(corpus, tmp_path) -> Path:
    """Remove or damage five clips of the training split, each in a different way."""
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    media = copy / "media"
    clips = [f"toy{index:08d}.mp4" for index in range(5)]
    (media / clips[0]).unlink()
    (media / clips[1]).write_bytes(b"no clip at all")
    (media / clips[2]).write_bytes((corpus / "media" / clips[2]).read_bytes()[:5_000])
    keep_stream(corpus / "media" / clips[3], media / clips[3], "audio")
    keep_stream(corpus / "media" / clips[4], media / clips[4], "video")
    return copy


def test_rows_are_those_of_the_annotations(corpus, parquet):
    loaded = datasets.load_dataset(str(parquet))
    captions = json.loads((corpus / "captions.json").read_text())
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 12, "validation": 6, "test": 6}
    for split in SPLITS:
        lines = (corpus / "annotations" / NAMES[split]).read_text().splitlines()
        for row, line in zip(loaded[split], lines, strict=True):
            category, video_id, quality, start, end = line.split("&")
            label = CLASSES.index(category)
            assert row == {
                "video_id": video_id,
                "category": category,
                "label": label,
                "start": int(start),
                "end": int(end),
                "quality": quality,
                "segment_labels": [label if int(start) <= second < int(end) else 8 for second in range(10)],
                "media": {"path": str((corpus / "media" / f"{video_id}.mp4").resolve()), "bytes": None},
                "frames": [],
                "audio": None,
                "media_start": None,
                "media_end": None,
                "visual_caption": captions[video_id]["visual"],
                "audio_caption": captions[video_id]["audio"],
            }
    features = loaded["train"].features
    assert features["label"] == datasets.ClassLabel(names=list(CLASSES))
    assert isinstance(features["media"], datasets.Video)
    assert not features["media"].decode


def test_streaming_reads_the_same_rows(parquet):
    stream = datasets.load_dataset(str(parquet), split="test", streaming=True)
    assert list(stream) == list(datasets.load_dataset(str(parquet), split="test"))


def test_embedded_clips_do_not_need_the_media_folder(corpus, tmp_path):
    (tmp_path / "corpus").symlink_to(corpus)
    build(tmp_path / "corpus", tmp_path / "out", embed_media=True, captions=None)
    (tmp_path / "corpus").unlink()
    for streaming in (False, True):
        rows = list(datasets.load_dataset(str(tmp_path / "out"), split="test", streaming=streaming))
        for row in rows:
            name = f"{row['video_id']}.mp4"
            assert row["media"] == {"path": name, "bytes": (corpus / "media" / name).read_bytes()}
            assert row["visual_caption"] is None
            assert row["audio_caption"] is None


def test_shards_are_bounded_in_order_and_replace_earlier_ones(corpus, tmp_path):
    out = tmp_path / "out"
    build(corpus, out)
    (out / "data" / "notes.txt").write_text("mine")
    builder = AveBuilder(annotations=str(corpus / "annotations"), media=str(corpus / "media"), embed_media=True)
    report = builder.build(out, max_shard_bytes=300_000)
    names = sorted(path.name for path in (out / "data").iterdir())
    assert "notes.txt" in names
    total = report.shards["train"]
    assert total > 1
    assert [name for name in names if name.startswith("train")] == [
        f"train-{number:05d}-of-{total:05d}.parquet" for number in range(total)
    ]
    whole = datasets.load_dataset(str(out), split="train")
    assert list(datasets.load_dataset(str(out), split="train", streaming=True)) == list(whole)
    lines = (corpus / "annotations" / "trainSet.txt").read_text().splitlines()
    assert whole["video_id"][:] == [line.split("&")[1] for line in lines]


def test_two_builds_are_equal(corpus, parquet, tmp_path):
    build(corpus, tmp_path / "again", num_proc=4)
    first, second = (
        {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (parquet, tmp_path / "again")
    )
    assert first == second


def test_a_rebuilt_folder_is_read_again(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    captioned = datasets.load_dataset(str(tmp_path / "out"), split="test")
    build(corpus, tmp_path / "out", captions=None)
    bare = datasets.load_dataset(str(tmp_path / "out"), split="test")
    assert all(captioned["visual_caption"])
    assert not any(bare["visual_caption"])


def test_report_counts_what_is_missing_or_broken_and_adds_up(broken, tmp_path):
    out = tmp_path / "out"
    build(broken, out, num_proc=3)
    report = json.loads((out / "report.json").read_text())
    train = report["splits"]["train"]
    assert {reason: item["count"] for reason, item in train["skipped"].items()} == {
        "missing": 1,
        "unreadable": 2,
        "no_video_stream": 1,
        "no_audio_stream": 1,
    }
    assert train["skipped"]["missing"]["examples"] == ["toy00000000.mp4"]
    assert sorted(train["skipped"]["unreadable"]["examples"]) == ["toy00000001.mp4", "toy00000002.mp4"]
    assert train["skipped"]["no_video_stream"]["examples"] == ["toy00000003.mp4"]
    for split, counts in report["splits"].items():
        written = len(datasets.load_dataset(str(out), split=split))
        assert counts["written"] == written
        assert counts["annotated"] == written + sum(item["count"] for item in counts["skipped"].values())
    assert report["files"]["trainSet.txt"]["lines"] == 12
    assert report["files"]["Annotations.txt"]["lines"] == 24
    assert "| train | 12 | 7 | 5 |" in (out / "README.md").read_text()


def test_a_split_without_clips_is_left_out(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    for line in (copy / "annotations" / "valSet.txt").read_text().splitlines():
        (copy / "media" / f"{line.split('&')[1]}.mp4").unlink()
    report = build(copy, tmp_path / "out")
    assert report.written == {"train": 12, "validation": 0, "test": 6}
    assert set(datasets.load_dataset(str(tmp_path / "out"))) == {"train", "test"}


def test_strict_refuses_and_still_reports(broken, tmp_path):
    with pytest.raises(DataError, match=r"5 of 24 rows .*missing: toy00000000\.mp4"):
        build(broken, tmp_path / "out", strict=True)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["splits"]["train"]["written"] == 7
    assert not (tmp_path / "out" / "data").exists()


def test_nothing_left_is_an_error(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    builder = AveBuilder(annotations=str(corpus / "annotations"), media=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no clip is usable of the 24 rows"):
        builder.build(tmp_path / "out")
    assert (tmp_path / "out" / "report.json").is_file()


def test_works_as_a_generator_based_builder(broken, parquet, tmp_path):
    builder = AveBuilder(
        annotations=str(broken / "annotations"), media=str(broken / "media"), cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(builder, datasets.GeneratorBasedBuilder)
    builder.download_and_prepare()
    rows = builder.as_dataset("train")
    assert len(rows) == 7
    assert rows.features.to_dict() == datasets.load_dataset(str(parquet), split="train").features.to_dict()


def test_captions_may_be_incomplete_but_not_malformed(corpus, tmp_path):
    captions = json.loads((corpus / "captions.json").read_text())
    del captions["toy00000000"]
    captions["toy00000001"] = {"visual": "Only seen."}
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(captions))
    report = build(corpus, tmp_path / "out", captions=str(file))
    rows = {row["video_id"]: row for row in datasets.load_dataset(str(tmp_path / "out"), split="train")}
    assert rows["toy00000000"]["visual_caption"] is None
    assert rows["toy00000001"]["visual_caption"] == "Only seen."
    assert rows["toy00000001"]["audio_caption"] is None
    assert report.notes.as_dict()["without_both_captions"]["count"] == 2
    for text, message in (("[1]", "got a list"), ('{"a": "b"}', "for a"), ("{", "JSON")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            build(corpus, tmp_path / "out", captions=str(file))
    with pytest.raises(DataError, match="no such caption file"):
        build(corpus, tmp_path / "out", captions=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bell&abc&good&0", ":2: expected Category&VideoID"),
        ("bell&abc&good&0&5&6", ":2: expected Category&VideoID"),
        ("gong&abc&good&0&5", ":2: unknown category 'gong'"),
        ("bell&../abc&good&0&5", ":2: expected a video's name"),
        ("bell&&good&0&5", ":2: expected a video's name"),
        ("bell&abc&good&a&5", ":2: expected times in whole seconds, got 'a'"),
        ("bell&abc&good&0.5&5", ":2: expected times in whole seconds"),
        ("bell&abc&good&-1&5", ":2: expected times in whole seconds"),
        ("bell&abc&good&6&5", ":2: expected 0 <= start <= end <= 10, got 6 and 5"),
        ("bell&abc&good&0&11", ":2: expected 0 <= start <= end <= 10"),
        ("drum&one&good&3&4", ":2: one has its 'drum' in line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "trainSet.txt"
    file.write_text(f"drum&one&good&0&5\n{line}\n")
    with pytest.raises(DataError, match=message) as error:
        read_annotations(file, CLASSES, BuildReport())
    assert str(error.value).startswith(str(file))


def test_forms_that_are_read_as_published(tmp_path):
    file, report = tmp_path / "valSet.txt", BuildReport()
    file.write_bytes(
        b"\xef\xbb\xbfCategory&VideoID&Quality&StartTime&EndTime\r\nbell&-a_1&good&0&0\r\n\r\ndrum&-a_1&good&0&10\r\n"
    )
    lines = read_annotations(file, CLASSES, report)
    assert [tuple(line) for line in lines] == [("bell", "-a_1", "good", 0, 0), ("drum", "-a_1", "good", 0, 10)]
    assert report.files["valSet.txt"]["lines"] == 2


def test_missing_files_and_folders_are_named(corpus, tmp_path):
    with pytest.raises(DataError, match="`annotations` must be a folder"):
        AveBuilder()
    with pytest.raises(DataError, match=r"no such folder \(`annotations`\)"):
        AveBuilder(annotations=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"no such folder \(`media`\)"):
        AveBuilder(annotations=str(corpus / "annotations"), media=str(tmp_path / "none")).build(tmp_path / "out")
    with pytest.raises(DataError, match=r"trainSet\.txt: no such annotation file"):
        AveBuilder(annotations=str(tmp_path), media=str(tmp_path)).build(tmp_path / "out")
    (tmp_path / "categories.txt").write_text("bell\nbell\n")
    with pytest.raises(DataError, match="'bell' is there twice"):
        read_categories(tmp_path)
    (tmp_path / "categories.txt").write_text("\n")
    with pytest.raises(DataError, match="one per line"):
        read_categories(tmp_path)


def test_peculiarities_are_noted(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    train = copy / "annotations" / "trainSet.txt"
    first = train.read_text().splitlines()[0].split("&")
    other = next(name for name in CLASSES if name != first[0])
    with train.open("a") as file:
        file.write(f"{other}&{first[1]}&good&0&0\n")
    with (copy / "annotations" / "testSet.txt").open("a") as file:
        file.write("&".join(first) + "\n")
    notes = build(copy, tmp_path / "out").notes.as_dict()
    assert notes["video_with_several_categories"]["examples"] == [first[1]]
    assert notes["video_in_several_splits"]["examples"] == [f"{first[1]} (train, test)"]
    assert notes["event_of_no_length"]["count"] == 1
    assert notes["in_split_only"]["count"] == 1
    row = datasets.load_dataset(str(tmp_path / "out"), split="train")[12]
    assert row["segment_labels"] == [8] * 10


def test_command_line(broken, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["--annotations", str(broken / "annotations"), "--media", str(broken / "media"), "--out", out]
    assert run_script("ave.py", *arguments, "--num-proc", "2") == 0
    assert "train: 7 of 12 rows in 1 shards" in capsys.readouterr().out
    assert run_script("ave.py", *arguments, "--strict") == 2
    assert "5 of 24 rows" in capsys.readouterr().err


def test_segment_labels_by_hand():
    assert event_segment_labels(2, 1, 3, 5, 28) == [28, 2, 2, 28, 28]
    assert event_segment_labels(0, 0, 10, 10, 28) == [0] * 10


@pytest.mark.skipif("CAEAV_ANNOTATIONS" not in os.environ, reason="CAEAV_ANNOTATIONS does not name the real files")
def test_the_real_files():
    folder, report = Path(os.environ["CAEAV_ANNOTATIONS"]) / "ave", BuildReport()
    assert read_categories(folder) == AVE_CATEGORIES
    builder = AveBuilder(annotations=str(folder))
    entries = builder.read_entries(folder, report)
    assert {split: len(rows) for split, rows in entries.items()} == {"train": 3339, "validation": 402, "test": 402}
    assert report.files["Annotations.txt"]["lines"] == 4143
    assert {reason: item["count"] for reason, item in report.notes.as_dict().items()} == {
        "event_of_no_length": 1,
        "video_in_several_splits": 18,
        "video_with_several_categories": 28,
    }
    row = entries["test"][1].row
    assert (row["video_id"], row["label"], row["segment_labels"]) == ("hOuyJFqb4JM", 0, [0] * 5 + [28] * 5)
