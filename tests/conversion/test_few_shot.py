"""Checkpoints of DG-SCT's few-shot code load and compute the same under this package's names."""

import re

import pytest
import torch
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForFewShotLocalization
from caeav_hf.conversion import from_official, key_map
from tests.conversion.official_state import in_their_names, prefixed, without
from tests.golden import GoldenCase
from tests.modeling.helpers import randomise, toy_batch
from tests.same import assert_close
from tests.tasks.few_shot_localization.test_modeling import make_processor


SIZES = {
    "vision_config": {
        "model_type": "cae_av_vit",
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "projection_dim": 12,
    },
    "audio_config": {
        "spec_size": 128,
        "window_size": 4,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": (2, 2, 2, 2),
        "num_attention_heads": (1, 2, 4, 8),
        "num_mel_bins": 64,
        "tile_seconds": 1,
        "projection_dim": 12,
    },
    "text_config": {
        "vocab_size": 600,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "projection_dim": 12,
    },
    "audio_text_config": {
        "vocab_size": 261,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 96,
        "projection_dim": 12,
        "max_position_embeddings": 80,
    },
    "interaction_options": {"reduction": 4, "groups": 2, "num_latent_tokens": 3},
}
VIT = {
    r"^patch_embed\.proj": "conv1",
    r"^cls_token": "class_embedding",
    r"^pos_embed": "positional_embedding",
    r"^layers": "transformer.resblocks",
    r"^norm_pre": "ln_pre",
    r"^norm\.": "ln_post.",
    r"\.norm([12])": r".ln_\1",
    r"attn\.qkv\.": "attn.in_proj_",
    r"attn\.proj": "attn.out_proj",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"^projection$": "proj",
}


@pytest.fixture(scope="module")
def model() -> CaeAvForFewShotLocalization:
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("ave_few_shot", id2label=dict(enumerate("abc")), **SIZES)
    model = randomise(CaeAvForFewShotLocalization(config)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "logit_scale" in name:
                tensor.fill_(1.5 if "audio_text" in name else 2.5)
            elif "tower" in name and tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=0.1)
    return model


