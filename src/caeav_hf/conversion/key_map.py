"""
Rules that rename the authors' parameters to this package's names.

Each module has regular expressions and replacements, applied in order to the part of a key after the module's prefix.
`SPLIT` in a new key stands for `query`, `key` and `value`, which the authors stack in one tensor. The golden tests
load `tests/fixtures/golden` by the same rules and compare the outputs numerically.
"""

from collections.abc import Mapping

from ..towers.renaming import (
    HTSAT,
    HTSAT_IGNORED,
    SPLIT,
    SWIN_V2,
    SWIN_V2_IGNORED,
    SWIN_V2_OLD,
    Rules,
    Section,
    section,
)


_STACKED = {r"in_proj_(weight|bias)": SPLIT + r".\1"}

AVMOE: Rules = {
    r"^conv_adapter": "cross_modal_map.tokens",
    r"^fc": "cross_modal_map.channels",
    r"^router\.0": "router.hidden",
    r"^router\.2": "router.bottleneck",
    r"^router\.4": "router.logits",
    r"^multimodal_experts": "cross_modal_experts",
    r"^singlemodal_experts": "unimodal_experts",
    r"my_tokens": "latent_attention.latents",
    r"(cross_modal_experts\.\d+)\.gate_av": r"\1.latent_attention.gate",
    r"gate_self": "latent_attention.gate",
    r"(unimodal_experts\.\d+)\.gate_av": r"\1.attention_gate",
    r"self_attention\.in_proj_(weight|bias)": r"frame_attention.qkv.\1",
    r"self_attention\.out_proj": "frame_attention.output",
    r"down_sampler": "down",
    r"up_sampler": "up",
    r"bn1": "batch_norm_down",
    r"bn2": "batch_norm_up",
    r"ln_before": "norm_before",
    r"ln_post": "norm_after",
}

DG_SCT: Rules = {
    r"^conv_adapter": "cross_modal_map.tokens",
    r"^fc(?=\.)": "cross_modal_map.channels",
    r"^my_tokens": "exchange.latents",
    r"^gate_av": "exchange.gate",
    r"^fc_affine_audio_1": "channel_prompt",
    r"^fc_affine_video_1": "channel_states",
    r"^fc_affine_bottleneck": "channel_bottleneck",
    r"^fc_affine_v_c_att": "channel_map",
    r"^fc_affine_audio_2": "spatial_prompt",
    r"^fc_affine_video_2": "spatial_states",
    r"^fc_affine_v_s_att": "spatial_map",
    r"^temporal_gated\.0": "temporal_gate",
    r"^down_sampler": "down",
    r"^up_sampler": "up",
    r"^bn1": "batch_norm_down",
    r"^bn2": "batch_norm_up",
    r"^ln_before": "norm_before",
    r"^ln_post": "norm_after",
}

DG_SCT_IGNORED: Rules = {
    r"^gate_tk$": "a gate that the authors' code never uses",
    r"^fc_caption\.": "a projection of captions, which the authors' code is never given",
}

_NO_TEMPORAL_GATE = {r"^temporal_gated\.": "a gate along time that only the authors' few-shot code applies"}
NO_NORM_BEFORE = {r"^ln_before\.": "a layer norm that the authors' segmentation never runs"}

# Further tensors of an adapter without effect in a task.
DG_SCT_IGNORED_BY_TASK: Mapping[str, Rules] = {
    "ave": _NO_TEMPORAL_GATE,
    "avvp": _NO_TEMPORAL_GATE,
    "avs_s4": {
        **_NO_TEMPORAL_GATE,
        **NO_NORM_BEFORE,
        r"^conv_adapter\.": "single-source segmentation resizes tokens bicubically instead",
    },
    "avs_ms3": {**_NO_TEMPORAL_GATE, **NO_NORM_BEFORE},
    "avqa": _NO_TEMPORAL_GATE,
}

# Further tensors outside the adapters.
DG_SCT_HEAD_IGNORED: Rules = {
    r"^adapter_token_downsampler\.": "linear maps that never run",
    r"^CMBS\.(?:AVInter|VAInter|video_norm|audio_norm)\.": "layers of the head without effect on its output",
}

