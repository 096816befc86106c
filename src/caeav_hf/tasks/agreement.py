"""Evaluation of how well a model's agreement separates matching from mismatched segments."""

import torch

from ..errors import CaeAvError


def agreement_auc(agreement: torch.Tensor, is_matching: torch.Tensor) -> float:
    """
    Return the area under the ROC curve: the share of pairs in which a matching segment has a higher agreement than a
    mismatched one, where ties count half. 0.5 is chance.

    Args:
        agreement: (N,) agreements of segments, cosines or probabilities.
        is_matching: (N,) bool, whether sound and picture of a segment belong together.

    Raises:
        CaeAvError: The shapes differ, or there are no segments of one kind.
    """
    if agreement.shape != is_matching.shape or agreement.ndim != 1:
        raise CaeAvError(
            f"`agreement` and `is_matching` must be (N,), got {tuple(agreement.shape)} and {tuple(is_matching.shape)}"
        )
    is_matching = is_matching.bool()
    matching, mismatched = agreement[is_matching].double(), agreement[~is_matching].double().sort().values
    if not len(matching) or not len(mismatched):
        raise CaeAvError("`is_matching` must have segments of both kinds")
    below = torch.searchsorted(mismatched, matching)
    below_or_equal = torch.searchsorted(mismatched, matching, right=True)
    return float((below + below_or_equal).double().mean() / (2 * len(mismatched)))
