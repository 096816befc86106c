"""
The description decoder: a small auto-regressive Transformer with cross-attention [p, fig], the mixture of its states
with the text of a large model (MoHE), greedy decoding, and the focal loss of the text.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model

from ...configuration_ssuformer import SsuFormerConfig
from ...constants import IGNORED_LABEL
from ..attention import MultiHeadAttention
from ..collectives import at_least_float32, batch_mean
from .positions import NormalEmbedding


@dataclass
class ExpertText:
    """
    The expert's text on each of N frames.

    Attributes:
        states: (N, M, C) features of the frozen text tower.
        mask: (N, M) bool, true for real tokens; every frame has at least one.
        present: (N,) bool, false for frames without such a text.
    """

    states: Tensor
    mask: Tensor
    present: Tensor


class HierarchicalExperts(nn.Module):
    """
    Mixture of hierarchical experts: a router weighs the decoder's states against a large model's "visual-text combined
    prompt embeddings" at the end of the decoder [p].

    The expert is a text by a video-language model, made beforehand, through the frozen text tower; no equation is
    printed, so this is [ours]: e = MHA(h <- linear X), w = softmax(MLP[h; e]) of both at each position, and
    h' = LN(w_1 h + w_2 e). Without a text h' = h.
    """

    def __init__(self, config: SsuFormerConfig):
        super().__init__()
        size, heads = config.decoder_config.hidden_size, config.decoder_config.num_attention_heads
        self.projection = nn.Linear(config.text_config.hidden_size, size)
        self.attention = MultiHeadAttention(config, size, heads, config.dropout)
        self.router = nn.Sequential(nn.Linear(2 * size, size), nn.GELU(), nn.Linear(size, 2))
        self.norm = nn.LayerNorm(size)

    def forward(self, states: Tensor, text: ExpertText) -> tuple[Tensor, Tensor]:
        """h (N, L, W) -> h' (N, L, W), and the router's weights (N, L, 2) of both, (1, 0) where there is no text."""
        expert = self.attention(states, self.projection(text.states), text.mask[:, None, None, :])
        logits = self.router(torch.cat([states, expert], dim=-1))
        weights = logits.softmax(-1, dtype=torch.float32).to(states.dtype)
        mixed = self.norm(weights[..., :1] * states + weights[..., 1:] * expert)
        present = text.present[:, None, None]
        alone = torch.tensor([1.0, 0.0], dtype=weights.dtype, device=weights.device)
        return torch.where(present, mixed, states), torch.where(present, weights, alone)


class DescriptionDecoder(nn.Module):
    """
    Writes one description per frame, conditioned on the integrated queries, the visual tokens and the region tokens
    [p, fig], which are concatenated after a linear map and with a type embedding each, since their numbers differ
    [ours].

    `GPT2Model` with cross-attention; the head has the weights of its token embedding [ours].

    Args:
        config: The configuration.
        region_size: Channels of the region tokens; `None` without them.
    """

    def __init__(self, config: SsuFormerConfig, region_size: int | None):
        super().__init__()
        size = config.decoder_config.hidden_size
        self.transformer = GPT2Model(config.decoder_config)
        self.query_projection = nn.Linear(config.hidden_size, size)
        self.visual_projection = nn.Linear(config.hidden_size, size)
        self.region_projection = None if region_size is None else nn.Linear(region_size, size)
        self.type_embedding = NormalEmbedding(3, size, config.initializer_range)
        self.experts = HierarchicalExperts(config) if config.use_mohe else None
        self.start_id: int = config.decoder_config.bos_token_id
        self.end_id: int = config.decoder_config.eos_token_id

    def memory(self, queries: Tensor, visual: Tensor, regions: Tensor | None) -> Tensor:
        """Return what the decoder attends to (N, K, W), of F (N, Q, D), v (N, L, D) and region tokens (N, R, C)."""
        parts = [self.query_projection(queries), self.visual_projection(visual)]
        if self.region_projection is not None and regions is not None:
            parts.append(self.region_projection(regions))
        kinds = self.type_embedding.weight
        return torch.cat([part + kind for part, kind in zip(parts, kinds, strict=False)], dim=1)

    def forward(
        self, ids: Tensor, memory: Tensor, text: ExpertText | None, cache: Any = None, use_cache: bool = False
    ) -> tuple[Tensor, Tensor | None, Any]:
        """
        Predict the id after each id.

        Args:
            ids: (N, L), those after what the cache holds.
            memory: (N, K, W) of [`DescriptionDecoder.memory`].
            text: The expert's text, or `None`.
            cache: Keys and values of the ids before.
            use_cache: Whether to return a cache.

        Returns:
            Logits (N, L, V), the router's weights (N, L, 2) or `None`, and the cache or `None`.
        """
        outputs = self.transformer(
            input_ids=ids, encoder_hidden_states=memory, past_key_values=cache, use_cache=use_cache
        )
        states, weights = outputs.last_hidden_state, None
        if self.experts is not None and text is not None:
            states, weights = self.experts(states, text)
        return F.linear(states, self.transformer.wte.weight), weights, outputs.past_key_values

    @torch.no_grad()
    def decode(
        self, memory: Tensor, text: ExpertText | None, max_length: int, use_cache: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """
        Decode greedily until all descriptions have ended.

        Args:
            memory, text: As in `forward`.
            max_length: Most ids of a description, with its start.
            use_cache: Whether to keep keys and values instead of computing them for all ids in every step.

        Returns:
            ids (N, L), -100 after a description's end, and the router's weights (N, L - 1, 2) or `None`.
        """
        ids = torch.full((len(memory), 1), self.start_id, dtype=torch.long, device=memory.device)
        has_ended = torch.zeros_like(ids, dtype=torch.bool)
        cache, steps = None, []
        while ids.shape[1] < max_length and not bool(has_ended.all()):
            given = ids[:, -1:] if use_cache and cache is not None else ids
            # Ids after the end are of no effect on earlier ones, but must lie in the vocabulary.
            logits, weights, cache = self(given.clamp_min(0), memory, text, cache, use_cache)
            if weights is not None:
                steps.append(weights[:, -1:])
            chosen = logits[:, -1:].argmax(-1).masked_fill(has_ended, IGNORED_LABEL)
            ids = torch.cat([ids, chosen], dim=1)
            has_ended = has_ended | (chosen == self.end_id)
        return ids, torch.cat(steps, dim=1) if steps else None


def description_loss(logits: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """
    Return the focal loss of descriptions [p], -(1 - p)^gamma log p of the right id, mean over ids up to the end, those
    of empty descriptions included [ours]. With gamma 0 it is the cross-entropy.

    Args:
        logits: (N, L - 1, V) of the ids after the first.
        ids: (N, L), -100 after the end, and throughout in frames without annotation.
        gamma: The exponent, 2 [ours].
    """
    targets = ids[:, 1:]
    counted = targets != IGNORED_LABEL
    log_probs = at_least_float32(logits).log_softmax(-1)
    right = log_probs.gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1)
    losses = -right
    if gamma:
        # 1 - p, kept off 0, where a root of it has no finite slope.
        losses = losses * (-torch.expm1(right)).clamp_min(torch.finfo(right.dtype).tiny) ** gamma
    return batch_mean((losses * counted).sum(), counted.sum())
