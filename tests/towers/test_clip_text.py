"""CLIP's text tower: texts without their padding."""

import pytest
import torch
from torch.testing import assert_close

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.towers.clip_text import ClipTextTower


LENGTHS = (3, 7, 1, 7)


@pytest.fixture(scope="module")
def tower() -> ClipTextTower:
    torch.manual_seed(0)
    tower = ClipTextTower(CaeAvConfig.from_preset("ave", "toy").text_config)
    tower.init_parameters()
    return tower.eval().requires_grad_(False)


def texts(tower: ClipTextTower) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and masks (4, 9) of texts of `LENGTHS` tokens."""
    ids = torch.randint(1, tower.vocab_size, (len(LENGTHS), 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    return ids * mask, mask.long()


@pytest.mark.parametrize("is_trained", [False, True])
def test_padding_is_not_encoded(tower: ClipTextTower, is_trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = texts(tower)
    with torch.no_grad():
        whole = tower.encode(ids)
    encoded = []
    encode = tower.encode
    monkeypatch.setattr(tower, "encode", lambda row: encoded.append(row.shape[1]) or encode(row))
    tower.requires_grad_(is_trained)
    try:
        features = tower(ids, mask)
    finally:
        tower.requires_grad_(False)
    assert encoded == list(LENGTHS)
    assert features.requires_grad == is_trained
    assert_close(features.detach(), whole * mask[..., None], rtol=1e-4, atol=1e-5)


def test_features_with_and_without_padding_are_kept_apart(tower: ClipTextTower) -> None:
    ids, mask = texts(tower)
    with torch.no_grad():
        whole = tower.encode(ids)
    for _ in range(2):
        assert_close(tower(ids), whole, rtol=1e-4, atol=1e-5)
        assert_close(tower(ids, mask), whole * mask[..., None], rtol=1e-4, atol=1e-5)


def test_a_text_ends_with_its_last_real_token_if_it_has_one(tower: ClipTextTower) -> None:
    ids, mask = texts(tower)
    mask[1, 2] = 0
    mask[3] = 0
    features = tower(ids, mask)
    # Attention is causal: real tokens attend to those before them, be they real or not.
    assert_close(features[1], tower(ids[1:2])[0] * (torch.arange(9) < 7)[:, None], rtol=1e-4, atol=1e-5)
    assert_close(features[3], tower(ids[3:])[0], rtol=1e-4, atol=1e-5)


def test_only_the_official_formulation_reads_padding() -> None:
    for formulation in ("paper", "official"):
        config = CaeAvConfig.from_preset("ave", "toy", formulation=formulation)
        encoder = CaeAvForEventLocalization(config).eval().cae_av
        features = encoder.get_caption_features(*texts(encoder.text_tower))
        assert features[2, 1:].any() == (formulation == "official")
