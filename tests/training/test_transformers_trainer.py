"""The models under Transformers' own Trainer, with its default arguments."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments

from caeav_hf import (
    CaeAvConfig,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
    CaeAvModel,
)
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.modeling import CaeAvModelOutput
from caeav_hf.processing import CaeAvProcessor
from tests.training.random_clips import RandomClips
from tests.training.toy_files import toy_data, toy_model


MODELS = {
    "ave": CaeAvForEventLocalization,
    "avvp": CaeAvForVideoParsing,
    "avs_ms3": CaeAvForSegmentation,
    "avqa": CaeAvForQuestionAnswering,
}


class CountedCaptions(CaeAvCollator):
    """A collator that counts the batches with captions."""

    def __call__(self, clips):
        batch = super().__call__(clips)
        counted.append("visual_caption_ids" in batch and "audio_caption_ids" in batch)
        return batch


counted: list[bool] = []


def trainer(task: str, folder, max_steps: int = 2) -> Trainer:
    torch.manual_seed(0)
    task, _, method = task.partition(" by ")
    model_class = MODELS[task]
    model = model_class(CaeAvConfig.from_preset(task, size="toy", method=method or None))
    arguments = TrainingArguments(
        folder, max_steps=max_steps, per_device_train_batch_size=3, per_device_eval_batch_size=3
    )
    clips = RandomClips(model.config, 6), RandomClips(model.config, 8, seed=1)
    return Trainer(model, arguments, CountedCaptions(), train_dataset=clips[0], eval_dataset=clips[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        ("ave", [(8, 3), (8, 28)]),
        ("ave by stg_cma", [(8, 3), (8, 28), (8, 3, 29)]),
        ("avvp", [(8, 25), (8, 25), (8, 25), (8, 3, 25), (8, 3, 25)]),
        ("avs_ms3", [(8, 3, 1, 64, 64)]),
        ("avqa", [(8, 42)]),
    ],
)
def test_trains_evaluates_saves_and_resumes(task, shapes, tmp_path):
    run = trainer(task, tmp_path)
    assert run.label_names == ["labels"]
    towers = {name: tensor.clone() for name, tensor in run.model.state_dict().items() if "tower" in name}
    counted.clear()
    assert np.isfinite(run.train().training_loss)
    assert any(counted)
    run.save_state()
    scores = run.evaluate()
    assert np.isfinite(scores["eval_loss"])
    after = run.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in towers.items())

    prediction = run.predict(run.eval_dataset)
    arrays = prediction.predictions if isinstance(prediction.predictions, tuple) else (prediction.predictions,)
    assert [array.shape for array in arrays] == shapes
    assert len(prediction.label_ids) == 8
    assert prediction.metrics["test_loss"] == pytest.approx(scores["eval_loss"], rel=1e-4)

    # The saved model is the trained one, and training resumes from it.
    checkpoint = tmp_path / "checkpoint-2"
    loaded = type(run.model).from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in run.model.state_dict().items())
    resumed = trainer(task, tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert history["global_step"] == 4


def with_broken_clips(clips: CaeAvDataset, broken: tuple[int, ...]) -> CaeAvDataset:
    media = [
        {**row["media"], "bytes": b"broken"} if index in broken else row["media"]
        for index, row in enumerate(clips.rows)
    ]
    rows = clips.rows.remove_columns("media").add_column("media", media, feature=clips.rows.features["media"])
    return CaeAvDataset(rows, clips.processor)


@pytest.mark.slow
def test_broken_clips_do_not_count_in_evaluation(tmp_path):
    weights = {f"{name}_loss_weight": 0.0 for name in ("caption", "alignment", "entropy")}
    model = CaeAvForEventLocalization.from_pretrained(toy_model(), **weights)
    clips = CaeAvDataset(toy_data(), CaeAvProcessor.from_pretrained(toy_model()), split="train")
    damaged = with_broken_clips(clips, (1, 3))

    def predict(data, batch_size):
        arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=batch_size)
        return Trainer(model, arguments, CaeAvCollator(), eval_dataset=data).predict(data)

    found, expected = predict(Subset(damaged, range(6)), 3), predict(Subset(clips, [0, 2, 4, 5]), 2)
    assert (found.label_ids[[1, 3]] == -100).all()
    np.testing.assert_array_equal(found.label_ids[[0, 2, 4, 5]], expected.label_ids)
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_batches_of_broken_clips_alone(tmp_path):
    model = CaeAvForEventLocalization.from_pretrained(toy_model())
    clips = CaeAvDataset(toy_data(), CaeAvProcessor.from_pretrained(toy_model()), split="test")
    broken = tuple(range(len(clips) - 1))
    damaged = with_broken_clips(clips, broken)
    arguments = TrainingArguments(
        tmp_path, max_steps=len(clips), per_device_train_batch_size=1, per_device_eval_batch_size=len(broken)
    )
    run = Trainer(model, arguments, CaeAvCollator(), train_dataset=damaged, eval_dataset=damaged)
    assert np.isfinite(run.train().training_loss)
    assert np.isfinite(run.evaluate()["eval_loss"])
    assert len(damaged.broken_clips) == len(broken)


def test_only_decisions_are_gathered_over_a_split():
    explained = {field.name for field in fields(CaeAvModelOutput)} - {"loss"}
    assert explained <= set(CaeAvConfig.keys_to_ignore_at_inference)


@pytest.mark.parametrize("model_class", [CaeAvModel, *MODELS.values()])
def test_an_unknown_argument_is_refused(model_class):
    task = next((task for task, known in MODELS.items() if known is model_class), "ave")
    model = model_class(CaeAvConfig.from_preset(task, size="toy"))
    clip = RandomClips(model.config, 1)[0]
    batch = {name: value[None] for name, value in clip.items() if name in ("pixel_values_videos", "input_features")}
    if task == "avqa":
        batch["question_ids"] = clip["question_ids"][None]
    with pytest.raises(TypeError, match="visual_caption_id'"):
        model(**batch, visual_caption_id=clip["visual_caption_ids"][None])
