"""Features of the frozen text tower, computed once for every distinct caption of a run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from ..constants import MODALITIES


class CaptionFeatures:
    """
    Replaces caption ids in a batch by the features that the frozen text tower gives for them.

    The features are computed before training, in the order of the captions and in groups of fixed size. A step never
    runs the tower again, and - unlike with a cache that fills as clips happen to come - the features of a resumed run
    are those of the first run.

    Args:
        model: A model with `get_caption_features(ids, mask)`, (B, N) each, to (B, N, D).
        captions: Token ids of each caption, without padding. Repeated ones are computed once.
        context_length: Every caption is padded to this many tokens for the tower.
        known: Features (tokens, size) of captions that need not be computed.
        keep_padding: Keep the features of padded positions too; the official formulation reads them.
        group_size: Captions that go through the tower together.
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
        The inputs with `*_caption_embeds` (B, N, D) in place of `*_caption_ids` (B, N); masks stay. Where a caption
        was not read before training, the ids of its side stay for the model to read.
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
