"""The torch data set over rows with masks, and the batches made of it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.errors import DataError
from caeav_hf.media.sound import load_audio
from caeav_hf.processing.processing_cae_av import CaeAvProcessor
from caeav_hf.tasks.segmentation.rows import _resize
from tests.corpora import build_avs
from tests.same import assert_same_clip


@pytest.fixture
def breakable(avs_corpora, tmp_path):
    """Return a multi-source corpus and its Parquet folder, whose files a test may damage."""
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["ms3"], copy)
    build_avs(copy, tmp_path / "parquet", "ms3")
    return copy / "media", tmp_path / "parquet"


def masks_of(row) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file["path"])) > 0 for file in row["masks"]])


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_items_are_what_the_processor_makes(avs_parquet, avs_processor, setting):
    clips = CaeAvDataset(avs_parquet[setting], avs_processor, split="test")
    row, item = clips.rows[1], clips[1]
    rate = avs_processor.sampling_rate
    inputs = avs_processor(
        videos=[np.stack([np.asarray(Image.open(file["path"])) for file in row["frames"]])],
        audio=[load_audio(row["audio"]["path"], sampling_rate=rate)],
        sampling_rate=rate,
        visual_captions=[row["visual_caption"]],
        audio_captions=[row["audio_caption"]],
    )
    assert_same_clip({name: item[name] for name in inputs}, {name: value[0] for name, value in inputs.items()})
    assert item["pixel_values_videos"].shape == (5, 3, 64, 64)
    assert item["labels"].shape == (5, 64, 64)
    assert item["labels"].dtype == torch.int8
    np.testing.assert_array_equal(item["labels"].numpy(), masks_of(row))


def test_frames_without_a_mask_are_ignored(avs_parquet, avs_processor):
    clips = CaeAvDataset(avs_parquet["s4"], avs_processor, split="train")
    for index in range(len(clips)):
        labels = clips[index]["labels"]
        np.testing.assert_array_equal(labels[0].numpy(), masks_of(clips.rows[index])[0])
        assert (labels[1:] == -100).all()


def test_videos_and_embedded_files_give_the_same_labels(avs_corpora, avs_parquet, avs_processor, tmp_path):
    by_path = CaeAvDataset(avs_parquet["ms3"], avs_processor, split="test")
    build_avs(avs_corpora["ms3"], tmp_path / "embedded", "ms3", embed_media=True)
    build_avs(avs_corpora["ms3"], tmp_path / "videos", "ms3", from_videos=True)
    embedded = CaeAvDataset(datasets.load_dataset(str(tmp_path / "embedded"), split="test"), avs_processor)
    videos = CaeAvDataset(tmp_path / "videos", avs_processor, split="test")
    for index, item in enumerate(by_path[i] for i in range(len(by_path))):
        again, filmed = embedded[index], videos[index]
        assert_same_clip(again, item)
        assert torch.equal(filmed["labels"], item["labels"])
        # Compressed, so not quite the same.
        assert (filmed["pixel_values_videos"] - item["pixel_values_videos"]).abs().mean() < 0.2
        assert filmed["input_features"].shape == item["input_features"].shape


def test_masks_are_resized_to_the_size_asked_for(avs_parquet, avs_processor):
    full, half = (CaeAvDataset(avs_parquet["ms3"], avs_processor, split="test", mask_size=s) for s in (None, 32))
    for index in range(len(half)):
        labels = half[index]["labels"]
        assert labels.shape == (5, 32, 32)
        # The middle of a pixel of two by two is the corner of four: the lower right one is taken.
        assert torch.equal(labels, full[index]["labels"][:, 1::2, 1::2])


@pytest.mark.parametrize("shape", [(64, 64), (96, 128), (31, 7), (1, 1)])
def test_resizing_agrees_with_torch(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    expected = torch.nn.functional.interpolate(
        torch.tensor(mask)[None, None].float(), size=(64, 64), mode="nearest-exact"
    )
    np.testing.assert_array_equal(_resize(mask, 64), expected[0, 0].bool().numpy())


def test_a_mask_of_another_size_or_with_a_palette_is_read(breakable, avs_processor):
    _, folder = breakable
    clips = CaeAvDataset(folder, avs_processor, split="train")
    expected = clips[0]["labels"]
    paths = [Path(file["path"]) for file in clips.rows[0]["masks"]]
    Image.open(paths[3]).resize((128, 192), Image.Resampling.NEAREST).save(paths[3])
    indices = (np.asarray(Image.open(paths[4])) > 0).astype(np.uint8) * 7
    palette = Image.fromarray(indices, "P")
    palette.putpalette([0] * 30)
    palette.save(paths[4])
    assert expected[3:].any()
    assert torch.equal(clips[0]["labels"], expected)


def test_a_loader_gives_batches_for_the_model(avs_parquet, avs_processor):
    clips = CaeAvDataset(avs_parquet["ms3"], avs_processor, split="train")
    batches = list(DataLoader(clips, batch_size=4, collate_fn=CaeAvCollator(), num_workers=1))
    assert [len(batch["labels"]) for batch in batches] == [4, 2]
    assert batches[0]["labels"].shape == (4, 5, 64, 64)
    assert batches[0]["labels"].dtype == torch.int8
    assert batches[0]["frame_mask"].all()


def test_the_collator_pads_masks(avs_parquet, avs_processor):
    item = CaeAvDataset(avs_parquet["ms3"], avs_processor, split="test")[0]
    times = ("pixel_values_videos", "input_features", "frame_mask", "labels")
    short = {name: tensor[:2] if name in times else tensor for name, tensor in item.items()}
    batch = CaeAvCollator()([short, item])
    assert batch["labels"].dtype == torch.int8
    assert (batch["labels"][0, 2:] == -100).all()
    assert torch.equal(batch["labels"][0, :2], item["labels"][:2])
    assert torch.equal(batch["labels"][1], item["labels"])
    with pytest.raises(DataError, match="`labels` must have one size"):
        CaeAvCollator()([item, {**item, "labels": item["labels"][:, :32, :32]}])


def test_sound_that_ends_early_is_filled_up_and_sound_that_goes_on_is_cut(breakable, avs_processor):
    _, folder = breakable
    clips = CaeAvDataset(folder, avs_processor, split="test")
    before = [clips[index]["input_features"] for index in range(2)]
    for index, (share, slack) in enumerate([(0.5, 0), (1.0, 40_000)]):
        path = Path(clips.rows[index]["audio"]["path"])
        header, samples = path.read_bytes()[:44], path.read_bytes()[44:]
        samples = samples[: int(len(samples) * share)] + bytes(slack)
        path.write_bytes(header[:40] + len(samples).to_bytes(4, "little") + samples)
    short, long = clips[0]["input_features"], clips[1]["input_features"]
    assert torch.allclose(short[:2], before[0][:2], atol=0.1)
    assert (short[3:] == short[3:].min()).all()
    assert torch.allclose(long[:4], before[1][:4], atol=0.1)
    assert long.shape == before[1].shape


def test_broken_files_are_named_and_do_not_end_the_epoch(breakable, avs_processor, caplog):
    _, folder = breakable
    clips = CaeAvDataset(folder, avs_processor, split="train")
    rows = [clips.rows[index] for index in range(4)]
    Path(rows[0]["frames"][2]["path"]).write_bytes(b"broken")
    Path(rows[1]["audio"]["path"]).unlink()
    Path(rows[2]["masks"][1]["path"]).write_bytes(b"broken")
    frame = Path(rows[3]["frames"][1]["path"])
    Image.open(frame).resize((32, 32)).save(frame)
    assert ["replaces" in clips[index] for index in range(6)] == [True] * 4 + [False] * 2
    assert clips.broken_clips == [row["video_id"] for row in rows]
    messages = [record.message for record in caplog.records if "clip replaced" in record.message]
    names = (rows[0]["frames"][2]["path"], rows[1]["audio"]["path"], rows[2]["masks"][1]["path"], rows[3]["video_id"])
    assert all(name in message for name, message in zip(names, messages, strict=True))


def test_the_cache_saves_decoding_and_knows_content(breakable, avs_processor, tmp_path, monkeypatch):
    _, folder = breakable
    plain = CaeAvDataset(folder, avs_processor, split="test")
    cached = CaeAvDataset(folder, avs_processor, split="test", cache_dir=tmp_path / "cache")
    expected = [plain[index] for index in range(len(plain))]
    for item in (cached[index] for index in range(len(plain))):
        assert item is not None
    with monkeypatch.context() as patch:
        patch.setattr("caeav_hf.data.rows.read_frame", None)
        patch.setattr("caeav_hf.data.rows.load_audio", None)
        for index, item in enumerate(expected):
            again = cached[index]
            assert_same_clip(again, item)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(plain)
    # Another frame, sound and mask, of which only the mask is not cached.
    first, second = plain.rows[0], plain.rows[1]
    shutil.copy(second["audio"]["path"], first["audio"]["path"])
    torch.testing.assert_close(cached[0]["input_features"], expected[1]["input_features"], rtol=0, atol=1e-3)
    shutil.copy(second["frames"][3]["path"], first["frames"][3]["path"])
    assert torch.equal(cached[0]["pixel_values_videos"][3], expected[1]["pixel_values_videos"][3])
    shutil.copy(second["masks"][3]["path"], first["masks"][3]["path"])
    assert torch.equal(cached[0]["labels"][3], expected[1]["labels"][3])


def test_a_processor_of_fewer_frames_takes_the_first(avs_parquet):
    config = CaeAvConfig.from_preset("avs_ms3", size="toy", num_frames=3)
    clips = CaeAvDataset(avs_parquet["ms3"], CaeAvProcessor.from_config(config), split="test")
    assert clips[0]["pixel_values_videos"].shape[0] == 3
    np.testing.assert_array_equal(clips[0]["labels"].numpy(), masks_of(clips.rows[0])[:3])


def test_the_size_of_the_masks_must_be_known(avs_parquet):
    without = SimpleNamespace(num_frames=5)
    with pytest.raises(DataError, match="`mask_size`"):
        CaeAvDataset(avs_parquet["ms3"], without, split="test")
    # For the columns alone it need not be.
    assert len(CaeAvDataset(avs_parquet["ms3"], None, split="test")) == 3


def test_bad_rows_are_refused(avs_parquet, avs_processor):
    rows = CaeAvDataset(avs_parquet["ms3"], avs_processor, split="test").rows
    with pytest.raises(DataError, match="no column audio, mask_frames"):
        CaeAvDataset(rows.remove_columns(["audio", "mask_frames"]), avs_processor)
    empty = rows.remove_columns("audio").add_column("audio", [None] * len(rows))
    clips = CaeAvDataset(empty, avs_processor)
    with pytest.raises(DataError, match="none of the 3 clips can be decoded"):
        clips[0]
    assert clips.broken_clips == rows["video_id"][:]
