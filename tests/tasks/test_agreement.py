"""The area under the ROC curve of agreement, and its average precision."""

import pytest
import torch

from caeav_hf.errors import CaeAvError
from caeav_hf.tasks.agreement import agreement_auc, misalignment_average_precision


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


def test_precision_at_every_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    agreement = torch.randint(0, 9, (40,), generator=generator) / 8  # with ties
    is_matching = torch.rand(40, generator=generator) < 0.7
    # The sum over thresholds of precision times the gain in recall.
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(agreement.tolist())):
        found = agreement <= threshold
        precision = float((found & ~is_matching).sum() / found.sum())
        next_recall = float((found & ~is_matching).sum() / (~is_matching).sum())
        expected, recall = expected + precision * (next_recall - recall), next_recall
    assert misalignment_average_precision(agreement, is_matching) == pytest.approx(expected)


def test_ends_and_chance() -> None:
    is_matching = torch.tensor([True, True, False, False])
    assert agreement_auc(torch.tensor([3.0, 2.0, 1.0, 0.0]), is_matching) == 1
    assert agreement_auc(torch.tensor([0.0, 1.0, 2.0, 3.0]), is_matching) == 0
    assert agreement_auc(torch.ones(4), is_matching) == 0.5
    assert misalignment_average_precision(torch.tensor([3.0, 2.0, 1.0, 0.0]), is_matching) == 1
    assert misalignment_average_precision(torch.tensor([0.0, 1.0, 2.0, 3.0]), is_matching) == pytest.approx(5 / 12)
    assert misalignment_average_precision(torch.ones(4), is_matching) == 0.5


def test_wrong_input() -> None:
    for measure in (agreement_auc, misalignment_average_precision):
        with pytest.raises(CaeAvError, match="both kinds"):
            measure(torch.ones(3), torch.ones(3))
        with pytest.raises(CaeAvError, match=r"\(3,\) and \(2,\)"):
            measure(torch.ones(3), torch.ones(2))
