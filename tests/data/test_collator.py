"""The collator: padding and masks of batches whose clips differ."""

import pytest
import torch

from caeav_hf.data import CaeAvCollator
from caeav_hf.errors import DataError
from caeav_hf.task import get_task


def clip(length: int, captions: dict[str, int] | None = None, seed: int = 0, **others) -> dict:
    generator = torch.Generator().manual_seed(seed)
    item = {
        "pixel_values_videos": torch.randn(length, 3, 8, 8, generator=generator),
        "input_features": torch.randn(length, 1, 11, 4, generator=generator),
        "frame_mask": torch.ones(length, dtype=torch.bool),
        "labels": torch.arange(length),
        "video_id": f"clip{seed}",
    }
    for modality, tokens in (captions or {}).items():
        item[f"{modality}_caption_ids"] = torch.arange(1, tokens + 1)
        item[f"{modality}_caption_mask"] = torch.ones(tokens, dtype=torch.long)
    return {**item, **others}


def test_time_is_padded_and_masked():
    short, long = clip(2, seed=1), clip(4, seed=2)
    batch = CaeAvCollator()([short, long])
    assert set(batch) == {"pixel_values_videos", "input_features", "frame_mask", "labels"}
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 8, 8)
    assert batch["input_features"].shape == (2, 4, 1, 11, 4)
    assert batch["frame_mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert batch["labels"].tolist() == [[0, 1, -100, -100], [0, 1, 2, 3]]
    assert torch.equal(batch["pixel_values_videos"][0, :2], short["pixel_values_videos"])
    assert not batch["pixel_values_videos"][0, 2:].any()
    assert torch.equal(batch["input_features"][1], long["input_features"])
    assert all(tensor.is_contiguous() for tensor in batch.values())


def test_a_frame_mask_of_the_clip_is_kept_and_a_missing_one_is_all_real():
    partly = clip(3, frame_mask=torch.tensor([True, True, False]))
    whole = clip(3)
    del whole["frame_mask"]
    assert CaeAvCollator()([partly, whole])["frame_mask"].tolist() == [[True, True, False], [True, True, True]]


def test_captions_are_padded_and_masked():
    batch = CaeAvCollator(pad_token_id=0)([clip(1, {"visual": 2, "audio": 5}), clip(1, {"visual": 3, "audio": 1})])
    assert batch["visual_caption_ids"].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert batch["visual_caption_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["audio_caption_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 0, 0, 0, 0]]
    assert batch["audio_caption_mask"].tolist() == [[1] * 5, [1, 0, 0, 0, 0]]


def test_a_clip_without_a_caption_has_a_mask_of_zeros():
    batch = CaeAvCollator()([clip(1, {"visual": 2}), clip(1)])
    assert batch["visual_caption_mask"].tolist() == [[1, 1], [0, 0]]
    # Both kinds or none, since the model reads them together.
    assert batch["audio_caption_mask"].tolist() == [[0], [0]]
    assert batch["audio_caption_ids"].tolist() == [[0], [0]]


def test_captions_may_be_embeddings():
    with_embeds = clip(1, visual_caption_embeds=torch.ones(3, 6), audio_caption_embeds=torch.ones(2, 6))
    batch = CaeAvCollator()([with_embeds, clip(1)])
    assert batch["visual_caption_embeds"].shape == (2, 3, 6)
    assert batch["visual_caption_embeds"].sum((1, 2)).tolist() == [18.0, 0.0]
    assert batch["audio_caption_mask"].tolist() == [[1, 1], [0, 0]]
    assert "visual_caption_ids" not in batch
    with pytest.raises(DataError, match="got both"):
        CaeAvCollator()([with_embeds, clip(1, {"visual": 2})])


def test_labels_may_be_absent_from_all_clips_but_not_from_some():
    unlabelled = clip(2)
    del unlabelled["labels"]
    assert "labels" not in CaeAvCollator()([unlabelled])
    with pytest.raises(DataError, match="1 of 2"):
        CaeAvCollator()([unlabelled, clip(2)])


def test_clips_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError, match="`pixel_values_videos` must have one size"):
        CaeAvCollator()([clip(2), clip(2, pixel_values_videos=torch.zeros(2, 3, 9, 9))])
    with pytest.raises(DataError, match="one length T"):
        CaeAvCollator(targets=get_task("ave").targets)([clip(2, labels=torch.zeros(3, dtype=torch.long))])
