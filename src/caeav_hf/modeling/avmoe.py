"""
AVMoE adapters: a router mixes cross-modal experts, which read the other modality, with unimodal experts.

This is the baseline that CAE-AV extends (its Table I). An adapter reads the tokens of both modalities and returns a
term to add to the stream.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from ..towers.linear import product_dtype
from ..towers.recompute import recomputed
from .adapters import CrossModalMap, GroupedLinear, LatentAttention
from .collectives import SharedBatchNorm, batch_mean
from .frames import FrameLayout
from .interaction import InteractionLayer, InteractionOutput, PairPosition, register_interaction


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock


class FrameAttention(nn.Module):
    """Multi-head attention between the frames of a clip, at each token position (unimodal attention `self`)."""

    def __init__(self, hidden_size: int, num_heads: int = 4, dropout: float = 0.2):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: Tensor, frames: FrameLayout) -> Tensor:
        # (B, T, L, 3, heads, d) -> three of (B * L, heads, T, d)
        qkv = frames.to_grid(self.qkv(states)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)
        mask = frames.attention_mask()
        if mask is not None:
            mask = mask.repeat_interleave(states.shape[1], dim=0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended = attended.unflatten(0, (frames.batch_size, states.shape[1])).permute(0, 3, 1, 2, 4).flatten(3)
        return self.output(frames.to_list(attended))


class Expert(nn.Module):
    """
    One expert: attention, then a bottleneck between two layer norms.

    Args:
        config: Sizes and options of the adapters.
        hidden_size: Channels C of the stream.
        cross_modal: Whether it reads the other modality; only then is the bottleneck non-linear.
        has_gate: Whether a learnable gate scales its result.
    """

    def __init__(self, config: CaeAvConfig, hidden_size: int, cross_modal: bool, has_gate: bool):
        super().__init__()
        self.cross_modal = cross_modal
        self.attention_type = "latent" if cross_modal else config.unimodal_attention
        if self.attention_type == "latent":
            self.latent_attention = LatentAttention(config.num_latent_tokens, hidden_size)
        elif self.attention_type == "self":
            self.frame_attention = FrameAttention(hidden_size)
        elif self.attention_type == "dot":
            self.attention_gate = nn.Parameter(torch.empty(1))
        bottleneck = hidden_size // config.adapter_reduction
        self.norm_before = nn.LayerNorm(hidden_size) if config.adapter_norm_before else nn.Identity()
        self.down = GroupedLinear(hidden_size, bottleneck, config.adapter_groups)
        self.up = GroupedLinear(bottleneck, hidden_size, config.adapter_groups)
        self.norm_after = nn.LayerNorm(hidden_size) if config.adapter_norm_after else nn.Identity()
        if config.adapter_batch_norm:
            self.batch_norm_down = SharedBatchNorm(bottleneck)
            self.batch_norm_up = SharedBatchNorm(hidden_size)
        self.gate = nn.Parameter(torch.empty(1)) if has_gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for gate in (self.gate, getattr(self, "attention_gate", None)):
            if gate is not None:
                nn.init.zeros_(gate)

    def attend(self, states: Tensor, frames: FrameLayout, gathered: Tensor | None) -> Tensor:
        """Apply the expert's attention to (N, L, C); `gathered` is its latents' context from the other modality."""
        if self.attention_type == "latent":
            latents = self.latent_attention.latents
            if gathered is None and torch.compiler.is_exporting():
                # ONNX supports scaled dot-product attention only with a dimension of heads.
                gathered = (latents @ states.transpose(1, 2)).softmax(-1) @ states
            elif gathered is None:
                gathered = F.scaled_dot_product_attention(
                    latents.expand(states.shape[0], -1, -1), states, states, scale=1.0
                )
            return self.latent_attention(states, gathered)
        if self.attention_type == "self":
            return self.frame_attention(states, frames)
        if self.attention_type == "dot":
            # Rows are normalized, then applied along columns, as in the authors' code.
            rows = (states @ states.transpose(1, 2)).softmax(-1)
            return states + self.attention_gate * (rows.transpose(1, 2) @ states)
        return states

    def bottleneck(self, states: Tensor, weight: Tensor) -> Tensor:
        """Apply the bottleneck to attended tokens (N, L, C) and scale by the expert's weight in each frame (N,)."""
        hidden = self.down(self.norm_before(states))
        if hasattr(self, "batch_norm_down"):
            hidden = self.batch_norm_down(hidden)
        if self.cross_modal:
            hidden = F.relu(hidden)
        hidden = self.up(hidden)
        if hasattr(self, "batch_norm_up"):
            hidden = self.batch_norm_up(hidden)
        if self.gate is not None:
            weight = weight * self.gate
        return weight[:, None, None] * self.norm_after(hidden)

    def forward(self, states: Tensor, weight: Tensor, frames: FrameLayout, gathered: Tensor | None = None) -> Tensor:
        """Map tokens (N, L, C) and weights (N,) to (N, L, C)."""
        if self.attention_type == "self":
            # Its attention has dropout, so recomputing it would give another result.
            return recomputed(self.bottleneck, self.attend(states, frames, gathered), weight)

        def run(states: Tensor, weight: Tensor, *gathered: Tensor) -> Tensor:
            return self.bottleneck(self.attend(states, frames, gathered[0] if gathered else None), weight)

        return recomputed(run, states, weight, *(() if gathered is None else (gathered,)))


