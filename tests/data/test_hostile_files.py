"""Annotation and caption files that are made to do harm: one error that names the file, in little time and memory."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caeav_hf.captioning.table import CaptionTable
from caeav_hf.cli.predict import _read_captions
from caeav_hf.constants import MODALITIES
from caeav_hf.data import AveBuilder, caption_file
from caeav_hf.data.builder import BuildReport, read_lines
from caeav_hf.data.caption_file import read_captions, write_caption_rows
from caeav_hf.errors import CaeAvError, DataError
from caeav_hf.tasks.event_localization.builder import read_annotations, read_clip_times
from caeav_hf.tasks.question_answering.builder import read_questions
from caeav_hf.tasks.segmentation.builder import read_meta_data
from caeav_hf.tasks.sound_source_understanding.builder import read_descriptions
from caeav_hf.tasks.video_parsing.builder import read_events
from tests.media_factory import write_clip


NESTED = "[" * 100_000


def question(**changes):
    values = {
        "video_id": "a",
        "question_id": 1,
        "type": '["Audio", "Counting"]',
        "question_content": "How many?",
        "templ_values": "[]",
        "question_deleted": 0,
        "anser": "one",
    }
    return json.dumps([{**values, **changes}])


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda path: read_annotations(path, ("Bell",), BuildReport()), f"Bell&a&good&0&{'1' * 5000}"),
        (lambda path: read_clip_times([str(path)], BuildReport()), "a, 0, inf"),
        (
            lambda path: read_events(path, ("Bell",), BuildReport()),
            f"filename\tonset\toffset\tevent_labels\na_0_10\t0\t{'1' * 5000}\tBell",
        ),
        (lambda path: read_meta_data(path, ("name",), BuildReport()), f"name\n{'a' * 200_000}"),
        (lambda path: read_questions(path, ("one",)), NESTED),
        (lambda path: read_questions(path, ("one",)), question(question_id=2**63)),
        (lambda path: read_questions(path, ("one",)), question(video_id="\ud800")),
        (lambda path: read_questions(path, ("one",)), question(type=NESTED)),
        (lambda path: read_questions(path, ("one",)), question(templ_values="-" * 100_000 + "1")),
        (lambda path: read_descriptions(path, BuildReport()), NESTED),
        (lambda path: read_descriptions(path, BuildReport()), json.dumps({"a": ["\ud800"]})),
        (lambda path: read_descriptions(path, BuildReport()), json.dumps({"a": [""] * 20_000})),
        (read_captions, NESTED),
        (read_captions, json.dumps({"a": {"visual": "\udfff", "audio": "b"}})),
        (lambda path: _read_captions(str(path), MODALITIES), NESTED),
    ],
)
def test_text_files(read, text, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaeAvError, match=r"file\.json") as error:
        read(path)
    assert len(str(error.value)) < 10_000


def test_a_folder_in_the_place_of_an_annotation_file(tmp_path):
    with pytest.raises(DataError, match="is no annotation file"):
        read_lines(tmp_path, BuildReport())


def caption_rows(count, text):
    return [{"clip": f"{n}", "visual_caption": text, "audio_caption": text} for n in range(count)]


def test_a_small_caption_file_of_huge_texts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_file, "MAX_TEXTS_BYTES", 1_000_000)
    monkeypatch.setattr(caption_file, "_BATCH_BYTES", 100_000)
    path = tmp_path / "captions.parquet"
    # Many rows refer to one text of the dictionary.
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 400), pa.array(["a" * 10_000]))
    names = pa.array([str(number) for number in range(400)])
    pq.write_table(pa.table({"clip": names, "visual_caption": texts, "audio_caption": texts}), path)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"captions\.parquet.*larger than 1 MB"):
        read_captions(path)
    # A compressed page is larger than all texts may be.
    write_caption_rows(path, caption_rows(1, "a" * 2_000_000))
    with pytest.raises(DataError, match=r"captions\.parquet.*larger than 1 MB"):
        read_captions(path)
    write_caption_rows(path, caption_rows(2000, "a small text"))
    assert len(read_captions(path)) == 2000


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"clip": ["a"], "visual_caption": ["b"]}, "lacks audio_caption"),
        ({"clip": [["a"]], "visual_caption": ["b"], "audio_caption": ["c"]}, "expected a Parquet file"),
        ({"clip": [b"\xff"], "visual_caption": ["b"], "audio_caption": ["c"]}, "expected a Parquet file"),
        ({"clip": [None], "visual_caption": ["b"], "audio_caption": ["c"]}, "has no `clip`"),
        ({"clip": [{"a": 1}], "visual_caption": [1], "audio_caption": [2.0]}, "expected a Parquet file"),
    ],
)
def test_caption_files_of_other_columns(columns, expected, tmp_path):
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=rf"captions\.parquet.*{expected}"):
        read_captions(path)


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "captions.parquet"
    names = ["clip", "clip", "visual_caption", "audio_caption"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 4, names=names), path)
    with pytest.raises(DataError, match="two columns of one name"):
        read_captions(path)


@pytest.mark.parametrize("wrong", [{"clip": ["a"]}, {"captions": "a"}, {"captions": {"visual": 1}}, {"model": 1}])
def test_journals_of_other_types(wrong, tmp_path):
    record = {"clip": "a", "file": "a", "captions": {}, "model": "m", "prompt_version": "1", "settings": "{}", **wrong}
    (tmp_path / "captions.parquet.journal").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r"captions\.parquet\.journal:1"), CaptionTable(tmp_path / "captions.parquet"):
        pass


def test_names_in_annotations_do_not_leave_the_media_folder(tmp_path):
    names = ("..", "*", "[a-z]*", "a\0b", "a" * 10_000, "~", "secret%2fclip", "..\\secret", "C:secret", "-rf")
    for folder in ("annotations", "media", "secret"):
        (tmp_path / folder).mkdir()
    clip = write_clip(tmp_path / "secret" / "clip.mp4", seconds=1)
    for name in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (tmp_path / "annotations" / name).write_text("")
    train = tmp_path / "annotations" / "trainSet.txt"
    builder = AveBuilder(
        annotations=str(tmp_path / "annotations"), media=str(tmp_path / "media"), cache_dir=str(tmp_path / "cache")
    )
    for name in ("../secret/clip", str(clip.with_suffix("")), "http://127.0.0.1:9/clip", "secret/clip"):
        train.write_text(f"Bark&{name}&good&0&5")
        with pytest.raises(DataError, match=r"trainSet\.txt:1: expected a video's name"):
            builder.build(tmp_path / "out")
    train.write_text("\n".join(f"Bark&{name}&good&0&5" for name in names))
    with pytest.raises(DataError, match=rf"no clip is usable of the {len(names)} rows"):
        builder.build(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["skipped"]["missing"]["count"] == len(names)
    assert {path.name for path in tmp_path.iterdir()} <= {"annotations", "media", "secret", "out", "cache"}


def test_media_whose_names_are_not_unicode_are_counted(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (tmp_path / "annotations" / name).write_text("Bark&a&good&0&5\nBark&b&good&0&5" if "train" in name else "")
    (tmp_path / "media" / "\udcff").mkdir(parents=True)
    write_clip(tmp_path / "media" / "\udcff" / "a.mp4", seconds=1)
    write_clip(tmp_path / "media" / "b.mp4", seconds=1)
    builder = AveBuilder(
        annotations=str(tmp_path / "annotations"), media=str(tmp_path / "media"), cache_dir=str(tmp_path / "cache")
    )
    assert builder.build(tmp_path / "out").written["train"] == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["skipped"]["name_is_not_unicode"]["count"] == 1
