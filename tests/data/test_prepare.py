"""Preparing: clips are decoded once, and reading them equals reading the files."""

import argparse
import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.cli import main
from caeav_hf.cli.prepare import _processor_of
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvDataset, prepare, prepare_clips, store
from caeav_hf.data.images import read_frame
from caeav_hf.data.prepared import _decode_sound, _encode_images, _encode_sound, settings_of
from caeav_hf.errors import DataError
from caeav_hf.media import guard
from caeav_hf.processing import CaeAvProcessor
from tests.corpora import build
from tests.lanes import slow_after
from tests.same import assert_same_clip
from tests.training import toy_files


pytestmark = pytest.mark.slow


def processor_of(task, **changes):
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset(task, size="toy", **changes))


def by_key(data):
    """Return items by the key of their rows."""
    ids = data.rows["question_id"] if "question_id" in data.rows.column_names else [None] * len(data)
    return {(name, number): data[i] for i, (name, number) in enumerate(zip(data.rows["video_id"], ids, strict=True))}


def assert_same_items(found, expected):
    assert set(found) == set(expected)
    for key, item in expected.items():
        assert_same_clip(found[key], item)


@pytest.mark.parametrize("task", slow_after(1, ["avs_ms3", "avqa", "ave", "avvp"]))
def test_png_gives_the_tensors_of_the_files(task, tmp_path):
    folder = {
        "ave": toy_files.toy_data,
        "avs_ms3": toy_files.mask_data,
        "avvp": toy_files.parsing_data,
        "avqa": toy_files.question_data,
    }[task]()
    processor = processor_of(task)
    report = prepare_clips(folder, processor, tmp_path / "out", task=task, image_format="png", num_proc=2)
    for split in ("train", "validation"):
        expected = CaeAvDataset(folder, processor, split=split)
        found = CaeAvDataset(tmp_path / "out", processor, split=split)
        assert report[split].rows == len(found) == len(expected)
        assert_same_items(by_key(found), by_key(expected))
        loaded = datasets.load_dataset(str(tmp_path / "out"), split=split, streaming=True)
        assert next(iter(loaded))["frames"][0]["bytes"].startswith(b"\x89PNG")


def test_clips_are_read_in_workers(tmp_path, monkeypatch):
    def reached(*args, **options):
        raise RuntimeError(f"guarded: {guard.is_guarded()}")

    monkeypatch.setattr(prepare, "write_shards", reached)
    with pytest.raises(RuntimeError, match="guarded: True"):
        prepare_clips(toy_files.toy_data(), processor_of("ave"), tmp_path / "out")
    assert not guard.is_guarded()


def test_questions_share_the_one_copy_of_their_clip(tmp_path):
    folder, processor = toy_files.question_data(), processor_of("avqa")
    report = prepare_clips(folder, processor, tmp_path / "out")
    data = CaeAvDataset(tmp_path / "out", processor, split="train")
    stored = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/data/train-*.parquet"), split="train")
    assert len(stored) == report["train"].clips == len(set(data.rows["video_id"])) < len(data)
    assert data.groups == sorted(data.groups)
    first, second = data[0], data[1]
    assert first["pixel_values_videos"] is second["pixel_values_videos"]
    assert data.rows.features["answer_label"].names


@pytest.mark.parametrize("size", [(1, 1), (48, 64), (33, 47)])
def test_png_keeps_every_bit(size):
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    files = _encode_images(images, "png")
    assert files == _encode_images(images, "png")
    assert np.array_equal(np.stack([read_frame({"bytes": file, "path": None}) for file in files]), images)


def test_jpeg_is_close_and_its_sound_exact(parquet, processor, tmp_path):
    prepare_clips(parquet, processor, tmp_path / "out")
    originals = CaeAvDataset(parquet, processor, split="test")
    for expected, found in zip(originals, CaeAvDataset(tmp_path / "out", processor, split="test"), strict=True):
        torch.testing.assert_close(found["input_features"], expected["input_features"], rtol=0, atol=1e-3)
        difference = (found["pixel_values_videos"] - expected["pixel_values_videos"]).abs()
        assert 0 < difference.mean() < 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50))