def their_name(key: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def named(tensors: dict[str, Tensor], rules: dict[str, str], prefix: str) -> dict[str, Tensor]:
    return {prefix + their_name(key, rules): tensor.clone() for key, tensor in tensors.items()}


def authors_state(model: CaeAvForFewShotLocalization) -> dict[str, Tensor]:
    """The checkpoint that the authors' code would have written, with what it builds and never uses."""
    base, head = model.model, model.head
    vision = named(base.vision_tower.state_dict(), VIT, "ViT.")
    vision["ViT.class_embedding"] = vision["ViT.class_embedding"].flatten()
    vision["ViT.positional_embedding"] = vision["ViT.positional_embedding"][0]
    texts = base.text_tower.state_dict()
    linear = {r"linear1": "0", r"linear2": "2"}
    sound_texts = base.audio_text_tower.state_dict()
    scale = sound_texts.pop("logit_scale")
    projection = {k.removeprefix("text_projection."): v for k, v in sound_texts.items() if k.startswith("text_p")}
    branch = {k.removeprefix("text_model."): v for k, v in sound_texts.items() if k.startswith("text_model.")}
    audio = base.audio_tower
    audio_projection = audio.audio_projection
    names = without(GoldenCase("htsat_small").state, r"^layers\.2\.blocks\.[2-5]\.")
    state = {
        **vision,
        **{f"text_encoder.{k}": v for k, v in texts.items() if k not in ("token_embedding.weight", "logit_scale")},
        "logit_scale": texts["logit_scale"],
        "logit_scale_a": scale,
        **prefixed("htsat.", in_their_names(audio, names, key_map.HTSAT)),
        "htsat.patch_embed.mel_conv2d.weight": torch.randn(2, 1, 4, 12),
        **named(audio_projection.state_dict(), linear, "audio_projection."),
        **prefixed("clap_text_encoder.text_branch.", branch),
        **named(projection, linear, "clap_text_encoder.text_projection."),
        "clap_text_encoder.text_transform.sequential.0.weight": torch.randn(3, 3),
        "clip_adapter.fc.0.weight": head.visual_adapter.down.weight,
        "clip_adapter.fc.2.weight": head.visual_adapter.up.weight,
        "clip_adapter_text.fc.0.weight": head.text_adapter.down.weight,
        "clip_adapter_text.fc.2.weight": head.text_adapter.up.weight,
        "prompt_learner.ctx": head.context,
        "prompt_learner.token_prefix": torch.randn(4, 1, 64),
        "prompt_learner.token_suffix": torch.randn(4, 72, 64),
        "prompt_learner.meta_net.linear1.weight": torch.randn(2, 3),
        **prefixed("audio_visual_contrastive_learner.fc_a1.", head.contrast.state_dict()),
        "CMBS.fc.weight": torch.randn(2, 2),
        "audio_adapter.fc.0.weight": torch.randn(2, 2),
    }
    case = GoldenCase("dg_sct_few_shot")
    layers = [layer for stage in base.interactions for layer in stage]
    names = {k: v for k, v in case.state.items() if k != "gate_tk"}
    for number, layer in enumerate(layers):
        for short, modality in (("vis", "visual"), ("audio", "audio")):
            for part, branch_name in (("p1", "attention"), ("p2", "feed_forward")):
                adapter = getattr(layer, f"{modality}_{branch_name}_adapter")
                prefix = f"{short}_adapter_blocks_{part}.{number}."
                state |= prefixed(prefix, in_their_names(adapter, names, key_map.DG_SCT))
                state |= {f"{prefix}gate_tk": torch.ones(1), f"{prefix}fc_caption.bias": torch.zeros(3)}
    return {f"module.{key}": value.detach().clone() for key, value in state.items()}


def convert(model: CaeAvForFewShotLocalization, state: dict[str, Tensor], **arguments) -> CaeAvForFewShotLocalization:
    values = {"vision": {"num_heads": 2}, "audio": {"tile_seconds": 1}, "text": {"vocab_size": 600}, **arguments}
    return from_official(state, "ave_few_shot", **values)


@torch.no_grad()
def test_a_whole_checkpoint_computes_the_same(model: CaeAvForFewShotLocalization) -> None:
    state = authors_state(model)
    found = convert(model, state, options={"Adapter_downsample": 4, "num_tokens": 3, "is_gate": 1})
    # Token embeddings are in no checkpoint; here they are those of the model.
    found.model.text_tower.token_embedding.load_state_dict(model.model.text_tower.token_embedding.state_dict())
    batch = {name: value for name, value in toy_batch(model.config).items() if "caption" not in name}
    del batch["labels"]
    prompts = make_processor(model.config).class_prompts(["a bell", "rain"])
    expected, outputs = model(**batch, **prompts), found(**batch, **prompts)
    for name in ("visual_logits", "audio_logits", "logits"):
        assert_close(outputs[name], expected[name], 1e-4)
    assert found.config.num_labels == 3
    report = found.conversion_report
    reasons = {key.split(".")[0] for key in report.ignored}
    assert {"prompt_learner", "htsat", "clap_text_encoder", "CMBS", "audio_adapter"} <= reasons
    assert "text tower" in report.missing["model.text_tower.token_embedding.weight"]
    assert "name_classes" in report.missing["head.visual_prompt_ids"]
    config = found.config
    assert (config.audio_config.filter_sampling_rate, config.audio_config.sampling_rate) == (48_000, 32_000)


def test_what_does_not_fit_is_refused(model: CaeAvForFewShotLocalization) -> None:
    state = authors_state(model)
    with pytest.raises(CaeAvError, match="few-shot checkpoint"):
        from_official(state, "ave")
    with pytest.raises(CaeAvError, match="num_tokens"):
        convert(model, state, options={"num_tokens": 7})
    with pytest.raises(CaeAvError, match=r"head\.surprise"):
        convert(model, {**state, "module.head.surprise": torch.zeros(1)})
    with pytest.raises(CaeAvError, match="`method` is 'lavish'"):
        convert(model, state, method="lavish")
    del state["module.ViT.ln_post.weight"]
    with pytest.raises(CaeAvError, match=r"vision_tower\.norm\.weight"):
        convert(model, state)
