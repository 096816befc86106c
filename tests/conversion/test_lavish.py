"""Checkpoints of LAVisH's code load and agree with its modules."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.cli import main as caeav
from caeav_hf.conversion import from_official
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.task import get_task
from tests.lanes import slow_after
from tests.modeling.helpers import randomise, task_batch
from tests.same import assert_close


TASKS = ("ave", "avs_s4", "avqa")
VISION = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
OPTIONS = {
    "ave": {"Adapter_downsample": 2, "num_conv_group": 4, "num_tokens": 3, "is_bn": 1, "is_gate": 1, "lr_mlp": 4e-6},
    "avs_s4": {"num_tokens": 3, "is_bn": 0, "is_gate": 0, "is_before_layernorm": 1, "audio_length": 1},
    "avqa": {"num_tokens": 3, "is_bn": 0, "is_gate": 1, "is_before_layernorm": 1, "is_vit_ln": 1},
}
# Settings that no tensor determines.
UNTOLD = {"mask_size": 64}


def small_model(task: str, seed: int = 0) -> CaeAvPreTrainedModel:
    """A model in which nothing is zero or as its preset has it."""
    torch.manual_seed(seed)
    values = {
        "vision_config": {
            "image_size": 64,
            "window_size": 4,
            "embed_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
        },
        "interaction_options": {"reduction": 2, "groups": 4, "num_latent_tokens": 3},
        "head_visual_dim": 20,
        "head_hidden_size": 12,
        "head_audio_dim": 6,
        "matching_hidden_sizes": [10, 8, 6],
        "mask_size": 64,
        **({"head_map_sizes": [5, 6, 7, 8]} if task == "avs_s4" else {}),
        **({"head_answer_size": 16, "question_vocab_size": 20, "num_labels": 5} if task == "avqa" else {}),
        **({"num_labels": 7} if task == "ave" else {}),
    }
    config = CaeAvConfig.from_preset(task, size="full", method="lavish", **values)
    return randomise(get_task(task).model_class(config)).eval()


def grown(tensor: Tensor) -> Tensor:
    """A weight as that of a 1x1 convolution."""
    return tensor[..., None, None]


def authors_adapter(adapter: nn.Module, with_norm: bool) -> dict[str, Tensor]:
    state = {
        "my_tokens": adapter.exchange.latents,
        "gate_av": adapter.exchange.gate,
        "down_sampler.weight": grown(adapter.down.weight),
        "up_sampler.weight": grown(adapter.up.weight),
        "ln_post.weight": adapter.norm_after.weight,
        "ln_post.bias": adapter.norm_after.bias,
    }
    if adapter.gate is not None:
        state["gate"] = adapter.gate
    if isinstance(adapter.norm_before, nn.LayerNorm):
        state |= {f"ln_before.{name}": tensor for name, tensor in adapter.norm_before.named_parameters()}
    elif with_norm:
        state |= {f"ln_before.{name}": torch.randn(len(adapter.norm_after.weight)) for name in ("weight", "bias")}
    for short, norm in (("bn1", adapter.batch_norm_down), ("bn2", adapter.batch_norm_up)):
        state |= {f"{short}.{name}": tensor for name, tensor in norm.state_dict().items()}
    return state


def authors_state(model: CaeAvPreTrainedModel) -> dict[str, Tensor]:
    """The checkpoint that the authors' code would have written of a model, with what it holds and never uses."""
    base, head, task = model.model, model.head, model.config.task
    state = {}
    for key, tensor in base.vision_tower.state_dict().items():
        if "downsample" in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        state[f"swin.{key}"] = tensor
    state["swin.head.weight"] = torch.randn(3, 3)
    layers = [layer for stage in base.interactions for layer in stage]
    for number, layer in enumerate(layers):
        for short, modality in (("vis", "visual"), ("audio", "audio")):
            for part, branch in (("p1", "attention"), ("p2", "feed_forward")):
                adapter = getattr(layer, f"{modality}_{branch}_adapter")
                found = authors_adapter(adapter, with_norm=task == "avs_s4")
                state |= {f"{short}_adapter_blocks_{part}.{number}.{key}": value for key, value in found.items()}
    modules: dict[str, nn.Module] = {}
    if task == "ave":
        modules = {"mlp_class": head.hidden, "mlp_class_2": head.classifier}
        state |= {"adapter_token_downsampler.0.weight": torch.randn(4, 2)}
        state |= {f"vis_adapter_blocks_p1.{number}.gate_tk": torch.ones(1) for number in range(len(layers))}
    elif task == "avs_s4":
        for scale in range(4):
            tpavi, fusion = head.interactions[scale], head.fusions[scale]
            modules |= {
                f"x{scale + 1}_linear": head.projections[scale],
                f"conv{scale + 1}.conv2d_list": head.convolutions[scale],
                f"tpavi_b{scale + 1}.align_channel": tpavi.audio_projection,
                f"tpavi_b{scale + 1}.W_z.1": tpavi.batch_norm,
                f"tpavi_b{scale + 1}.norm_layer": tpavi.norm,
                f"path{scale + 1}.resConfUnit2.conv1": fusion.residual.first,
                f"path{scale + 1}.resConfUnit2.conv2": fusion.residual.second,
            }
            for theirs, ours in (("theta", "query"), ("phi", "key"), ("g", "value"), ("W_z.0", "output")):
                linear = getattr(tpavi, ours)
                state[f"tpavi_b{scale + 1}.{theirs}.weight"] = linear.weight[..., None, None, None]
                state[f"tpavi_b{scale + 1}.{theirs}.bias"] = linear.bias
            if fusion.lateral is not None:
                modules[f"path{scale + 1}.resConfUnit1.conv1"] = fusion.lateral.first
                modules[f"path{scale + 1}.resConfUnit1.conv2"] = fusion.lateral.second
        modules |= {
            "audio_linear": head.audio_projection,
            "output_conv.0": head.upsample,
            "output_conv.2": head.hidden,
            "output_conv.4": head.classifier,
        }
        state |= {"path4.resConfUnit1.conv1.weight": torch.randn(2, 2), "encoder_backbone.norm1.bias": torch.randn(2)}
    else:
        modules = {
            "yb_fc_v": head.visual_projection,
            "yb_fc_a": head.audio_hidden,
            "fc_a2": head.audio_output,
            "fc_gl": head.grounding_projection,
            **{f"fc{number}": layer for number, layer in enumerate(head.matching, start=1)},
            "linear11": head.visual_attention.hidden,
            "linear12": head.visual_attention.output,
            "norm1": head.visual_attention.norm,
            "linear21": head.audio_attention.hidden,
            "linear22": head.audio_attention.output,
            "norm2": head.audio_attention.norm,
            "fc_fusion": head.fusion,
            "fc_ans": head.classifier,
            "question_encoder.word2vec": head.question_encoder.embedding,
            "question_encoder.lstm": head.question_encoder.rnn,
            "question_encoder.fc": head.question_encoder.projection,
        }
        for short, attention in (("attn_v", head.visual_attention), ("attn_a", head.audio_attention)):
            parts = [getattr(attention.attention, name) for name in ("query", "key", "value")]
            state[f"{short}.in_proj_weight"] = torch.cat([part.weight for part in parts])
            state[f"{short}.in_proj_bias"] = torch.cat([part.bias for part in parts])
            modules[f"{short}.out_proj"] = attention.attention.output
        unused = ("fc_a1", "fc_a1_pure", "fc_a2_pure", "norm3", "fc_v", "fc_st", "fc", "fc_aq", "fc_vq")
        state |= {f"{name}.weight": torch.randn(2, 2) for name in unused}
    for name, module in modules.items():
        state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return {key: tensor.detach().clone() for key, tensor in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("given", slow_after(1, ["all", "state"]))
@pytest.mark.parametrize("task", slow_after(1, TASKS))
def test_whole_checkpoints_compute_the_same(task: str, given: str) -> None:
    model = small_model(task)
    state = authors_state(model)
    arguments = {"vision": {"img_size": 64, "window_size": 4}, "options": None}
    if given == "all":
        arguments = {"vision": VISION, "options": OPTIONS[task], "method": "lavish"}
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    converted = from_official(state, task, **arguments, **UNTOLD)
    assert (converted.config.interaction, converted.config.shared_tower) == ("lavish", True)
    batch = task_batch(model.config, num_frames=5)
    batch = {name: value for name, value in batch.items() if "caption" not in name}
    expected, found = model(**batch), converted(**batch)
    for name in ("visual_pooler_output", "audio_pooler_output"):
        assert_close(found[name], expected[name])
    for name in {"ave": ("frame_log_probs", "event_logits"), "avs_s4": ("logits",)}.get(task, ("logits",)):
        assert_close(found[name], expected[name])
    report = converted.conversion_report
    assert set(report.mapped) | set(report.ignored) == {key.removeprefix("module.") for key in state}
    norms = "all" if task == "avqa" else "none"
    assert converted.config.trained_tower_norms == norms


@pytest.mark.slow
def test_the_command_writes_a_folder_with_a_processor(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "ave.pt", tmp_path / "out"
    torch.save(authors_state(small_model("ave")), checkpoint)
    command = ["convert", str(checkpoint), "--task", "ave", "--method", "lavish", "--out", str(folder)]
    vision = ["img_size=64", "window_size=4"]
    assert caeav([*command, "--vision", *vision, "--option", "is_vit_ln=1", "--audio", "hop_length=200"]) == 0
    loaded = CaeAvForEventLocalization.from_pretrained(folder)
    assert (loaded.config.trained_tower_norms, loaded.config.audio_config.hop_length) == ("all", 200)
    assert "text tower" not in (folder / "README.md").read_text()
    extractor = CaeAvProcessor.from_pretrained(folder).feature_extractor
    assert (extractor.mel_scale, extractor.hop_length) == ("kaldi", 200)
    assert extractor(torch.randn(32_000), sampling_rate=16_000)["input_features"].shape == (1, 2, 1, 64, 64)


def test_class_names_of_the_data_set_stay() -> None:
    model = small_model("ave")
    state = authors_state(model)
    state["mlp_class_2.weight"], state["mlp_class_2.bias"] = torch.randn(29, 20), torch.randn(29)
    converted = from_official(state, "ave", vision=VISION)
    assert converted.config.id2label == CaeAvConfig.from_preset("ave").id2label


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"options": {"num_tokens": 4}}, r"option 'num_tokens' is 4, but .*my_tokens' says 3"),
        ({}, {"audio": {"spec_size": 64}}, r"`audio` 'spec_size' is unknown"),
        ({}, {"method": "dg_sct"}, r"`method` is 'dg_sct', but .* is a key of 'lavish'"),
        ({}, {"task": "avvp"}, r"`task` must be one of ave, avs_s4, avs_ms3, avqa"),
        ({"vis_adapter_blocks_p1.0.gate_tk": torch.full((1,), 0.5)}, {}, r"gate_tk' must be 1"),
        ({"vis_adapter_blocks_p1.5.my_tokens": torch.ones(3, 128)}, {}, r"6 visual adapters for 5 blocks"),
        ({"vis_adapter_blocks_p1.2.my_tokens": torch.ones(3, 8)}, {}, r"is for 8 channels, .* makes 64 in stage 3"),
        ({"mlp_class_3.weight": torch.ones(2, 2)}, {}, r"keys of the checkpoint do not belong to such a model"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(change: dict, arguments: dict, message: str) -> None:
    state = {**authors_state(small_model("ave")), **change}
    task = arguments.pop("task", "ave")
    with pytest.raises(CaeAvError, match=message):
        from_official(state, task, **{"vision": VISION, **arguments})
