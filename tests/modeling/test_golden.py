"""The official formulation reproduces the authors' modules, case by case, to 1e-5."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import checkpoint_filter_fn

from caeav_hf import CaeAvConfig
from caeav_hf.configuration_cae_av import CaeAvAudioConfig, CaeAvVisionConfig
from caeav_hf.modeling.avmoe import AVMoE, load_balancing_loss
from caeav_hf.modeling.backbones import HtsatTower, SwinV2Tower
from caeav_hf.modeling.captions import CaptionMapper, Captions
from caeav_hf.modeling.case import CASE
from caeav_hf.modeling.caste import CASTE
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.heads.event_localization import CMBSHead
from caeav_hf.modeling.heads.question_answering import QuestionAnsweringHead
from caeav_hf.modeling.heads.segmentation import SegmentationHead
from caeav_hf.modeling.heads.video_parsing import VideoParsingHead
from caeav_hf.modeling.losses import AlignmentProjections
from tests.golden import GoldenCase, assert_equal


AVMOE_RULES = {
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

ATTENTION_RULES = {
    r"linear_q": "query",
    r"linear_k": "key",
    r"linear_v(?=\.)": "value",
    r"linear_merge": "output",
}


RELATION_RULES = {
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


def toy_config(**overrides) -> CaeAvConfig:
    config = CaeAvConfig.from_preset("ave", size="toy", formulation="official", **overrides)
    config._attn_implementation = "sdpa"
    return config


def of_widths(config: CaeAvConfig, **values) -> SimpleNamespace:
    """The module's view of a configuration whose towers have other widths than any real one."""
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    private = {"_attn_implementation": "sdpa", "is_official": config.is_official, "num_experts": config.num_experts}
    return SimpleNamespace(**{**fields, **private, **values})


