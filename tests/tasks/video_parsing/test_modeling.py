"""The video parsing model: 3D features, losses, the head."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForVideoParsing
from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.tasks.video_parsing.head import TemporalGate, TokenMixer
from tests.modeling.helpers import randomise, task_batch, toy_parsing_model


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_a_clip_is_as_probable_as_its_frames_say(formulation: str) -> None:
    """In the paper's formulation it lies between them; the authors' code raises each frame above it, by 1 in sum."""
    model = toy_parsing_model(formulation=formulation)
    with torch.no_grad():
        outputs = model(**task_batch(model.config))
    for modality in ("audio", "visual"):
        clip, frames = outputs[f"{modality}_probs"], outputs[f"{modality}_frame_probs"]
        if formulation == "paper":
            assert (frames.amin(1) <= clip + 1e-5).all()
            assert (clip <= frames.amax(1) + 1e-5).all()
        else:
            torch.testing.assert_close((frames / clip[:, None] - 1).sum(1), torch.ones_like(clip))


def test_the_loss_is_weakly_supervised() -> None:
    model = toy_parsing_model(audio_label_smoothing=1.0, visual_label_smoothing=0.8, use_case=False)
    batch = {name: value for name, value in task_batch(model.config).items() if "caption" not in name}
    model.loss_weights.update(dict.fromkeys(model.loss_weights, 0.0))
    outputs = model(**batch)
    head, labels = model.head, batch["labels"]
    expected = F.binary_cross_entropy(outputs.event_probs, labels)
    expected += F.binary_cross_entropy(outputs.audio_probs, labels)
    # A present class counts 0.8 plus half of the rest, an absent one half of the rest.
    expected += F.binary_cross_entropy(outputs.visual_probs, labels * 0.8 + 0.1)
    for tokens in (head.audio_tokens, head.visual_tokens):
        expected += F.cross_entropy(head.token_classifier(tokens), torch.arange(len(tokens)))
    torch.testing.assert_close(outputs.loss, expected)


def test_class_tokens_begin_unlike_each_other() -> None:
    model = CaeAvForVideoParsing(CaeAvConfig.from_preset("avvp", size="toy"))
    for tokens in (model.head.audio_tokens, model.head.visual_tokens):
        assert torch.cdist(tokens, tokens).fill_diagonal_(1).min() > 0.01


def test_a_token_mixer_begins_again_where_its_places_end() -> None:
    mixer = TokenMixer(3, 4)
    states = torch.randn(2, 3, 5)
    expected = mixer.output(F.gelu(mixer.hidden(states.transpose(1, 2)))).transpose(1, 2)
    torch.testing.assert_close(mixer(states), expected)
    twice = mixer(torch.cat([states, torch.zeros(2, 3, 5)], 1))
    torch.testing.assert_close(twice, torch.cat([expected, expected], 1))


def test_the_sound_of_a_clip_gates_its_visual_frames() -> None:
    """Padded frames do not affect the gate; models of other methods have none."""
    config = CaeAvConfig.from_preset("avvp", size="toy", method="dg_sct")
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    gate = randomise(TemporalGate(config)).double().eval()
    visual, audio = (torch.randn(1, 5, config.head_hidden_size, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, True, True, False, False]])
    gated = gate(visual, audio, FrameLayout(1, 5, mask))[:, :3]
    torch.testing.assert_close(gated, gate(visual[:, :3], audio[:, :3], FrameLayout(1, 3)))
    factor = gated / visual[:, :3]
    torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))  # one number per frame
    assert ((factor > 1) & (factor < 1.05)).all()
    louder = gate(visual[:, :3], 2 * audio[:, :3], FrameLayout(1, 3))
    assert (louder - gated).abs().max() > 1e-3
    assert toy_parsing_model().head.temporal_gate is None
    with pytest.raises(StrictDataclassClassValidationError, match=r"`head_gate_size` .* a multiple of 4"):
        CaeAvConfig.from_preset("avvp", size="toy", head_gate_size=6)


def test_parsing_reads_the_gated_frames() -> None:
    model = toy_parsing_model(method="dg_sct", head_gate_scale=0.05)
    batch = {name: value for name, value in task_batch(model.config).items() if "caption" not in name}
    gated = model(**batch)
    model.head.temporal_gate.scale = 0.0
    without = model(**batch)
    assert (gated.visual_probs - without.visual_probs).abs().max() > 1e-7
    gated.loss.backward()
    assert all(
        parameter.grad.abs().sum() > 0
        for name, parameter in model.head.temporal_gate.named_parameters()
        if "template" not in name and "key.bias" not in name
    )


@pytest.mark.parametrize(("size", "given"), [(6, None), (0, 6), (6, 5)])
def test_3d_features_must_be_as_configured(size: int, given: int | None) -> None:
    model = toy_parsing_model(visual_3d_size=size)
    batch = task_batch(model.config)
    batch["visual_3d_features"] = None if given is None else torch.zeros(2, 4, given)
    with pytest.raises(CaeAvError, match="visual_3d_features"):
        model(**batch)
