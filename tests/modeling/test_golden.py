"""The official formulation reproduces the authors' modules, case by case, to 1e-5."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from caeav_hf import CaeAvConfig
from caeav_hf.configuration_cae_av import CaeAvAudioConfig, CaeAvVisionConfig, TowerStage
from caeav_hf.conversion import key_map
from caeav_hf.modeling.avmoe import AVMoE, load_balancing_loss
from caeav_hf.modeling.captions import CaptionMapper, Captions
from caeav_hf.modeling.case import CASE
from caeav_hf.modeling.caste import CASTE
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.modeling.losses import AlignmentProjections
from caeav_hf.tasks.event_localization.head import CMBSHead
from caeav_hf.tasks.question_answering.head import QuestionAnsweringHead
from caeav_hf.tasks.segmentation.head import SegmentationHead
from caeav_hf.tasks.video_parsing.head import TemporalGate, VideoParsingHead
from caeav_hf.towers.htsat import HtsatTower
from caeav_hf.towers.swin_v2 import SwinV2Tower
from tests.golden import GoldenCase, assert_equal


def toy_config(**overrides) -> CaeAvConfig:
    config = CaeAvConfig.from_preset("ave", size="toy", formulation="official", **overrides)
    config._attn_implementation = "sdpa"
    return config


def of_widths(config: CaeAvConfig, **values) -> SimpleNamespace:
    """Return a configuration for a module whose towers have widths that no real tower has."""
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
    case.load_into(module, key_map.AVMOE)
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
    case.load_into(module, key_map.CASTE)
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
            r"^mapper\.": "",
            **key_map.CAPTION_MAPPER,
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
    module = CASE(config).eval()
    module.projections = AlignmentProjections(config)
    case.load_into(module, {**key_map.PROJECTIONS, **key_map.CASE})
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
    case.load_into(tower, key_map.SWIN_V2_OLD, key_map.SWIN_V2_IGNORED)
    tokens = tower.embed(case.inputs["pixel_values"])
    for stage in range(len(tower.config.stages())):
        tokens = tower.enter_stage(stage, tokens)
        for block in tower.blocks(stage):
            tokens = block(tokens)
        place = tower.config.stages()[stage]
        assert tokens.shape[1:] == (place.num_tokens, place.hidden_size)
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
    indices = {key: value for key, value in tower.state_dict().items() if key.endswith("relative_position_index")}
    case.state |= {key.removeprefix("audio_encoder."): value for key, value in indices.items()}
    case.load_into(tower, key_map.HTSAT)
    encoder = tower.audio_encoder
    logmel = case.outputs["logmel"][:, None]
    normalised = encoder.batch_norm(logmel.transpose(1, 3)).transpose(1, 3)
    assert_equal(encoder.reshape_mel2img(normalised), case.outputs["image"])
    tokens = tower.embed(logmel)
    for stage in range(len(tower.config.stages())):
        tokens = tower.enter_stage(stage, tokens)
        for block in tower.blocks(stage):
            tokens = block(tokens)
        place = tower.config.stages()[stage]
        assert tokens.shape[1:] == (place.num_tokens, place.hidden_size)
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
    case.load_into(head, key_map.EVENT_LOCALIZATION)
    visual, audio = case.inputs["visual"], case.inputs["audio"]
    frames = FrameLayout(*visual.shape[:2])
    logits = head(visual, audio, frames)
    _, _, gate = head.relation(visual, audio, frames)
    assert_equal(logits.event, case.outputs["is_event_logits"])
    assert_equal(logits.clip_class, case.outputs["class_logits"])
    assert_equal(logits.strongest, case.outputs["av_score"])
    assert_equal(gate, case.outputs["audio_visual_gate"])


def stage_of(tokens: torch.Tensor) -> TowerStage:
    """Return the stage of a tower for tokens of shape (N, L, C)."""
    side = math.isqrt(tokens.shape[1])
    return TowerStage(depth=1, num_heads=1, hidden_size=tokens.shape[2], grid=(side, side))


def test_segmentation_head() -> None:
    """To 1e-4, since after the last interpolation single weights are summed over thousands of pixels."""
    case = GoldenCase("head_segmentation")
    channels, frames = int(case.options["channels"]), FrameLayout(1, int(case.options["num_frames"]))
    config = of_widths(
        toy_config(head_audio_dim=int(case.options["audio_fc"]), head_hidden_size=channels, head_intermediate_size=64),
        visual_stages=[stage_of(case.inputs[f"map{scale}"]) for scale in range(4)],
        audio_hidden_size=case.inputs["audio"].shape[-1],
        mask_size=case.outputs["logits"].shape[-1],
    )
    head = SegmentationHead(config).eval()
    case.load_into(head, key_map.SEGMENTATION, key_map.SEGMENTATION_IGNORED)
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
    case.load_into(head, key_map.VIDEO_PARSING)
    logits = head(visual, audio, FrameLayout(*visual.shape[:2]), visual_3d)
    for name in ("event", "audio", "visual"):
        assert_equal(getattr(logits, name).sigmoid(), case.outputs[f"{name}_prob"])
    for name in ("audio", "visual"):
        assert_equal(getattr(logits, f"{name}_frames"), case.outputs[f"{name}_frame_prob"])
        assert_equal(getattr(logits, f"{name}_classes"), case.outputs[f"{name}_class_logits"])


def test_video_parsing_gate() -> None:
    case = GoldenCase("dg_sct_parsing_gate")
    visual, audio = case.inputs["visual"], case.inputs["audio"]
    config = of_widths(
        toy_config(
            head_hidden_size=visual.shape[-1],
            head_gate_size=int(case.options["d_model"]),
            head_gate_scale=float(case.options["gamma"]),
            head_intermediate_size=int(case.options["ffn"]),
        )
    )
    gate = TemporalGate(config).eval()
    case.load_into(gate, key_map.PARSING_GATE, key_map.PARSING_GATE_IGNORED)
    gated = gate(visual, audio, FrameLayout(*visual.shape[:2]))
    assert_equal(gated, case.outputs["visual"])
    assert (gated - visual).abs().max() > 0.01


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
    case.load_into(head, key_map.QUESTION_ANSWERING)
    encoded = head.encode_audio(audio)
    grounding = head.ground(visual, encoded)
    logits = head(grounding, encoded, question, None, FrameLayout(*visual.shape[:2]))
    assert_equal(logits.answer, case.outputs["logits"])
    assert_equal(grounding.match, case.outputs["match_logits"])
    negative = head.ground(case.inputs["visual_negative"], encoded)
    assert_equal(negative.match, case.outputs["match_logits_negative"])
