"""Parquet of masks and descriptions, from frames and sound or from videos, and its items."""

import json
from pathlib import Path

import pytest

from caeav_hf import CaeAvProcessor
from caeav_hf.data import CaeAvDataset, RaSsuBuilder
from caeav_hf.data.rows import task_of_rows
from caeav_hf.errors import DataError
from caeav_hf.toy import MediaFormat, generate
from tests.lanes import slow_after
from tests.tasks.sound_source_understanding.helpers import small_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ra_ssu") / "toy"
    generate(out, "ra_ssu", num_clips=4, split=(2, 1, 1), media_format=MediaFormat(32, 4, 16_000), progress=False)
    path = out / "annotations" / "descriptions.json"
    descriptions = json.loads(path.read_text())
    descriptions["toy00000000"][1] = None
    path.write_text(json.dumps(descriptions))
    return out


def build(corpus: Path, out: Path, **options):
    folders = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media")}
    return RaSsuBuilder(**folders, captions=str(corpus / "captions.json"), **options).build(out)


@pytest.mark.parametrize("from_videos", slow_after(1, [False, True]))
def test_rows_and_items(corpus: Path, tmp_path: Path, from_videos: bool) -> None:
    report = build(corpus, tmp_path, from_videos=from_videos)
    assert report.written == {"train": 2, "validation": 1, "test": 1}
    processor = CaeAvProcessor.from_config(small_config(text_config={"vocab_size": 1026}))
    clips = CaeAvDataset(tmp_path, processor, split="train")
    assert task_of_rows(clips.rows.column_names).name == "ra_ssu"
    row, item = clips.rows[0], clips[0]
    known = json.loads((corpus / "annotations" / "descriptions.json").read_text())[row["video_id"]]
    assert row["descriptions"] == known
    assert item["pixel_values_videos"].shape == (5, 3, 32, 32)
    assert item["labels"].shape == (5, 32, 32)
    texts = processor.batch_decode(item["description_ids"], skip_special_tokens=True)
    assert texts == [text or "" for text in known]
    assert (item["description_ids"][1] == -100).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "lists of texts by name"),
        ('{"toy00000000": ["a", 3]}', "texts and nulls for toy00000000"),
        ("{}", "has no descriptions of toy00000000"),
        ("{", "expected a JSON file"),
    ],
)
def test_wrong_descriptions_are_named(corpus: Path, tmp_path: Path, content: str, message: str) -> None:
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "meta_data.csv").write_text((corpus / "annotations" / "meta_data.csv").read_text())
    (annotations / "descriptions.json").write_text(content)
    with pytest.raises(DataError, match=rf"descriptions\.json: .*{message}"):
        RaSsuBuilder(annotations=str(annotations), media=str(corpus / "media")).build(tmp_path / "out")
