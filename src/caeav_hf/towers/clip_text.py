"""The frozen CLIP text tower and the cache of its features."""

from collections import OrderedDict

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvTextConfig
from .frozen import fingerprint, is_adapted


class ClipTextTower(TextTransformer):
    """
    The text tower of CLIP as open_clip builds it, without the projection: the last hidden layer after the final norm.

    A caption is encoded once: the features of the `cache_size` captions read last are kept, so that an epoch over a
    data set that fits, and every frozen use after the first, costs a look-up.
    """

    cache_size = 4096

    def __init__(self, config: CaeAvTextConfig):
        super().__init__(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            mlp_ratio=config.mlp_ratio,
            output_dim=None,
            pool_type="none",
            proj_type="none",
            act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
            norm_layer=LayerNorm,
        )
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_weights: tuple = ()

    def init_non_persistent_buffers(self) -> None:
        """The causal mask is not in a checkpoint; it is made anew after loading on the meta device."""
        self.attn_mask.copy_(self.build_causal_mask())

    def encode(self, ids: Tensor) -> Tensor:
        """Token features (B, N, D) of token ids (B, N), N at most the context length."""
        states, _ = self._embeds(ids)
        # As the part of the tower's own mask for so few tokens, but of any number in a graph.
        mask = states.new_full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        return self.ln_final(self.transformer(states, attn_mask=mask))

    def forget(self) -> None:
        """Drop the features that are kept."""
        self._cache.clear()

    def forward(self, ids: Tensor) -> Tensor:
        """
        As `encode`, through the cache; rows that occur twice are encoded once. Each row goes through the tower alone:
        in company its last bits would be others, on which the choice between tokens that are alike may hang, and
        training with stored features would not be training without them.

        A tower that is trained, by LoRA or as it is, encodes everything anew. So does a graph, all rows at once: it
        cannot look into a cache.
        """
        if torch.compiler.is_compiling():
            return self.encode(ids)
        if is_adapted(self) or any(parameter.requires_grad for parameter in self.parameters()):
            self.forget()
            return torch.cat([self.encode(row) for row in ids.split(1)])
        return self._encode_once(ids)

    @torch.no_grad()
    def _encode_once(self, ids: Tensor) -> Tensor:
        weights = fingerprint(self.parameters())
        if weights != self._cached_weights:
            self._cache.clear()
            self._cached_weights = weights
        rows = [row.tobytes() for row in ids.cpu().numpy()]
        missing = {row: index for index, row in enumerate(rows) if row not in self._cache}
        fresh = {row: self.encode(ids[index : index + 1])[0] for row, index in missing.items()}
        features = torch.stack([fresh[row] if row in fresh else self._cache[row] for row in rows])
        for row in rows:
            self._cache[row] = fresh[row] if row in fresh else self._cache[row]
            self._cache.move_to_end(row)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return features
