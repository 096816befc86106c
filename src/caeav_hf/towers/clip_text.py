"""CLIP's text tower, frozen, with a cache of its features."""

from collections import OrderedDict

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvTextConfig
from .frozen import fingerprint, is_adapted


class ClipTextTower(TextTransformer):
    """
    open_clip's CLIP text tower without the projection; returns the last hidden layer after the final norm.

    The features of the `cache_size` most recently used captions are cached, so repeated captions cost a look-up.
    """

    cache_size = 4096
    # Not the attention: in `nn.MultiheadAttention` peft merges and unmerges LoRA at every step, which leaves rounding
    # errors in frozen weights.
    lora_targets = r".*\.mlp\.(c_fc|c_proj)"

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
        """Rebuild the causal mask, which checkpoints do not contain, after loading on the meta device."""
        self.attn_mask.copy_(self.build_causal_mask())

    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids (B, N), N at most the context length, to token features (B, N, D)."""
        states, _ = self._embeds(ids)
        # Equal to the first N rows and columns of `attn_mask`, but with a dynamic size in an exported graph.
        mask = states.new_full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        return self.ln_final(self.transformer(states, attn_mask=mask))

    def forget(self) -> None:
        """Clear the cache."""
        self._cache.clear()

    def forward(self, ids: Tensor) -> Tensor:
        """
        Encode token ids (B, N) to token features (B, N, D) through the cache; equal rows are encoded once.

        Each row is encoded separately. In a batch its last bits would differ, which can change CASE's choice between
        similar tokens, and training on precomputed features would differ from training without them.

        A tower that is trained, fully or by LoRA, does not use the cache. Nor does a compiled graph, which encodes all
        rows at once.
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
