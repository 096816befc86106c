"""Multi-head attention with the attention back ends of Transformers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration_cae_av import CaeAvConfig


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Compute attention explicitly, for the back end `"eager"`; tensors are (batch, heads, tokens, width)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """
    Queries (B, Q, C) attend to keys (B, K, C) in `num_heads` heads.

    Args:
        config: Selects the attention back end.
        hidden_size: C.
        num_heads: Number of heads; must divide C.
        dropout: Dropout probability of attention weights in training.
    """

    is_causal = False

    def __init__(self, config: CaeAvConfig, hidden_size: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, Q, C). `mask` is bool, broadcastable to (B, 1, Q, K), and true where a key may be attended to."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return self._attend(attend, queries, keys, mask)[0]

    def with_weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the weights (B, heads, Q, K), which only the eager back end computes."""
        return self._attend(eager_attention_forward, queries, keys, mask)

    def _attend(self, attend: Callable, queries: Tensor, keys: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

        if mask is not None:
            mask = mask.expand(-1, -1, queries.shape[1], -1)
        attended, weights = attend(
            self,
            heads(self.query(queries)),
            heads(self.key(keys)),
            heads(self.value(keys)),
            mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.output(attended.flatten(2)), weights