_STG_CMA: Rules = {
    r"D_fc1": "down",
    r"D_fc2": "up",
    r"^T_Adapter_Audio": "audio_temporal_adapter",
    r"^T_Adapter": "visual_temporal_adapter",
    r"^gate_v$": "visual_gate",
    r"^gate_a$": "audio_gate",
}

STG_CMA_VIT: Rules = {
    **_STG_CMA,
    r"^S_Adapter_Audio": "spatial_adapter.audio",
    r"^S_Adapter": "spatial_adapter.visual",
    r"^MLP_Adapter_Audio": "global_adapter.audio",
    r"^MLP_Adapter": "global_adapter.visual",
}

STG_CMA_SWIN: Rules = {
    **_STG_CMA,
    r"^S_Adapter2_Audio": "spatial_adapter.audio",
    r"^S_Adapter2": "spatial_adapter.visual",
    r"^S_Adapter_Audio": "global_adapter.audio",
    r"^S_Adapter": "global_adapter.visual",
    r"^attn\.temporal_position_bias_table_audio$": "temporal_biases.audio",
    r"^attn\.temporal_position_bias_table$": "temporal_biases.visual",
}

CASTE: Rules = {
    r"^gate\.v_proj": "agreement_gate.stream_projection",
    r"^gate\.a_proj": "agreement_gate.other_projection",
    r"^gate\.mlp\.0": "agreement_gate.hidden",
    r"^gate\.mlp\.2": "agreement_gate.logits",
    r"attn\.fc_i": "gate_projection",
    r"attn\.fc_k": "key_projection",
    r"attn\.fc_v": "value_projection",
    r"attn\.fc_o": "output_projection",
    r"temporal\.dw": "temporal.conv.depthwise",
    r"temporal\.pw": "temporal.conv.pointwise",
}

_ATTENTION = {
    r"linear_q": "query",
    r"linear_k": "key",
    r"linear_v(?=\.)": "value",
    r"linear_merge": "output",
}

CAPTION_MAPPER: Rules = {**_ATTENTION, r"^mhatt": "attention", r"^norm1": "norm"}

BOTTLENECK: Rules = {r"^(down|up)_proj": r"\1"}


def _case_stream(modality: str, short: str, other: str) -> Rules:
    stream = f"{modality}_stream"
    return {
        rf"^sa_{short}\.": f"{stream}.self_attention.",
        rf"^sa_{short}cap\.": f"{stream}.caption_self_attention.",
        rf"^ca_{short}_qcap\.": f"{stream}.caption_cross_attention.",
        rf"^ca_{short}q{other}\.": f"{stream}.other_cross_attention.",
        rf"^linear_{short}_from_{other}": f"{stream}.from_other",
        rf"^ffn_{short}\.": f"{stream}.feed_forward.",
        rf"^ffn_{short}cap\.": f"{stream}.caption_feed_forward.",
        rf"^tmp_{short}\.dw": f"{stream}.temporal_conv.depthwise",
        rf"^tmp_{short}\.pw": f"{stream}.temporal_conv.pointwise",
        rf"^tmp_{short}\.norm": f"{stream}.temporal_norm",
        rf"^norm_{short}\.": f"{stream}.norm.",
    }


CASE: Rules = {
    **_case_stream("visual", "v", "a"),
    **_case_stream("audio", "a", "v"),
    r"ffn\.dense1": "hidden",
    r"ffn\.dense2": "output",
    r"^topk\.tau": "selection_temperature",
    **_ATTENTION,
}

PROJECTIONS: Rules = {
    r"^proj_v\.": "projections.visual.",
    r"^proj_a\.": "projections.audio.",
    r"^proj_vcap\.": "projections.visual_caption.",
    r"^proj_acap\.": "projections.audio_caption.",
    r"^tau$": "projections.temperature",
}

