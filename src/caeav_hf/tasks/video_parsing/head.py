"""
Head of video parsing, which predicts what is heard and seen, and when, from labels of whole clips.

Class-token grouping after Mo and Tian, "Multi-modal Grouping Network for Weakly-Supervised Audio-Visual Video
Parsing" (NeurIPS 2022): in each modality, one token per class gathers the frames of the class. In the paper's
formulation the groups are then compared with each frame, and a clip's probability is pooled from its frames' by
attention, after Tian, Li and Xu, "Unified Multisensory Perception: Weakly-Supervised Audio-Visual Video Parsing"
(ECCV 2020). In the authors' code a clip's probability depends only on the group, and its frames' are at least as high.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...errors import CaeAvError
from ...modeling.attention import MultiHeadAttention
from ...modeling.collectives import batch_mean
from ...modeling.frames import FrameLayout
from ...modeling.temporal import RelationEncoder, run_rnn


# The authors' constants: ratios of hidden widths to channels, of the token mixer and of all other feed-forwards.
TOKEN_MLP_RATIO, CHANNEL_MLP_RATIO = 0.5, 4
# Attention heads of the temporal gate, of DG-SCT's authors.
GATE_HEADS = 4
# Relative difference from the best score up to which scores are equal.
ROUNDING = 1e-6


@dataclass
class ParsingLogits:
    """
    Output of the head.

    Attributes:
        event, audio, visual: (B, C) logits that a class occurs in the clip, is heard, is seen.
        audio_frames, visual_frames: (B, T, C) probabilities of a class in a frame; 0 in padded frames.
        audio_classes, visual_classes: (C, C) class logits of the class tokens.
    """

    event: Tensor
    audio: Tensor
    visual: Tensor
    audio_frames: Tensor
    visual_frames: Tensor
    audio_classes: Tensor
    visual_classes: Tensor


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, in_features: int, hidden_features: int):
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden_features)
        self.output = nn.Linear(hidden_features, in_features)

    def forward(self, states: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(states)))


class TokenMixer(FeedForward):
    """
    A feed-forward between tokens, the same for every channel: (B, N, D) -> (B, N, D).

    It has weights for `num_tokens` positions. Fewer tokens use the first ones; more tokens repeat them cyclically.
    """

    def __init__(self, num_tokens: int, hidden_features: int):
        super().__init__(num_tokens, hidden_features)
        self.num_tokens = num_tokens

    def forward(self, states: Tensor) -> Tensor:
        place = torch.arange(states.shape[1], device=states.device) % self.num_tokens
        hidden = F.gelu(F.linear(states.transpose(1, 2), self.hidden.weight[:, place], self.hidden.bias))
        return F.linear(hidden, self.output.weight[place], self.output.bias[place]).transpose(1, 2)


class SelfAttentionLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.attention_norm = nn.LayerNorm(size)
        self.attention = MultiHeadAttention(config, size, config.head_num_heads)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, CHANNEL_MLP_RATIO * size)
        from timm.layers import DropPath  # Imported here, since timm takes a second to load.

        self.drop_path = DropPath(float(config.head_dropout))

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.attention_norm(states)
        states = states + self.drop_path(self.attention(normed, normed, mask))
        return states + self.drop_path(self.feed_forward(self.feed_forward_norm(states)))


class CrossAttentionLayer(nn.Module):
    """Attention of queries (B, Q, D) to normalised states (B, L, D), a feed-forward, and a norm."""

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.attention = MultiHeadAttention(config, size, config.head_num_heads)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, CHANNEL_MLP_RATIO * size)
        self.output_norm = nn.LayerNorm(size)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        queries = queries + self.attention(queries, states, mask)
        return self.output_norm(queries + self.feed_forward(self.feed_forward_norm(queries)))


class Grouping(nn.Module):
    """
    Assigns states to group tokens, which gather their shares.

    Args:
        config: Sizes of the head.
        num_groups: Number of group tokens.
        is_hard: Whether a state belongs to one group, with straight-through gradients, or partly to each.
    """

    def __init__(self, config: CaeAvConfig, num_groups: int, is_hard: bool = False):
        super().__init__()
        size = config.head_hidden_size
        self.is_hard = is_hard
        self.token_norm = nn.LayerNorm(size)
        self.token_mixer = TokenMixer(num_groups, int(TOKEN_MLP_RATIO * size))
        self.mixed_norm = nn.LayerNorm(size)
        self.state_norm = nn.LayerNorm(size)
        self.attention = CrossAttentionLayer(config)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.group_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, CHANNEL_MLP_RATIO * size)

    def forward(
        self, states: Tensor, tokens: Tensor, state_mask: Tensor | None, token_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            states: (B, L, D).
            tokens: (B, G, D).
            state_mask, token_mask: (B, L) and (B, G), true for real ones; `None` if all are.

        Returns:
            The groups (B, G, D), and the assignment (B, G, L): the shares of each state, which sum to 1 over groups.
        """
        tokens, states = self.token_norm(tokens), self.state_norm(states)
        if token_mask is not None:
            tokens = tokens * token_mask[..., None]
        tokens = self.mixed_norm(self.token_mixer(tokens))
        tokens = self.attention(tokens, states, None if state_mask is None else state_mask[:, None, None])
        query, key = self.query(tokens), self.key(states)
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        if token_mask is not None:
            scores = scores.masked_fill(~token_mask[..., None], torch.finfo(scores.dtype).min)
        assignment = self._assign(scores)
        if state_mask is not None:
            assignment = assignment * state_mask[:, None]
        # As in the authors' code, a group's shares are divided by their sum plus one.
        weights = assignment / (assignment.sum(-1, keepdim=True) + 1)
        groups = tokens + self.output(weights @ self.value(states))
        return groups + self.feed_forward(self.group_norm(groups)), assignment

    def _assign(self, scores: Tensor) -> Tensor:
        if not self.is_hard:
            return scores.softmax(1)
        if self.training:
            return F.gumbel_softmax(scores, hard=True, dim=1)
        # Groups beyond `num_groups` repeat the positions of the first ones, and their scores up to rounding.
        best = scores.amax(1, keepdim=True)
        is_best = scores >= best - ROUNDING * best.abs().clamp_min(1)
        return torch.zeros_like(scores).scatter(1, is_best.int().argmax(1, keepdim=True), 1.0)


