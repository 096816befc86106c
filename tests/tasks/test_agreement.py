"""The area under the ROC curve of agreement."""

import pytest
import torch

from caeav_hf.errors import CaeAvError
from caeav_hf.tasks.agreement import agreement_auc


def test_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    agreement = torch.randint(0, 5, (40,), generator=generator) / 4  # with ties
    is_matching = torch.rand(40, generator=generator) < 0.4
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in agreement[is_matching]
        for low in agreement[~is_matching]
    ]
    assert agreement_auc(agreement, is_matching) == pytest.approx(sum(pairs) / len(pairs))


def test_ends_and_chance() -> None:
    is_matching = torch.tensor([True, True, False, False])
    assert agreement_auc(torch.tensor([3.0, 2.0, 1.0, 0.0]), is_matching) == 1
    assert agreement_auc(torch.tensor([0.0, 1.0, 2.0, 3.0]), is_matching) == 0
    assert agreement_auc(torch.ones(4), is_matching) == 0.5


def test_wrong_input() -> None:
    with pytest.raises(CaeAvError, match="both kinds"):
        agreement_auc(torch.ones(3), torch.ones(3))
    with pytest.raises(CaeAvError, match=r"\(3,\) and \(2,\)"):
        agreement_auc(torch.ones(3), torch.ones(2))