@pytest.mark.parametrize("materialised", [False, True], ids=["factored", "materialised"])
@pytest.mark.parametrize("name", ["ave", "avvp", "avs_self", "avs_latent"])
def test_avmoe(name: str, materialised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GoldenCase(f"avmoe_{name}")
    options = case.options
    config = toy_config(
        num_latent_tokens=int(options["latent_tokens"]),
        num_cross_modal_experts=int(options["cross_modal_experts"]),
        num_unimodal_experts=int(options["unimodal_experts"]),
        adapter_reduction=int(options["reduction"]),
        adapter_groups=int(options["groups"]),
        adapter_batch_norm=options["batch_norm"] == "True",
        adapter_gate=options["gate"] == "True",
        unimodal_attention=options.get("unimodal_attention", "none"),
    )
    states, other = case.inputs["x"], case.inputs["other"]
    module = AVMoE(config, *states.shape[1:], *other.shape[1:]).eval()
    # A unimodal expert of the authors' code has latents only where it attends through them.
    case.load_into(module, AVMOE_RULES)
    if materialised:
        monkeypatch.setattr(type(module.cross_modal_map), "factors", lambda self, num_queries: False)
    added, probs = module(states, other, FrameLayout(1, len(states)))
    assert_equal(added, case.outputs["residual"])
    if "router_probs" in case.outputs:
        assert_equal(probs, case.outputs["router_probs"])
    if "load_balancing_loss" in case.outputs:
        assert_equal(load_balancing_loss(probs), case.outputs["load_balancing_loss"].squeeze())
    if "expert_index" in case.outputs:
        assert torch.equal(probs.argmax(-1), case.outputs["expert_index"])


def test_caste() -> None:
    case = GoldenCase("caste")
    config = toy_config(gate_dim=int(case.options["gate_dim"]), topk_ratio=float(case.options["topk_ratio"]))
    states, other = case.inputs["x"], case.inputs["other"]
    module = CASTE(config, states.shape[-1], other.shape[-1]).eval()
    rules = {
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
    case.load_into(module, rules)
    num_frames = int(case.options["num_frames"])
    frames = FrameLayout(len(states) // num_frames, num_frames)
    added, weights, _ = module(states, other, frames)
    assert_equal(added, case.outputs["residual"])
    assert_equal(weights, case.outputs["weights"])
    spatial = module.spatial.enrichment(states, module.spatial.context(states))
    temporal = module.temporal.enrichment(module.temporal.conv.mix(states, frames))
    assert_equal(module.spatial(states, spatial), case.outputs["spatial"])
    assert_equal(module.temporal(states, temporal), case.outputs["temporal"])


def test_caption_mapper() -> None:
    case = GoldenCase("caption_mapper")
    caption, projected = case.inputs["caption"], case.outputs["projected"]
    config = of_widths(
        toy_config(caption_bottleneck_dim=int(case.options["bottleneck"])),
        text_config=SimpleNamespace(hidden_size=caption.shape[-1]),
        caption_mapper_heads=int(case.options["heads"]),
        visual_hidden_size=projected.shape[-1],
        audio_hidden_size=projected.shape[-1],
    )
    module = CaptionMapper(config).eval()
    for modality in ("visual", "audio"):
        rules = {
            **ATTENTION_RULES,
            r"^mapper\.mhatt": "attention",
            r"^mapper\.norm1": "norm",
            r"^frame_adapter_v\.(down|up)_proj": rf"{modality}_bottleneck.\1",
        }
        missing = {key: value for key, value in module.state_dict().items() if not key.startswith(f"{modality}_")}
        other = {key: value for key, value in missing.items() if "bottleneck" in key}
        case_with_other = GoldenCase("caption_mapper")
        case_with_other.state |= other
        case_with_other.load_into(module, rules)
        mapped = module(Captions(caption, caption))
        assert_equal(module.shared(caption, None), case.outputs["shared"])
        assert_equal(getattr(mapped, modality), projected)


def test_case() -> None:
    case = GoldenCase("case_eval")
    visual, audio = case.inputs["visual"], case.inputs["audio"]
    config = of_widths(
        toy_config(topk_ratio=float(case.options["topk_ratio"]), case_num_heads=int(case.options["heads"])),
        visual_hidden_size=visual.shape[-1],
        audio_hidden_size=audio.shape[-1],
        projection_dim=case.outputs["proj_visual"].shape[-1],
    )
    rules: dict[str, str] = {}
    for modality, short, other in (("visual", "v", "a"), ("audio", "a", "v")):
        stream = f"{modality}_stream"
        rules |= {
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
            rf"^proj_{short}\.": f"projections.{modality}.",
            rf"^proj_{short}cap\.": f"projections.{modality}_caption.",
        }
    rules |= {
        r"ffn\.dense1": "hidden",
        r"ffn\.dense2": "output",
        r"^topk\.tau": "selection_temperature",
        r"^tau": "projections.temperature",
        **ATTENTION_RULES,
    }
    module = CASE(config).eval()
    module.projections = AlignmentProjections(config)
    case.load_into(module, rules)
    num_frames = int(case.options["num_frames"])
    frames, one_caption_a_frame = FrameLayout(len(visual) // num_frames, num_frames), FrameLayout(len(visual), 1)
    captions = Captions(case.inputs["visual_caption"], case.inputs["audio_caption"])
    output = module(visual, audio, captions, frames, one_caption_a_frame)
    for name in ("visual", "audio", "visual_caption", "audio_caption"):
        assert_equal(getattr(output, name), case.outputs[name])
        projected = getattr(module.projections, name)(getattr(output, name).mean(1))
        expected = case.outputs[f"proj_{name}"]
        if (F.normalize(projected, dim=-1) - expected).abs().max() < (projected - expected).abs().max():
            projected = F.normalize(projected, dim=-1)
        assert_equal(projected, expected)


def test_swin_v2() -> None:
    case = GoldenCase("swinv2_small")
    numbers = {key: json.loads(value.replace("(", "[").replace(")", "]")) for key, value in case.options.items()}
    config = CaeAvVisionConfig(
        image_size=numbers["img_size"],
        embed_dim=numbers["embed_dim"],
        depths=numbers["depths"],
        num_heads=numbers["num_heads"],
        window_size=numbers["window_size"],
    )
    tower = SwinV2Tower(config).eval()
    state = checkpoint_filter_fn(dict(case.state), tower)
    tower.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    tokens = tower.embed(case.inputs["pixel_values"])
    for stage in range(tower.num_stages):
        tokens = tower.enter_stage(stage, tokens)
        for block in tower.blocks(stage):
            tokens = block(tokens)
        assert tokens.shape[1:] == tower.stage_sizes()[stage]
        assert_equal(tokens, case.outputs[f"stage{stage}"])
    assert_equal(tower.final_norm(tokens), case.outputs["final"])


def test_htsat() -> None:
    case = GoldenCase("htsat_small")
    numbers = {key: json.loads(value) for key, value in case.options.items()}
    config = CaeAvAudioConfig(
        spec_size=numbers["spec_size"],
        window_size=numbers["window_size"],
        patch_embeds_hidden_size=numbers["embed_dim"],
        hidden_size=numbers["embed_dim"] * 8,
        depths=numbers["depths"],
        num_attention_heads=numbers["num_heads"],
        num_mel_bins=numbers["n_mels"],
    )
    tower = HtsatTower(config).eval()
    state = dict(case.state)
    for key in [key for key in state if "attn.qkv" in key]:
        for name, part in zip(("query", "key", "value"), state.pop(key).chunk(3), strict=True):
            state[key.replace("attn.qkv", f"attention.self.{name}")] = part
    case.state = state
    rules = {
        r"^bn0": "batch_norm",
        r"norm1": "layernorm_before",
        r"norm2": "layernorm_after",
        r"attn\.proj": "attention.output.dense",
        r"attn\.relative_position_bias_table": "attention.self.relative_position_bias_table",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
        r"^": "audio_encoder.",
    }
    indices = {key: value for key, value in tower.state_dict().items() if key.endswith("relative_position_index")}
    case.state |= {key.removeprefix("audio_encoder."): value for key, value in indices.items()}
    case.load_into(tower, rules)
    encoder = tower.audio_encoder
    logmel = case.outputs["logmel"][:, None]
    normalised = encoder.batch_norm(logmel.transpose(1, 3)).transpose(1, 3)
    assert_equal(encoder.reshape_mel2img(normalised), case.outputs["image"])
    tokens = tower.embed(logmel)
    for stage in range(tower.num_stages):
        tokens = tower.enter_stage(stage, tokens)
        for block in tower.blocks(stage):
            tokens = block(tokens)
        assert tokens.shape[1:] == tower.stage_sizes()[stage]
        assert_equal(tokens, case.outputs[f"stage{stage}"])


def test_event_localization_head() -> None:
    case = GoldenCase("head_event_localization")
    number = {key: int(value) for key, value in case.options.items()}
    config = of_widths(
        toy_config(
            head_visual_dim=number["video_fc"],
            head_audio_dim=number["audio_fc"],
            head_hidden_size=number["d_model"],
            head_num_heads=number["heads"],
            head_intermediate_size=number["ffn"],
        ),
        visual_hidden_size=number["visual_dim"],
        audio_hidden_size=number["audio_dim"],
        num_labels=number["classes"],
    )
    head = CMBSHead(config).eval()
    case.split_attention_projections()
    rules = {
        r"^CMBS\.video_cas": "visual_scores",
        r"^CMBS\.audio_cas": "audio_scores",
        r"^CMBS\.localize_module\.classifier": "event_classifier",
        r"^CMBS\.localize_module\.event_classifier": "class_classifier",
        r"^temporal_attn\.": "relation.",
        r"relation\.v_fc": "relation.visual_projection",
        r"relation\.a_fc": "relation.audio_projection",
        r"audio_visual_rnn_layer\.": "",
        r"video_gated\.0": "visual_gate",
        r"audio_gated\.0": "audio_gate",
        r"video_(encoder|decoder)": r"visual_\1",
        **RELATION_RULES,
    }
    case.load_into(head, rules)
    visual, audio = case.inputs["visual"], case.inputs["audio"]
    frames = FrameLayout(*visual.shape[:2])
    logits = head(visual, audio, frames)
    _, _, gate = head.relation(visual, audio, frames)
    assert_equal(logits.event, case.outputs["is_event_logits"])
    assert_equal(logits.clip_class, case.outputs["class_logits"])
    assert_equal(logits.strongest, case.outputs["av_score"])
    assert_equal(gate, case.outputs["audio_visual_gate"])


def test_segmentation_head() -> None:
    """To 1e-4: behind the last interpolations single weights are added up over thousands of pixels."""
    case = GoldenCase("head_segmentation")
    channels, frames = int(case.options["channels"]), FrameLayout(1, int(case.options["num_frames"]))
    config = of_widths(
        toy_config(head_audio_dim=int(case.options["audio_fc"]), head_hidden_size=channels, head_intermediate_size=64),
        vision_config=SimpleNamespace(embed_dim=case.inputs["map0"].shape[-1], depths=(1, 1, 1, 1)),
        audio_hidden_size=case.inputs["audio"].shape[-1],
        mask_size=case.outputs["logits"].shape[-1],
    )
    head = SegmentationHead(config).eval()
    case.split_attention_projections()
    rules = {
        r"^audio_linear": "audio_projection",
        r"^x(\d)_linear_": lambda found: f"projections.{int(found[1]) - 1}",
        r"^temporal_attn\.audio_visual_rnn_layer\.(\d)\.": r"gates.\1.",
        r"^temporal_attn\.v_fc\.(\d)": r"gates.\1.visual_projection",
        r"^temporal_attn\.video_gated\.(\d)\.0": r"gates.\1.visual_gate",
        r"^temporal_attn\.audio_gated\.(\d)\.0": r"gates.\1.audio_gate",
        r"^temporal_attn\.video_encoder\.(\d)": r"gates.\1.visual_encoder",
        r"^temporal_attn\.audio_encoder\.(\d)": r"gates.\1.audio_encoder",
        **RELATION_RULES,
        r"^tpavi_b(\d)": lambda found: f"interactions.{int(found[1]) - 1}",
        r"align_channel": "audio_projection",
        r"theta": "query",
        r"phi": "key",
        r"\.g\.": ".value.",
        r"W_z\.0": "output",
        r"W_z\.1": "batch_norm",
        r"norm_layer": "norm",
        r"^path(\d)": lambda found: f"fusions.{int(found[1]) - 1}",
        r"resConfUnit1\.conv1": "lateral.first",
        r"resConfUnit1\.conv2": "lateral.second",
        r"resConfUnit2\.conv1": "residual.first",
        r"resConfUnit2\.conv2": "residual.second",
        r"^output_conv\.0": "upsample",
        r"^output_conv\.2": "hidden",
        r"^output_conv\.4": "classifier",
    }
    # The coarsest fusion has nothing to add, and the gating's decoders never run.
    case.load_into(head, rules, ignore=r"^path4\.resConfUnit1|_decoder\.")
    output = head(tuple(case.inputs[f"map{scale}"] for scale in range(4)), case.inputs["audio"][0], frames)
    assert_equal(output.maps[3], case.outputs["map3"])
    assert_equal(output.audio[3], case.outputs["audio3"][0])
    assert_equal(output.logits, case.outputs["logits"], tolerance=1e-4)


def test_video_parsing_head() -> None:
    case = GoldenCase("head_video_parsing")
    number = {key: int(value) for key, value in case.options.items() if value.isdigit()}
    audio, visual, visual_3d = (case.inputs[name] for name in ("audio", "visual", "visual_3d"))
    config = of_widths(
        toy_config(
            head_hidden_size=number["dim"],
            head_num_heads=number["heads"],
            unimodal_grouping_depth=number["depth_audio"],
            cross_modal_grouping_depth=number["depth_av"],
            num_frames=audio.shape[1],
            visual_3d_size=visual_3d.shape[-1],
        ),
        audio_hidden_size=audio.shape[-1],
        visual_hidden_size=visual.shape[-1],
        num_labels=number["classes"],
    )
    head = VideoParsingHead(config).eval()
    for key in [key for key in case.state if ".attn.qkv." in key]:
        kind = key.rpartition(".")[2]
        for name, part in zip(("query", "key", "value"), case.state.pop(key).chunk(3), strict=True):
            case.state[key.replace(f"qkv.{kind}", f"{name}.{kind}")] = part
    rules = {
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
        r"([qkv])_proj": lambda found: {"q": "query", "k": "key", "v": "value"}[found[1]],
        r"\bproj\b": "output",
        r"mlp_inter": "token_mixer",
        r"mlp_channels|mlp": "feed_forward",
        r"fc1": "hidden",
        r"fc2": "output",
    }
    case.load_into(head, rules)
    logits = head(visual, audio, FrameLayout(*visual.shape[:2]), visual_3d)
    for name in ("event", "audio", "visual"):
        assert_equal(getattr(logits, name).sigmoid(), case.outputs[f"{name}_prob"])
    for name in ("audio", "visual"):
        assert_equal(getattr(logits, f"{name}_frames"), case.outputs[f"{name}_frame_prob"])
        assert_equal(getattr(logits, f"{name}_classes"), case.outputs[f"{name}_class_logits"])


def test_question_answering_head() -> None:
    case = GoldenCase("head_question_answering")
    visual, audio, question = (case.inputs[name] for name in ("visual", "audio", "question"))
    config = of_widths(
        toy_config(
            head_num_heads=int(case.options["heads"]),
            question_vocab_size=int(case.options["vocabulary"]),
            matching_hidden_sizes=[int(width) for width in case.options["match_widths"].split(",")],
        ),
        audio_hidden_size=audio.shape[-1],
        visual_hidden_size=visual.shape[-1],
        num_labels=int(case.options["answers"]),
    )
    head = QuestionAnsweringHead(config).eval()
    for modality in ("a", "v"):
        for kind in ("weight", "bias"):
            parts = case.state.pop(f"attn_{modality}.in_proj_{kind}").chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                case.state[f"attn_{modality}.{name}.{kind}"] = part
    rules = {
        r"word2vec": "embedding",
        r"encoder\.lstm": "encoder.rnn",
        r"encoder\.fc": "encoder.projection",
        r"^fc_a1": "audio_hidden",
        r"^fc_a2": "audio_output",
        r"^fc_gl": "grounding_projection",
        r"^fc(\d)\.": lambda found: f"matching.{int(found[1]) - 1}.",
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
    case.load_into(head, rules)
    encoded = head.encode_audio(audio)
    grounding = head.ground(visual, encoded)
    logits = head(grounding, encoded, question, None, FrameLayout(*visual.shape[:2]))
    assert_equal(logits.answer, case.outputs["logits"])
    assert_equal(grounding.match, case.outputs["match_logits"])
    negative = head.ground(case.inputs["visual_negative"], encoded)
    assert_equal(negative.match, case.outputs["match_logits_negative"])
