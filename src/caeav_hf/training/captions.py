"""Compute the features of the frozen text tower once for every distinct caption of a run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from ..constants import MODALITIES


class CaptionFeatures:
    """
    Replaces the caption ids of a batch by their features from the frozen text tower.

    The features are computed before training, in the order of the captions and in groups of fixed size. No step runs
    the tower, and unlike with a cache that fills in the order of the batches, a resumed run uses the features of
    the original one.

    Args:
        model: A model with `get_caption_features(ids, mask)`: (B, N), (B, N) -> (B, N, D).
        captions: Token ids of each caption, without padding. Duplicates are computed once.
        context_length: Number of tokens that captions are padded to for the tower.
        known: Features (tokens, size) of captions that are already computed.
        keep_padding: Keep the features of padded positions too; the official formulation uses them.
        group_size: Number of captions per forward pass of the tower.
    """

    def __init__(
        self,
        model: Any,
        captions: Iterable[tuple[int, ...]],
        *,
        context_length: int,
        known: Mapping[tuple[int, ...], torch.Tensor] | None = None,
        keep_padding: bool = False,
        group_size: int = 32,
        show_progress: bool = False,
    ) -> None:
        wanted, known = dict.fromkeys(captions), known or {}
        self.features: dict[tuple[int, ...], torch.Tensor] = {key: known[key] for key in wanted if key in known}
        distinct = [key for key in wanted if key not in known]
        device = next(model.parameters()).device
        groups = range(0, len(distinct), group_size)
        with torch.no_grad():
            for start in tqdm(groups, desc="reading captions", unit="group", disable=not show_progress):
                group = distinct[start : start + group_size]
                ids = torch.zeros(len(group), context_length, dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, caption in enumerate(group):
                    ids[row, : len(caption)] = torch.tensor(caption)
                    mask[row, : len(caption)] = 1
                features = model.get_caption_features(ids.to(device), mask.to(device)).float().cpu()
                for caption, row in zip(group, features, strict=True):
                    self.features[caption] = (row if keep_padding else row[: len(caption)]).clone()

    def insert(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Return the inputs with `*_caption_embeds` (B, N, D) in place of `*_caption_ids` (B, N); masks stay. If the
        features of any caption of a modality are missing, its ids stay and the model encodes them.
        """
        inputs = dict(inputs)
        for side in MODALITIES:
            ids, mask = inputs.get(f"{side}_caption_ids"), inputs.get(f"{side}_caption_mask")
            if ids is None or mask is None:
                continue
            keys = [tuple(row[kept].tolist()) for row, kept in zip(ids, mask.bool(), strict=True)]
            rows = [self.features.get(key) for key in keys if key]
            if not rows or any(row is None for row in rows):
                continue
            embeds = torch.zeros(*ids.shape, rows[0].shape[-1])  # type: ignore[union-attr]
            present = iter(rows)
            for number, key in enumerate(keys):
                if key:  # a clip without a caption keeps zeros
                    row = next(present)[: ids.shape[1]]  # type: ignore[index]
                    embeds[number, : len(row)] = row
            inputs[f"{side}_caption_embeds"] = embeds
            del inputs[f"{side}_caption_ids"]
        return inputs
