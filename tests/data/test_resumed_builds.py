"""Interrupted builds: what they leave is right, and the next build continues from it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import filelock
import pytest

from caeav_hf.data import AveBuilder, store
from caeav_hf.data.store import read_fingerprint
from caeav_hf.errors import DataError
from tests.corpora import build
from tests.media_factory import write_clip


SHARD_BYTES = 300_000


def build_embedded(corpus: Path, out: Path, **options):
    folders = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media")}
    return AveBuilder(**folders, embed_media=True, **options).build(out, max_shard_bytes=SHARD_BYTES)


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def visible_files_of(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(out).items() if not name.startswith(".")}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> dict[str, bytes]:
    """Return the files of a build that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build_embedded(corpus, out)
    return files_of(out)


def fail_at_shard(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make writing this shard, counted from 1, fail halfway."""
    write, begun = store.pq.ParquetWriter.write_table, []

    def failing(writer, table):
        write(writer, table)
        begun.append(writer)
        if len(set(map(id, begun))) >= number:
            raise OSError("the disk is full")

    monkeypatch.setattr(store.pq.ParquetWriter, "write_table", failing)


def test_a_stopped_build_continues(corpus, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at_shard(3, patch)
        with pytest.raises(OSError, match="disk is full"):
            build_embedded(corpus, out)
    there = sorted(path.name for path in (out / ".unfinished").glob("*.parquet"))
    assert len(there) == 2
    assert not (out / "data").exists()
    with pytest.raises(FileNotFoundError):
        datasets.load_dataset(str(out))
    report = build_embedded(corpus, out, num_proc=3)
    assert report.written_shards == sum(report.shards.values()) - 2 > 0
    assert files_of(out) == whole
    assert build_embedded(corpus, out).written_shards == 0
    assert files_of(out) == whole


def test_a_clock_that_jumps_changes_nothing(corpus, whole, tmp_path, monkeypatch):
    years = itertools.cycle([0.0, 3.2e7, -3.2e7])

    def jumping() -> float:
        return time.monotonic() + 1e9 + next(years)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr("tqdm.std.time", jumping)
    build_embedded(corpus, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole
    assert build_embedded(corpus, tmp_path / "out").written_shards == 0


def test_only_shards_of_other_inputs_are_written_again(corpus, whole, tmp_path):
    copy, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, copy)  # with the times of the files
    first = build_embedded(copy, out)
    assert files_of(out).keys() == whole.keys()
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (out / "data").iterdir()}
    # The last clip of the test split becomes another one.
    name = (copy / "annotations" / "testSet.txt").read_text().splitlines()[-1].split("&")[1]
    write_clip(copy / "media" / f"{name}.mp4", seconds=2)
    second = build_embedded(copy, out)
    assert 1 <= second.written_shards < sum(first.shards.values())
    rows = datasets.load_dataset(str(out), split="test")
    assert rows[-1]["media"]["bytes"] == (copy / "media" / f"{name}.mp4").read_bytes()
    kept = [path for path in (out / "data").iterdir() if before.get(path.name, (0,))[0] == path.stat().st_ino]
    assert len(kept) == sum(second.shards.values()) - second.written_shards
    assert all(path.read_bytes() == before[path.name][1] for path in kept)


def test_captions_options_and_form_are_inputs_too(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert build(corpus, out).written_shards == 3
    assert build(corpus, out, num_proc=2).written_shards == 0
    assert build(corpus, out, captions=None).written_shards == 3
    assert build(corpus, out, captions=None, embed_media=True).written_shards == 3
    monkeypatch.setattr("caeav_hf.data.builder._FORM", 2)
    assert build(corpus, out, captions=None, embed_media=True).written_shards == 3


def test_a_build_that_fails_leaves_the_earlier_set(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(corpus, out)
    before = visible_files_of(out)
    with monkeypatch.context() as patch:
        fail_at_shard(2, patch)
        with pytest.raises(OSError, match="disk is full"):
            build(corpus, out, captions=None)
    assert visible_files_of(out) == before
    assert all(datasets.load_dataset(str(out), split="train")["visual_caption"])


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: b"", lambda content: b"PAR1" * 9])
def test_a_damaged_shard_is_no_shard(corpus, tmp_path, damage):
    build(corpus, tmp_path / "out")
    before = files_of(tmp_path / "out")
    shard = next((tmp_path / "out" / "data").glob("test-*.parquet"))
    shard.write_bytes(damage(shard.read_bytes()))
    assert read_fingerprint(shard) is None
    assert build(corpus, tmp_path / "out").written_shards == 1
    assert files_of(tmp_path / "out") == before


def test_without_links_shards_are_copied(corpus, tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError("not on this disk")

    build(corpus, tmp_path / "out")
    (tmp_path / "out" / "data" / "test-00000-of-00001.parquet").unlink()
    monkeypatch.setattr(os, "link", no_link)
    assert build(corpus, tmp_path / "out").written_shards == 1


def test_one_build_at_a_time(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(DataError, match="out: another process is writing there"),
    ):
        build(corpus, tmp_path / "out", captions=None)
    assert build(corpus, tmp_path / "out").written_shards == 0


@pytest.mark.slow
def test_killed_at_random_moments_no_shard_is_ever_wrong(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "annotations").mkdir(parents=True)
    (corpus / "media").mkdir()
    clip = write_clip(tmp_path / "clip.mp4", seconds=0.4, audio_rate=16_000, layout="mono")
    names = [f"clip{number}" for number in range(12)]
    for name in names:
        shutil.copy(clip, corpus / "media" / f"{name}.mp4")
    (corpus / "annotations" / "categories.txt").write_text("bell\n")
    for file, part in (("trainSet.txt", names[:8]), ("valSet.txt", names[8:10]), ("testSet.txt", names[10:])):
        (corpus / "annotations" / file).write_text("".join(f"bell&{name}&good&0&5\n" for name in part))
    for file, words in (("captions.json", "seen"), ("other_captions.json", "also seen")):
        captions = {name: {"visual": f"{name} is {words}.", "audio": f"{name} sounds."} for name in names}
        if file == "other_captions.json":
            captions["clip0"] = {"visual": "clip0 is seen.", "audio": "clip0 sounds."}  # one shard is in both sets
        (corpus / file).write_text(json.dumps(captions))
    program = [sys.executable, str(Path(__file__).with_name("killed_builds.py"))]
    done = subprocess.run(
        [*program, str(corpus), str(tmp_path / "out"), "20", "0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["killed"] == 20
    assert summary["shards"] >= 6
    assert summary["operations"] > 3 * summary["shards"]
    # Kills came before the first set was there, and after.
    assert summary["states"].keys() > {"no set"}
