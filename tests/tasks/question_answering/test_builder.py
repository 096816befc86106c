"""The MUSIC-AVQA builder: parsing, media checks, report; its rows in the data set and the collator."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import BuildReport, CaeAvCollator, CaeAvDataset, MusicAvqaBuilder, checks
from caeav_hf.errors import DataError
from caeav_hf.labels import MUSIC_AVQA_ANSWERS
from caeav_hf.processing import CaeAvProcessor, build_question_tokenizer
from caeav_hf.tasks.question_answering.builder import read_answers, read_questions
from caeav_hf.toy import MediaFormat, generate
from caeav_hf.toy.questions import ANSWERS
from tests.corpora import run_script
from tests.same import assert_same_clip


ANNOTATIONS = Path(os.environ.get("CAEAV_ANNOTATIONS", "")) / "music_avqa"
FILES = {"train": "avqa-train.json", "validation": "avqa-val.json", "test": "avqa-test.json"}
QUESTION = {
    "video_id": "00000093",
    "question_id": 12,
    "type": '["Audio-Visual", "Location"]',
    "question_content": "Where is the <LL> <Object>? ",
    "templ_values": "['loudest', 'acoustic_guitar']",
    "question_deleted": 0,
    "anser": "more than ten",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "avqa"
    media_format = MediaFormat(64, 4, 16_000)
    generate(out, "avqa", 12, split=(2, 1, 1), seed=4, media_format=media_format, progress=False)
    return out


@pytest.fixture(scope="module")
def parquet(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parquet") / "avqa"
    build(corpus, out)
    return out


@pytest.fixture(scope="module")
def processor(parquet) -> CaeAvProcessor:
    questions = datasets.load_dataset(str(parquet), split="train")["question"]
    config = CaeAvConfig.from_preset("avqa", size="toy", id2label=dict(enumerate(ANSWERS)))
    return CaeAvProcessor.from_config(config, question_tokenizer=build_question_tokenizer(questions))


def build(corpus: Path, out: Path, **options) -> BuildReport:
    options = {"captions": str(corpus / "captions.json"), **options}
    folders = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media")}
    return MusicAvqaBuilder(**folders, **options).build(out)


def write(path: Path, *questions: dict) -> Path:
    path.write_text(json.dumps(questions), encoding="utf-8")
    return path


# Annotation files


def test_a_question_as_published(tmp_path):
    (question,) = read_questions(write(tmp_path / "avqa-val.json", QUESTION), MUSIC_AVQA_ANSWERS)
    assert question.text == "Where is the loudest acoustic_guitar?"
    assert question.template == "Where is the <LL> <Object>?"
    assert (question.video_id, question.question_id, question.answer) == ("00000093", 12, "more than ten")
    assert (question.type, question.subtype, question.is_deleted) == ("Audio-Visual", "Location", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templ_values": "['loudest', "}, "expected `templ_values` such as ['violin'], got"),
        ({"templ_values": "__import__('os').getcwd()"}, "expected `templ_values`"),
        ({"templ_values": "[1, 2]"}, "expected `templ_values`"),
        ({"templ_values": "('loudest', 'violin')"}, "expected `templ_values`"),
        ({"templ_values": ["loudest", "violin"]}, "expected a string as `templ_values`"),
        ({"templ_values": "['loudest']"}, "a value for each of the 2 slots"),
        ({"templ_values": "['a', 'b', 'c']"}, "a value for each of the 2 slots"),
        ({"anser": "zither"}, "unknown answer 'zither'; expected one of two, cello"),
        ({"anser": None}, "expected a string as `anser`, got None"),
        ({"type": '["Audio"]'}, "expected a type such as"),
        ({"type": "Audio"}, "expected a type such as"),
        ({"type": '["Smell", "Counting"]'}, "unknown type 'Smell'"),
        ({"video_id": 93}, "expected a video's name as `video_id`, got 93"),
        ({"video_id": "../93"}, "expected a video's name, got '../93'"),
        ({"question_content": " "}, "expected a question"),
        ({"question_deleted": 2}, "expected 0 or 1 as `question_deleted`"),
    ],
)
def test_malformed_questions_are_named(tmp_path, change, message):
    path = write(tmp_path / "avqa-test.json", QUESTION | {"question_id": 7}, QUESTION | change)
    with pytest.raises(DataError) as error:
        read_questions(path, MUSIC_AVQA_ANSWERS)
    assert str(error.value).startswith(f"{path}: question 12: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "expected a JSON file"),
        ('{"a": 1}', "expected a list of questions, got a dict"),
        ("[3]", "item 0: expected a question, got 3"),
        ('[{"video_id": "a"}]', "item 0: expected a whole number as `question_id`, got None"),
        ("\xff", "expected a JSON file"),
    ],
)
def test_files_that_are_no_questions(tmp_path, content, message):
    path = tmp_path / "avqa-val.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message) as error:
        read_questions(path, MUSIC_AVQA_ANSWERS)
    assert str(error.value).startswith(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such annotation file"):
        read_questions(tmp_path / "avqa-val.json", MUSIC_AVQA_ANSWERS)


def test_answers_are_the_published_ones_unless_listed(tmp_path):
    assert read_answers(tmp_path) == MUSIC_AVQA_ANSWERS
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    assert read_answers(tmp_path) == ("yes", "no")


# What is built


def test_rows_are_those_of_the_annotations(corpus, parquet):
    captions = json.loads((corpus / "captions.json").read_text())
    loaded = datasets.load_dataset(str(parquet))
    for split, name in FILES.items():
        questions = read_questions(corpus / "annotations" / name, ANSWERS)
        for row, question in zip(loaded[split], questions, strict=True):
            assert row == {
                "video_id": question.video_id,
                "question_id": question.question_id,
                "question": question.text,
                "question_type": question.type,
                "question_subtype": question.subtype,
                "answer": question.answer,
                "answer_label": ANSWERS.index(question.answer),
                "media": {"path": str((corpus / "media" / f"{question.video_id}.mp4").resolve()), "bytes": None},
                "frames": [],
                "audio": None,
                "visual_caption": captions[question.video_id]["visual"],
                "audio_caption": captions[question.video_id]["audio"],
            }
    assert loaded["train"].features["answer_label"] == datasets.ClassLabel(names=list(ANSWERS))


def test_missing_and_broken_videos_are_counted_by_question_and_looked_at_once(corpus, tmp_path, monkeypatch):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    questions = read_questions(copy / "annotations" / "avqa-train.json", ANSWERS)
    counts = Counter(question.video_id for question in questions)
    gone, broken = list(counts)[:2]
    (copy / "media" / f"{gone}.mp4").unlink()
    (copy / "media" / f"{broken}.mp4").write_bytes(b"no clip")
    looked_at = []
    probe = checks.probe
    monkeypatch.setattr(checks, "probe", lambda path: looked_at.append(path.name) or probe(path))
    report = build(copy, tmp_path / "out", num_proc=3).as_dict()
    train = report["splits"]["train"]
    assert train["skipped"]["missing"]["count"] == counts[gone]
    assert train["skipped"]["unreadable"]["count"] == counts[broken]
    assert train["written"] == train["annotated"] - counts[gone] - counts[broken] > 0
    assert len(looked_at) == len(set(looked_at)) == 11
    with pytest.raises(DataError, match="lack a usable clip"):
        build(copy, tmp_path / "strict", strict=True)


def test_splits_without_a_file_are_left_out(corpus, tmp_path):
    copy = tmp_path / "annotations"
    shutil.copytree(corpus / "annotations", copy)
    (copy / "avqa-train.json").unlink()
    folders = {"annotations": str(copy), "media": str(corpus / "media")}
    report = MusicAvqaBuilder(**folders).build(tmp_path / "out")
    assert set(report.written) == {"validation", "test"}
    assert report.as_dict()["notes"]["no_annotation_file"]["examples"] == ["avqa-train.json"]
    assert set(datasets.load_dataset(str(tmp_path / "out"))) == {"validation", "test"}
    for name in FILES.values():
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"expected one or more of avqa-train\.json"):
        MusicAvqaBuilder(**folders).build(tmp_path / "out")


def test_peculiarities_are_noted_and_kept(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    path = copy / "annotations" / "avqa-val.json"
    items = json.loads(path.read_text())
    items[0]["question_deleted"] = 1
    items[2]["question_id"] = items[1]["question_id"]
    test = json.loads((copy / "annotations" / "avqa-test.json").read_text())
    write(path, *items, test[0])
    report = build(copy, tmp_path / "out")
    notes = report.as_dict()["notes"]
    assert notes["question_marked_as_deleted"]["examples"] == [f"{items[0]['question_id']} (validation)"]
    assert notes["question_number_used_again"]["examples"] == [f"{items[1]['question_id']} (validation)"]
    assert notes["video_in_several_splits"]["examples"] == [f"{test[0]['video_id']} (validation, test)"]
    assert report.written["validation"] == len(items) + 1


def test_script_builds(corpus, tmp_path, capsys):
    folders = ["--annotations", str(corpus / "annotations"), "--media", str(corpus / "media")]
    assert run_script("music_avqa.py", *folders, "--out", str(tmp_path / "out")) == 0
    assert "rows in 1 shards" in capsys.readouterr().out


# What the model gets


def test_items_and_batches(parquet, processor, tmp_path, monkeypatch):
    data = CaeAvDataset(parquet, processor, split="train", cache_dir=tmp_path)
    decoded = []
    load_clip = CaeAvProcessor.load_clip
    monkeypatch.setattr(
        CaeAvProcessor, "load_clip", lambda self, *a, **k: decoded.append(1) or load_clip(self, *a, **k)
    )
    items = [data[index] for index in range(len(data))]
    # Several questions on one video, which is decoded once.
    assert len(decoded) == len(set(data.rows["video_id"])) < len(items)
    row, item = data.rows[1], items[1]
    inputs = processor(videos=[row["media"]["path"]], questions=[row["question"]])
    assert_same_clip({name: item[name] for name in inputs}, {name: value[0] for name, value in inputs.items()})
    assert item["labels"].shape == ()
    assert item["labels"] == row["answer_label"]
    assert not (item["question_ids"] == processor.question_tokenizer.unk_token_id).any()
    copies = [{**item, "pixel_values_videos": item["pixel_values_videos"].clone()} for item in items[:3]]
    batch = CaeAvCollator()(copies)
    assert set(batch) == {*processor.model_input_names, "labels"}
    assert batch["labels"].tolist() == data.rows["answer_label"][:3]
    assert batch["labels"].dtype == torch.int64
    assert batch["question_ids"].shape == batch["question_mask"].shape == (3, 14)
    assert batch["pixel_values_videos"].shape == (3, 10, 3, 64, 64)


def test_questions_about_one_clip_share_it(parquet, processor):
    data = CaeAvDataset(parquet, processor, split="train")
    names = data.rows["video_id"]
    assert [names.index(name) for name in names] == [data.groups.index(group) for group in data.groups]
    chosen = [index for index, group in enumerate(data.groups) if group in (0, 1)]
    batch = CaeAvCollator()([data[index] for index in chosen])
    assert batch["clip_index"].tolist() == [data.groups[index] for index in chosen]
    assert len(batch["question_ids"]) == len(batch["labels"]) == len(chosen) > 2
    for name in set(batch) - {"question_ids", "question_mask", "labels", "clip_index"}:
        assert len(batch[name]) == 2, name


def test_questions_of_different_lengths_are_padded(parquet, processor):
    data = CaeAvDataset(parquet, processor, split="test")
    items = [dict(data[0]), dict(data[1])]
    items[0] |= {"question_ids": torch.tensor([4, 5]), "question_mask": torch.tensor([1, 1])}
    batch = CaeAvCollator()(items)
    assert batch["question_ids"][0].tolist() == [4, 5] + 12 * [0]
    assert batch["question_mask"][0].tolist() == [1, 1] + 12 * [0]
    del items[1]["question_ids"]
    with pytest.raises(DataError, match="`question_ids` must be in all clips of a batch or in none"):
        CaeAvCollator()(items)


def test_other_segments_have_other_cache_entries(parquet, processor, tmp_path):
    for sampling in ("spread", "consecutive"):
        processor.frame_sampling = sampling
        CaeAvDataset(parquet, processor, split="test", cache_dir=tmp_path)[0]
    processor.frame_sampling = "spread"
    assert len(list(tmp_path.iterdir())) == 2


# The published files


@pytest.mark.skipif(not ANNOTATIONS.is_dir() or "CAEAV_ANNOTATIONS" not in os.environ, reason="no music_avqa there")
def test_published_files():
    sizes = {"avqa-val.json": (4_595, 3_815), "avqa-test.json": (9_185, 6_399)}
    for name, (questions, videos) in sizes.items():
        report = BuildReport()
        read = read_questions(ANNOTATIONS / name, MUSIC_AVQA_ANSWERS, report)
        assert (len(read), len({question.video_id for question in read})) == (questions, videos)
        assert report.files[name]["questions"] == questions
        assert not any(question.is_deleted for question in read)
        assert not any("<" in question.text for question in read)
        assert {(question.type, question.subtype) for question in read} == {
            *(("Audio", subtype) for subtype in ("Counting", "Comparative")),
            *(("Visual", subtype) for subtype in ("Counting", "Location")),
            *(
                ("Audio-Visual", subtype)
                for subtype in ("Existential", "Counting", "Location", "Comparative", "Temporal")
            ),
        }
