"""Conversion of whole checkpoints of STG-CMA: under the authors' names, of random small models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.cli import main as caeav
from caeav_hf.conversion import from_official
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.task import get_task
from tests.golden import GoldenCase
from tests.lanes import slow_after
from tests.modeling.helpers import as_double, randomise, task_batch


VIT = {
    "model_type": "cae_av_vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": (2, 1, 3, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ave-vit": ("ave", {"vision_config": VIT, "audio_config": {"spectrogram_frames": 27, "num_mel_bins": 20}}, {}),
    "ave-swin": ("ave", {"vision_config": SWIN}, {"ftmode": "multimodal"}),
    "ave-swin-fusion": ("ave", {"vision_config": SWIN}, {"ftmode": "fusion"}),
    "avs_s4": ("avs_s4", {"vision_config": SWIN, "mask_size": 32, "head_num_heads": 1}, {"ftmode": "fusion"}),
    "avs_s4-other-widths": (
        "avs_s4",
        {
            "vision_config": SWIN,
            "mask_size": 32,
            "head_num_heads": 1,
            "head_hidden_size": 10,
            "head_map_sizes": (5, 6, 7, 8),
            "head_decoder_sizes": (7, 3),
        },
        {"ftmode": "multimodal"},
    ),
    "avqa-l": ("avqa", {"vision_config": SWIN, "question_vocab_size": 20}, {}),
    "avqa-b": (
        "avqa",
        {
            "vision_config": SWIN,
            "question_vocab_size": 20,
            "head_answer_size": 16,
            "head_answer_audio_size": 12,
            "head_audio_hidden": True,
        },
        {},
    ),
}

# From this package's names to the authors'. What remains of a name stays.
_ADAPTERS = [
    (r"\.down\.", ".D_fc1."),
    (r"\.up\.", ".D_fc2."),
    (r"visual_temporal_adapter", "T_Adapter"),
    (r"audio_temporal_adapter", "T_Adapter_Audio"),
    (r"visual_gate$", "gate_v"),
    (r"audio_gate$", "gate_a"),
]
_VIT = [
    *_ADAPTERS,
    (r"^model\.interactions\.0\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"spatial_adapter\.visual", "S_Adapter"),
    (r"spatial_adapter\.audio", "S_Adapter_Audio"),
    (r"global_adapter\.visual", "MLP_Adapter"),
    (r"global_adapter\.audio", "MLP_Adapter_Audio"),
    (r"^model\.vision_tower\.cls_token", "class_embedding"),
    (r"^model\.vision_tower\.pos_embed", "positional_embedding"),
    (r"^model\.vision_tower\.patch_embed\.proj", "conv1"),
    (r"^model\.vision_tower\.norm_pre", "ln_pre"),
    (r"^model\.vision_tower\.norm", "ln_post"),
    (r"^model\.vision_tower\.layers", "transformer.resblocks"),
    (r"\.norm([12])", r".ln_\1"),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"^model\.audio_embedding\.projection", "conv1_audio"),
    (r"^model\.audio_embedding\.positions", "positional_embedding_audio"),
    (r"^model\.temporal_embeddings\.visual", "temporal_embedding"),
    (r"^model\.temporal_embeddings\.audio", "temporal_embedding_audio"),
]
_SWIN = [
    *_ADAPTERS,
    (r"^model\.interactions\.(\d+)\.(\d+)\.", r"layers.\1.blocks.\2."),
    (r"spatial_adapter\.visual", "S_Adapter2"),
    (r"spatial_adapter\.audio", "S_Adapter2_Audio"),
    (r"global_adapter\.visual", "S_Adapter"),
    (r"global_adapter\.audio", "S_Adapter_Audio"),
    (r"temporal_biases\.visual", "attn.temporal_position_bias_table"),
    (r"temporal_biases\.audio", "attn.temporal_position_bias_table_audio"),
    (r"^model\.vision_tower\.layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
    (r"^model\.vision_tower\.", ""),
    (r"^model\.audio_embedding\.projection", "patch_embed_audio.proj"),
    (r"^model\.audio_embedding\.norm", "patch_embed_audio.norm"),
]
_HEADS: dict[str, list[tuple[str, Any]]] = {
    "ave": [(r"^head\.hidden", "mlp_head.0"), (r"^head\.classifier", "mlp_head.2")],
    "avs_s4": [
        (r"^head\.projections\.(\d)", lambda m: f"avstask_x{int(m[1]) + 1}_linear"),
        (r"^head\.convolutions\.(\d)\.", lambda m: f"avstask_conv{int(m[1]) + 1}.conv2d_list."),
        (r"^head\.audio_projection", "avstask_audio_linear"),
        (r"^head\.interactions\.(\d)", lambda m: f"avstask_tpavi_b{int(m[1]) + 1}"),
        (r"^head\.fusions\.(\d)", lambda m: f"avstask_path{int(m[1]) + 1}"),
        (r"lateral\.first", "resConfUnit1.conv1"),
        (r"lateral\.second", "resConfUnit1.conv2"),
        (r"residual\.first", "resConfUnit2.conv1"),
        (r"residual\.second", "resConfUnit2.conv2"),
        (r"(tpavi_b\d)\.audio_projection", r"\1.align_channel"),
        (r"(tpavi_b\d)\.query", r"\1.theta"),
        (r"(tpavi_b\d)\.key", r"\1.phi"),
        (r"(tpavi_b\d)\.value", r"\1.g"),
        (r"(tpavi_b\d)\.output", r"\1.W_z.0"),
        (r"(tpavi_b\d)\.batch_norm", r"\1.W_z.1"),
        (r"(tpavi_b\d)\.norm", r"\1.norm_layer"),
        (r"^head\.upsample", "avstask_output_conv.0"),
        (r"^head\.hidden", "avstask_output_conv.2"),
        (r"^head\.classifier", "avstask_output_conv.4"),
    ],
    "avqa": [
        (r"^head\.question_encoder\.embedding", "avqatask_question_encoder.word2vec"),
        (r"^head\.question_encoder\.rnn", "avqatask_question_encoder.lstm"),
        (r"^head\.question_encoder\.projection", "avqatask_question_encoder.fc"),
        (r"^head\.visual_projection", "avqatask_yb_fc_v"),
        (r"^head\.audio_projection", "avqatask_yb_fc_a"),
        (r"^head\.audio_hidden", "avqatask_fc_a1"),
        (r"^head\.audio_output", "avqatask_fc_a2"),
        (r"^head\.grounding_projection", "avqatask_fc_gl"),
        (r"^head\.matching\.(\d)", lambda m: f"avqatask_fc{int(m[1]) + 1}"),
        (r"^head\.visual_attention\.attention\.output", "avqatask_attn_v.out_proj"),
        (r"^head\.audio_attention\.attention\.output", "avqatask_attn_a.out_proj"),
        (r"^head\.visual_attention\.hidden", "avqatask_linear11"),
        (r"^head\.visual_attention\.output", "avqatask_linear12"),
        (r"^head\.visual_attention\.norm", "avqatask_norm1"),
        (r"^head\.audio_attention\.hidden", "avqatask_linear21"),
        (r"^head\.audio_attention\.output", "avqatask_linear22"),
        (r"^head\.audio_attention\.norm", "avqatask_norm2"),
        (r"^head\.fusion", "avqatask_fc_fusion"),
        (r"^head\.classifier", "avqatask_fc_ans"),
    ],
}


def their_state(model: CaeAvPreTrainedModel) -> dict[str, Tensor]:
    """The checkpoint that the authors' code would have written of a model."""
    is_vit = model.config.vision_config.model_type == "cae_av_vit"
    rules = [*(_VIT if is_vit else _SWIN), *_HEADS[model.config.task]]
    found: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for key, value in model.state_dict().items():
        if parts := re.match(r"head\.(visual|audio)_attention\.attention\.(query|key|value)\.(\w+)", key):
            name = f"avqatask_attn_{parts[1][0]}.in_proj_{parts[3]}"
            stacked.setdefault(name, {})[parts[2]] = value
            continue
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        assert not new.startswith(("model.", "head.")), new
        if new == "class_embedding":
            value = value[0, 0]
        if new == "positional_embedding":
            value = value[0]
        if not is_vit and re.match(r"patch_embed(_audio)?\.proj\.weight", new):
            value = value[:, :, None]
        if new == "mlp_head.0.weight":
            visual, audio = value.chunk(2, 1)
            value = torch.cat([audio, visual], 1)
        found[f"module.{new}"] = value.clone()
    for name, parts in stacked.items():
        found[f"module.{name}"] = torch.cat([parts[part] for part in ("query", "key", "value")])
    return found


