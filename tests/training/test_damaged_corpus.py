"""Building and training on a corpus of which a fifth of the clips is damaged."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from caeav_hf.data import AveBuilder
from caeav_hf.toy import MediaFormat, generate
from caeav_hf.training.command import main
from tests.corpora import keep_stream
from tests.media_factory import truncate, write_clip
from tests.training.toy_files import toy_model


pytestmark = pytest.mark.slow  # whole runs


DAMAGED = 4  # of 20


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """Return a corpus of twenty clips; the first ones in the training split are damaged, each in another way."""
    corpus = tmp_path_factory.mktemp("damaged") / "corpus"
    media_format = MediaFormat(frame_size=64, frame_rate=4)
    generate(corpus, num_clips=20, split=(7, 2, 1), media_format=media_format, progress=False)
    media = corpus / "media"
    truncated, renamed, empty, audio_only, late = (media / f"{name}.mp4" for name in training_clips(corpus)[:5])
    truncate(truncated, 0.5)
    renamed.rename(media / "Copy of a clip (1).mp4")
    empty.write_bytes(b"")
    shutil.copy(audio_only, corpus / "whole.mp4")
    keep_stream(corpus / "whole.mp4", audio_only, "audio")
    # Only training notices this one: its header is intact, but the announced data is missing.
    write_clip(late, seconds=10, fps=4, index_first=True)
    content = late.read_bytes()
    late.write_bytes(content[: content.index(b"mdat") + 8])
    return corpus


def training_clips(corpus: Path) -> list[str]:
    return [line.split("&")[1] for line in (corpus / "annotations" / "trainSet.txt").read_text().splitlines()]


@pytest.mark.parametrize("embed", [False, True])
def test_it_is_built_and_the_report_adds_up(damaged, tmp_path, embed):
    options = {"annotations": str(damaged / "annotations"), "media": str(damaged / "media")}
    AveBuilder(**options, embed_media=embed, num_proc=2).build(tmp_path)
    splits = json.loads((tmp_path / "report.json").read_text())["splits"]
    truncated, renamed, empty, audio_only = training_clips(damaged)[:DAMAGED]
    assert {reason: item["examples"] for reason, item in splits["train"]["skipped"].items()} == {
        "missing": [f"{renamed}.mp4"],
        "no_video_stream": [f"{audio_only}.mp4"],
        "unreadable": [f"{truncated}.mp4", f"{empty}.mp4"],
    }
    assert sum(part["annotated"] for part in splits.values()) == 20
    assert sum(part["written"] for part in splits.values()) == 20 - DAMAGED
    for split, part in splits.items():
        skipped = sum(item["count"] for item in part["skipped"].values())
        rows = datasets.load_dataset(str(tmp_path), split=split, streaming=True)
        assert part["annotated"] == part["written"] + skipped == len(list(rows)) + skipped


def test_what_is_left_is_trained_on(damaged, tmp_path):
    options = {"annotations": str(damaged / "annotations"), "media": str(damaged / "media")}
    AveBuilder(**options, cache_dir=str(tmp_path / "cache")).build(tmp_path / "data")
    flags = ["--model", str(toy_model()), "--data", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")]
    assert main(["--task", "ave", "--size", "toy", *flags, "--epochs", "1", "--batch-size", "2"]) == 0
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    left = len(training_clips(damaged)) - DAMAGED
    assert record["train/dropped_clips"] == 1
    assert record["step"] >= (left - 1) // 2
    assert 0 < record["train/task"] < 20
