"""Whole checkpoints under the authors' names: those of the reference cases, with weights of small models."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from caeav_hf import CaeAvConfig
from caeav_hf.conversion import key_map
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.task import get_task
from caeav_hf.towers.renaming import Rules, rename, split
from tests.golden import GoldenCase


TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")

# The towers of the reference cases, the audio one with a third of the blocks in its third stage.
VISION = {"image_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}
AUDIO = {
    "spec_size": 128,
    "window_size": 4,
    "patch_embeds_hidden_size": 8,
    "hidden_size": 64,
    "depths": (2, 2, 2, 2),
    "num_attention_heads": (1, 2, 4, 8),
    "num_mel_bins": 64,
    "tile_seconds": 1,
}
TEXT = {"vocab_size": 514, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES = {
    "num_latent_tokens": 3,
    "adapter_reduction": 4,
    "adapter_groups": 2,
    "gate_dim": 128,
    "caption_bottleneck_dim": 4,
    "projection_dim": 24,
    "head_visual_dim": 24,
    "head_audio_dim": 8,
    "head_hidden_size": 16,
    "head_num_heads": 4,
    "head_intermediate_size": 64,
    "mask_size": 64,
    "matching_hidden_sizes": (24, 20, 12),
}
# Settings that no tensor determines.
UNTOLD = {"head_num_heads": 4, "mask_size": 64}
_AVMOE_CASES = {"ave": "ave", "avvp": "avvp", "avs_s4": "avs_self", "avs_ms3": "avs_latent", "avqa": "ave"}
_HEAD_CASES = {
    "ave": "event_localization",
    "avvp": "video_parsing",
    "avs_s4": "segmentation",
    "avs_ms3": "segmentation",
    "avqa": "question_answering",
}


def small_config(task: str, **overrides) -> CaeAvConfig:
    """Return the configuration of the small model, which conversion must infer."""
    values = {"vision_config": VISION, "audio_config": AUDIO, "text_config": TEXT, **SIZES}
    if task == "avvp":
        values |= {"visual_3d_size": 32, "cross_modal_grouping_depth": 6}
    return CaeAvConfig.from_preset(task, formulation="official", **{**values, **overrides})


def small_model(config: CaeAvConfig, seed: int = 0) -> CaeAvPreTrainedModel:
    """Build a model without zero parameters, whose towers have the weights of the reference cases."""
    torch.manual_seed(seed)
    model = get_task(config.task).model_class(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "tower" not in name:
                tensor.copy_(tensor + 0.2 * torch.randn_like(tensor) if tensor.ndim < 2 else tensor * 1.5)
            if "up.weight" in name or "gamma" in name or name.endswith(("gate", "batch_norm.weight")):
                tensor.copy_(0.5 + 0.2 * torch.randn_like(tensor))
        for name, buffer in model.named_buffers():
            if "tower" not in name and name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    for tower, case in (("vision_tower", "swinv2_small"), ("audio_tower", "htsat_small")):
        GoldenCase(case)  # the names exist
        for name, tensor in getattr(model.model, tower).named_parameters():
            if tensor.ndim > 1 and "patch" not in name:
                nn.init.normal_(tensor, std=0.1)
            elif "norm" in name and name.endswith("weight"):
                # Otherwise all tokens after a norm have equal length, and only rounding would select the most salient.
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def in_their_names(module: nn.Module, names: dict[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return a module's tensors under the authors' names, shaped as in a reference case."""
    ours, theirs = module.state_dict(), {}
    for key, like in names.items():
        new_keys = [new_key for new_key, _ in split(rename(key, rules), torch.zeros(3))]
        value = torch.cat([ours[new_key] for new_key in new_keys]) if len(new_keys) > 1 else ours[new_keys[0]]
        shape = tuple(value.shape)
        while len(shape) < like.ndim:
            shape = (*shape, 1)
        theirs[key] = value.reshape(shape[: like.ndim] if value.numel() > 1 else (1,) * like.ndim).clone()
    return theirs


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def without(names: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {key: value for key, value in names.items() if not re.search(pattern, key)}


def avmoe_names(task: str, modality: str, audio_gate: bool) -> dict[str, Tensor]:
    """Return an adapter's names in the authors' program of the task, in which visual adapters always have gates."""
    names = without(GoldenCase(f"avmoe_{_AVMOE_CASES[task]}").state, r"experts\.1\.")
    if task == "avqa":
        names = without(names, r"\.bn\d\.")
        names |= {k.replace("singlemodal_experts.0", "singlemodal_experts.1"): v for k, v in names.items()}
    names = without(names, r"\.gate$")
    if audio_gate or modality == "visual":
        experts = {found[0] for key in names if (found := re.match(r"\w+_experts\.\d+\.", key))}
        names |= {f"{expert}gate": torch.zeros(1) for expert in experts}
    return names


def official_state(
    model: CaeAvPreTrainedModel, extras: bool = True, head: bool = True, adapters: bool = True
) -> dict[str, Tensor]:
    """
    Return a model's checkpoint as the authors' code would write it.

    Args:
        model: In the official formulation.
        extras: Whether to add what the authors' programs hold and never use.
        head: Whether the task head is in it.
        adapters: Whether CAE-AV's or AVMoE's adapters are in it.
    """
    config, base, task = model.config, model.model, model.config.task
    moe = "_moe" if task in ("ave", "avs_s4", "avs_ms3") else ""
    state: dict[str, Tensor] = {}
    swin = GoldenCase("swinv2_small").state
    state |= prefixed("swin.", in_their_names(base.vision_tower, swin, key_map.SWIN_V2_OLD))
    htsat = without(GoldenCase("htsat_small").state, r"^layers\.2\.blocks\.[2-5]\.")
    state |= prefixed("htsat.", in_their_names(base.audio_tower, htsat, key_map.HTSAT))
    number = 0
    for stage, layers in enumerate(base.interactions):
        if config.interaction == "cae_av":
            for short, modality in (("vis", "visual"), ("audio", "audio")):
                caste = getattr(layers[0], f"{modality}_caste")
                theirs = in_their_names(caste, GoldenCase("caste").state, key_map.CASTE)
                state |= prefixed(f"{short}_caste_blocks_p1.{stage}.", theirs)
        if not adapters or stage + 1 not in config.adapter_stages:
            continue
        for layer in layers:
            for short, modality in (("vis", "visual"), ("audio", "audio")):
                names = avmoe_names(task, modality, config.adapter_gate)
                for part, branch in (("p1", "attention"), ("p2", "feed_forward")):
                    adapter = getattr(layer, f"{modality}_{branch}_adapter")
                    theirs = in_their_names(adapter, names, key_map.AVMOE)
                    state |= prefixed(f"{short}{moe}_adapter_blocks_{part}.{number}.", theirs)
            number += 1
    if config.use_case:
        case = GoldenCase("case_eval").state
        is_projection = r"^(?:proj_|tau$)"
        projections = {key: value for key, value in case.items() if re.search(is_projection, key)}
        state |= prefixed("case.", in_their_names(base.case, without(case, is_projection), key_map.CASE))
        state |= prefixed("case.", in_their_names(base, projections, key_map.PROJECTIONS))
        mapper = GoldenCase("caption_mapper").state
        for part, module in (("v", "visual"), ("a", "audio")):
            names = {k.removeprefix("frame_adapter_v."): v for k, v in mapper.items() if k.startswith("frame_adapter")}
            bottleneck = getattr(base.caption_mapper, f"{module}_bottleneck")
            theirs = in_their_names(bottleneck, names, key_map.BOTTLENECK)
            state |= prefixed("frame_adapter_v." if part == "v" else "wav_adapter_a.", theirs)
        names = {k.removeprefix("mapper."): v for k, v in mapper.items() if k.startswith("mapper.")}
        state |= prefixed("mapper.", in_their_names(base.caption_mapper, names, key_map.CAPTION_MAPPER))
    if not head:
        return state
    rules, ignored = key_map.HEADS[task]
    names = without(GoldenCase(f"head_{_HEAD_CASES[task]}").state, "|".join(ignored) or "^$")
    state |= in_their_names(model.head, names, rules)
    return {**state, **(_extras(task) if extras else {})}


def _extras(task: str) -> dict[str, Tensor]:
    def empty(keys: Iterable[str]) -> dict[str, Tensor]:
        return {key: torch.randn(2, 2) for key in keys}

    extras = empty(
        (
            *("swin.head.weight", "swin.layers.0.blocks.1.attn.relative_position_index", "htsat.head.bias"),
            *("htsat.spectrogram_extractor.stft.conv_real.weight", "htsat.layers.0.blocks.1.attn_mask"),
            *("swin.layers.0.blocks.0.attn.k_bias", "htsat.layers.1.blocks.0.attn.relative_position_index"),
        )
    )
    extras |= {
        "swin.layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        "htsat.tscam_conv.weight": torch.randn(527, 4),
    }
    if task.startswith("avs"):
        names = GoldenCase("head_segmentation").state
        extras |= {k: v for k, v in names.items() if re.search("|".join(key_map.SEGMENTATION_IGNORED), k)}
        extras |= empty(("encoder_backbone.patch_embed1.proj.weight", "conv4.conv2d_list.0.weight", "x3_linear.bias"))
        extras |= empty(("temporal_attn.video_decoder.0.decoder.layers.0.self_attn.in_proj_weight",))
    if task == "avqa":
        extras |= empty(("fc_a1_pure.weight", "fc_a2_pure.bias", "norm3.weight"))
    return extras
