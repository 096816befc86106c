"""How well a model's agreement tells segments whose sound and picture match from those whose do not."""

import torch

from ..errors import CaeAvError


def agreement_auc(agreement: torch.Tensor, is_matching: torch.Tensor) -> float:
    """
    Area under the ROC curve: how often a matching segment has a higher agreement than a mismatched one, ties counting
    half. 0.5 is chance.

    Args:
        agreement: (N,), of any segments, cosines or probabilities.
        is_matching: (N,) bool, whether what is seen in a segment is what is heard.

    Raises:
        CaeAvError: The shapes differ, or a kind of segments is missing.
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
