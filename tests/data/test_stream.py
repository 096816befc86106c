"""Reading Parquet files in one pass: every clip once, divided to the row, in an order that can be had again."""

import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvCollator, CaeAvDataset, CaeAvStream, prepare_clips
from caeav_hf.errors import DataError
from caeav_hf.processing import CaeAvProcessor
from tests.corpora import build
from tests.same import assert_same_clip
from tests.training import toy_files


@pytest.fixture(scope="module")
def prepared(parquet, processor, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare_clips(parquet, processor, out, image_format="png", shard_clips=5)
    return out


def names(stream):
    return [item["video_id"] for item in stream]


def test_items_are_those_of_the_data_set(parquet, prepared, processor):
    expected = CaeAvDataset(parquet, processor, split="train")
    for folder in (parquet, prepared):
        stream = CaeAvStream(folder, processor, split="train", shuffle=False)
        assert stream.num_clips == len(expected)
        for found, item in zip(stream, expected, strict=True):
            assert_same_clip(found, item)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_and_workers_divide_the_clips(prepared, processor, monkeypatch, processes, workers):
    found = []
    for index in range(processes):
        stream = CaeAvStream(prepared, processor, split="train", process_index=index, num_processes=processes)
        monkeypatch.setattr(CaeAvStream, "_item", lambda self, clip, row: {"video_id": clip})
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        found.append([item["video_id"] for item in loader])
    assert {len(clips) for clips in found} == {-(-12 // processes)}
    assert sorted({clip for clips in found for clip in clips}) == list(range(12))
    assert sum(map(len, found)) - 12 < processes


def test_the_order_is_drawn_from_seed_and_epoch(prepared, processor):
    def order(epoch=0, **options):
        stream = CaeAvStream(prepared, processor, split="train", buffer_size=4, **options)
        stream.set_epoch(epoch)
        return names(stream)

    first = order()
    assert first == order()
    assert len({tuple(first), tuple(order(epoch=1)), tuple(order(seed=1))}) == 3
    assert sorted(first) == sorted(order(epoch=1)) == order(shuffle=False)


def test_workers_that_live_on_know_the_epoch_and_count_broken_clips(corpus, processor, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    build(tmp_path / "corpus", tmp_path / "built")
    stream = CaeAvStream(tmp_path / "built", processor, split="train", buffer_size=4)
    (tmp_path / "corpus/media" / f"{names(stream)[3]}.mp4").write_bytes(b"broken")
    loader = DataLoader(stream, batch_size=4, collate_fn=CaeAvCollator(), num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        batches = list(loader)
        assert sum(len(batch["labels"]) for batch in batches) == 11
        assert stream.num_broken == 1
        epochs.append(batches)
    assert not all(torch.equal(a["labels"], b["labels"]) for a, b in zip(*epochs, strict=True) if len(a) == len(b))


def test_prepared_questions_follow_their_clip(tmp_path):
    processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy"))
    prepare_clips(toy_files.question_data(), processor, tmp_path / "out")
    expected = CaeAvDataset(tmp_path / "out", processor, split="train")
    items = list(CaeAvStream(tmp_path / "out", processor, split="train"))
    assert len(items) == len(expected)
    order = names(items)
    assert [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name] == list(dict.fromkeys(order))
    batch = CaeAvCollator()(items[:2])
    assert len(batch["pixel_values_videos"]) == 1


def test_files_may_lie_elsewhere(prepared, processor):
    stream = CaeAvStream(f"file://{prepared}", processor, split="test", shuffle=False)
    assert names(stream) == names(CaeAvStream(prepared, processor, split="test", shuffle=False))
    with pytest.raises(DataError, match="expected files data/nothing"):
        CaeAvStream(f"file://{prepared}", processor, split="nothing")


def test_captions_may_be_left_out(prepared, processor):
    item = next(iter(CaeAvStream(prepared, processor, split="test", use_captions=False)))
    assert not any("caption" in name for name in item)
