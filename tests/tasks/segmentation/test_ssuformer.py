"""SSUFormer's masks on AVSBench: losses, weak labels, padding, loading, the pipeline, runs by a recipe."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoProcessor, pipeline

from caeav_hf import (
    CaeAvConfig,
    CaeAvError,
    CaeAvForSegmentation,
    SsuFormerConfig,
    SsuFormerForSegmentation,
    SsuFormerForSoundSourceUnderstanding,
    SsuFormerModel,
)
from caeav_hf.cli import main as caeav
from caeav_hf.data import CaeAvDataset
from caeav_hf.modeling.ssuformer.mask_decoder import dice_loss
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.task import get_task
from caeav_hf.training.command import main as train
from tests.media_factory import write_clip
from tests.modeling.helpers import as_double
from tests.tasks.sound_source_understanding.helpers import NO_DROPOUT, small_batch, small_config
from tests.training.toy_files import mask_model


NOT_READ = ("description_ids", "visual_caption_ids", "visual_caption_mask")


def small_model(task: str = "avs_ms3", **overrides) -> SsuFormerForSegmentation:
    torch.manual_seed(0)
    return SsuFormerForSegmentation(small_config(task, **overrides)).eval()


def mask_batch(config: SsuFormerConfig, batch_size: int = 2, num_frames: int = 3) -> dict[str, torch.Tensor]:
    batch = small_batch(config, batch_size, num_frames)
    return {name: value for name, value in batch.items() if name not in NOT_READ}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Return the folder of an untrained model and its processor."""
    folder, model = tmp_path_factory.mktemp("models") / "masks", small_model(mask_size=32)
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return folder


def test_sizes_and_towers() -> None:
    """Full size: the parts of the whole model that predict masks, and no tower of text or masked frames."""
    with torch.device("meta"):
        model = SsuFormerForSegmentation(SsuFormerConfig.from_preset("avs_s4"))
    assert (model.config.num_frames, model.config.task) == (5, "avs_s4")
    assert set(model.model.named_towers()) == {"vision", "audio"}
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 175


@torch.no_grad()
def test_a_padded_batch_gives_what_its_clips_give() -> None:
    model = small_model(**NO_DROPOUT).double()
    lengths = [2, 1, 7]  # the last has more frames than the configuration
    batch = as_double(mask_batch(model.config, len(lengths), 8))
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    batch["labels"][~mask] = -100
    padded = model(**batch, frame_mask=mask)
    assert padded.logits.shape == (3, 8, 1, 32, 32)
    losses = []
    for index, length in enumerate(lengths):
        alone = model(**{name: value[index : index + 1, :length] for name, value in batch.items()})
        torch.testing.assert_close(padded.logits[index, :length], alone.logits[0])
        assert not padded.logits[index, length:].any()
        losses.append(length * alone.loss)
    torch.testing.assert_close(padded.loss, sum(losses) / sum(lengths))


def test_only_frames_with_a_mask_count() -> None:
    """Single-source training labels the first frame of each clip."""
    model = small_model("avs_s4")
    batch = mask_batch(model.config)
    batch["labels"][:, 1:] = -100
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, dice_loss(outputs.logits[:, 0], batch["labels"][:, 0]))
    assert outputs.loss_dict == {"segmentation": outputs.loss}
    batch["labels"][:] = -100
    assert model(**batch).loss == 0


def test_few_clips_are_learnt() -> None:
    model = small_model().train()
    batch = mask_batch(model.config)
    batch["labels"][..., :16] = 1
    batch["labels"][..., 16:] = 0
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert not any(parameter.grad is not None for tower in model.model.towers() for parameter in tower.parameters())


def test_without_integration_the_decoder_reads_sound_and_picture() -> None:
    model = small_model(num_integration_layers=0)
    batch = mask_batch(model.config)
    assert not list(model.model.integration.parameters())
    with torch.no_grad():
        logits = model(**batch).logits
        for name in ("pixel_values_videos", "input_features"):
            assert not torch.allclose(model(**{**batch, name: batch[name].flip(0)}).logits, logits)


def test_wrong_configurations_and_labels_are_refused() -> None:
    with pytest.raises(CaeAvError, match="`outputs` of SsuFormerConfig must be 'masks'"):
        SsuFormerForSegmentation(small_config())
    with pytest.raises(ValueError, match="by 'ssuformer' have a SsuFormerConfig"):
        CaeAvConfig.from_preset("avs_ms3", "toy", method="ssuformer")
    with pytest.raises(ValueError, match="must be 'ssuformer', got 'dg_sct'"):
        SsuFormerConfig.from_preset("avs_ms3", "toy", method="dg_sct")
    with pytest.raises(StrictDataclassError, match="num_integration_layers"):
        small_config(num_integration_layers=-1)
    model = small_model()
    with pytest.raises(CaeAvError, match="`labels` must be"):
        model(**{**mask_batch(model.config), "labels": torch.zeros(2, 3, 16, 16)})


