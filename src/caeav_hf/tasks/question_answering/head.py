"""
Head of question answering, after Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios" (CVPR
2022): audio-guided spatial grounding, question-guided attention along time, and matching of sound and frame as an
auxiliary task.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...errors import CaeAvError
from ...modeling.attention import MultiHeadAttention
from ...modeling.case import masked_mean
from ...modeling.collectives import batch_mean
from ...modeling.frames import FrameLayout
from ...modeling.temporal import scan_rnn


@dataclass
class Grounding:
    """
    A clip's frames, pooled by attention from the sound.

    Attributes:
        visual: (B, T, D) frames with emphasis on their sounding parts.
        weights: (B, T, L) attention to the tokens of each frame, which sums to 1.
        match: (B, T, 2) logits that frame and sound come from different clips, or from the same one.
    """

    visual: Tensor
    weights: Tensor
    match: Tensor

    def of_questions(self, clip_index: Tensor) -> "Grounding":
        """Return one row per question, given the index of each question's clip."""
        return Grounding(self.visual[clip_index], self.weights[clip_index], self.match[clip_index])


@dataclass
class AnswerLogits:
    """
    Output of the head.

    Attributes:
        answer: (B, answers) logits.
        visual_attention, audio_attention: (B, T) attention of the question to frames and sounds, which sums to 1.
    """

    answer: Tensor
    visual_attention: Tensor
    audio_attention: Tensor


