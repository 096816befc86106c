"""Rows of video parsing in the torch data set and in batches."""

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.errors import DataError
from caeav_hf.processing.processing_cae_av import CaeAvProcessor
from caeav_hf.toy import CLASSES


NUM_CLASSES = len(CLASSES)


@pytest.fixture(scope="module")
def llp_processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avvp", size="toy", id2label=dict(enumerate(CLASSES))))


def with_features(rows: datasets.Dataset, features: list) -> datasets.Dataset:
    return rows.map(lambda row, index: {"visual_3d": features[index]}, with_indices=True, features=rows.features)


def test_labels_of_the_clip_and_of_its_segments(llp_parquet, llp_processor):
    clips = CaeAvDataset(llp_parquet, llp_processor, split="test")
    for index in range(len(clips)):
        row, item = clips.rows[index], clips[index]
        assert item["labels"].dtype == torch.float32
        assert item["labels"].nonzero().flatten().tolist() == sorted(row["event_labels"])
        for modality in ("audio", "visual"):
            labels = item[f"{modality}_labels"]
            assert labels.shape == (10, NUM_CLASSES)
            assert set(labels.unique().tolist()) <= {0.0, 1.0}
            assert [second.nonzero().flatten().tolist() for second in labels] == row[f"{modality}_segment_labels"]
        # The clip's labels are the classes heard or seen in some second.
        occurring = torch.maximum(item["audio_labels"], item["visual_labels"]).amax(0)
        assert torch.equal(occurring, item["labels"])
        assert "visual_3d_features" not in item


def test_segments_are_not_known_for_training(llp_parquet, llp_processor):
    item = CaeAvDataset(llp_parquet, llp_processor, split="train")[0]
    for modality in ("audio", "visual"):
        assert item[f"{modality}_labels"].shape == (10, NUM_CLASSES)
        assert (item[f"{modality}_labels"] == -100).all()
    assert 1 <= item["labels"].sum() <= 2


def test_segments_follow_the_frames_of_the_model(llp_parquet):
    def first(num_frames: int) -> dict[str, torch.Tensor]:
        config = CaeAvConfig.from_preset("avvp", size="toy", id2label=dict(enumerate(CLASSES)), num_frames=num_frames)
        return CaeAvDataset(llp_parquet, CaeAvProcessor.from_config(config), split="test")[0]

    whole, cut, longer = first(10), first(4), first(12)
    assert torch.equal(cut["audio_labels"], whole["audio_labels"][:4])
    assert torch.equal(longer["visual_labels"][:10], whole["visual_labels"])
    assert (longer["visual_labels"][10:] == -100).all()
    assert torch.equal(cut["labels"], whole["labels"])


def test_batches_have_what_the_model_takes(llp_parquet, llp_processor):
    clips = CaeAvDataset(llp_parquet, llp_processor, split="validation")
    (batch,) = DataLoader(clips, batch_size=4, collate_fn=CaeAvCollator())
    assert batch["labels"].shape == (4, NUM_CLASSES)
    assert batch["audio_labels"].shape == batch["visual_labels"].shape == (4, 10, NUM_CLASSES)
    assert "visual_3d_features" not in batch
    short = {name: value[:7] if len(value) == 10 else value for name, value in clips[0].items()}
    batch = CaeAvCollator()([short, clips[1]])
    assert (batch["audio_labels"][0, 7:] == -100).all()
    assert torch.equal(batch["labels"], torch.stack([clips[0]["labels"], clips[1]["labels"]]))
    with pytest.raises(DataError, match="one length T"):
        CaeAvCollator()([{**clips[0], "audio_labels": clips[0]["audio_labels"][:3]}])
    with pytest.raises(DataError, match="`audio_labels` must be in all clips"):
        CaeAvCollator()([clips[0], {k: v for k, v in clips[1].items() if k != "audio_labels"}])


def test_features_of_a_3d_network(llp_parquet, llp_processor):
    rows = CaeAvDataset(llp_parquet, llp_processor, split="test").rows
    features = torch.randn(4, 10, 5, generator=torch.Generator().manual_seed(0))
    given = features.tolist()
    given[1] = given[1][:6]
    clips = CaeAvDataset(with_features(rows, given), llp_processor)
    torch.testing.assert_close(clips[0]["visual_3d_features"], features[0])
    # Fewer features than segments: the clip is replaced, like one that cannot be read.
    assert clips[1]["replaces"] == 1
    assert clips.broken_clips == [rows[1]["video_id"]]
    batch = CaeAvCollator()([clips[index] for index in range(4)])
    torch.testing.assert_close(batch["visual_3d_features"], features[[0, 2, 2, 3]])
    short = {name: value[:7] if len(value) == 10 else value for name, value in clips[0].items()}
    assert (CaeAvCollator()([short, clips[2]])["visual_3d_features"][0, 7:] == 0).all()


def test_classes_must_be_named(llp_parquet, llp_processor):
    rows = CaeAvDataset(llp_parquet, llp_processor, split="test").rows
    plain = rows.cast_column("event_labels", datasets.Sequence(datasets.Value("int64")))
    with pytest.raises(DataError, match="`event_labels` must be a list of class labels"):
        CaeAvDataset(plain, llp_processor)
    with pytest.raises(DataError, match="no column audio_segment_labels"):
        CaeAvDataset(rows.remove_columns("audio_segment_labels"), llp_processor)