_RELATION = {
    **_STACKED,
    r"affine_matrix": "projection",
    r"encoder\.encoder\.layers": "encoder.layers",
    r"decoder\.decoder\.layers\.0": "decoder.layer",
    r"encoder\.encoder_layer": "encoder.template",
    r"decoder\.decoder_layer": "decoder.template",
    r"((?:visual|audio)_decoder\.(?:layer|template))\.self_attn": r"\1.unused_self_attention",
    r"self_attn|multihead_attn": "attention",
    r"out_proj": "output",
    r"linear1": "hidden",
    r"linear2": "output",
    r"norm1": "attention_norm",
    r"norm2": "output_norm",
}

EVENT_LOCALIZATION: Rules = {
    r"^CMBS\.video_cas": "visual_scores",
    r"^CMBS\.audio_cas": "audio_scores",
    r"^CMBS\.localize_module\.classifier": "event_classifier",
    r"^CMBS\.localize_module\.event_classifier": "class_classifier",
    r"^(?:temporal_attn\.)?v_fc": "relation.visual_projection",
    r"^(?:temporal_attn\.)?a_fc": "relation.audio_projection",
    r"^temporal_attn\.(?:audio_visual_rnn_layer\.)?": "relation.",
    r"video_gated\.0": "visual_gate",
    r"audio_gated\.0": "audio_gate",
    r"video_(encoder|decoder)": r"visual_\1",
    **_RELATION,
    r"^mlp_class\.": "hidden.",
    r"^mlp_class_2\.": "classifier.",
}


def _by_scale(pattern: str, replacement: str, first: int) -> Rules:
    """Return one rule per scale; the authors count some modules from 0 and some from 1."""
    return {pattern.format(n=scale + first): replacement.format(n=scale) for scale in range(4)}


SEGMENTATION: Rules = {
    r"^audio_linear": "audio_projection",
    **_by_scale(r"^x{n}_linear_\.", "projections.{n}.", first=1),
    r"^temporal_attn\.audio_visual_rnn_layer\.(\d)\.": r"gates.\1.",
    r"^temporal_attn\.v_fc\.(\d)": r"gates.\1.visual_projection",
    r"^temporal_attn\.video_gated\.(\d)\.0": r"gates.\1.visual_gate",
    r"^temporal_attn\.audio_gated\.(\d)\.0": r"gates.\1.audio_gate",
    r"^temporal_attn\.video_encoder\.(\d)": r"gates.\1.visual_encoder",
    r"^temporal_attn\.audio_encoder\.(\d)": r"gates.\1.audio_encoder",
    **_RELATION,
    **_by_scale(r"^tpavi_b{n}\.", "interactions.{n}.", first=1),
    r"align_channel": "audio_projection",
    r"theta": "query",
    r"phi": "key",
    r"\.g\.": ".value.",
    r"W_z\.0": "output",
    r"W_z\.1": "batch_norm",
    r"norm_layer": "norm",
    **_by_scale(r"^path{n}\.", "fusions.{n}.", first=1),
    r"resConfUnit1\.conv1": "lateral.first",
    r"resConfUnit1\.conv2": "lateral.second",
    r"resConfUnit2\.conv1": "residual.first",
    r"resConfUnit2\.conv2": "residual.second",
    r"^output_conv\.0": "upsample",
    r"^output_conv\.2": "hidden",
    r"^output_conv\.4": "classifier",
}

SEGMENTATION_IGNORED: Rules = {
    r"^path4\.resConfUnit1\.": "the coarsest scale has nothing to fuse with, so its first unit never runs",
    r"^temporal_attn\.(?:video|audio)_decoder\.": "segmentation uses only the relations' encoders and gates",
    r"^encoder_backbone\.": "a PVT that is built but never runs",
    r"^conv[1-4]\.": "layers on the PVT's maps, which never run",
    r"^x[1-4]_linear\.": "projections to the PVT's widths, which never run",
}