class Router(nn.Module):
    """Computes a weight per expert and frame from the mean tokens of both modalities: two (N, C) -> (N, experts)."""

    def __init__(self, config: CaeAvConfig, hidden_size: int):
        super().__init__()
        self.noise_std = config.router_noise_std
        self.hidden = nn.Linear(2 * hidden_size, 128)
        self.bottleneck = nn.Linear(128, 32)
        self.logits = nn.Linear(32, config.num_experts)

    def forward(self, stream_mean: Tensor, other_mean: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(torch.cat([stream_mean, other_mean], dim=-1)))
        logits = self.logits(F.relu(self.bottleneck(hidden)))
        if self.training and self.noise_std:
            logits = logits + self.noise_std * torch.randn_like(logits)
        return logits.softmax(-1)


class AVMoE(nn.Module):
    """
    The adapter of one stream: a mixture of experts, weighted per frame.

    Args:
        config: Sizes and options of the adapters.
        num_tokens, hidden_size: L and C of the stream.
        other_tokens, other_size: L' and C' of the other modality.
        has_gate: Whether its experts have gates; by default as `config.adapter_gate` says.
    """

    def __init__(
        self,
        config: CaeAvConfig,
        num_tokens: int,
        hidden_size: int,
        other_tokens: int,
        other_size: int,
        has_gate: bool | None = None,
    ):
        super().__init__()
        has_gate = config.adapter_gate if has_gate is None else has_gate
        self.cross_modal_map = CrossModalMap(num_tokens, other_tokens, hidden_size, other_size)
        self.router = Router(config, hidden_size)
        self.cross_modal_experts = nn.ModuleList(
            Expert(config, hidden_size, cross_modal=True, has_gate=has_gate)
            for _ in range(config.num_cross_modal_experts)
        )
        self.unimodal_experts = nn.ModuleList(
            Expert(config, hidden_size, cross_modal=False, has_gate=has_gate)
            for _ in range(config.num_unimodal_experts)
        )

    def forward(self, states: Tensor, other: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """
        Args:
            states: (N, L, C), the stream.
            other: (N, L', C'), the other modality.
            frames: Which clips the N frames belong to.

        Returns:
            The term to add to the stream (N, L, C), and the routing weights (N, experts), cross-modal experts first.
        """
        mixed: Tensor | None = None
        gathered: tuple[Tensor, ...] = ()
        if self.cross_modal_experts:
            latents: list[Tensor] = [
                cast(Expert, expert).latent_attention.latents for expert in self.cross_modal_experts
            ]
            context, other_mean = self.cross_modal_map.attend_and_mean(torch.cat(latents), other)
            gathered = context.split([len(latent) for latent in latents], dim=1)
        else:
            other_mean = self.cross_modal_map.mean(other)
        probs = self.router(states.mean(1), other_mean)
        experts = [*self.cross_modal_experts, *self.unimodal_experts]
        for index, expert in enumerate(experts):
            own = gathered[index] if index < len(gathered) else None
            weighted = expert(states, probs[:, index], frames, own)
            mixed = weighted if mixed is None else mixed + weighted
        assert mixed is not None  # the configuration requires at least one expert
        return mixed, probs


def load_balancing_loss(router_probs: Tensor) -> Tensor:
    """
    Return the divergence (...) of uniform routing from the mean routing weights of (..., N, experts), over the N
    frames of all processes.

    As in the authors' code this is the sum of -log of the means: the divergence times the number of experts, plus a
    constant, so that it is minimal, but not 0, for uniform routing.
    """
    mean = batch_mean(router_probs.float().sum(-2), router_probs.shape[-2])
    return -mean.clamp_min(1e-9).log().sum(-1)


def _call(function: Callable[..., InteractionOutput], *inputs: Any) -> InteractionOutput:
    return function(*inputs)


@register_interaction("avmoe")
class AVMoEInteraction(InteractionLayer):
    """
    The baseline: two AVMoE adapters per stream, beside the attention branch and beside the feed-forward branch.

    Other methods can build on it: each half takes an `enrichment` of both streams, which the adapters read but the
    frozen branches do not. In a stage without adapters it is added to the streams.
    """

    title = "AVMoE"
    reference = 'Cheng et al., "Mixtures of Experts for Audio-Visual Learning"'

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        # Captions are CAE-AV's.
        return {"use_case": False, "use_text_tower": False}

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__(config, position)
        self.has_adapters = position.stage in config.adapter_stages
        self.add_layers()

    def add_layers(self) -> None:
        """Build the adapters. Subclasses whose own layers come first in checkpoints build them before."""
        if not self.has_adapters:
            return
        config, visual, audio = self.config, self.position.visual, self.position.audio
        visual_sizes = (visual.num_tokens, visual.hidden_size, audio.num_tokens, audio.hidden_size)
        audio_sizes = (audio.num_tokens, audio.hidden_size, visual.num_tokens, visual.hidden_size)
        gate = config.visual_adapter_gate
        self.visual_attention_adapter = AVMoE(config, *visual_sizes, has_gate=gate)
        self.audio_attention_adapter = AVMoE(config, *audio_sizes)
        self.visual_feed_forward_adapter = AVMoE(config, *visual_sizes, has_gate=gate)
        self.audio_feed_forward_adapter = AVMoE(config, *audio_sizes)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> InteractionOutput:
        if self.position.stage == 1:
            return self._halves(self.step, visual, audio, visual_block, audio_block, frames)
        # Recomputed as a whole, a pair stores half as much. The many tokens of the first stage would then be the peak.
        return self.step(self._halves, _call, visual, audio, visual_block, audio_block, frames)

    def _halves(
        self,
        step: Callable[..., InteractionOutput],
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> InteractionOutput:
        first = step(self.attend, visual, audio, visual_block, audio_block, frames)
        second = step(self.feed_forward, first.visual, first.audio, visual_block, audio_block, frames)
        explained = {**first.explained, **second.explained}
        if self.has_adapters:
            probs = [half.explained["router_probs"] for half in (first, second)]
            explained["router_probs"] = torch.cat(probs, dim=1)
        return InteractionOutput(second.visual, second.audio, explained)

    def attend(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
        enrichment: tuple[Tensor, Tensor] | None = None,
    ) -> InteractionOutput:
        """Run the attention branches with their adapters. The official audio stream runs its whole block here."""
        new_visual = visual + visual_block.attention(visual)
        new_audio = self.run_audio_attention(audio, audio_block)
        output = InteractionOutput(new_visual, new_audio)
        return self._adapt("attention", output, visual, audio, frames, enrichment)

    def feed_forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
        enrichment: tuple[Tensor, Tensor] | None = None,
    ) -> InteractionOutput:
        """Run the feed-forward branches with their adapters."""
        new_visual = visual + visual_block.feed_forward(visual)
        new_audio = audio if self.config.is_official else audio + audio_block.feed_forward(audio)
        output = InteractionOutput(new_visual, new_audio)
        return self._adapt("feed_forward", output, visual, audio, frames, enrichment)

    def run_audio_attention(self, audio: Tensor, audio_block: "FrozenBlock") -> Tensor:
        """Return the audio stream after the frozen part of the first half."""
        return audio_block(audio) if self.config.is_official else audio + audio_block.attention(audio)

    def _adapt(
        self,
        branch: str,
        output: InteractionOutput,
        visual: Tensor,
        audio: Tensor,
        frames: FrameLayout,
        enrichment: tuple[Tensor, Tensor] | None,
    ) -> InteractionOutput:
        """Add the output of a branch's adapters, which read the streams before the branch, to the new streams."""
        if self.has_adapters:
            if enrichment is not None:
                visual, audio = visual + enrichment[0], audio + enrichment[1]
            # Cast once, not by each product that reads them.
            visual, audio = (states.to(product_dtype(states)) for states in (visual, audio))
            visual_adapter, audio_adapter = (getattr(self, f"{name}_{branch}_adapter") for name in ("visual", "audio"))
            visual_added, visual_probs = visual_adapter(visual, audio, frames)
            audio_added, audio_probs = audio_adapter(audio, visual, frames)
            output.explained["router_probs"] = torch.stack([visual_probs, audio_probs], dim=1)
        elif enrichment is not None:
            visual_added, audio_added = enrichment
        else:
            return output
        output.visual, output.audio = output.visual + visual_added, output.audio + audio_added
        return output

    @classmethod
    def loss_weights(cls, config: CaeAvConfig) -> dict[str, float]:
        return {**super().loss_weights(config), "load_balancing": float(config.load_balancing_loss_weight)}

    @classmethod
    def collect(
        cls,
        config: CaeAvConfig,
        explained: dict[str, list[Tensor]],
        frames: FrameLayout,
        shared: Mapping[str, nn.Module],
        loss_weights: Mapping[str, float] | None,
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        explained, losses = super().collect(config, explained, frames, shared, loss_weights)
        if "router_probs" in explained and loss_weights is not None and loss_weights["load_balancing"]:
            modules = torch.cat(explained["router_probs"], dim=1).transpose(0, 1)  # (modules, N, experts)
            losses["load_balancing"] = load_balancing_loss(modules).mean()
        return explained, losses