def test_names_are_those_of_the_reference_cases() -> None:
    """Names that `their_state` writes, against those of the authors' modules."""
    written = {name: their_state(small(name)) for name in ("ave-vit", "ave-swin", "avs_s4", "avqa-b")}
    constant = r"attn_mask$|relative_position_index$|t_relative_coords|path4\.resConfUnit1"
    for name, case, prefix in (
        ("ave-vit", "vit_block", "transformer.resblocks.0."),
        ("ave-swin", "swin_stage", "layers.0."),
        ("ave-vit", "clip_embedding", ""),
        ("ave-swin", "head_event_localization", ""),
        ("avs_s4", "head_segmentation", ""),
        ("avqa-b", "head_question_answering_b", ""),
    ):
        names = {f"module.{prefix}{key}" for key in GoldenCase(f"stgcma_{case}").state if not re.search(constant, key)}
        assert names <= written[name].keys(), names - written[name].keys()


def small(name: str) -> CaeAvPreTrainedModel:
    torch.manual_seed(0)
    task, values, options = ROWS[name]
    if options:
        values = {**values, "interaction_options": {"exchange": options["ftmode"] == "fusion"}}
    config = CaeAvConfig.from_preset(task, size="toy", method="stg_cma", num_frames=3, **values)
    model = randomise(get_task(task).model_class(config)).eval()
    with torch.no_grad():
        # The checkpoint's own frozen tensors, not those computed from the tower.
        for tensor in model.model.audio_embedding.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        for table in (p for n, p in model.named_parameters() if "temporal_" in n):
            table.add_(0.1 * torch.randn_like(table))
    return model


