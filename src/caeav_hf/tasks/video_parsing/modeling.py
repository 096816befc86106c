"""CAE-AV with a head for video parsing (LLP)."""

from dataclasses import dataclass

import torch
from transformers.utils import can_return_tuple

from ...configuration_cae_av import CaeAvConfig
from ...errors import CaeAvError
from ...modeling.modeling_cae_av import AGREEMENT_OUTPUTS, CaeAvModel, CaeAvModelOutput, CaeAvPreTrainedModel
from .head import VideoParsingHead


@dataclass
class CaeAvVideoParsingOutput(CaeAvModelOutput):
    r"""
    Output of [`CaeAvForVideoParsing`]: that of [`CaeAvModel`], whose `loss` also includes the task's.

    Attributes:
        event_probs (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Whether a class occurs in the clip.
        audio_probs (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Whether it is heard in the clip.
        visual_probs (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Whether it is seen in the clip.
        audio_frame_probs (`torch.FloatTensor` of shape `(batch_size, num_frames, num_labels)`): Whether it is heard
            in a frame; 0 in padded frames. May exceed 1 in the official formulation.
        visual_frame_probs (`torch.FloatTensor` of shape `(batch_size, num_frames, num_labels)`): Whether it is seen
            in a frame, as above.
    """

    event_probs: torch.Tensor | None = None
    audio_probs: torch.Tensor | None = None
    visual_probs: torch.Tensor | None = None
    audio_frame_probs: torch.Tensor | None = None
    visual_frame_probs: torch.Tensor | None = None


class CaeAvForVideoParsing(CaeAvPreTrainedModel):
    """
    [`CaeAvModel`] with a head that predicts which classes of a clip are heard, which are seen, and when (LLP). It is
    trained on labels of whole clips.

    Args:
        config: The configuration; `visual_3d_size` is the width of precomputed 3D features, if any.
    """

    exported_outputs = (
        *("event_probs", "audio_probs", "visual_probs", "audio_frame_probs", "visual_frame_probs"),
        *AGREEMENT_OUTPUTS,
    )

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        self.model = CaeAvModel(config)
        self.head = VideoParsingHead(config)
        self.post_init()

    def example_inputs(self, batch_size: int, num_frames: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return 3D features if the model reads any."""
        size = self.config.visual_3d_size
        if not size:
            return {}
        return {"visual_3d_features": torch.randn(batch_size, num_frames, size, generator=generator)}

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        visual_3d_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        output_feature_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> CaeAvVideoParsingOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask, visual_caption_*, audio_caption_*, output_*: See
                [`CaeAvModel.forward`].
            visual_3d_features: `(batch_size, num_frames, visual_3d_size)`, features of a 3D network for each segment;
                required if `visual_3d_size` is not 0.
            labels: `(batch_size, num_labels)`, 1 for the classes that are heard or seen in the clip, 0 for the rest,
                -100 for unknown ones.

        Returns:
            [`CaeAvVideoParsingOutput`]
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
        visual = outputs.visual_pooler_output
        if visual_3d_features is not None:
            visual_3d_features = visual_3d_features.to(visual.dtype)
        logits = self.head(visual, outputs.audio_pooler_output, frames, visual_3d_features)
        values = dict(outputs)
        if labels is not None:
            if labels.shape != logits.event.shape:
                raise CaeAvError(
                    f"`labels` must be (batch, classes), {tuple(logits.event.shape)}, got {tuple(labels.shape)}"
                )
            values |= self._total_loss(outputs, self.head.loss(logits, labels))
        return CaeAvVideoParsingOutput(
            **values,
            event_probs=logits.event.sigmoid(),
            audio_probs=logits.audio.sigmoid(),
            visual_probs=logits.visual.sigmoid(),
            audio_frame_probs=logits.audio_frames,
            visual_frame_probs=logits.visual_frames,
        )


__all__ = ["CaeAvForVideoParsing", "CaeAvVideoParsingOutput"]
