"""The builders on the published annotation files, with media for a few clips and the rest missing."""

import json
import os
from pathlib import Path

import datasets
import pytest

from caeav_hf.data import AveBuilder, BuildReport, LlpBuilder, MusicAvqaBuilder
from tests.media_factory import write_clip


ANNOTATIONS = Path(os.environ.get("CAEAV_ANNOTATIONS", ""))
SETS = {
    "ave": (AveBuilder, "video_id", {"train": 3_339, "validation": 402, "test": 402}),
    "llp": (LlpBuilder, "filename", {"train": 10_000, "validation": 649, "test": 1_200}),
    # Its training questions are in a separate, optional file.
    "music_avqa": (MusicAvqaBuilder, "video_id", {"validation": 4_595, "test": 9_185}),
}

pytestmark = pytest.mark.skipif(
    "CAEAV_ANNOTATIONS" not in os.environ, reason="CAEAV_ANNOTATIONS does not name the published files"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_split_sizes_are_those_published_and_what_is_missing_is_counted(name, tmp_path):
    builder_class, column, sizes = SETS[name]
    if not (ANNOTATIONS / name).is_dir():
        pytest.skip(f"{ANNOTATIONS / name} is not there")
    (tmp_path / "media").mkdir()
    clip = write_clip(tmp_path / "clip.mp4", seconds=1, fps=4, audio_rate=16_000)
    options = {"annotations": str(ANNOTATIONS / name), "media": str(tmp_path / "media")}
    # The first three clips of each split, under the preferred name of the media file.
    entries = builder_class(**options).read_entries(ANNOTATIONS / name, BuildReport())
    there = set()
    for rows in entries.values():
        for file in list(dict.fromkeys(row.media["media"].expected for row in rows))[:3]:
            if file not in there:
                os.link(clip, tmp_path / "media" / file)
                there.add(file)
    usable = {
        split: [row.row[column] for row in rows if row.media["media"].expected in there]
        for split, rows in entries.items()
    }
    report = builder_class(**options, num_proc=2).build(tmp_path / "out")
    assert report.annotated == sizes
    assert report.written == {split: len(rows) for split, rows in usable.items()}
    splits = json.loads((tmp_path / "out" / "report.json").read_text())["splits"]
    for split, size in sizes.items():
        assert splits[split]["skipped"] == {
            "missing": {
                "count": size - len(usable[split]),
                "examples": splits[split]["skipped"]["missing"]["examples"],
            }
        }
        rows = datasets.load_dataset(str(tmp_path / "out"), split=split)
        assert rows[column] == usable[split]
        assert list(datasets.load_dataset(str(tmp_path / "out"), split=split, streaming=True)) == list(rows)
