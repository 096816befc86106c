"""Layers along time shared by the task heads: LSTMs that respect padding, and small post-norm transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..configuration_cae_av import CaeAvConfig
from .attention import MultiHeadAttention
from .frames import FrameLayout


class RelationLayer(nn.Module):
    """
    Post-norm transformer layer: queries (B, T, D) attend to keys (B, S, D), then feed-forward.

    The authors' decoder layers also have a self-attention that never runs; the official formulation keeps its weights.

    Args:
        config: Sizes and dropout.
        is_decoder: Whether the keys are another stream's.
        size, num_heads: Width D and attention heads; by default those of the head.
    """

    def __init__(
        self, config: CaeAvConfig, is_decoder: bool = False, size: int | None = None, num_heads: int | None = None
    ):
        super().__init__()
        size, num_heads = size or config.head_hidden_size, num_heads or config.head_num_heads
        dropout = config.head_dropout
        if is_decoder and config.is_official:
            self.unused_self_attention = MultiHeadAttention(config, size, num_heads)
        self.attention = MultiHeadAttention(config, size, num_heads, dropout)
        self.hidden = nn.Linear(size, config.head_intermediate_size)
        self.output = nn.Linear(config.head_intermediate_size, size)
        self.attention_norm = nn.LayerNorm(size)
        self.output_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        states = self.attention_norm(queries + self.dropout(self.attention(queries, keys, mask)))
        hidden = self.output(self.dropout(F.relu(self.hidden(states))))
        return self.output_norm(states + self.dropout(hidden))


class RelationEncoder(nn.Module):
    """
    Linear map, then self-attention layers along time: (B, T, C) -> (B, T, D). `size`, D, and `num_heads` are those of
    the head by default.
    """

    def __init__(
        self,
        config: CaeAvConfig,
        in_features: int,
        num_layers: int = 2,
        size: int | None = None,
        num_heads: int | None = None,
    ):
        super().__init__()
        self.projection = nn.Linear(in_features, size or config.head_hidden_size)
        self.layers = nn.ModuleList(RelationLayer(config, size=size, num_heads=num_heads) for _ in range(num_layers))
        if config.is_official:
            # The authors also register the layer that they copy; it never runs.
            self.template = RelationLayer(config, size=size, num_heads=num_heads)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        states = self.projection(states)
        for layer in self.layers:
            states = layer(states, states, mask)
        return states


class RelationDecoder(nn.Module):
    """Linear map, then one layer whose keys are the other stream's encoded moments followed by the queries."""

    def __init__(self, config: CaeAvConfig, in_features: int):
        super().__init__()
        self.projection = nn.Linear(in_features, config.head_hidden_size)
        self.layer = RelationLayer(config, is_decoder=True)
        if config.is_official:
            self.template = RelationLayer(config, is_decoder=True)

    def forward(self, states: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        queries = self.projection(states)
        key_mask = None if mask is None else torch.cat([mask, mask], dim=-1)
        return self.layer(queries, torch.cat([memory, queries], dim=1), key_mask)


def scan_rnn(rnn: nn.LSTM, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """
    Run a one-layer LSTM as a scan along time, for traced graphs: `nn.LSTM` would fix the number of steps, and a graph
    does not know the lengths of sequences.

    Args:
        rnn: One layer, batch first, in one direction or both.
        states: (B, T, D).
        mask: (B, T) bool; where false, a step keeps the hidden and cell state and outputs zero.

    Returns:
        The outputs (B, T, directions * H), and the last hidden and cell states (directions, B, H).
    """
    # Imported here, because PyTorch still calls it a prototype.
    from torch._higher_order_ops.scan import scan

    is_real = states.new_ones(states.shape[:2], dtype=torch.bool) if mask is None else mask
    steps = is_real.transpose(0, 1)[..., None]
    zero = states.new_zeros(states.shape[0], rnn.hidden_size)
    directions = []
    for suffix in ("_l0", "_l0_reverse")[: 1 + rnn.bidirectional]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        input_weight, hidden_weight, input_bias, hidden_bias = (getattr(rnn, name + suffix) for name in names)
        gates = F.linear(states, input_weight, input_bias + hidden_bias).transpose(0, 1)

        def step(
            carry: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], weight: Tensor = hidden_weight
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            (hidden, cell), (gates, is_real) = carry, inputs
            enter, forget, change, leave = (gates + F.linear(hidden, weight)).chunk(4, dim=-1)
            new_cell = forget.sigmoid() * cell + enter.sigmoid() * change.tanh()
            new_hidden = leave.sigmoid() * new_cell.tanh()
            output = torch.where(is_real, new_hidden, torch.zeros_like(new_hidden))
            return (torch.where(is_real, new_hidden, hidden), torch.where(is_real, new_cell, cell)), output

        last, outputs = scan(step, (zero, zero.clone()), (gates, steps), reverse=suffix.endswith("_reverse"))
        directions.append((outputs.transpose(0, 1), *last))
    outputs, hidden, cell = zip(*directions, strict=True)
    return torch.cat(outputs, dim=-1), torch.stack(hidden), torch.stack(cell)


def run_rnn(rnn: nn.LSTM, states: Tensor, frames: FrameLayout) -> Tensor:
    """Run an LSTM along time up to each clip's last real frame, where its backward direction starts."""
    if torch.compiler.is_exporting():
        return scan_rnn(rnn, states, frames.mask)[0]
    if frames.mask is None:
        return rnn(states)[0]
    # Move real frames to the front, in order: padded frames may be anywhere.
    order = (~frames.mask).int().argsort(dim=1, stable=True)
    lengths = frames.mask.sum(1)
    gathered = states.gather(1, order[..., None].expand_as(states))
    packed = pack_padded_sequence(gathered, lengths.cpu(), batch_first=True, enforce_sorted=False)
    output, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=frames.num_frames)
    return torch.zeros_like(output).scatter(1, order[..., None].expand_as(output), output)
