"""Captioning a data set: interrupted, resumed, edited, reported."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caeav_hf.captioning import CaptionerUnusableError, CaptionSettings, ServerCaptioner, caption_clips, find_clips
from caeav_hf.captioning.table import CaptionTable
from caeav_hf.cli import main
from caeav_hf.data import AveBuilder
from caeav_hf.data.caption_file import read_captions
from caeav_hf.errors import CaeAvError, DataError
from tests.captioning.chat_server import FAULTS, ChatServer, answer_to
from tests.captioning.killed_job import OPTIONS
from tests.media_factory import tone, write_clip
from tests.training.toy_files import mask_data, toy_corpus


pytestmark = pytest.mark.slow


PROVENANCE = {"model": "m", "prompt_version": "1", "settings": "{}"}


def two_greys(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, 3) uint8 for a number up to 225 that survives decoding and JPEG."""
    image = np.empty((*size, 3), dtype=np.uint8)
    image[:, : size[1] // 2], image[:, size[1] // 2 :] = 16 + 15 * (number // 15), 16 + 15 * (number % 15)
    return image


def make_clips(folder: Path, count: int) -> Path:
    """Write clips that all look and sound different, so that each gets different captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        write_clip(
            folder / f"clip{number:03d}.mp4",
            seconds=0.5,
            fps=2,
            size=(32, 32),
            image=lambda _, size, n=number: two_greys(n, size),
            audio_rate=16_000,
            layout="mono",
            sound=tone(200 + 5 * number),
        )
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips") / "media", 6)


def asking(server, **arguments):
    return ServerCaptioner(
        server.url, server.model, **{"backoff": 0.01, "timeout": 0.5, "concurrency": 4, "attempts": 2, **arguments}
    )


def run(server, clips, out, **arguments):
    options = {
        name: arguments.pop(name)
        for name in ("renew", "limit", "modalities", "max_failures_in_a_row")
        if name in arguments
    }
    return caption_clips(find_clips(clips), asking(server, **arguments), out, show_progress=False, **options)


def test_two_hundred_clips_two_kills_and_a_bad_server(tmp_path, capsys):
    media, out = tmp_path / "media", tmp_path / "captions.parquet"
    stubborn, done = set(), []

    def plan(media, attempt):
        number = int(media, 16)
        if number % 40 == 0 and not done:
            stubborn.add(media)
            return "refusal"
        return FAULTS[number % 12] if attempt == 0 and number % 12 < len(FAULTS) else None

    with ChatServer(plan) as server:
        program = Path(__file__).with_name("killed_job.py")
        killed = subprocess.Popen(
            [sys.executable, program, server.url, media, out],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        make_clips(media, 200)  # while it loads its libraries
        _, errors = killed.communicate("go\n")
        assert killed.returncode == 0, errors[-3000:]
        assert Path(f"{out}.journal").read_bytes().endswith(b'{"clip": "never')
        job = ["caption", str(media), "--out", str(out), "--server", server.url, *OPTIONS]
        assert main(job) == 2
        assert stubborn
        report = json.loads((tmp_path / "captions.report.json").read_text())
        refused = sum(
            item["reason"] == "refusal"
            for clip in report["failed"].values()
            for item in clip.values()
            if isinstance(item, dict)
        )
        assert refused == len(stubborn) == report["failed_by_reason"]["refusal"]
        assert report["complete"] == 200 - len(report["failed"])
        assert "clips failed" in capsys.readouterr().err
        done.append(True)
        assert main(job) == 0
        asked_before = sum(server.asked.values())
        assert main(job) == 0  # no request is left
    assert sum(server.asked.values()) == asked_before
    assert set(server.faults) == set(FAULTS)
    assert not server.bad_requests
    assert len(server.settings) == 1
    assert 1 < server.most_at_once <= 2 * 8  # requests of a killed job may still be on the server
    rows = pq.read_table(out).to_pylist()
    assert [row["clip"] for row in rows] == [f"clip{number:03d}" for number in range(200)]
    for modality in ("visual", "audio"):
        captions = [row[f"{modality}_caption"] for row in rows]
        assert set(captions) <= {answer_to(modality, media) for media in server.answered}
        assert len(set(captions)) == 200  # none was given to two clips
    assert all((row["model"], row["prompt_version"]) == ("omni", "1") for row in rows)
    # Stored captions were not requested again, only those in progress at the two kills.
    assert sum(server.answered.values()) <= 400 + 2 * 2 * 8
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("media", "captions.parquet", "captions.report.json", "captions.parquet.lock")
    }


def test_edited_captions_stay(clips, tmp_path):
    out = tmp_path / "captions.parquet"
    with ChatServer() as server:
        run(server, clips, out)
        rows = pq.read_table(out).to_pylist()
        rows[0]["visual_caption"] = "my own words"
        rows[1]["audio_caption"] = None  # taken out
        rows = [{**row, "note": "a column of mine"} for row in rows]
        del rows[3]  # requested again
        pq.write_table(pa.Table.from_pylist(rows), out)
        report = run(server, clips, out)
        assert (report.captioned, report.edited, report.complete) == (1, 2, 6)
        other = {"temperature": 0.5}
        report = run(server, clips, out, settings=CaptionSettings(**other))
        assert (report.captioned, report.kept_from_elsewhere) == (0, 6)
        report = run(server, clips, out, settings=CaptionSettings(**other), renew=True)
        assert (report.captioned, report.kept_from_elsewhere) == (6, 0)
    rows = pq.read_table(out).to_pylist()
    assert rows[0]["visual_caption"] == "my own words"
    assert rows[0]["visual_generated"].startswith("a visual thing")
    assert rows[1]["audio_caption"] is None
    assert sum(row["note"] == "a column of mine" for row in rows) == 5
    assert all('"temperature": 0.5' in row["settings"] for row in rows)


def test_edits_made_while_a_job_runs_stay(tmp_path):
    out = tmp_path / "captions.parquet"
    with CaptionTable(out) as table:
        table.record("a", "a.mp4", {"visual": "one", "audio": "two"}, PROVENANCE)
        table.compact()
        table.record("b", "b.mp4", {"visual": "three", "audio": "four"}, PROVENANCE)
        row = pq.read_table(out).to_pylist()[0]
        pq.write_table(pa.Table.from_pylist([{**row, "audio_caption": "mine"}]), out)
    assert read_captions(out) == {
        "a": {"visual": "one", "audio": "mine"},
        "b": {"visual": "three", "audio": "four"},
    }


def test_a_journal_that_is_in_the_file_already_changes_nothing(tmp_path):
    out = tmp_path / "captions.parquet"
    with CaptionTable(out) as table:
        table.record("a", "a.mp4", {"visual": "one"}, PROVENANCE)
        table.record("a", "a.mp4", {"audio": "two"}, PROVENANCE)
        journal = table.journal.path.read_bytes()
    row = pq.read_table(out).to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([{**row, "audio_caption": "mine"}]), out)
    table.journal.path.write_bytes(journal + b'{"clip": "a", "fi')
    with CaptionTable(out):
        pass
    assert read_captions(out) == {"a": {"visual": "one", "audio": "mine"}}
    assert not table.journal.path.exists()


def test_one_job_at_a_time_and_files_of_another_kind(tmp_path):
    out = tmp_path / "captions.parquet"
    with CaptionTable(out), pytest.raises(CaeAvError, match="another process is writing"), CaptionTable(out):
        pass
    with pytest.raises(CaeAvError, match=r"\.parquet"):
        CaptionTable(tmp_path / "captions.json")
    out.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"captions\.parquet"), CaptionTable(out):
        pass
    pq.write_table(pa.table({"clip": ["a", "a"], "visual_caption": ["", ""], "audio_caption": ["", ""]}), out)
    with pytest.raises(DataError, match="twice"), CaptionTable(out):
        pass


def test_a_broken_clip_is_reported_and_the_others_are_captioned(tmp_path):
    media = make_clips(tmp_path / "media", 3)
    (media / "broken.mp4").write_bytes(b"this is no clip")
    write_clip(media / "silent.mp4", seconds=1, audio=False)
    with ChatServer() as server:
        report = run(server, media, tmp_path / "captions.parquet")
    assert (report.clips, report.complete, report.captioned) == (5, 3, 3)
    assert report.failed_by_reason == {"media": 2}
    written = json.loads((tmp_path / "captions.report.json").read_text())
    assert set(written["failed"]) == {"broken", "silent"}
    assert "silent.mp4" in written["failed"]["silent"]["media"]["message"]


def test_only_the_modality_that_failed_is_asked_again(clips, tmp_path):
    with ChatServer() as server:
        run(server, clips, tmp_path / "first.parquet")
        captions = read_captions(tmp_path / "first.parquet")
        deaf = {caption["audio"].split()[-1].rstrip(".") for caption in captions.values()}
        server.plan = lambda media, _: "refusal" if media in deaf else None
        report = run(server, clips, tmp_path / "second.parquet")
        assert report.failed_by_reason == {"refusal": 6}
        assert (report.complete, report.captioned) == (0, 6)
        server.plan = lambda *_: None
        server.answered = Counter()
        assert run(server, clips, tmp_path / "second.parquet").complete == 6
        assert set(server.answered) == deaf
    assert read_captions(tmp_path / "second.parquet") == captions


def test_one_modality_alone(clips, tmp_path):
    out = tmp_path / "captions.parquet"
    with ChatServer() as server:
        report = run(server, clips, out, modalities=["visual"])
        assert (report.complete, report.captioned, len(server.asked)) == (6, 6, 6)
        visual = {clip: caption["visual"] for clip, caption in read_captions(out).items()}
        assert {caption["audio"] for caption in read_captions(out).values()} == {None}
        # The other one can follow.
        assert run(server, clips, out).captioned == 6
        assert len(server.asked) == 12
    captions = read_captions(out).values()
    assert all(caption["audio"] for caption in captions)
    assert [caption["visual"] for caption in captions] == list(visual.values())


def test_a_back_end_that_only_fails_is_given_up_and_nothing_is_lost(clips, tmp_path):
    out = tmp_path / "captions.parquet"
    with ChatServer() as server:
        run(server, clips, out, limit=2)
        server.plan = lambda *_: "500"
        with pytest.raises(CaptionerUnusableError, match="3 clips in a row"):
            run(server, clips, out, attempts=1, max_failures_in_a_row=3)
        assert len(read_captions(out)) == 2
        assert len(json.loads((tmp_path / "captions.report.json").read_text())["failed"]) == 3
        server.model = "another"
        with pytest.raises(CaptionerUnusableError, match="404"):
            caption_clips(find_clips(clips), ServerCaptioner(server.url, "omni"), out, show_progress=False)
    assert len(read_captions(out)) == 2


def test_lists_of_clips(clips, tmp_path):
    names = [f"clip{number:03d}" for number in range(6)]
    assert [clip.clip for clip in find_clips(clips)] == names
    (tmp_path / "list.txt").write_text(f"{clips}/clip004.mp4\n\n{clips}/clip001.mp4\n")
    assert [clip.clip for clip in find_clips(tmp_path / "list.txt")] == ["clip004", "clip001"]
    assert [clip.clip for clip in find_clips([clips / "clip002.mp4"])] == ["clip002"]
    (tmp_path / "clip002.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="has the same name as"):
        find_clips([clips / "clip002.mp4", tmp_path / "clip002.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no clips"):
        find_clips(tmp_path / "empty")


def test_a_builders_folder_and_back_into_the_builder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = toy_corpus()

    def build(captions, embed):
        folders = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media")}
        cache = str(tmp_path / "cache")
        builder = AveBuilder(**folders, captions=captions, embed_media=embed, cache_dir=cache)
        return builder.build(tmp_path / "data")

    out = tmp_path / "captions.parquet"
    with ChatServer() as server:
        for embed in (True, False):  # the bytes of the clips, or their paths: the captions are the same
            build(None, embed)
            clips = find_clips(tmp_path / "data")
            assert len(clips) == 16
            report = caption_clips(clips, asking(server), out, show_progress=False)
            assert (report.complete, report.captioned) == (16, 16 if embed else 0)
    report = build(str(out), False)
    assert not report.notes.as_dict().get("without_both_captions")
    captions = read_captions(out)
    for shard in (tmp_path / "data" / "data").glob("*.parquet"):
        for row in pq.read_table(shard).to_pylist():
            caption = captions[row["video_id"]]
            assert (row["visual_caption"], row["audio_caption"]) == (caption["visual"], caption["audio"])


def test_rows_of_frames_and_sound():
    clips = find_clips(mask_data())
    assert len(clips) == 10
    material = clips[0].load(CaptionSettings())
    assert len(material.frames) == 5
    assert len(material.waveform) == pytest.approx(5 * 16_000, abs=1600)


def test_an_interrupted_job_keeps_what_it_has(clips, tmp_path, monkeypatch, capsys):
    out, record = tmp_path / "captions.parquet", CaptionTable.record

    def interrupted(table, *arguments):
        record(table, *arguments)
        if len(table.rows) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(CaptionTable, "record", interrupted)
    with ChatServer() as server:
        job = ["caption", str(clips), "--out", str(out), "--server", server.url, "--model", "omni"]
        assert main(job) == 130
        assert "stopped; run the same command again" in capsys.readouterr().err
        assert len(read_captions(out)) == 3
        monkeypatch.setattr(CaptionTable, "record", record)
        assert main(job) == 0
    assert len(read_captions(out)) == 6