VIDEO_PARSING: Rules = {
    r"\.qkv\.": f".{SPLIT}.",
    r"^(audio|visual)_token$": r"\1_tokens",
    r"^fc_a\.": "audio_projection.",
    r"^fc_v\.": "visual_projection.",
    r"^fc_st\.": "visual_3d_projection.",
    r"^fc_fusion": "visual_fusion",
    r"^fc_prob_a": "audio_presence",
    r"^fc_prob_v": "visual_presence",
    r"^fc_prob\.": "event_presence.",
    r"^fc_cls": "token_classifier",
    r"^(audio|visual)_cug": r"\1_grouping",
    r"^av_mcg": "event_grouping",
    r"blocks": "layers",
    r"han_encoder": "frame_grouping",
    r"(layers\.\d+)\.norm1": r"\1.attention_norm",
    r"norm2": "feed_forward_norm",
    r"norm_tokens": "token_norm",
    r"norm_post_tokens": "mixed_norm",
    r"norm_x": "state_norm",
    r"norm_new_x": "group_norm",
    r"norm_post(?=\.)": "output_norm",
    r"pre_assign_attn": "attention",
    r"assign\.": "",
    r"\.attn\.": ".attention.",
    r"\bq_proj": "query",
    r"\bk_proj": "key",
    r"\bv_proj": "value",
    r"\bproj\b": "output",
    r"mlp_inter": "token_mixer",
    r"mlp_channels|mlp": "feed_forward",
    r"fc1": "hidden",
    r"fc2": "output",
}

PARSING_GATE: Rules = {
    r"^audio_visual_rnn_layer\.": "",
    r"^audio_gated\.0": "audio_gate",
    **_RELATION,
}

PARSING_GATE_IGNORED: Rules = {
    r"^(?:video_encoder|video_gated|audio_visual_rnn_layer\.visual_rnn)[._]": (
        "gates the sound, but the authors' code continues with the ungated sound"
    )
}

QUESTION_ANSWERING: Rules = {
    **_STACKED,
    r"word2vec": "embedding",
    r"encoder\.lstm": "encoder.rnn",
    r"encoder\.fc": "encoder.projection",
    r"^fc_a1": "audio_hidden",
    r"^fc_a2": "audio_output",
    r"^fc_gl": "grounding_projection",
    **_by_scale(r"^fc{n}\.", "matching.{n}.", first=1),
    r"^attn_v\.": "visual_attention.attention.",
    r"^attn_a\.": "audio_attention.attention.",
    r"out_proj": "output",
    r"^linear11": "visual_attention.hidden",
    r"^linear12": "visual_attention.output",
    r"^linear21": "audio_attention.hidden",
    r"^linear22": "audio_attention.output",
    r"^norm1": "visual_attention.norm",
    r"^norm2": "audio_attention.norm",
    r"^fc_fusion": "fusion",
    r"^fc_ans": "classifier",
}

QUESTION_ANSWERING_IGNORED: Rules = {
    r"^fc_a[12]_pure\.": "a second audio projection that never runs",
    r"^norm3\.": "a layer norm that never runs",
}

# STG-CMA's heads, whose names begin with the task's.
STG_CMA_EVENT_LOCALIZATION: Rules = {r"^mlp_head\.0\.": "hidden.", r"^mlp_head\.2\.": "classifier."}

STG_CMA_SEGMENTATION: Rules = {
    r"^avstask_": "",
    **_by_scale(r"^x{n}_linear\.", "projections.{n}.", first=1),
    **_by_scale(r"^conv{n}\.conv2d_list\.", "convolutions.{n}.", first=1),
    **SEGMENTATION,
}

STG_CMA_SEGMENTATION_IGNORED: Rules = {
    r"^avstask_path4\.resConfUnit1\.": "the coarsest scale has nothing to fuse with, so its first unit never runs",
}

STG_CMA_QUESTION_ANSWERING: Rules = {
    r"^avqatask_": "",
    r"^yb_fc_v\.": "visual_projection.",
    r"^yb_fc_a\.": "audio_projection.",
    **QUESTION_ANSWERING,
}

HEADS: Mapping[str, tuple[Rules, Rules]] = {
    "ave": (EVENT_LOCALIZATION, {}),
    "avvp": (VIDEO_PARSING, {}),
    "avs_s4": (SEGMENTATION, SEGMENTATION_IGNORED),
    "avs_ms3": (SEGMENTATION, SEGMENTATION_IGNORED),
    "avqa": (QUESTION_ANSWERING, QUESTION_ANSWERING_IGNORED),
}


# DG-SCT's adapters are based on LAVisH's, so the names are the same.
LAVISH_IGNORED: Rules = {r"^gate_tk$": "a gate that stays 1"}

