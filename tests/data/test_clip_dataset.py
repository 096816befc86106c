"""The torch data set over a builder's rows: lazy decoding, the cache, and broken clips."""

import shutil

import datasets
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.utils.data import DataLoader

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.errors import DataError
from caeav_hf.media.clip import load_clip
from caeav_hf.processing.processing_cae_av import CaeAvProcessor
from tests.corpora import build
from tests.lanes import slow_after
from tests.same import assert_same_clip


@pytest.fixture
def breakable(corpus, tmp_path):
    """Return a corpus and its Parquet folder, whose clips a test may damage."""
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    build(copy, tmp_path / "parquet")
    return copy / "media", tmp_path / "parquet"


def test_items_are_what_the_processor_makes(parquet, processor):
    clips = CaeAvDataset(parquet, processor, split="train")
    assert len(clips) == 12
    row = clips.rows[3]
    item = clips[3]
    inputs = processor(
        videos=[row["media"]["path"]],
        visual_captions=[row["visual_caption"]],
        audio_captions=[row["audio_caption"]],
    )
    assert_same_clip({name: item[name] for name in inputs}, {name: value[0] for name, value in inputs.items()})
    assert item["pixel_values_videos"].shape == (10, 3, 64, 64)
    assert item["labels"].tolist() == row["segment_labels"]
    assert item["video_id"] == row["video_id"]


def test_rows_may_be_a_dataset_with_embedded_clips(corpus, parquet, processor, tmp_path):
    build(corpus, tmp_path / "out", embed_media=True)
    embedded = CaeAvDataset(datasets.load_dataset(str(tmp_path / "out"), split="test"), processor)
    by_path = CaeAvDataset(parquet, processor, split="test")
    assert_same_clip(embedded[0], by_path[0])


def test_a_loader_gives_batches_for_the_model(parquet, processor):
    loader = DataLoader(
        CaeAvDataset(parquet, processor, split="train"), batch_size=5, collate_fn=CaeAvCollator(), num_workers=2
    )
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [5, 5, 2]
    assert set(batches[0]) == {
        *("pixel_values_videos", "input_features", "frame_mask", "labels"),
        *("visual_caption_ids", "visual_caption_mask", "audio_caption_ids", "audio_caption_mask"),
    }
    assert all(tensor.is_contiguous() for tensor in batches[0].values())


@pytest.mark.parametrize("num_workers", slow_after(1, [0, 2]))
def test_broken_clips_are_named_once_and_counted_and_do_not_end_the_epoch(breakable, processor, caplog, num_workers):
    media, folder = breakable
    clips = CaeAvDataset(folder, processor, split="train")
    names = [clips.rows[index]["video_id"] for index in (1, 2)]
    (media / f"{names[0]}.mp4").write_bytes(b"broken")
    (media / f"{names[1]}.mp4").unlink()
    for _ in range(2):
        loader = DataLoader(clips, batch_size=4, collate_fn=CaeAvCollator(), num_workers=num_workers)
        assert [len(batch["labels"]) for batch in loader] == [4, 4, 4]
        assert clips.broken_clips == names
    for index in (1, 2):
        replacement = clips[index]
        assert (replacement.pop("replaces"), replacement["video_id"]) == (index, clips.rows[3]["video_id"])
        assert (replacement.pop("labels") == -100).all()
        assert_same_clip(replacement, {name: value for name, value in clips[3].items() if name != "labels"})
    if num_workers == 0:
        messages = [record.message for record in caplog.records if "clip replaced" in record.message]
        assert len(messages) == 2
        assert all(f"{name}.mp4" in message for name, message in zip(names, messages, strict=True))


def test_a_data_set_of_broken_clips_is_an_error(breakable, processor):
    media, folder = breakable
    for path in media.iterdir():
        path.write_bytes(b"broken")
    clips = CaeAvDataset(folder, processor, split="test")
    for _ in range(2):
        with pytest.raises(DataError, match=f"none of the {len(clips)} clips can be decoded"):
            clips[1]
    assert len(clips.broken_clips) == len(clips)


def test_the_cache_saves_decoding_and_changes_nothing(breakable, processor, tmp_path, monkeypatch):
    _, folder = breakable
    plain = CaeAvDataset(folder, processor, split="test")
    cached = CaeAvDataset(folder, processor, split="test", cache_dir=tmp_path / "cache")
    expected = [plain[index] for index in range(len(plain))]
    for _ in range(2):
        for index, item in enumerate(expected):
            again = cached[index]
            assert_same_clip(again, item)
        # From now on nothing may be decoded.
        monkeypatch.setattr(CaeAvProcessor, "load_clip", None)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(plain)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_the_cache_knows_content_and_settings(breakable, processor, tmp_path):
    _, folder = breakable
    cache = tmp_path / "cache"
    first = CaeAvDataset(folder, processor, split="test", cache_dir=cache)
    before = first[0]["pixel_values_videos"]
    # The same file name with another clip in it.
    paths = [first.rows[index]["media"]["path"] for index in (0, 1)]
    shutil.copy(paths[1], paths[0])
    assert torch.equal(first[0]["pixel_values_videos"], first[1]["pixel_values_videos"])
    assert not torch.equal(first[0]["pixel_values_videos"], before)
    # Another processor.
    config = CaeAvConfig.from_preset("ave", size="toy", vision_config={"image_size": 32})
    small = CaeAvDataset(folder, CaeAvProcessor.from_config(config), split="test", cache_dir=cache)
    assert small[0]["pixel_values_videos"].shape[-1] == 32
    assert first[0]["pixel_values_videos"].shape[-1] == 64


