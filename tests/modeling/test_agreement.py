"""The contrastive loss of CASTE's agreement: pairs, padding, calibration, and learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvModel
from caeav_hf.modeling.cae_av import AgreementCalibration, agreement_loss
from tests.modeling.helpers import toy_batch, toy_model


def naive_loss(visual: Tensor, audio: Tensor, clip: list[int], moment: list[int], far: int, to_logits) -> Tensor:
    """Compute the loss pair by pair."""
    positive, negative = [], []
    for i in range(len(clip)):
        for j in range(len(clip)):
            logit = to_logits(visual[i] @ audio[j])
            if i == j:
                positive.append(-math.log(1 / (1 + math.exp(-logit))))
            elif clip[i] != clip[j] or abs(moment[i] - moment[j]) >= far:
                negative.append(-math.log(1 / (1 + math.exp(logit))))
    return torch.tensor((sum(positive) / len(positive) + sum(negative) / max(1, len(negative))) / 2)


@pytest.mark.parametrize("far", [1, 2, 9])
def test_loss_pair_by_pair(far: int) -> None:
    torch.manual_seed(0)
    visual, audio = F.normalize(torch.randn(2, 7, 6), dim=-1)
    clip, moment = [0, 0, 0, 0, 1, 1, 3], [0, 1, 2, 3, 0, 2, 0]

    def to_logits(agreement: Tensor) -> Tensor:
        return 4 * (agreement - 0.1)

    actual = agreement_loss(visual, audio, torch.tensor(clip), torch.tensor(moment), far, to_logits)
    torch.testing.assert_close(actual, naive_loss(visual, audio, clip, moment, far, to_logits))


def test_one_frame_has_nothing_to_differ_from() -> None:
    one = torch.ones(1, 1)
    loss = agreement_loss(one, one, torch.zeros(1), torch.zeros(1), 1, lambda agreement: 0 * agreement)
    torch.testing.assert_close(loss, torch.tensor(math.log(2) / 2))


def test_padded_frames_take_no_part() -> None:
    model = toy_model(agreement_loss_weight=0.1)
    batch = toy_batch(model.config, 3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    outputs = model(**batch, frame_mask=mask)
    noisy = batch | {"input_features": batch["input_features"].where(mask[..., None, None, None], 1e3)}
    again = model(**noisy, frame_mask=mask)
    torch.testing.assert_close(again.loss_dict["agreement"], outputs.loss_dict["agreement"])
    for stage in range(4):
        assert not outputs.agreement_probs[stage][~mask].any()
        expected = model.model.agreement_calibration.logits(outputs.agreement[stage], stage).sigmoid()
        torch.testing.assert_close(outputs.agreement_probs[stage][mask], expected[mask])


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_presets_are_without_it(formulation: str) -> None:
    model = CaeAvModel(CaeAvConfig.from_preset("ave", size="toy", formulation=formulation))
    assert model.config.agreement_loss_weight == 0
    assert not any("calibration" in name for name, _ in model.named_parameters())
    batch = toy_batch(model.config)
    del batch["labels"]
    outputs = model(**batch, return_loss=True)
    assert "agreement" not in outputs.loss_dict
    assert outputs.agreement_probs is None


def test_avmoe_has_no_agreement() -> None:
    with pytest.raises(StrictDataclassError, match="agreement_loss_weight"):
        CaeAvConfig.from_preset("ave", size="toy", interaction="avmoe", agreement_loss_weight=0.1)


@pytest.mark.slow
def test_it_tells_matching_from_mismatched_sound() -> None:
    """With frames and sounds of five kinds and random towers, agreement depends on the kinds after some steps."""
    torch.manual_seed(0)
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", size="toy", agreement_loss_weight=1.0)).train()
    looks, voices = torch.randn(5, 3, 1, 1), 40 * torch.randn(5, 1, 1, model.config.audio_config.num_mel_bins) - 30

    def clips(kinds: Tensor, heard: Tensor) -> dict[str, Tensor]:
        batch = toy_batch(model.config, *kinds.shape, seed=int(kinds.sum()))
        batch["pixel_values_videos"] = looks[kinds] + 0.3 * batch["pixel_values_videos"]
        batch["input_features"] = voices[heard] + 0.1 * (batch["input_features"] + 30)
        return batch

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-3)
    for _ in range(40):
        kinds = torch.randint(5, (6, 1)).expand(-1, 2)
        loss = model(**clips(kinds, kinds)).loss_dict["agreement"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    kinds = torch.arange(5).repeat_interleave(2)[:, None].expand(-1, 2)
    with torch.no_grad():
        matching = model(**clips(kinds, kinds)).agreement_probs[-1]
        mismatched = model(**clips(kinds, (kinds + 1) % 5)).agreement_probs[-1]
    assert matching.mean() > 0.7
    assert mismatched.mean() < 0.5


def test_calibration_is_one_scale_and_threshold_a_stage() -> None:
    calibration = AgreementCalibration(3)
    assert [tuple(p.shape) for p in calibration.parameters()] == [(3,), (3,)]
    torch.testing.assert_close(calibration.logits(torch.tensor([-1.0, 0.0, 1.0]), 1), torch.tensor([-10.0, 0.0, 10.0]))