class QuestionEncoder(nn.Module):
    """Encodes words to one vector: embedding, LSTM, and a linear map of its last states."""

    def __init__(self, config: CaeAvConfig, size: int):
        super().__init__()
        self.is_official = config.is_official
        self.embedding = nn.Embedding(config.question_vocab_size, size)
        self.rnn = nn.LSTM(size, size, batch_first=True)
        self.projection = nn.Linear(2 * size, size)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode word ids (B, Q) to (B, D); `mask` (B, Q) is true for real words, the first ones of each row."""
        words = torch.tanh(self.embedding(ids))
        if torch.compiler.is_exporting():
            is_word = None
            if mask is not None and not self.is_official:
                is_word = torch.arange(ids.shape[1], device=ids.device) < mask.sum(1, keepdim=True).clamp_min(1)
            _, hidden, cell = scan_rnn(self.rnn, words, is_word)
        elif mask is None or self.is_official:
            # The authors' code also reads the padding.
            _, (hidden, cell) = self.rnn(words)
        else:
            lengths = mask.sum(1).clamp_min(1).cpu()
            _, (hidden, cell) = self.rnn(pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False))
        return self.projection(torch.tanh(torch.cat([hidden[-1], cell[-1]], dim=-1)))


class QuestionAttention(nn.Module):
    """Attention of a question (B, D) to frames or sounds (B, T, D); returns (B, D) and the weights (B, T)."""

    def __init__(self, config: CaeAvConfig, size: int):
        super().__init__()
        self.attention = MultiHeadAttention(config, size, config.head_num_heads, config.head_dropout)
        self.hidden = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.head_dropout)

    def forward(self, question: Tensor, moments: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        attended, weights = self.attention.with_weights(question[:, None], moments, frames.attention_mask())
        attended = attended.squeeze(1)
        hidden = self.output(self.dropout(F.relu(self.hidden(attended))))
        return self.norm(attended + self.dropout(hidden)), weights.mean(1).squeeze(1)


class QuestionAnsweringHead(nn.Module):
    """
    Head of question answering. Its width D is that of the visual tower's last stage, whose tokens are compared with
    the audio, or `head_answer_size`, to which these tokens are projected first.

    Args:
        config: Sizes, number of words and answers.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_answer_size or config.visual_hidden_size
        self.question_encoder = QuestionEncoder(config, size)
        self.visual_projection = nn.Linear(config.visual_hidden_size, size) if config.head_answer_size else None
        audio_size = config.head_answer_audio_size or config.audio_hidden_size
        self.audio_projection: nn.Module | None = None
        if config.head_answer_audio_size:
            self.audio_projection = nn.Linear(config.audio_hidden_size, audio_size)
        self.audio_hidden = nn.Linear(audio_size, size) if config.head_audio_hidden else None
        self.audio_output = nn.Linear(size, size)
        self.grounding_projection = nn.Linear(2 * size, size)
        widths = [2 * size, *config.matching_hidden_sizes, 2]
        self.matching = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.visual_attention = QuestionAttention(config, size)
        self.audio_attention = QuestionAttention(config, size)
        self.fusion = nn.Linear(2 * size, size)
        self.classifier = nn.Linear(size, config.num_labels)

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Encode the means over tokens (B, T, C_a) to (B, T, D)."""
        if self.audio_projection is not None:
            audio = self.audio_projection(audio)
        if self.audio_hidden is not None:
            audio = self.audio_hidden(audio)
        return self.audio_output(F.relu(audio))

    def ground(self, visual: Tensor, audio: Tensor) -> Grounding:
        """Ground encoded audio (B, T, D) in the tokens (B, T, L, C_v) of frames of the same or other clips."""
        if self.visual_projection is not None:
            visual = self.visual_projection(visual)
        directions = F.normalize(visual, dim=-1)
        weights = (directions @ F.normalize(audio, dim=-1)[..., None]).squeeze(-1).softmax(-1)
        stressed = (weights[..., None, :] @ directions).squeeze(-2)
        grounded = self.grounding_projection(torch.tanh(torch.cat([visual.mean(-2), stressed], dim=-1)))
        match = torch.cat([audio, grounded], dim=-1)
        for layer in self.matching[:-1]:
            match = F.relu(layer(match))
        return Grounding(grounded, weights, self.matching[-1](match))

    def forward(
        self,
        grounding: Grounding,
        audio: Tensor,
        question_ids: Tensor,
        question_mask: Tensor | None,
        frames: FrameLayout,
    ) -> AnswerLogits:
        """
        Args:
            grounding: Grounding in the frames' tokens after the tower's final norm.
            audio: (B, T, D), from `encode_audio`.
            question_ids, question_mask: (B, Q).
            frames: Which frames are real.

        Raises:
            CaeAvError: The questions have a wrong shape.
        """
        if question_ids.ndim != 2 or question_ids.shape[0] != audio.shape[0]:
            raise CaeAvError(
                f"`question_ids` must be ({audio.shape[0]}, words), one row per clip, got {tuple(question_ids.shape)}"
            )
        if question_mask is not None and question_mask.shape != question_ids.shape:
            raise CaeAvError(f"`question_mask` must be {tuple(question_ids.shape)}, got {tuple(question_mask.shape)}")
        question = self.question_encoder(question_ids, question_mask)
        seen, visual_weights = self.visual_attention(question, grounding.visual, frames)
        heard, audio_weights = self.audio_attention(question, audio, frames)
        heard = heard + masked_mean(audio, frames.mask)
        seen = seen + masked_mean(grounding.visual, frames.mask)
        gathered = self.fusion(torch.tanh(torch.cat([heard, seen], dim=-1)))
        return AnswerLogits(self.classifier(torch.tanh(gathered * question)), visual_weights, audio_weights)

    def loss(self, logits: AnswerLogits, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the answers (B,); -100 for unknown answers."""
        total = F.cross_entropy(logits.answer.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return batch_mean(total, (labels != IGNORED_LABEL).sum())

    def matching_loss(self, match: Tensor, negative_match: Tensor) -> Tensor:
        """Return the cross-entropy of matching logits (N, 2) and mismatching logits (M, 2) of real frames."""
        scores = torch.cat([match, negative_match]).float()
        is_own = torch.cat([match.new_ones(len(match)), match.new_zeros(len(negative_match))]).long()
        return batch_mean(F.cross_entropy(scores, is_own, reduction="sum"), len(is_own))