@pytest.mark.parametrize("name", slow_after(2, ROWS))
@torch.no_grad()
def test_converted_models_compute_what_the_checkpoint_does(name: str) -> None:
    task, values, options = ROWS[name]
    model = small(name)
    sizes: dict[str, Any] = {"vision": {"num_heads": [3]}, "audio": {"mel_bins": 20, "frames": 27}}
    if values["vision_config"] is SWIN:
        sizes = {"vision": {"img_size": 32, "window_size": 4}, "audio": {"mel_bins": 32, "frames": 32}}
    state = their_state(model)
    if task == "avs_s4":
        state |= {
            f"module.avstask_path4.resConfUnit1.conv{number}.{kind}": torch.zeros(1)
            for number in (1, 2)
            for kind in ("weight", "bias")
        }
    converted = from_official(state, task=task, method="stg_cma", options=options, **sizes)
    ours, theirs = converted.config, model.config
    assert ours.interaction == "stg_cma"
    assert (ours.num_frames, ours.audio_config.spectrogram_size) == (3, theirs.audio_config.spectrogram_size)
    batch = as_double(task_batch(theirs, num_frames=3))
    found, expected = converted.double()(**batch), model.double()(**batch)
    output = {"ave": "frame_log_probs"}.get(task, "logits")
    torch.testing.assert_close(found[output], expected[output], atol=1e-4, rtol=1e-4)
    if task == "avqa":
        torch.testing.assert_close(found.match_logits, expected.match_logits, atol=1e-4, rtol=1e-4)
    assert set(converted.conversion_report.mapped) | set(converted.conversion_report.ignored) == {
        key.removeprefix("module.") for key in state
    }
    trained = {key for key, p in converted.named_parameters() if p.requires_grad}
    assert trained == {key for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_the_command_writes_a_folder_with_a_processor(kind: str, tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "ave.pth", tmp_path / "out"
    torch.save(their_state(small(f"ave-{kind}")), checkpoint)
    flags = ["--vision", "num_heads=[3]", "--audio", "mel_bins=20", "frames=27"]
    if kind == "swin":
        flags = ["--vision", "img_size=32", "window_size=4", "--option", "ftmode=fusion"]
    arguments = ["convert", str(checkpoint), "--task", "ave", "--out", str(folder), *flags]
    assert caeav([*arguments, "--method", "lavish"]) == 2
    assert caeav([*arguments, "--method", "stg_cma"]) == 0
    model = CaeAvForEventLocalization.from_pretrained(folder)
    assert model.config.interaction == "stg_cma"
    # What is frozen in it is the checkpoint's, not made from the tower.
    embedding = small(f"ave-{kind}").model.audio_embedding.projection.weight
    assert torch.equal(model.model.audio_embedding.projection.weight, embedding)
    card = (folder / "README.md").read_text()
    assert "text tower" not in card
    assert "- stg-cma\n" in card
    processor = CaeAvProcessor.from_pretrained(folder)
    assert (processor.num_frames, processor.feature_extractor.window_seconds) == (3, 1.0)
    inputs = processor(
        videos=np.zeros((3, 40, 40, 3), np.uint8), audio=np.zeros(48_000, np.float32), sampling_rate=16_000
    )
    with torch.no_grad():
        assert model(**inputs).frame_log_probs.shape == (1, 3, 29)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "avvp"}, "`task` must be one of ave, avs_s4, avqa for the method 'stg_cma'"),
        ({"options": {"ftmode": "audio"}}, "option 'ftmode' must be 'fusion' or 'multimodal'"),
        ({"audio": {"mel_bins": 64, "frames": 27}}, "'positional_embedding_audio' is for 7"),
        ({"vision": {"num_heads": [3], "img_size": 64}}, "'img_size' is 64, but 'positional_embedding' says 32"),
        ({"method": "avmoe"}, "`method` is 'avmoe', but '.*S_Adapter.*' is a key of 'stg_cma'"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str) -> None:
    arguments = {"task": "ave", "vision": {"num_heads": [3]}, "audio": {"mel_bins": 20, "frames": 27}}
    with pytest.raises(CaeAvError, match=message):
        from_official(their_state(small("ave-vit")), **{**arguments, **change})
