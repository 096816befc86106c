"""Rows streamed by `datasets`: each once per epoch, in the same steps on any number of processes, resumable."""

import datasets
import numpy as np
import pytest

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvCollator, CaeAvDataset, prepare_clips, shards
from caeav_hf.data.streaming import StreamedClips
from caeav_hf.errors import DataError
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.training.batches import EpochBatches, clip_loader
from tests.lanes import slow_after
from tests.same import assert_same_clip
from tests.training import toy_files


BUFFER = 4


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch):
    """Skip the five seconds for which `datasets` waits for its Parquet threads at the end of a pass."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def prepared(parquet, processor, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare_clips(parquet, processor, out, image_format="png", shard_clips=5)
    return out


@pytest.fixture(scope="module")
def prepared_questions(tmp_path_factory):
    processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy"))
    out = tmp_path_factory.mktemp("questions") / "out"
    prepare_clips(toy_files.question_data(), processor, out)
    return out, processor


@pytest.fixture(params=slow_after(1, ["prepared", "raw"]))
def folder(request, parquet, prepared):
    return parquet if request.param == "raw" else prepared


def stream(folder, processor=None, **options):
    return StreamedClips(folder, processor, **{"split": "train", "shuffle_buffer": BUFFER, **options})


def names(batches):
    return [[row.values["video_id"] for row in batch] for batch in batches]


def steps(folder, batch_size, processes, **options):
    """Return the clips that all processes together read in each step."""
    shares = [
        names(stream(folder, process_index=index, num_processes=processes).batches(batch_size, **options))
        for index in range(processes)
    ]
    return [[name for batch in step for name in batch] for step in zip(*shares, strict=True)]


def test_items_are_those_of_the_data_set(folder, parquet, processor):
    expected = CaeAvDataset(parquet, processor, split="train")
    clips = stream(folder, processor, shuffle_buffer=None)
    assert len(clips) == clips.num_rows == len(expected)
    (batch,) = clips.batches(len(expected))
    for row, item in zip(batch, expected, strict=True):
        assert_same_clip(clips[row], item)
    assert [row.number for row in batch] == list(range(len(expected)))
    assert clips.column("category") == expected.column("category")


@pytest.mark.parametrize("processes", slow_after(1, [2, 3, 5]))
def test_a_step_takes_the_same_clips_on_any_number_of_processes(folder, processes):
    for epoch in (0, 1):
        alone = steps(folder, 2 * processes, 1, epoch=epoch)
        together = steps(folder, 2, processes, epoch=epoch)
        assert list(map(sorted, together)) == list(map(sorted, alone))
        assert len({name for step in together for name in step}) == 12
    shares = [
        list(stream(folder, process_index=index, num_processes=processes).batches(2)) for index in range(processes)
    ]
    # The last step has 12 - 2 * 5 = 2 clips for five processes: some have none, and still a batch.
    assert len({len(share) for share in shares}) == 1


def test_the_order_is_drawn_from_seed_and_epoch(folder):
    def order(epoch=0, **options):
        return [name for batch in names(stream(folder, **options).batches(5, epoch=epoch)) for name in batch]

    first = order()
    assert first == order()
    assert len({tuple(first), tuple(order(epoch=1)), tuple(order(epoch=2)), tuple(order(seed=1))}) == 4
    assert sorted(first) == sorted(order(epoch=1)) == order(shuffle_buffer=None)


@pytest.mark.slow
@pytest.mark.parametrize("before_and_after", [(2, 1), (1, 1), (2, 2), (1, 3)])
def test_an_epoch_resumes_exactly_where_it_stopped(folder, before_and_after):
    """Also on another number of processes, and with a buffer full of rows."""
    before, after = before_and_after
    for epoch in (0, 1):
        done = steps(folder, 6 // before, before, epoch=epoch)[:1]
        rest = steps(folder, 1, after, epoch=epoch, start=6)
        whole = [name for step in steps(folder, 6, 1, epoch=epoch) for name in step]
        assert sorted(done[0]) == sorted(whole[:6])
        assert [name for step in rest for name in step] == whole[6:]


def test_rows_are_decoded_by_the_workers_of_a_loader_which_live_on(prepared, processor):
    clips, found = stream(prepared, processor), {}
    for workers in (0, 2):
        batches = EpochBatches()
        loader = clip_loader(clips, batches, CaeAvCollator(), num_workers=workers, persistent_workers=True)
        for epoch in (0, 1):
            batches.current = clips.batches(5, epoch=epoch, start=5 * epoch)
            found[workers, epoch] = [batch["inputs"]["pixel_values_videos"] for batch in loader]
    for epoch, sizes in ((0, [5, 5, 2]), (1, [5, 2])):
        assert [len(batch) for batch in found[2, epoch]] == sizes
        for one, other in zip(found[0, epoch], found[2, epoch], strict=True):
            np.testing.assert_array_equal(one, other)


def test_skipped_rows_are_not_decoded(folder, processor, monkeypatch):
    decoded = []
    clips = stream(folder, processor)
    monkeypatch.setattr(clips, "_make_item", lambda row, clip: decoded.append(row["video_id"]) or row)
    clips._make_item.task = type("Task", (), {"shares_clips": False})
    loader = clip_loader(clips, clips.batches(4, start=8), lambda items: {})
    assert len(list(loader)) == 1
    assert decoded == [name for batch in names(stream(folder).batches(4)) for name in batch][8:]


def test_prepared_questions_are_in_the_batch_of_their_clip(prepared_questions):
    folder, processor = prepared_questions
    expected = CaeAvDataset(folder, processor, split="train")
    clips = stream(folder, processor)
    assert len(clips) == len(expected) > clips.num_rows == 2
    assert clips.column("question") == expected.column("question")
    assert clips.column("video_id") == expected.column("video_id")
    for epoch in (0, 1):
        (batch,) = clips.batches(2, epoch=epoch)
        inputs = CaeAvCollator()([clips[row] for row in batch])
        assert len(inputs["pixel_values_videos"]) == 2
        assert len(inputs["clip_index"]) == len(expected)
    first, second = stream(folder, processor).batches(1)
    assert len(first) + len(second) == len(expected)
    assert {row.number for row in first + second} == set(range(len(expected)))


def test_the_first_clip_replaces_broken_ones(parquet, processor, caplog):
    clips = stream(parquet, processor)
    row = next(clips.batches(1))[0]
    broken = row._replace(values={**row.values, "media": {"bytes": b"broken", "path": "broken.mp4"}})
    with caplog.at_level("WARNING", logger="caeav_hf"):
        replacement = clips[broken]
    assert "clip replaced" in caplog.text
    assert replacement.pop("replaces") == row.number
    in_order = stream(parquet, processor, shuffle_buffer=None)
    first = in_order[next(in_order.batches(1))[0]]
    assert (replacement.pop("labels") == -100).all()
    assert_same_clip(replacement, {name: value for name, value in first.items() if name != "labels"})


def test_a_data_set_of_the_hub_is_streamed_and_not_downloaded(prepared, processor, monkeypatch):
    asked, load = [], datasets.load_dataset

    def from_hub(name, revision=None, **options):
        asked.append((name, revision))
        return load(str(prepared), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    monkeypatch.setattr(shards, "snapshot_download", None)
    clips = StreamedClips("somebody/ave@v1", processor, split="test", use_captions=False)
    assert set(asked) == {("somebody/ave", "v1")}
    (batch,) = clips.batches(len(clips))
    assert not any("caption" in name for name in clips[batch[0]])
    expected = CaeAvDataset(prepared, processor, split="test", use_captions=False)
    assert_same_clip(clips[batch[0]], expected[0])


def test_what_cannot_be_streamed_is_named(prepared, processor, monkeypatch):
    with pytest.raises(DataError, match="expected a builder's folder with data/nothing"):
        stream(prepared, split="nothing")

    def refuse(*_, **__):
        raise OSError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(DataError, match=r"cannot be streamed .* no connection"):
            stream("somebody/ave")
    other = CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy", num_frames=5))
    with pytest.raises(DataError, match="prepared with other settings"):
        stream(prepared, other)
