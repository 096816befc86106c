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
    is_matching = _checked(agreement, is_matching)
    matching, mismatched = agreement[is_matching].double(), agreement[~is_matching].double().sort().values
    below = torch.searchsorted(mismatched, matching)
    below_or_equal = torch.searchsorted(mismatched, matching, right=True)
    return float((below + below_or_equal).double().mean() / (2 * len(mismatched)))


def misalignment_average_precision(agreement: torch.Tensor, is_matching: torch.Tensor) -> float:
    """
    Return the average precision of a search for mismatched segments by low agreement: the mean, over the mismatched
    segments, of the share of mismatched ones among those whose agreement is as low or lower. Chance is the share of
    mismatched segments.

    Args:
        agreement, is_matching: See [`agreement_auc`].

    Raises:
        CaeAvError: See [`agreement_auc`].
    """
    is_matching = _checked(agreement, is_matching)
    order = agreement.double().argsort()
    values, found = agreement.double()[order], (~is_matching[order]).cumsum(0)
    # Segments of one agreement are found together, so all of them count at the last one's place.
    last = torch.searchsorted(values, agreement[~is_matching].double(), right=True) - 1
    return float((found[last] / (last + 1)).double().mean())


def _checked(agreement: torch.Tensor, is_matching: torch.Tensor) -> torch.Tensor:
    """
    Return `is_matching` as bool.

    Raises:
        CaeAvError: See [`agreement_auc`].
    """
    if agreement.shape != is_matching.shape or agreement.ndim != 1:
        raise CaeAvError(
            f"`agreement` and `is_matching` must be (N,), got {tuple(agreement.shape)} and {tuple(is_matching.shape)}"
        )
    is_matching = is_matching.bool()
    if is_matching.all() or not is_matching.any():
        raise CaeAvError("`is_matching` must have segments of both kinds")
    return is_matching
