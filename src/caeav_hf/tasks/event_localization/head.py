"""
Heads of event localization, on the token means of both streams: `cmbs`, temporal relation blocks with background
suppression, which the paper's results use, and `mlp` (Appendix B).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...modeling.collectives import batch_mean
from ...modeling.frames import FrameLayout
from ...modeling.temporal import RelationDecoder, RelationEncoder, run_rnn


# The authors' constants: scale of the other stream's gate, and weight and number of top frames in the class scores.
GATE_SCALE = 0.1
TOP_SCORE_WEIGHT = 0.3
TOP_MOMENTS = 4


@dataclass
class EventLogits:
    """
    Output of a head.

    Attributes:
        event: (B, T) logits of an event in each frame.
        clip_class: (B, classes) logits of the event's class.
        strongest: (B, classes) part of `clip_class` from each modality's highest-scoring frames; head `cmbs`.
        gate: (B, T) product of both streams' gates; head `cmbs` with temporal relations.
        frame_class: (B, T, classes + 1) log-probabilities of each frame, background last; head `mlp`.
    """

    event: Tensor
    clip_class: Tensor
    strongest: Tensor | None = None
    gate: Tensor | None = None
    frame_class: Tensor | None = None


class TemporalRelation(nn.Module):
    """
    Cross-modal relations along time: each stream passes a bidirectional LSTM, attends to the other's encoded frames,
    and is scaled by the other's gate.

    Args:
        config: Sizes of the head.
        visual_size, audio_size: Channels of the two inputs.
    """

    def __init__(self, config: CaeAvConfig, visual_size: int, audio_size: int):
        super().__init__()
        size = config.head_hidden_size
        self.visual_projection = nn.Linear(visual_size, config.head_visual_dim)
        self.audio_projection = nn.Linear(audio_size, config.head_audio_dim)
        self.dropout = nn.Dropout(config.branch_dropout)
        # The width of both directions is that of the relation blocks for audio, and twice that for video.
        self.visual_rnn = nn.LSTM(config.head_visual_dim, size, batch_first=True, bidirectional=True)
        self.audio_rnn = nn.LSTM(config.head_audio_dim, size // 2, batch_first=True, bidirectional=True)
        self.visual_encoder = RelationEncoder(config, 2 * size)
        self.audio_encoder = RelationEncoder(config, size)
        self.visual_decoder = RelationDecoder(config, 2 * size)
        self.audio_decoder = RelationDecoder(config, size)
        self.visual_gate = nn.Linear(size, 1)
        self.audio_gate = nn.Linear(size, 1)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, T, C_v) and (B, T, C_a) to two streams (B, T, D) and the product of their gates (B, T)."""
        mask = frames.attention_mask()
        visual = run_rnn(self.visual_rnn, self.dropout(F.relu(self.visual_projection(visual))), frames)
        audio = run_rnn(self.audio_rnn, self.audio_projection(audio), frames)
        visual_keys = self.visual_encoder(visual, mask)
        audio_keys = self.audio_encoder(audio, mask)
        new_audio = self.audio_decoder(audio, visual_keys, mask)
        new_visual = self.visual_decoder(visual, audio_keys, mask)
        visual_gate, audio_gate = self.visual_gate(visual_keys).sigmoid(), self.audio_gate(audio_keys).sigmoid()
        new_visual = new_visual + GATE_SCALE * audio_gate * new_visual
        new_audio = new_audio + GATE_SCALE * visual_gate * new_audio
        return new_visual, new_audio, (visual_gate * audio_gate).squeeze(-1)


class LinearRelation(nn.Module):
    """Replaces the temporal relations in head `cmbs_linear` by a linear map and a ReLU of each frame."""

    def __init__(self, config: CaeAvConfig, visual_size: int, audio_size: int):
        super().__init__()
        self.visual_projection = nn.Linear(visual_size, config.head_hidden_size)
        self.audio_projection = nn.Linear(audio_size, config.head_hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, None]:
        """Map (B, T, C_v) and (B, T, C_a) to two streams (B, T, D); there is no gate."""
        visual = self.dropout(F.relu(self.visual_projection(visual)))
        return visual, self.dropout(F.relu(self.audio_projection(audio))), None


def _masked_fill(scores: Tensor, frames: FrameLayout) -> Tensor:
    """Set scores (B, T, C) of padded frames to minus infinity."""
    return scores if frames.mask is None else scores.masked_fill(~frames.mask[..., None], -torch.inf)


def _top_mean(scores: Tensor, frames: FrameLayout) -> Tensor:
    """Average the highest scores along time, at most `TOP_MOMENTS` of the real frames: (B, T, C) -> (B, C)."""
    scores, kept = _masked_fill(scores, frames), TOP_MOMENTS
    if torch.compiler.is_exporting():
        # The number of frames is unknown in a graph, so pad to have enough for `topk`.
        scores = F.pad(scores, (0, 0, 0, kept - 1), value=-torch.inf)
    else:
        kept = min(kept, scores.shape[1])
    top = scores.topk(kept, dim=1).values
    real = top.isfinite()
    return top.where(real, 0).sum(1) / real.sum(1).clamp_min(1)


