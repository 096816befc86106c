"""Inputs and results of sound source understanding: descriptions to ids and back, frames and sound, rows, metric."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from caeav_hf import CaeAvError, CaeAvProcessor, SsuFormerConfig
from caeav_hf.data import CaeAvCollator
from caeav_hf.task import get_task
from caeav_hf.tasks.sound_source_understanding.rows import UnderstandingRows
from tests.tasks.sound_source_understanding.helpers import small_batch, small_config, small_model, without_targets


@pytest.fixture(scope="module")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(small_config())


def test_an_empty_description_is_start_and_end(processor) -> None:
    ids = processor(descriptions=[["A cat  is meowing.", "", None], ["", "the dog"]])["description_ids"]
    assert ids.shape[:2] == (2, 3)
    start, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    assert (start, end) == (512, 513)
    assert ids[0, 1, :3].tolist() == [start, end, -100]
    assert (ids[0, 2] == -100).all()
    assert (ids[1, 2] == -100).all()
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert texts == [["a cat is meowing.", "", ""], ["", "the dog", ""]]
    assert processor.batch_decode(ids[0, :1])[0].startswith("<|startoftext|>")
    long = processor(descriptions=["word " * 100])["description_ids"]
    assert long.shape == (1, 1, 77)
    assert long[0, 0, -1] == end
    with pytest.raises(CaeAvError, match="holds a int"):
        processor(descriptions=[["a"], [3]])


def test_descriptions_belong_to_segments(processor) -> None:
    frames, sound = np.zeros((2, 40, 40, 3), np.uint8), np.zeros(64_000, np.float32)
    inputs = processor(videos=frames, audio=sound, sampling_rate=32_000, descriptions=["a bell", ""])
    assert inputs["description_ids"].shape[:2] == inputs["frame_mask"].shape == (1, 2)
    with pytest.raises(CaeAvError, match=r"descriptions.*3 texts"):
        processor(videos=frames, audio=sound, sampling_rate=32_000, descriptions=["", "", ""])


def test_inputs_of_the_full_size(tmp_path: Path) -> None:
    config = SsuFormerConfig.from_preset("ra_ssu", text_config={"vocab_size": 600})
    full = CaeAvProcessor.from_config(config)
    frames, sound = np.full((2, 100, 120, 3), 255, np.uint8), np.zeros(32_000, np.float32)
    inputs = full(videos=frames, audio=sound, sampling_rate=16_000)
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 224, 224)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(inputs["pixel_values_videos"][0, 0, :, 7, 7], white)
    assert inputs["input_features"].shape == (1, 2, 1, 96, 64)
    torch.testing.assert_close(inputs["input_features"], torch.full((1, 2, 1, 96, 64), 0.01).log())
    config.save_pretrained(tmp_path)
    full.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, CaeAvProcessor)
    assert torch.equal(
        again(videos=frames, audio=sound, sampling_rate=16_000)["input_features"], inputs["input_features"]
    )


def test_masks_and_sentences(processor) -> None:
    model = small_model()
    batch = small_batch(model.config, num_frames=3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        outputs = model(**without_targets(batch), frame_mask=mask, max_length=5)
    results = processor.post_process_sound_source_understanding(outputs, target_sizes=[(20, 30), (40, 40)])
    assert [result["masks"].shape for result in results] == [(3, 20, 30), (1, 40, 40)]
    assert [len(result["descriptions"]) for result in results] == [3, 1]
    assert results[1]["descriptions"] == processor.batch_decode(
        outputs.description_ids[1, :1], skip_special_tokens=True
    )
    masks = processor.post_process_sound_source_understanding({"logits": outputs.logits})
    assert "descriptions" not in masks[0]
    with pytest.raises(CaeAvError, match="got neither"):
        processor.post_process_sound_source_understanding({})


def test_rows_and_batches(processor) -> None:
    form = UnderstandingRows(processor)
    row = {"masks": [], "mask_frames": [], "descriptions": ["a cat meows", "", None, "cut off"]}
    targets = form.targets(row, torch.tensor([True, True, True]))
    assert targets["labels"].shape == (3, 32, 32)
    assert processor.batch_decode(targets["description_ids"], skip_special_tokens=True) == ["a cat meows", "", ""]
    assert (targets["description_ids"][2] == -100).all()
    short = form.targets({**row, "descriptions": None}, torch.tensor([True, False]))
    assert (short["description_ids"] == -100).all()
    clips = [
        {
            "pixel_values_videos": torch.zeros(count, 3, 4, 4),
            "input_features": torch.zeros(count, 1, 4, 4),
            **of_clip,
        }
        for count, of_clip in ((3, targets), (2, short))
    ]
    batch = CaeAvCollator(targets=get_task("ra_ssu").targets)(clips)
    ids = batch["description_ids"]
    assert ids.shape == (2, 3, targets["description_ids"].shape[1])
    assert torch.equal(ids[0], targets["description_ids"])
    assert (ids[1] == -100).all()


def test_the_metric_scores_annotated_frames(processor) -> None:
    task = get_task("ra_ssu")
    references = [["A cat meows.", "", None], ["a dog barks", None, None]]
    said = processor.tokenize_descriptions([["a cat meows", "a cat", "a cat"], ["a cat barks", "", ""]])
    labels = torch.zeros(2, 3, 4, 4, dtype=torch.int8)
    labels[:, 0, :2] = 1
    labels[1, 1:] = -100
    logits = torch.where(labels == 1, 5.0, -5.0)[:, :, None]
    inputs = {
        "labels": labels,
        "description_ids": processor.tokenize_descriptions(references)["description_ids"],
        "descriptions": references,
        "frame_mask": torch.ones(2, 3, dtype=torch.bool),
    }
    outputs = {"logits": logits, "description_ids": said["description_ids"]}
    scores = task.scores(task.sums(outputs, inputs, processor))
    assert scores["j"] == 1
    assert scores["exact_match"] == 0.5
    assert scores["silent_accuracy"] == 0
    assert scores["rouge_l"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["understanding"] == pytest.approx((scores["j"] + scores["rouge_l"]) / 2)
    masks = task.scores(task.sums({"logits": logits}, inputs, processor))
    assert masks["understanding"] == masks["j"]
    assert "rouge_l" not in masks