def test_a_damaged_cache_entry_is_made_again(breakable, processor, tmp_path):
    _, folder = breakable
    clips = CaeAvDataset(folder, processor, split="test", cache_dir=tmp_path / "cache")
    expected = clips[0]
    entry = next((tmp_path / "cache").rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:1000])
    for _ in range(2):
        assert_same_clip(clips[0], expected)


def test_labels_of_a_clip_that_ends_early_are_ignored(parquet, processor, monkeypatch):
    def first_seconds(self, source, **kwargs):
        return load_clip(source, num_segments=10, sampling_rate=self.sampling_rate, end=4.0)

    monkeypatch.setattr(CaeAvProcessor, "load_clip", first_seconds)
    clips = CaeAvDataset(parquet, processor, split="train")
    labels = clips.rows[0]["segment_labels"]
    assert clips[0]["labels"].tolist() == labels[:4]
    monkeypatch.undo()
    whole = clips[1]
    batch = CaeAvCollator()([{**whole, "labels": whole["labels"]}, dict(clips[0])])
    assert batch["labels"].shape == (2, 10)


def test_captions_may_be_missing(parquet, processor):
    rows = CaeAvDataset(parquet, processor, split="test").rows
    changed = rows.remove_columns(["visual_caption", "audio_caption"])
    changed = changed.add_column("visual_caption", ["a bell", None, None] + [""] * (len(rows) - 3))
    changed = changed.add_column("audio_caption", [None, "a drum", None] + [""] * (len(rows) - 3))
    clips = CaeAvDataset(changed, processor)
    assert clips[0]["visual_caption_mask"].any()
    assert not clips[0]["audio_caption_mask"].any()
    assert clips[1]["audio_caption_mask"].any()
    for index in (2, 3):
        assert not any("caption" in name for name in clips[index])
    batch = CaeAvCollator()([clips[index] for index in range(3)])
    assert batch["visual_caption_mask"].any(1).tolist() == [True, False, False]
    assert batch["audio_caption_mask"].any(1).tolist() == [False, True, False]
    without = CaeAvDataset(rows.remove_columns(["visual_caption", "audio_caption"]), processor)
    assert not any("caption" in name for name in without[0])


def test_bad_rows_are_refused(parquet, processor, tmp_path):
    with pytest.raises(DataError, match="`split`"):
        CaeAvDataset(parquet, processor)
    with pytest.raises(DataError, match="builder's folder"):
        CaeAvDataset(tmp_path, processor, split="train")
    with pytest.raises(DataError, match="has no column of labels; expected one of 'segment_labels'"):
        CaeAvDataset(datasets.Dataset.from_dict({"video_id": ["a"]}), processor)


def test_a_row_may_be_a_part_of_a_longer_video(parquet, processor, tmp_path):
    rows = datasets.load_dataset(str(parquet), split="test").select([0, 0, 0])
    features = rows.features
    rows = rows.map(
        lambda row, index: {"media_start": [2.0, None, 2.5][index], "media_end": [5.0, None, None][index]},
        with_indices=True,
        features=features,
    )
    clips = CaeAvDataset(rows, processor, cache_dir=tmp_path)
    path = rows[0]["media"]["path"]
    for item, part in zip(clips, ({"start": 2.0, "end": 5.0}, {}, {"start": 2.5}), strict=True):
        expected = processor(videos=[processor.load_clip(path, **part)])
        assert_same_clip({name: item[name] for name in expected}, {name: v[0] for name, v in expected.items()})
    assert [int(item["frame_mask"].sum()) for item in clips] == [3, 10, 8]
    # A cache entry belongs to a part, not to its file.
    again = CaeAvDataset(rows, processor, cache_dir=tmp_path)
    assert [int(item["frame_mask"].sum()) for item in again] == [3, 10, 8]


def test_a_data_set_of_the_hub_is_downloaded_once(parquet, processor, monkeypatch):
    asked = []

    def download(name, repo_type, revision):
        asked.append((name, repo_type, revision))
        return str(parquet)

    monkeypatch.setattr("caeav_hf.data.shards.snapshot_download", download)
    data = CaeAvDataset("somebody/ave@v1", processor, split="test")
    assert data.rows.to_list() == CaeAvDataset(parquet, processor, split="test").rows.to_list()
    assert asked == [("somebody/ave", "dataset", "v1")]


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    def refuse(*_, **__):
        raise LocalEntryNotFoundError("there is no such thing")

    monkeypatch.setattr("caeav_hf.data.shards.snapshot_download", refuse)
    with pytest.raises(DataError, match="somebody/nothing: is not a folder"):
        CaeAvDataset("somebody/nothing", None, split="test")
