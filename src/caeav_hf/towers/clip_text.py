"""CLIP's text tower, frozen, with a cache of its features."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvTextConfig
from .frozen import fingerprint, is_adapted


INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP's


class ClipTextTower(TextTransformer):
    """
    open_clip's CLIP text tower; returns the last hidden layer after the final norm. If `projection_dim` is configured,
    it also has CLIP's projection, with which [`ClipTextTower.embed_prompts`] embeds texts, and `logit_scale`.

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
            output_dim=config.projection_dim,
            pool_type="none",
            proj_type="none" if config.projection_dim is None else "linear",
            act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
            norm_layer=LayerNorm,
        )
        scale = torch.tensor(INITIAL_LOGIT_SCALE)
        self.logit_scale = nn.Parameter(scale) if config.projection_dim is not None else None
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_weights: tuple = ()

    def init_parameters(self) -> None:
        """Draw initial weights, as open_clip does."""
        super().init_parameters()
        # open_clip leaves these to the constructor, whose zeros are lost if the tower is built on the meta device.
        for block in self.transformer.resblocks:
            nn.init.zeros_(block.attn.in_proj_bias)
            nn.init.zeros_(block.attn.out_proj.bias)
        # open_clip calls this before there is a temperature.
        scale = getattr(self, "logit_scale", None)
        if scale is not None:
            nn.init.constant_(scale, INITIAL_LOGIT_SCALE)

    def init_non_persistent_buffers(self) -> None:
        """Rebuild the causal mask, which checkpoints do not contain, after loading on the meta device."""
        self.attn_mask.copy_(self.build_causal_mask())

    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids (B, N), N at most the context length, to token features (B, N, D)."""
        return self._encode(self._embeds(ids)[0])

    def embed_prompts(self, ids: Tensor, context: Tensor) -> Tensor:
        """
        Embed texts that begin with learned vectors, as CLIP embeds texts: Zhou et al., "Learning to Prompt for
        Vision-Language Models" (CoOp).

        Args:
            ids: (K, N) token ids, in which tokens 1 to n stand for the learned vectors. The end token, after which
                come only smaller ids, has the highest id.
            context: (n, D), the vectors.

        Returns:
            (K, P) embeddings, not normalised.
        """
        states = self.token_embedding(ids)
        learned = context.to(states.dtype).expand(len(ids), -1, -1)
        states = torch.cat([states[:, :1], learned, states[:, 1 + len(context) :]], dim=1)
        return self.embed_states(states, ids.argmax(-1))

    def embed_states(self, states: Tensor, ends: Tensor) -> Tensor:
        """
        Embed texts given as token embeddings.

        Args:
            states: (K, N, D) token embeddings, without positions.
            ends: (K,) position of each text's end token.

        Returns:
            (K, P) embeddings, not normalised.
        """
        states = self._encode(states + self.positional_embedding[: states.shape[1]])
        return states[torch.arange(len(states), device=states.device), ends] @ self.text_projection

    def _encode(self, states: Tensor) -> Tensor:
        # Equal to the first N rows and columns of `attn_mask`, but with a dynamic size in an exported graph.
        mask = states.new_full((states.shape[1], states.shape[1]), -torch.inf).triu(1)
        return self.ln_final(self.transformer(states, attn_mask=mask))

    def forget(self) -> None:
        """Clear the cache."""
        self._cache.clear()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Encode token ids (B, N) to token features (B, N, D) through the cache; equal rows are encoded once.

        Attention is causal, so padding behind a text changes nothing in it. With `mask` (B, N), true for real tokens,
        it is not encoded, and its features are zero.

        Each row is encoded separately. In a batch its last bits would differ, which can change CASE's choice between
        similar tokens, and training on precomputed features would differ from training without them.

        A tower that is trained, fully or by LoRA, does not use the cache. Nor does a compiled graph, which encodes all
        rows at once, with padding.
        """
        if torch.compiler.is_compiling():
            return self.encode(ids)
        size = ids.shape[1]
        if mask is None:
            ends = [size] * len(ids)
        else:
            positions = mask.bool() * torch.arange(1, size + 1, device=mask.device)
            # A row without any real token is encoded whole, as in a graph.
            ends = [end or size for end in positions.amax(1).tolist()]
        if is_adapted(self) or any(parameter.requires_grad for parameter in self.parameters()):
            self.forget()
            features = [self.encode(row[None, :end])[0] for row, end in zip(ids, ends, strict=True)]
        else:
            features = self._encode_once(ids, ends)
        return torch.stack([F.pad(row, (0, 0, 0, size - len(row))) for row in features])

    @torch.no_grad()
    def _encode_once(self, ids: Tensor, ends: list[int]) -> list[Tensor]:
        weights = fingerprint(self.parameters())
        if weights != self._cached_weights:
            self._cache.clear()
            self._cached_weights = weights
        rows = [row[:end].tobytes() for row, end in zip(ids.cpu().numpy(), ends, strict=True)]
        missing = {row: index for index, row in enumerate(rows) if row not in self._cache}
        fresh = {row: self.encode(ids[index : index + 1, : ends[index]])[0] for row, index in missing.items()}
        features = [fresh[row] if row in fresh else self._cache[row] for row in rows]
        for row in rows:
            self._cache[row] = fresh[row] if row in fresh else self._cache[row]
            self._cache.move_to_end(row)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return features
