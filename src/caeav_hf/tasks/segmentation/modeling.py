"""CAE-AV with a decoder for segmentation of sounding objects (AVSBench)."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...configuration_cae_av import CaeAvConfig
from ...modeling.modeling_cae_av import AGREEMENT_OUTPUTS, CaeAvModel, CaeAvModelOutput, CaeAvPreTrainedModel
from .head import SegmentationHead, ZeroBatchNorm


@dataclass
class CaeAvSegmentationOutput(CaeAvModelOutput):
    r"""
    Output of [`CaeAvForSegmentation`]: that of [`CaeAvModel`], whose `loss` also includes the task's.

    Attributes:
        logits (`torch.FloatTensor` of shape `(batch_size, num_frames, 1, mask_size, mask_size)`):
            Whether a pixel belongs to a sounding object; 0 in padded frames.
    """

    logits: torch.Tensor | None = None


class CaeAvForSegmentation(CaeAvPreTrainedModel):
    """
    [`CaeAvModel`] with a decoder that segments the sounding objects in every frame (AVSBench).

    Args:
        config: The configuration.
    """

    exported_outputs = ("logits", *AGREEMENT_OUTPUTS)

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        self.model = CaeAvModel(config)
        self.head = SegmentationHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroBatchNorm):
            nn.init.zeros_(module.weight)

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
        output_feature_maps: bool = True,
        output_hidden_states: bool | None = None,
    ) -> CaeAvSegmentationOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask, visual_caption_*, audio_caption_*, output_*: See
                [`CaeAvModel.forward`].
            labels: `(batch_size, num_frames, mask_size, mask_size)`, 1 for sounding objects, 0 for the rest, -100 in
                frames without a mask. Single-source training labels only the first frame of a clip.

        Returns:
            [`CaeAvSegmentationOutput`]
        """
        captions = (
            *(visual_caption_ids, audio_caption_ids, visual_caption_mask, audio_caption_mask),
            *(visual_caption_embeds, audio_caption_embeds),
        )
        outputs, frames = self._encode(
            *(pixel_values_videos, input_features, frame_mask, *captions),
            labels=labels,
            output_feature_maps=True,
            output_hidden_states=output_hidden_states,
        )
        maps = tuple(frames.to_list(tokens) for tokens in outputs.visual_feature_maps)
        masks = self.head(maps, frames.to_list(outputs.audio_pooler_output), frames)
        values = dict(outputs)
        if not output_feature_maps:
            del values["visual_feature_maps"]
        if labels is not None:
            frames.check_target("labels", labels, self.config.mask_size, self.config.mask_size)
            auxiliary = {"matching": self.head.matching_loss(masks)} if self.loss_weights["matching"] else {}
            values |= self._total_loss(outputs, self.head.loss(masks, frames.to_list(labels)), **auxiliary)
        return CaeAvSegmentationOutput(**values, logits=frames.to_grid(masks.logits))


__all__ = ["CaeAvForSegmentation", "CaeAvSegmentationOutput"]
