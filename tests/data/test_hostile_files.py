"""Annotation and caption files that are made to do harm: one error that names the file, in little time and memory."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caeav_hf.captioning.table import CaptionTable
from caeav_hf.cli.predict import _read_captions
from caeav_hf.constants import MODALITIES
from caeav_hf.data import caption_file
from caeav_hf.data.builder import BuildReport, read_lines
from caeav_hf.data.caption_file import read_captions, write_caption_rows
from caeav_hf.errors import CaeAvError, DataError
from caeav_hf.tasks.event_localization.builder import read_annotations, read_clip_times
from caeav_hf.tasks.question_answering.builder import read_questions
from caeav_hf.tasks.segmentation.builder import read_meta_data
from caeav_hf.tasks.sound_source_understanding.builder import read_descriptions
from caeav_hf.tasks.video_parsing.builder import read_events


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