class ClassGrouping(nn.Module):
    """Grouping by class tokens, which first attend to a modality in a few layers."""

    def __init__(self, config: CaeAvConfig, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(SelfAttentionLayer(config) for _ in range(depth))
        self.grouping = Grouping(config, config.num_labels)

    def read(self, states: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Let states (B, L, D) and tokens (B, C, D) attend to each other."""
        length, joined = states.shape[1], torch.cat([states, tokens], dim=1)
        if mask is not None:
            mask = F.pad(mask, (0, tokens.shape[1]), value=True)[:, None, None]
        for layer in self.layers:
            joined = layer(joined, mask)
        return joined[:, :length], joined[:, length:]

    def forward(self, states: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return groups (B, C, D) and assignment (B, C, L) of states (B, L, D) with mask (B, L)."""
        return self.grouping(*self.read(states, tokens, mask), mask)


class AudioClassGrouping(ClassGrouping):
    """
    Class grouping of the audio, which also attends to the video.

    In the paper's formulation the audio's frames first attend to the visual ones. The authors' code assigns each audio
    frame to a visual frame, and then uses the visual frames in their place.
    """

    def __init__(self, config: CaeAvConfig, depth: int):
        super().__init__(config, depth)
        self.is_official = config.is_official
        if self.is_official:
            self.frame_grouping = Grouping(config, config.num_frames, is_hard=True)
        else:
            self.visual_norm = nn.LayerNorm(config.head_hidden_size)
            self.visual_attention = CrossAttentionLayer(config)

    def forward(
        self, states: Tensor, tokens: Tensor, mask: Tensor | None = None, visual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert visual is not None
        if not self.is_official:
            attention_mask = None if mask is None else mask[:, None, None]
            states = self.visual_attention(states, self.visual_norm(visual), attention_mask)
            return super().forward(states, tokens, mask)
        states, tokens = self.read(states, tokens, mask)
        states, _ = self.frame_grouping(states, visual, mask, mask)
        return self.grouping(states, tokens, mask)


class FrameEvidence(nn.Module):
    """
    Probabilities of a class in each frame, by comparison with the class's group, and in the clip, the mean over frames
    weighted by the group's attention.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.state_norm = nn.LayerNorm(size)
        self.group_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.weight_key = nn.Linear(size, size)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor, groups: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map frames (B, T, D) and groups (B, C, D) to clip logits (B, C) and frame probabilities (B, T, C)."""
        states, query = self.state_norm(states), self.query(self.group_norm(groups)).transpose(1, 2)
        scale = states.shape[-1] ** -0.5
        probs = (self.key(states) @ query * scale + self.bias).float().sigmoid()
        scores = (self.weight_key(states) @ query * scale).float()
        if mask is not None:
            probs = probs * mask[..., None]
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        return torch.logit((scores.softmax(1) * probs).sum(1), eps=1e-6), probs


class TemporalGate(nn.Module):
    """
    Gate on each visual frame from the sound of the whole clip (Duan et al., "Cross-modal Prompts", NeurIPS 2023): a
    bidirectional LSTM, two self-attention layers along time, a linear map and a sigmoid. The authors' code also
    computes a gate on the sound, but continues with the ungated sound.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_gate_size
        self.scale = config.head_gate_scale
        self.audio_rnn = nn.LSTM(config.head_hidden_size, size, batch_first=True, bidirectional=True)
        self.audio_encoder = RelationEncoder(config, 2 * size, size=size, num_heads=GATE_HEADS)
        self.audio_gate = nn.Linear(size, 1)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> Tensor:
        """Return gated visual frames (B, T, D), given visual frames (B, T, D) and projected audio (B, T, D)."""
        audio = self.audio_encoder(run_rnn(self.audio_rnn, audio, frames), frames.attention_mask())
        return visual * (1 + self.scale * self.audio_gate(audio).sigmoid())


class VideoParsingHead(nn.Module):
    """
    Head of video parsing.

    Args:
        config: Sizes, number of classes, and whether there are 3D features and a temporal gate.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.is_official = config.is_official
        self.visual_3d_size = config.visual_3d_size
        self.audio_label_smoothing = config.audio_label_smoothing
        self.visual_label_smoothing = config.visual_label_smoothing
        self.audio_projection = nn.Linear(config.audio_hidden_size, size)
        self.visual_projection = nn.Linear(config.visual_hidden_size, size)
        self.temporal_gate = TemporalGate(config) if config.head_gate_size else None
        if self.visual_3d_size:
            self.visual_3d_projection = nn.Linear(self.visual_3d_size, size)
            self.visual_fusion = nn.Linear(2 * size, size)
        self.audio_tokens = nn.Parameter(torch.zeros(config.num_labels, size))
        self.visual_tokens = nn.Parameter(torch.zeros(config.num_labels, size))
        self.audio_grouping = AudioClassGrouping(config, config.unimodal_grouping_depth)
        self.visual_grouping = ClassGrouping(config, config.unimodal_grouping_depth)
        self.event_grouping = ClassGrouping(config, config.cross_modal_grouping_depth)
        self.event_presence = nn.Linear(size, 1)
        if self.is_official:
            self.audio_presence = nn.Linear(size, 1)
            self.visual_presence = nn.Linear(size, 1)
        else:
            self.audio_evidence = FrameEvidence(config)
            self.visual_evidence = FrameEvidence(config)
        self.token_classifier = nn.Linear(size, config.num_labels)

    def reset_parameters(self) -> None:
        # Random, since equal tokens would stay equal: nothing else distinguishes classes.
        nn.init.trunc_normal_(self.audio_tokens, std=0.02)
        nn.init.trunc_normal_(self.visual_tokens, std=0.02)

    def forward(
        self, visual: Tensor, audio: Tensor, frames: FrameLayout, visual_3d: Tensor | None = None
    ) -> ParsingLogits:
        """
        Args:
            visual, audio: (B, T, C_v) and (B, T, C_a), means over tokens.
            frames: Which frames are real.
            visual_3d: (B, T, C_3d) precomputed 3D features, if the configuration has them.

        Raises:
            CaeAvError: 3D features are missing, unexpected, or have a wrong size.
        """
        visual, audio = self.visual_projection(visual), self.audio_projection(audio)
        if self.temporal_gate is not None:
            visual = self.temporal_gate(visual, audio, frames)
        visual = self._fuse(visual, visual_3d)
        mask = frames.mask
        audio_tokens = self.audio_tokens.expand(audio.shape[0], -1, -1)
        visual_tokens = self.visual_tokens.expand(visual.shape[0], -1, -1)
        visual_groups, visual_assignment = self.visual_grouping(visual, visual_tokens, mask)
        audio_groups, audio_assignment = self.audio_grouping(audio, audio_tokens, mask, visual)
        event_groups, _ = self.event_grouping(audio_groups, visual_groups)
        if self.is_official:
            audio_logits = self.audio_presence(audio_groups).squeeze(-1)
            visual_logits = self.visual_presence(visual_groups).squeeze(-1)
            audio_frames = _spread_over_frames(audio_logits, audio_assignment, mask)
            visual_frames = _spread_over_frames(visual_logits, visual_assignment, mask)
        else:
            audio_logits, audio_frames = self.audio_evidence(audio, audio_groups, mask)
            visual_logits, visual_frames = self.visual_evidence(visual, visual_groups, mask)
        return ParsingLogits(
            event=self.event_presence(event_groups).squeeze(-1),
            audio=audio_logits,
            visual=visual_logits,
            audio_frames=audio_frames,
            visual_frames=visual_frames,
            audio_classes=self.token_classifier(self.audio_tokens),
            visual_classes=self.token_classifier(self.visual_tokens),
        )

    def _fuse(self, visual: Tensor, visual_3d: Tensor | None) -> Tensor:
        if not self.visual_3d_size:
            if visual_3d is not None:
                raise CaeAvError("`visual_3d_features` were given to a model without them (`visual_3d_size` is 0)")
            return visual
        expected = (*visual.shape[:2], self.visual_3d_size)
        if visual_3d is None or visual_3d.shape != expected:
            got = "none" if visual_3d is None else tuple(visual_3d.shape)
            raise CaeAvError(f"`visual_3d_features` must be {expected}, as `visual_3d_size` says, got {got}")
        return self.visual_fusion(torch.cat([visual, self.visual_3d_projection(visual_3d)], dim=-1))

    def loss(self, logits: ParsingLogits, labels: Tensor) -> Tensor:
        """
        Return the weakly supervised loss: cross-entropies of the clip's classes, and of the class tokens.

        Args:
            logits: Output of the head.
            labels: (B, C), 1 for classes that are heard or seen in the clip, -100 for unknown ones.
        """
        known = labels != IGNORED_LABEL
        labels = labels.float()

        def mean_cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
            total = F.binary_cross_entropy_with_logits(scores.float(), target, known.float(), reduction="sum")
            return batch_mean(total, known.sum())

        loss = mean_cross_entropy(logits.event, labels)
        for scores, smoothing in (
            (logits.audio, self.audio_label_smoothing),
            (logits.visual, self.visual_label_smoothing),
        ):
            # Smoothed, since a class of the clip need not be both heard and seen.
            target = labels * smoothing + (1 - smoothing) / 2
            loss = loss + mean_cross_entropy(scores, target)
        for scores in (logits.audio_classes, logits.visual_classes):
            loss = loss + F.cross_entropy(scores.float(), torch.arange(len(scores), device=scores.device))
        return loss


def _spread_over_frames(logits: Tensor, assignment: Tensor, mask: Tensor | None) -> Tensor:
    """
    Return the authors' "probabilities" of a class in each frame, (B, T, C): its probability in the clip, from logits
    (B, C), times one plus the softmax over time of its shares of the frames (B, C, T).
    """
    shares = assignment.float()
    if mask is not None:
        shares = shares.masked_fill(~mask[:, None], -torch.inf)
    frames = (logits.float().sigmoid()[..., None] * (1 + shares.softmax(-1))).transpose(1, 2)
    return frames if mask is None else frames * mask[..., None]
