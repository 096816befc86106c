"""The video parsing model: batches, padding, 3D features, losses, saving."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForVideoParsing
from caeav_hf.tasks.video_parsing.head import TokenMixer
from tests.modeling.helpers import as_double, toy_batch, toy_parsing_model, without_padding
from tests.same import assert_close


PROBS = ("event_probs", "audio_probs", "visual_probs")
FRAME_PROBS = ("audio_frame_probs", "visual_frame_probs")


def parsing_batch(config: CaeAvConfig, batch_size: int = 2, num_frames: int = 4, seed: int = 0) -> dict[str, Tensor]:
    batch = toy_batch(config, batch_size, num_frames, seed)
    generator = torch.Generator().manual_seed(seed)
    batch["labels"] = torch.randint(0, 2, (batch_size, config.num_labels), generator=generator).float()
    if config.visual_3d_size:
        size = (batch_size, num_frames, config.visual_3d_size)
        batch["visual_3d_features"] = torch.randn(size, generator=generator)
    return batch


@settings(max_examples=8, deadline=None)
@given(
    formulation=st.sampled_from(["paper", "official"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    num_frames=st.sampled_from([3, 10]),
    visual_3d_size=st.sampled_from([0, 6]),
    seed=st.integers(0, 100),
)
# The fourth frame has the first one's place, and so the same score as a group.
@example(formulation="official", lengths=[1, 4], num_frames=3, visual_3d_size=6, seed=0)
def test_a_batch_gives_what_its_clips_give(formulation, lengths, num_frames, visual_3d_size, seed) -> None:
    model = toy_parsing_model(formulation=formulation, num_frames=num_frames, visual_3d_size=visual_3d_size).double()
    batch = as_double(parsing_batch(model.config, len(lengths), max(lengths) + 1, seed))
    mask = torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]
    per_frame = ("pixel_values_videos", "input_features", "visual_3d_features")
    with torch.no_grad():
        padded = model(**batch, frame_mask=mask)
        for index, length in enumerate(lengths):
            alone = model(**without_padding(batch, mask, index, per_frame))
            for name in PROBS:
                torch.testing.assert_close(padded[name][index], alone[name][0])
            for name in FRAME_PROBS:
                torch.testing.assert_close(padded[name][index, :length], alone[name][0])
                assert not padded[name][index, length:].any()


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_a_clip_is_as_probable_as_its_frames_say(formulation: str) -> None:
    """In the paper's formulation it lies between them; the authors' code raises each frame above it, by 1 in sum."""
    model = toy_parsing_model(formulation=formulation)
    with torch.no_grad():
        outputs = model(**parsing_batch(model.config))
    for modality in ("audio", "visual"):
        clip, frames = outputs[f"{modality}_probs"], outputs[f"{modality}_frame_probs"]
        if formulation == "paper":
            assert (frames.amin(1) <= clip + 1e-5).all()
            assert (clip <= frames.amax(1) + 1e-5).all()
        else:
            torch.testing.assert_close((frames / clip[:, None] - 1).sum(1), torch.ones_like(clip))


def test_the_loss_is_weakly_supervised() -> None:
    model = toy_parsing_model(audio_label_smoothing=1.0, visual_label_smoothing=0.8, use_case=False)
    batch = {name: value for name, value in parsing_batch(model.config).items() if "caption" not in name}
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


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_every_parameter_learns(formulation: str) -> None:
    model = toy_parsing_model(formulation=formulation, visual_3d_size=6).train()
    model(**parsing_batch(model.config)).loss.backward()
    without = [n for n, p in model.head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


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


@pytest.mark.parametrize(("size", "given"), [(6, None), (0, 6), (6, 5)])
def test_3d_features_must_be_as_configured(size: int, given: int | None) -> None:
    model = toy_parsing_model(visual_3d_size=size)
    batch = parsing_batch(model.config)
    batch["visual_3d_features"] = None if given is None else torch.zeros(2, 4, given)
    with pytest.raises(CaeAvError, match="visual_3d_features"):
        model(**batch)


def test_labels_must_be_of_the_clip() -> None:
    model = toy_parsing_model()
    with pytest.raises(CaeAvError, match=r"`labels`.*\(2, 7\)"):
        model(**{**parsing_batch(model.config), "labels": torch.zeros(2, 4, 7)})


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = toy_parsing_model()
    model.save_pretrained(tmp_path)
    loaded = CaeAvForVideoParsing.from_pretrained(tmp_path)
    batch = parsing_batch(model.config)
    with torch.no_grad():
        assert_close(loaded(**batch).audio_frame_probs, model(**batch).audio_frame_probs)