class CMBSHead(nn.Module):
    """
    Cross-modal background suppression: predicts is-event logits of each frame and class logits of the clip.

    Args:
        config: Sizes and number of classes.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.gate_loss_weight = config.event_gate_loss_weight
        relation = LinearRelation if config.event_head == "cmbs_linear" else TemporalRelation
        self.relation = relation(config, config.visual_hidden_size, config.audio_hidden_size)
        self.event_classifier = nn.Linear(size, 1)
        self.class_classifier = nn.Linear(size, config.num_labels)
        self.visual_scores = nn.Linear(size, config.num_labels)
        self.audio_scores = nn.Linear(size, config.num_labels)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> EventLogits:
        """Localize events given means over tokens, `visual` (B, T, C_v) and `audio` (B, T, C_a), of `frames`."""
        visual, audio, gate = self.relation(visual, audio, frames)
        fused = (visual + audio) / 2
        event = self.event_classifier(fused).squeeze(-1)
        pooled = _masked_fill(fused, frames).amax(1)
        visual_scores, audio_scores = self.visual_scores(visual), self.audio_scores(audio)
        strongest = (_top_mean(visual_scores, frames) + _top_mean(audio_scores, frames)) / 2
        clip_class = self.class_classifier(pooled) + TOP_SCORE_WEIGHT * strongest
        return EventLogits(event, clip_class, strongest=strongest, gate=gate)

    def loss(self, logits: EventLogits, labels: Tensor) -> Tensor:
        """
        Return BCE(is-event) + CE(class) + CE(strongest) for labels (B, T); background is `num_labels`.

        `event_gate_loss_weight` adds the BCE of the gates' product, which DG-SCT's code takes as a logit although it
        lies between 0 and 1.
        """
        assert logits.strongest is not None
        is_event, clip_class = event_targets(labels, logits.clip_class.shape[1])
        real = labels != IGNORED_LABEL
        total = F.binary_cross_entropy_with_logits(logits.event[real].float(), is_event[real], reduction="sum")
        loss = batch_mean(total, real.sum())
        for scores in (logits.clip_class, logits.strongest):
            total = F.cross_entropy(scores.float(), clip_class, ignore_index=IGNORED_LABEL, reduction="sum")
            loss = loss + batch_mean(total, (clip_class != IGNORED_LABEL).sum())
        if self.gate_loss_weight:
            assert logits.gate is not None
            total = F.binary_cross_entropy_with_logits(logits.gate[real].float(), is_event[real], reduction="sum")
            loss = loss + self.gate_loss_weight * batch_mean(total, real.sum())
        return loss


class MLPHead(nn.Module):
    """
    A hidden layer of `head_visual_dim` on both streams, concatenated, and one class per frame, including background
    (Appendix B). A frame has its most probable class. The logits of the other head are derived from the frames'
    probabilities: those of any class but background, and those of each class summed over time.

    The official formulation has no ReLU between the two linear maps, as the authors' code. `event_loss` `"binary"` is
    the loss of LAVisH (Lin et al., CVPR 2023), which takes the probabilities of the softmax as those of as many
    independent classes.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        self.is_official = config.is_official
        self.is_binary = config.event_loss == "binary"
        self.hidden = nn.Linear(config.visual_hidden_size + config.audio_hidden_size, config.head_visual_dim)
        self.dropout = nn.Dropout(config.event_head_dropout)
        self.classifier = nn.Linear(config.head_visual_dim, config.num_labels + 1)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> EventLogits:
        """See `CMBSHead.forward`."""
        hidden = self.hidden(torch.cat([visual, audio], dim=-1))
        logits = self.classifier(self.dropout(hidden if self.is_official else F.relu(hidden)))
        log_probs = logits.log_softmax(-1)
        return EventLogits(
            # The sigmoid of this is the softmax's probability of any class but background.
            event=logits[..., :-1].logsumexp(-1) - logits[..., -1],
            clip_class=_masked_fill(log_probs[..., :-1], frames).logsumexp(1),
            frame_class=log_probs,
        )

    def loss(self, logits: EventLogits, labels: Tensor) -> Tensor:
        """Return the loss over real frames for labels (B, T); background is `num_labels`."""
        assert logits.frame_class is not None
        scores = logits.frame_class.float().flatten(0, 1)
        if self.is_binary:
            real = labels.flatten() != IGNORED_LABEL
            present = scores[real]
            is_class = F.one_hot(labels.flatten()[real], scores.shape[-1]).bool()
            # Keep probabilities below 1, so that the logarithm of 1 - p is finite.
            absent = (-present.clamp(max=-torch.finfo(present.dtype).tiny).expm1()).log()
            total = -torch.where(is_class, present, absent).sum()
            return batch_mean(total, real.sum() * scores.shape[-1])
        total = F.nll_loss(scores, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
        return batch_mean(total, (labels != IGNORED_LABEL).sum())


def event_targets(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """
    Return the targets of the background-suppression head.

    Args:
        labels: (B, T) class of each frame; `num_labels` is background, -100 a padded frame.
        num_labels: Number of classes.

    Returns:
        (B, T) float, 1 for frames with an event; and (B,) the clip's class, -100 for clips without an event. A clip
        has one class; if frames have several, the first one is used.
    """
    is_event = (labels != num_labels) & (labels != IGNORED_LABEL)
    first = is_event.int().argmax(1, keepdim=True)
    clip_class = labels.gather(1, first).squeeze(1).where(is_event.any(1), IGNORED_LABEL)
    return is_event.float(), clip_class