LAVISH_HEADS: Mapping[str, tuple[Rules, Rules]] = {
    "ave": (EVENT_LOCALIZATION, {r"^adapter_token_downsampler\.": "linear maps that never run"}),
    "avs_s4": (
        {
            **_by_scale(r"^x{n}_linear\.", "projections.{n}.", first=1),
            **_by_scale(r"^conv{n}\.conv2d_list\.", "convolutions.{n}.", first=1),
            **SEGMENTATION,
        },
        {name: SEGMENTATION_IGNORED[name] for name in (r"^path4\.resConfUnit1\.", r"^encoder_backbone\.")},
    ),
    "avqa": (
        {r"^yb_fc_v\.": "visual_projection.", r"^yb_fc_a\.": "audio_hidden.", **QUESTION_ANSWERING},
        {
            **QUESTION_ANSWERING_IGNORED,
            r"^fc_a1\.": "a projection of another audio network's features, which never runs",
            r"^fc(?:_v|_st|_aq|_vq)?\.": "layers of an older head, which never run",
        },
    ),
}
LAVISH_HEADS = {**LAVISH_HEADS, "avs_ms3": LAVISH_HEADS["avs_s4"]}


def sections(
    task: str,
    pairs: list[tuple[int, int]],
    has_old_swin: bool,
    adapter: Rules = AVMOE,
    adapter_ignored: Rules | None = None,
    head_ignored: Rules | None = None,
) -> list[Section]:
    """
    Return the sections of the whole model; a key belongs to the first section whose prefix it has.

    Args:
        task: Task of the head.
        pairs: For each pair of blocks with adapters, its stage and its index in the stage, both from 0; the authors
            number adapters consecutively over all stages.
        has_old_swin: Whether each stage of the visual tower ends, rather than starts, with downsampling.
        adapter, adapter_ignored: Rules of the method's adapters, and their keys to ignore.
        head_ignored: Keys to ignore beside the adapters and the towers, in addition to the task's.
    """
    head_rules, ignored = HEADS[task]
    found = [
        section(r"swin\.", "model.vision_tower.", SWIN_V2_OLD if has_old_swin else SWIN_V2, SWIN_V2_IGNORED),
        section(r"htsat\.", "model.audio_tower.", HTSAT, HTSAT_IGNORED),
        section(r"mapper\.", "model.caption_mapper.", CAPTION_MAPPER),
        section(r"frame_adapter_v\.", "model.caption_mapper.visual_bottleneck.", BOTTLENECK),
        section(r"wav_adapter_a\.", "model.caption_mapper.audio_bottleneck.", BOTTLENECK),
        section(r"case\.(?=proj_|tau$)", "model.", PROJECTIONS),
        section(r"case\.", "model.case.", CASE),
    ]
    stages = sorted({stage for stage, _ in pairs} | set(range(4)))
    for short, modality in (("vis", "visual"), ("audio", "audio")):
        found += [
            section(rf"{short}_caste_blocks_p1\.{stage}\.", f"model.interactions.{stage}.0.{modality}_caste.", CASTE)
            for stage in stages
        ]
    found += adapter_sections(pairs, adapter, adapter_ignored)
    if task == "avvp":
        found.append(section(r"temporal_attn\.", "head.temporal_gate.", PARSING_GATE, PARSING_GATE_IGNORED))
    return [*found, section("", "head.", head_rules, {**ignored, **(head_ignored or {})})]


def adapter_sections(pairs: list[tuple[int, int]], rules: Rules, ignored: Rules | None = None) -> list[Section]:
    """Return the sections of the adapters, whose arguments are those of [`sections`]."""
    # Some of the authors' files have `moe` in the name, some do not.
    return [
        section(
            rf"{short}(?:_moe)?_adapter_blocks_{part}\.{number}\.",
            f"model.interactions.{stage}.{pair}.{modality}_{branch}_adapter.",
            rules,
            ignored,
        )
        for short, modality in (("vis", "visual"), ("audio", "audio"))
        for number, (stage, pair) in enumerate(pairs)
        for part, branch in (("p1", "attention"), ("p2", "feed_forward"))
    ]
