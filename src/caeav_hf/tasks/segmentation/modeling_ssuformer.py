"""SSUFormer with its decoder of masks alone, for segmentation of sounding objects (AVSBench)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import can_return_tuple

from ...configuration_ssuformer import SsuFormerConfig
from ...errors import CaeAvError
from ...modeling.frames import FrameLayout
from ...modeling.ssuformer.mask_decoder import MaskDecoder, dice_loss
from ...modeling.ssuformer.modeling_ssuformer import SsuFormerModel, SsuFormerModelOutput, SsuFormerPreTrainedModel


@dataclass
class SsuFormerSegmentationOutput(SsuFormerModelOutput):
    r"""
    Output of [`SsuFormerForSegmentation`]: that of [`SsuFormerModel`] and

    Attributes:
        loss (`torch.FloatTensor`, with `labels`): The Dice loss, see [`~modeling.ssuformer.mask_decoder.dice_loss`].
        loss_dict (`dict[str, torch.Tensor]`): The same as `segmentation`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_frames, 1, mask_size, mask_size)`):
            Whether a pixel belongs to a sounding object; 0 in padded frames.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: torch.Tensor | None = None


class SsuFormerForSegmentation(SsuFormerPreTrainedModel):
    """
    [`SsuFormerModel`] with the decoder that segments the sounding objects in every frame (AVSBench).

    It describes nothing, as the paper's SSU-S, so that MCM, RCC and MoHE have no part in it.

    Args:
        config: The configuration, whose `outputs` are `"masks"`.

    Raises:
        CaeAvError: `outputs` of the configuration are others.
    """

    exported_outputs = ("logits",)

    def __init__(self, config: SsuFormerConfig):
        if config.outputs != "masks":
            raise CaeAvError(
                f"`outputs` of SsuFormerConfig must be 'masks' for {type(self).__name__}, as in the presets of "
                f"segmentation, got {config.outputs!r}"
            )
        super().__init__(config)
        self.model = SsuFormerModel(config)
        self.mask_decoder = MaskDecoder(config)
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
    ) -> SsuFormerSegmentationOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask: See [`SsuFormerModel.forward`].
            labels: `(batch_size, num_frames, mask_size, mask_size)`, 1 for sounding objects, 0 for the rest, -100 in
                frames without a mask. Single-source training labels only the first frame of a clip.
            visual_caption_*, audio_caption_*: Not read.

        Returns:
            [`SsuFormerSegmentationOutput`]

        Raises:
            CaeAvError: Shapes do not match each other or the configuration.
        """
        encoded = self.model(pixel_values_videos, input_features, frame_mask, return_dict=True)
        frames = FrameLayout(pixel_values_videos.shape[0], pixel_values_videos.shape[1], frame_mask)
        logits = self.mask_decoder(
            frames.to_list(encoded.query_hidden_state),
            frames.to_list(encoded.visual_hidden_state),
            [*map(frames.to_list, encoded.visual_feature_maps)],
        )
        outputs = SsuFormerSegmentationOutput(**encoded, logits=frames.to_grid(logits))
        if labels is not None:
            frames.check_target("labels", labels, self.config.mask_size, self.config.mask_size)
            outputs.loss = dice_loss(logits, frames.to_list(labels))
            outputs.loss_dict = {"segmentation": outputs.loss}
        return outputs


__all__ = ["SsuFormerForSegmentation", "SsuFormerSegmentationOutput"]
