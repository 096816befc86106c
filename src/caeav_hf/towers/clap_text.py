"""CLAP's text branch (Transformers' `ClapTextModelWithProjection`), frozen: embeds descriptions of sounds."""

import math

import torch
from torch import Tensor, nn
from transformers import ClapTextConfig, ClapTextModelWithProjection

from .frozen import FrozenConstant, is_adapted


class ClapTextTower(ClapTextModelWithProjection):
    """
    `ClapTextModelWithProjection` with its own parameter names, and CLAP's `logit_scale` of sounds and texts, which is
    the logarithm of a factor.
    """

    def __init__(self, config: ClapTextConfig):
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self._embeddings = FrozenConstant()
        self._ids = torch.empty(0)

        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def forget(self) -> None:
        """Drop cached values computed from the weights."""
        self._embeddings.key = ()

    def embed_prompts(self, ids: Tensor) -> Tensor:
        """
        Embed texts of token ids (K, M), padded at the end with `pad_token_id`, to (K, P), not normalised. The last
        texts are kept, since they stay the same from batch to batch.
        """

        def compute() -> Tensor:
            mask = (ids != self.config.pad_token_id).long()
            return self(input_ids=ids, attention_mask=mask).text_embeds

        if torch.compiler.is_compiling():
            return compute()
        if not (self._ids.device == ids.device and torch.equal(self._ids, ids)):
            self._ids = ids.clone()
            self.forget()
        weight = self.text_projection.linear2.weight
        return self._embeddings.get(list(self.parameters()), weight.dtype, compute, not is_adapted(self))
