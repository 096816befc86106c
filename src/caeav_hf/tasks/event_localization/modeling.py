"""CAE-AV with a head for event localization (AVE)."""

from dataclasses import dataclass

import torch
from transformers.utils import can_return_tuple

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...errors import CaeAvError
from ...modeling.modeling_cae_av import AGREEMENT_OUTPUTS, CaeAvModel, CaeAvModelOutput, CaeAvPreTrainedModel
from .head import CMBSHead, MLPHead


@dataclass
class CaeAvEventLocalizationOutput(CaeAvModelOutput):
    r"""
    Output of [`CaeAvForEventLocalization`]: that of [`CaeAvModel`], whose `loss` also includes the task's.

    Attributes:
        event_logits (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Whether a frame has an event.
        class_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Class of the clip's event.
        av_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, with head `cmbs`):
            The part of the class logits from each modality's highest-scoring frames.
        frame_log_probs (`torch.FloatTensor` of shape `(batch_size, num_frames, num_labels + 1)`, with head `mlp`):
            Log-probabilities of each frame's class, background last.
    """

    event_logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    av_logits: torch.Tensor | None = None
    frame_log_probs: torch.Tensor | None = None


class CaeAvForEventLocalization(CaeAvPreTrainedModel):
    """
    [`CaeAvModel`] with a head that predicts the event of a clip and the segments in which it is seen and heard (AVE).

    Args:
        config: The configuration; `event_head` chooses the head.
    """

    exported_outputs = ("event_logits", "class_logits", "frame_log_probs", *AGREEMENT_OUTPUTS)

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        self.model = CaeAvModel(config)
        self.head = MLPHead(config) if config.event_head == "mlp" else CMBSHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        output_feature_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> CaeAvEventLocalizationOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask, visual_caption_*, audio_caption_*, output_*: See
                [`CaeAvModel.forward`].
            labels: `(batch_size, num_frames)`, class of each frame, `num_labels` for background, -100 for padding.

        Returns:
            [`CaeAvEventLocalizationOutput`]
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
        logits = self.head(outputs.visual_pooler_output, outputs.audio_pooler_output, frames)
        values = dict(outputs)
        if labels is not None:
            if labels.shape != logits.event.shape:
                raise CaeAvError(
                    f"`labels` must be (batch, frames), {tuple(logits.event.shape)}, got {tuple(labels.shape)}"
                )
            if frames.mask is not None:
                labels = labels.masked_fill(~frames.mask, IGNORED_LABEL)
            values |= self._total_loss(outputs, self.head.loss(logits, labels))
        return CaeAvEventLocalizationOutput(
            **values,
            event_logits=logits.event,
            class_logits=logits.clip_class,
            av_logits=logits.strongest,
            frame_log_probs=logits.frame_class,
        )


__all__ = ["CaeAvEventLocalizationOutput", "CaeAvForEventLocalization"]
