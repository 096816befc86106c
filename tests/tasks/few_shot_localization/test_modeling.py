"""Few-shot models: what a forward pass gives, padding, class names, half precision, checkpoints, preset sizes."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor
from transformers import ClapFeatureExtractor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForFewShotLocalization, CaeAvProcessor
from caeav_hf.assets import aligned_toy_towers
from caeav_hf.exporting import example_inputs, export_program
from caeav_hf.processing.tokenization import build_byte_tokenizer
from tests.lanes import slow_after
from tests.modeling.helpers import as_double, randomise, toy_batch
from tests.same import assert_close


NAMES = ["bell", "drum", "police siren"]
TASKS = ["ave_few_shot", "avvp_few_shot_classification", "ave_few_shot_classification"]
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def make_processor(config: CaeAvConfig) -> CaeAvProcessor:
    return CaeAvProcessor.from_config(config, sound_tokenizer=build_byte_tokenizer())


def make(task: str = "ave_few_shot", **overrides) -> CaeAvForFewShotLocalization:
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset(task, size="toy", id2label=dict(enumerate(NAMES)), **overrides)
    model = randomise(CaeAvForFewShotLocalization(config)).eval()
    model.name_classes(make_processor(config))
    return model


def make_batch(model: CaeAvForFewShotLocalization, batch_size: int = 2) -> dict[str, Tensor]:
    batch = toy_batch(model.config, batch_size)
    if model.config.matching_level == "clip":
        batch["labels"] = batch["labels"][:, 0].clamp(max=len(NAMES) - 1)
    return {name: value for name, value in batch.items() if "caption" not in name}


@pytest.mark.parametrize("task", slow_after(2, TASKS))
def test_a_step_trains_all_of_its_own_parts(task: str) -> None:
    model = make(task).train()
    outputs = model(**make_batch(model))
    assert outputs.logits.shape == (2, 4, len(NAMES) + (task == "ave_few_shot"))
    outputs.loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any("_tower." in name for name in trained)
    assert [name for name, p in trained.items() if p.grad is None] == []
    # Gradients reach the context through the frozen text tower, and the first adapters through all blocks.
    assert model.head.context.grad.abs().max() > 0
    assert model.model.interactions[0][0].visual_attention_adapter.gate.grad.abs() > 0
    assert set(outputs.loss_dict) == {"task", "sound_to_picture", "picture_to_sound"}


def test_the_epoch_changes_the_weight_of_the_classification() -> None:
    model = make()
    batch = make_batch(model)
    with torch.no_grad():
        model.start_epoch(9)
        before = model(**batch)
        model.start_epoch(10)
        after = model(**batch)
    terms = before.loss_dict
    contrast = 2 * terms["sound_to_picture"] + 1.5 * terms["picture_to_sound"]
    assert_close(before.loss, 500 * terms["task"] + contrast, 1e-4)
    assert_close(after.loss, 5 * terms["task"] + contrast, 1e-4)


@pytest.mark.parametrize("task", slow_after(1, TASKS[:2]))
def test_padding_changes_nothing(task: str) -> None:
    model = make(task).double()
    batch = as_double(make_batch(model))
    with torch.no_grad():
        padded = model(**batch, frame_mask=MASK)
        noise = batch["pixel_values_videos"].where(MASK[..., None, None, None], 1e3)
        assert torch.equal(model(**{**batch, "pixel_values_videos": noise}, frame_mask=MASK).loss, padded.loss)
        alone = model(**{k: v[1:, :2] if k != "labels" else None for k, v in batch.items()})
    assert_close(padded.logits[1, :2], alone.logits[0])


def test_other_names_replace_the_models_own() -> None:
    """As many logits as names, in their order; own names given again change nothing."""
    model = make()
    batch, processor = make_batch(model), make_processor(model.config)
    del batch["labels"]
    with torch.no_grad():
        own = model(**batch).logits
        again = model(**batch, **processor.class_prompts(["police siren", "bell", "a bird"])).logits
    assert again.shape == (2, 4, 3)
    assert_close(again[..., :2], own[..., [2, 0]], 1e-4)


def test_names_that_are_not_known_are_an_error() -> None:
    config = CaeAvConfig.from_preset("ave_few_shot", size="toy")
    model = CaeAvForFewShotLocalization(config)
    with pytest.raises(CaeAvError, match="name_classes"):
        model(**make_batch(make()))
    with pytest.raises(CaeAvError, match="sound_tokenizer"):
        model.name_classes(CaeAvProcessor.from_config(config))
    prompts = make_processor(config).class_prompts(NAMES)
    with pytest.raises(CaeAvError, match="together"):
        model(**make_batch(make()), visual_prompt_ids=prompts["visual_prompt_ids"])


def test_prompts_hold_a_place_for_each_learned_vector() -> None:
    config = CaeAvConfig.from_preset("ave_few_shot", size="toy")
    processor = make_processor(config)
    prompts = processor.class_prompts(["Church_bell"], num_context_tokens=3)
    assert processor.tokenizer.decode(prompts["visual_prompt_ids"][0], skip_special_tokens=True).strip("! ") == (
        "x x x church bell ."
    )
    sound = processor.sound_tokenizer.decode(prompts["sound_prompt_ids"][0], skip_special_tokens=True)
    assert sound == "The sounds of Church bell"
    with pytest.raises(CaeAvError, match="more than the 77 tokens"):
        processor.class_prompts(["word " * 80])
    with pytest.raises(CaeAvError, match="not empty"):
        processor.class_prompts(["bell", " "])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = make()
    processor, batch = make_processor(model.config), make_batch(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = CaeAvForFewShotLocalization.from_pretrained(tmp_path), CaeAvProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(again(**batch).logits, model(**batch).logits)
    prompts = loaded.class_prompts(NAMES)
    assert all(torch.equal(ids, prompts[name]) for name, ids in processor.class_prompts(NAMES).items())


@pytest.mark.slow
def test_adapters_alone_find_their_towers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers = aligned_toy_towers()
    model = CaeAvForFewShotLocalization.from_backbones(
        **towers, task="ave_few_shot", size="toy", id2label=dict(enumerate(NAMES))
    )
    processor = CaeAvProcessor.from_config(model.config)
    model.name_classes(processor)
    model.save_pretrained(tmp_path, adapter_only=True)
    again = CaeAvForFewShotLocalization.from_pretrained(tmp_path)
    names = {"vision", "audio", "text", "audio_text"}
    assert set(again.config.tower_sources) == set(again.cae_av.named_towers()) == names
    batch = make_batch(model)
    with torch.no_grad():
        assert_close(again(**batch).logits, model(**batch).logits)


def test_the_front_end_is_that_of_the_authors_and_not_of_clap(tmp_path: Path) -> None:
    towers = dict(aligned_toy_towers())
    shutil.copytree(towers["audio"], tmp_path / "audio")
    extractor = ClapFeatureExtractor(feature_size=32, sampling_rate=48_000, hop_length=480, truncation="fusion")
    extractor.save_pretrained(tmp_path / "audio")
    # The sizes of the toy towers in the full preset, whose front end is the authors'.
    model = CaeAvForFewShotLocalization.from_backbones(
        **{**towers, "audio": tmp_path / "audio"}, task="ave_few_shot", id2label=dict(enumerate(NAMES))
    )
    audio = model.config.audio_config
    assert (audio.sampling_rate, audio.hop_length, audio.mel_scale, audio.tile_seconds) == (32_000, 320, "slaney", 10)
    assert audio.filter_sampling_rate == 48_000
    extractor = CaeAvProcessor.from_config(model.config).feature_extractor
    assert (extractor.sampling_rate, extractor.filter_sampling_rate) == (32_000, 48_000)


def test_half_precision() -> None:
    model = make()
    batch = make_batch(model)
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)
        halves = {name: value.bfloat16() for name, value in batch.items()}
        found = model.bfloat16()(**halves).logits.float().softmax(-1)
    assert found.isfinite().all()
    assert (found - expected).abs().max() < 0.3


def test_the_preset_has_the_authors_parameters() -> None:
    config = CaeAvConfig.from_preset("ave_few_shot")
    with torch.device("meta"):
        model = CaeAvForFewShotLocalization(config)
    adapters = sum(p.numel() for p in model.model.interactions.parameters())
    # Their 97,299,648 without those that have no effect on any output, which this package does not build.
    assert adapters == 97_299_648 - 4_727_856
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.head.named_children()}
    assert sizes["visual_adapter"] + sizes["text_adapter"] == 262_144
    assert sizes["contrast"] == 262_656
    assert model.head.context.numel() == 2_048
    assert [len(stage) for stage in model.model.interactions] == [2, 2, 6, 2]
    assert config.interaction_options["gamma"] == 0.01
    assert config.audio_config.filter_sampling_rate == 48_000


def test_towers_without_a_common_space_are_an_error() -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="`projection_dim` of one width"):
        CaeAvConfig.from_preset("ave_few_shot", size="toy", text_config={"projection_dim": 32})
    with pytest.raises(CaeAvError, match="audio_text_config"):
        CaeAvForFewShotLocalization(CaeAvConfig.from_preset("ave", size="toy"))


@pytest.mark.slow
@torch.no_grad()
def test_a_graph_scores_the_models_own_classes() -> None:
    model = make()
    graph = export_program(model).module()
    for size in ((3, 2), (1, 1)):
        inputs = example_inputs(model, *size, seed=1)
        found, expected = graph(**inputs), model(**inputs)
        mask = inputs["frame_mask"]
        assert_close(found["logits"][mask], expected.logits[mask], 1e-4)
    with pytest.raises(CaeAvError, match="name_classes"):
        export_program(CaeAvForFewShotLocalization(model.config))