def test_sound_is_stored_to_the_last_bit(samples):
    waveform = np.array(samples, "i4").astype(np.float32) / np.float32(2**31)
    assert np.array_equal(_decode_sound(_encode_sound(waveform, 32_000)), waveform)


def test_broken_clips_are_reported_and_the_rest_is_prepared(corpus, processor, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    build(tmp_path / "corpus", tmp_path / "built")
    rows = CaeAvDataset(tmp_path / "built", processor, split="train").rows
    names = sorted(rows[index]["video_id"] for index in (1, 2))
    for name in names:
        (tmp_path / "corpus/media" / f"{name}.mp4").write_bytes(b"broken")
    report = prepare_clips(tmp_path / "built", processor, tmp_path / "out", shard_clips=3)
    assert sorted(report["train"].failed) == names
    assert report["train"].rows == len(CaeAvDataset(tmp_path / "out", processor, split="train")) == len(rows) - 2
    written = json.loads((tmp_path / "out/report.json").read_text())["splits"]["train"]
    assert (written["clips"], written["prepared"]) == (len(rows), len(rows) - 2)
    assert all(name in reason for name, reason in written["failed"].items())
    # The next run adds repaired files and decodes nothing else again.
    shutil.copy(corpus / "media" / f"{names[0]}.mp4", tmp_path / "corpus/media")
    again = prepare_clips(tmp_path / "built", processor, tmp_path / "out", shard_clips=3)
    assert list(again["train"].failed) == names[1:]
    assert len(CaeAvDataset(tmp_path / "out", processor, split="train")) == len(rows) - 1


def test_a_stopped_run_leaves_nothing_to_read_and_goes_on(parquet, processor, tmp_path, monkeypatch):
    prepare_clips(parquet, processor, tmp_path / "whole", image_format="png", shard_clips=4)
    load, decoded = CaeAvProcessor.load_clip, []

    def stops(self, source, **options):
        decoded.append(source)
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return load(self, source, **options)

    monkeypatch.setattr(CaeAvProcessor, "load_clip", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_clips(parquet, processor, tmp_path / "out", image_format="png", shard_clips=4)
    with pytest.raises(DataError, match="expected a builder's folder"):
        CaeAvDataset(tmp_path / "out", processor, split="train")
    decoded_by_then = len(decoded)
    prepare_clips(parquet, processor, tmp_path / "out", image_format="png", shard_clips=4)
    assert len(decoded) == decoded_by_then + 24 - 8  # two shards were complete
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole/data").iterdir())
    for name in names:
        assert (tmp_path / "out/data" / name).read_bytes() == (tmp_path / "whole/data" / name).read_bytes()
    prepare_clips(parquet, processor, tmp_path / "out", image_format="png", shard_clips=4)
    assert len(decoded) == decoded_by_then + 24 - 8


def test_shards_of_the_first_version_are_reused(parquet, processor, tmp_path, monkeypatch):
    """They have one note under another key, and names that end in `.part` until all are complete."""
    out = tmp_path / "out"
    prepare_clips(parquet, processor, out, shard_clips=4)
    report = (out / "report.json").read_text()
    for number, path in enumerate(sorted((out / "data").iterdir())):
        fingerprint, note = store._read_footer(path)
        table, old = pq.read_table(path), path.with_name(f"{path.name}.part" if number else path.name)
        path.unlink()
        with pq.ParquetWriter(old, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"caeav_hf.prepare": json.dumps({"identity": fingerprint, **note})})
    (out / "data/train-00002-of-00003.parquet.part").unlink()
    load, decoded = CaeAvProcessor.load_clip, []

    def counted(self, source, **options):
        decoded.append(source)
        return load(self, source, **options)

    monkeypatch.setattr(CaeAvProcessor, "load_clip", counted)
    prepare_clips(parquet, processor, out, shard_clips=4)
    assert len(decoded) == 4
    assert (out / "report.json").read_text() == report
    assert len(CaeAvDataset(out, processor, split="train")) == 12
    assert not list(out.rglob("*.part"))


def test_a_folder_is_for_one_process_at_a_time(parquet, processor, tmp_path):
    (tmp_path / "out").mkdir()
    with store.claim(tmp_path / "out"), pytest.raises(DataError, match="out: another process is writing there"):
        prepare_clips(parquet, processor, tmp_path / "out")
    with pytest.raises(DataError, match=r"has data/\*\.parquet, but no settings\.json"):
        prepare_clips(parquet, processor, shutil.copytree(parquet, tmp_path / "built"))


def test_an_invalid_shard_is_made_again(parquet, processor, tmp_path):
    prepare_clips(parquet, processor, tmp_path / "out", shard_clips=4)
    path = tmp_path / "out/data/train-00001-of-00003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    path.with_name(f"{path.name}.part").write_bytes(b"PAR1")
    prepare_clips(parquet, processor, tmp_path / "out", shard_clips=4)
    assert path.read_bytes() == whole


def test_other_settings_are_refused(parquet, processor, tmp_path):
    prepare_clips(parquet, processor, tmp_path / "out")
    small = processor_of("ave", vision_config={"image_size": 32})
    with pytest.raises(DataError, match=r"prepared with other settings.*size"):
        CaeAvDataset(tmp_path / "out", small, split="train")
    with pytest.raises(DataError, match=r"made with other settings \(size;"):
        prepare_clips(parquet, small, tmp_path / "out")
    with pytest.raises(DataError, match="is prepared already"):
        prepare_clips(tmp_path / "out", processor, tmp_path / "twice")
    with pytest.raises(DataError, match="is a data set for ave; the model is for avqa"):
        prepare_clips(parquet, processor_of("avqa"), tmp_path / "other", task="avqa")


def test_a_missing_shard_is_noticed(parquet, processor, tmp_path):
    prepare_clips(parquet, processor, tmp_path / "out", shard_clips=4)
    (tmp_path / "out/data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="has 2 shards of the split 'train', whose names announce 3"):
        CaeAvDataset(tmp_path / "out", processor, split="train")


def test_the_command(parquet, tmp_path, capsys):
    arguments = ["prepare", str(parquet), "--task", "ave", "--size", "toy", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--num-proc", "1"]) == 0
    assert "train: 12 of 12 clips, 12 rows in 1 shards" in capsys.readouterr().out
    assert main([*arguments, "--format", "png"]) == 2
    assert main(["prepare", str(parquet), "--out", str(tmp_path / "out")]) == 2
    assert main(["prepare", str(tmp_path), "--task", "ave", "--out", str(tmp_path / "x")]) == 2
    assert main(["prepare", str(tmp_path), "--model", "m", "--method", "dg_sct", "--out", str(tmp_path / "x")]) == 2
    assert main(["prepare", str(tmp_path), "--task", "ave", "--method", "none", "--out", str(tmp_path / "x")]) == 2
    assert "expected a builder's folder" in capsys.readouterr().err


def test_frames_fit_the_method(tmp_path):
    """DG-SCT's segmentation reads larger frames than its tower."""
    options = argparse.Namespace(model=None, task="avs_s4", size="full", method="dg_sct")
    task, processor = _processor_of(options)
    assert (task, settings_of(processor)["size"]) == ("avs_s4", {"height": 224, "width": 224})
    _, other = _processor_of(argparse.Namespace(**{**vars(options), "method": None}))
    assert settings_of(other)["size"] == {"height": 192, "width": 192}
    _, other = _processor_of(argparse.Namespace(**{**vars(options), "method": "stg_cma"}))
    assert settings_of(other)["size"] == {"height": 224, "width": 224}
    assert (other.sampling_rate, other.feature_extractor.window_seconds) == (16_000, 1.95)
    arguments = ["prepare", str(toy_files.mask_data()), "--task", "avs_ms3", "--method", "dg_sct", "--size", "toy"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--num-proc", "1"]) == 0
    data = CaeAvDataset(tmp_path / "out", processor_of("avs_ms3", method="dg_sct"), split="train")
    assert data[0]["pixel_values_videos"].shape[-2:] == (64, 64)