def test_the_auto_classes_and_the_pipeline_load_it(saved, tmp_path) -> None:
    assert type(AutoModel.from_pretrained(saved)) is SsuFormerModel
    assert type(AutoProcessor.from_pretrained(saved)) is CaeAvProcessor
    clip = str(write_clip(tmp_path / "clip.mp4", fps=4))
    for model in (str(saved), str(mask_model())):  # each method's own class
        segment = pipeline("audio-visual-segmentation", model=model, device="cpu")
        assert type(segment.model) is (SsuFormerForSegmentation if model == str(saved) else CaeAvForSegmentation)
    segment = pipeline(model=str(saved), device="cpu")  # the task is that of the checkpoint
    result = segment(clip)
    assert result["masks"].shape == result["probabilities"].shape == (3, 48, 64)
    assert caeav(["predict", clip, "--model", str(saved), "--device", "cpu", "--out", str(tmp_path / "masks")]) == 0
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 3


def test_a_checkpoint_of_another_class_is_refused(saved, tmp_path) -> None:
    for model_class in (CaeAvForSegmentation, SsuFormerForSoundSourceUnderstanding):
        with pytest.raises(CaeAvError, match="is a checkpoint of SsuFormerForSegmentation"):
            model_class.from_pretrained(saved)
    with pytest.raises(CaeAvError, match=r"is a checkpoint of CaeAvForSegmentation .*'avs_s4', 'avs_ms3'"):
        SsuFormerForSegmentation.from_pretrained(mask_model())
    # A file without the class of the model is known by its task.
    values = json.loads((saved / "config.json").read_text())
    del values["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CaeAvError, match="is a checkpoint of SsuFormerForSegmentation"):
        SsuFormerForSoundSourceUnderstanding.from_pretrained(tmp_path)


def test_a_method_is_a_record_of_its_task() -> None:
    task = get_task("avs_ms3")
    own = get_task("avs_ms3", "ssuformer")
    assert (own.model_class, own.config_class) == (SsuFormerForSegmentation, SsuFormerConfig)
    assert (own.metric_function, own.row_form, own.best_metric) == (task.metric_function, task.row_form, "j")
    assert get_task("avs_ms3", "dg_sct") is task.with_method(None) is task
    assert [record.model_name for record in task.records()] == ["CaeAvForSegmentation", "SsuFormerForSegmentation"]


def run(data: Path, folder: Path, *flags: object) -> None:
    arguments = ["--size", "toy", "--data", data, "--output-dir", folder, "--batch-size", 2, *flags]
    assert train([str(argument) for argument in arguments]) == 0


@pytest.mark.slow  # runs
def test_recipes_train_score_and_resume(avs_parquet, tmp_path, capsys) -> None:
    narrow = ["--model-config", "num_integration_layers=1", "num_queries=4"]
    method = ["--method", "ssuformer"]
    run(avs_parquet["s4"], tmp_path / "s4", "--task", "avs_s4", *method, "--max-steps", 3, "--epochs", 1, *narrow)
    checkpoint = tmp_path / "s4" / "checkpoints" / "best"
    (record,) = (json.loads(line) for line in (tmp_path / "s4" / "history.jsonl").read_text().splitlines())
    assert {"train/segmentation", "eval/j", "eval/f"} <= record.keys()
    assert type(AutoModel.from_pretrained(checkpoint)) is SsuFormerModel
    card = (checkpoint / "README.md").read_text()
    processor = CaeAvProcessor.from_pretrained(checkpoint)
    for split, has_mask in (("train", [True, False, False, False, False]), ("validation", [True] * 5)):
        item = CaeAvDataset(avs_parquet["s4"], processor, split=split)[0]
        assert (item["labels"][:, 0, 0] != -100).tolist() == has_mask
    for text in ("SSUFormer (Sun et al.", "SsuFormerForSegmentation", 'pipeline("audio-visual-segmentation"'):
        assert text in card
    # The model's own method, without --method: scoring, another task's training from it, and resuming that.
    capsys.readouterr()
    scoring = ["--task", "avs_s4", "--size", "toy", "--data", str(avs_parquet["s4"]), "--split", "validation"]
    assert train(["--evaluate", str(checkpoint), *scoring]) == 0
    assert json.loads(capsys.readouterr().out)["j"] == pytest.approx(record["eval/j"], abs=1e-6)
    run(avs_parquet["ms3"], tmp_path / "ms3", "--task", "avs_ms3", "--model", checkpoint, "--max-steps", 1)
    last = tmp_path / "ms3" / "checkpoints" / "last"
    assert SsuFormerConfig.from_pretrained(last).task == "avs_ms3"
    assert train(["--resume", str(tmp_path / "ms3"), "--max-steps", "2"]) == 0
    assert SsuFormerForSegmentation.from_pretrained(last).config.num_integration_layers == 1
    flags = ["--task", "avs_ms3", "--model", str(mask_model()), "--method", "ssuformer", "--size", "toy"]
    assert train([*flags, "--data", str(avs_parquet["ms3"]), "--output-dir", str(tmp_path / "none")]) == 2
    assert "must be that of" in capsys.readouterr().err
