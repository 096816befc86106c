"""CAE-AV with a head for question answering (MUSIC-AVQA)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import can_return_tuple

from ...configuration_cae_av import CaeAvConfig
from ...errors import CaeAvError
from ...modeling.collectives import anywhere, gather_rows
from ...modeling.frames import FrameLayout
from ...modeling.modeling_cae_av import (
    AGREEMENT_OUTPUTS,
    CaeAvModel,
    CaeAvModelOutput,
    CaeAvPreTrainedModel,
    random_words,
)
from .head import QuestionAnsweringHead


# Compare clips on every 8th pixel per side.
PIXEL_STEP = 8


@dataclass
class CaeAvQuestionAnsweringOutput(CaeAvModelOutput):
    r"""
    Output of [`CaeAvForQuestionAnswering`]: that of [`CaeAvModel`], whose `loss` also includes the task's.

    Attributes:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Logits of the answers.
        match_logits (`torch.FloatTensor` of shape `(batch_size, num_frames, 2)`):
            Whether a frame and its sound come from different clips (first) or from the same one (second).
        match_logits_negative (`torch.FloatTensor` of shape `(batch_size, num_frames, 2)`):
            The same for sound and frames of different clips, if there are any.
        grounding (`torch.FloatTensor` of shape `(batch_size, num_frames, visual_tokens)`):
            The audio's attention to the tokens of a frame, in row-major order; sums to 1.
        visual_attention (`torch.FloatTensor` of shape `(batch_size, num_frames)`): The question's attention to frames.
        audio_attention (`torch.FloatTensor` of shape `(batch_size, num_frames)`): The question's attention to sounds.
    """

    logits: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    match_logits_negative: torch.Tensor | None = None
    grounding: torch.Tensor | None = None
    visual_attention: torch.Tensor | None = None
    audio_attention: torch.Tensor | None = None


class CaeAvForQuestionAnswering(CaeAvPreTrainedModel):
    """
    [`CaeAvModel`] with a head that answers a question about a clip with one of `num_labels` answers (MUSIC-AVQA).

    Args:
        config: The configuration.
    """

    # A batch of one clip has no mismatched pairs, which leaves the matching layers unused.
    has_idle_parameters = True

    exported_outputs = ("logits", "visual_attention", "audio_attention", "grounding", *AGREEMENT_OUTPUTS)

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        self.model = CaeAvModel(config)
        self.head = QuestionAnsweringHead(config)
        self.post_init()

    def example_inputs(self, batch_size: int, num_frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return questions of different lengths."""
        ids, mask = random_words(batch_size, 4, self.config.question_vocab_size, generator)
        return {"question_ids": ids, "question_mask": mask}

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        question_ids: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        clip_index: torch.Tensor | None = None,
        pixel_values_negative: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        output_feature_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> CaeAvQuestionAnsweringOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask, visual_caption_*, audio_caption_*, output_*: See
                [`CaeAvModel.forward`].
            question_ids: `(num_questions, words)`, by default one question per clip.
            question_mask: `(num_questions, words)`, true for real words; by default all are.
            clip_index: `(num_questions,)`, index of each question's clip if several questions refer to one clip, which
                is then encoded once. Outputs of the head have one row per question.
            pixel_values_negative: Frames of other clips with the shape of `pixel_values_videos`, as mismatches of the
                sound; only the frozen tower reads them. Without them, and with labels, each clip's frames are paired
                with the sound of the next clip in the batch, unless both are the same clip. A batch of one clip has no
                matching loss.
            labels: `(num_questions,)`, index of the answer, -100 if it is unknown.

        Returns:
            [`CaeAvQuestionAnsweringOutput`]
        """
        captions = (
            *(visual_caption_ids, audio_caption_ids, visual_caption_mask, audio_caption_mask),
            *(visual_caption_embeds, audio_caption_embeds),
        )
        outputs, frames = self._encode(
            *(pixel_values_videos, input_features, frame_mask, *captions),
            labels=labels,
            output_feature_maps=output_feature_maps,
            output_hidden_states=output_hidden_states,
        )
        vision, _ = self.model.readers()
        visual = vision.patches(vision.final_norm(outputs.visual_hidden_state))
        audio = self.head.encode_audio(outputs.audio_pooler_output)
        grounding = self.head.ground(visual, audio)
        mask = outputs.frame_mask
        match_negative: Tensor | None = None
        is_pair = mask
        if pixel_values_negative is not None:
            if pixel_values_negative.shape != pixel_values_videos.shape:
                raise CaeAvError(
                    f"`pixel_values_negative` must be {tuple(pixel_values_videos.shape)}, as the clips' own frames, "
                    f"got {tuple(pixel_values_negative.shape)}"
                )
            match_negative = self.head.ground(self._frozen_tokens(pixel_values_negative, frames), audio).match
        elif labels is not None:
            sound, is_pair = self._next_sound(audio, pixel_values_videos, mask)
            if anywhere(bool(is_pair.any()), visual.device):
                match_negative = self.head.ground(visual, sound).match
        auxiliary = {}
        if labels is not None and match_negative is not None and self.loss_weights["matching"]:
            auxiliary["matching"] = self.head.matching_loss(grounding.match[mask], match_negative[is_pair])

        if clip_index is not None:
            # From here on, one row per question.
            if clip_index.shape != question_ids.shape[:1]:
                raise CaeAvError(f"`clip_index` must be ({len(question_ids)},), got {tuple(clip_index.shape)}")
            grounding, audio, mask = grounding.of_questions(clip_index), audio[clip_index], mask[clip_index]
            match_negative = None if match_negative is None else match_negative[clip_index]
        rows = FrameLayout(mask.shape[0], frames.num_frames, None if frames.mask is None else mask)
        logits = self.head(grounding, audio, question_ids, question_mask, rows)
        values = dict(outputs)
        if labels is not None:
            if labels.shape != logits.answer.shape[:1]:
                raise CaeAvError(f"`labels` must be ({len(logits.answer)},), got {tuple(labels.shape)}")
            values |= self._total_loss(outputs, self.head.loss(logits, labels), **auxiliary)
        return CaeAvQuestionAnsweringOutput(
            **values,
            logits=logits.answer,
            match_logits=grounding.match,
            match_logits_negative=match_negative,
            grounding=grounding.weights.masked_fill(~mask[..., None], 0),
            visual_attention=logits.visual_attention,
            audio_attention=logits.audio_attention,
        )

    def _next_sound(self, audio: Tensor, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the encoded sound (B, T, D) of the next clip for each clip, and where it is real and of another clip,
        (B, T). The clips of all processes form a ring.
        """
        # The sparse pixels travel with the sound, so that equal clips are recognised across processes.
        looks = pixels[..., ::PIXEL_STEP, ::PIXEL_STEP].flatten(2).to(audio.dtype)
        known = torch.cat([audio, looks, mask[..., None].to(audio.dtype)], dim=-1)
        firsts, place = gather_rows(known[0])
        first = next(part for part in (*firsts[place + 1 :], *firsts[: place + 1]) if len(part))
        # Each process pads its clips to its own length.
        first = F.pad(first[: known.shape[1]], (0, 0, 0, max(0, known.shape[1] - len(first))))
        sound, others, is_real = torch.cat([known[1:], first[None]]).split([audio.shape[-1], looks.shape[-1], 1], -1)
        is_pair = mask & (is_real[..., 0] > 0)
        is_other = ((looks != others).any(-1) & is_pair).any(1, keepdim=True)
        return sound, is_pair & is_other

    def _frozen_tokens(self, pixel_values_videos: Tensor, frames: FrameLayout) -> Tensor:
        """Return the frozen visual tower's tokens (B, T, L, D) after the final norm, without interaction."""
        vision, _ = self.model.readers()
        tokens = self.model.embed_frames(frames.to_list(pixel_values_videos))
        return frames.to_grid(vision.patches(vision.final_norm(vision.walk(tokens).finish())))


__all__ = ["CaeAvForQuestionAnswering", "CaeAvQuestionAnsweringOutput"]
