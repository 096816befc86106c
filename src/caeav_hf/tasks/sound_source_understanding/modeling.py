"""SSUFormer with its decoders of masks and descriptions (RA-SSU)."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import can_return_tuple, logging

from ...configuration_ssuformer import SsuFormerConfig
from ...constants import IGNORED_LABEL
from ...errors import CaeAvError
from ...modeling.collectives import anywhere
from ...modeling.frames import FrameLayout
from ...modeling.ssuformer.description_decoder import DescriptionDecoder, ExpertText, description_loss
from ...modeling.ssuformer.mask_decoder import MaskDecoder, dice_loss
from ...modeling.ssuformer.modeling_ssuformer import SsuFormerModel, SsuFormerModelOutput, SsuFormerPreTrainedModel
from ...modeling.ssuformer.region import consistency_loss, masked_frames, soft_text


logger = logging.get_logger(__name__)


@dataclass
class SsuFormerSoundSourceUnderstandingOutput(SsuFormerModelOutput):
    r"""
    Output of [`SsuFormerForSoundSourceUnderstanding`]: that of [`SsuFormerModel`] and

    Attributes:
        loss (`torch.FloatTensor`, with `labels` or `description_ids`): a L_seg + (1 - a) L_tex + L_clip (Eq. 4, 6) of
            the terms whose targets are given.
        loss_dict (`dict[str, torch.Tensor]`): The unweighted terms `segmentation`, `description` and `consistency`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_frames, 1, mask_size, mask_size)`):
            Whether a pixel belongs to what sounds; 0 in padded frames.
        description_logits (`torch.FloatTensor` of shape `(batch_size, num_frames, length - 1, vocab_size)`, with
            `description_ids`): Scores of each id after the first, given the ids before it.
        description_ids (`torch.LongTensor` of shape `(batch_size, num_frames, length)`, without `description_ids`):
            Descriptions decoded greedily, from start to end; -100 after the end and in padded frames.
        router_probs (`torch.FloatTensor` of shape `(batch_size, num_frames, length - 1, 2)`, with captions):
            Weights of the decoder's states and of the expert's text (MoHE) for each id after the first.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: torch.Tensor | None = None
    description_logits: torch.Tensor | None = None
    description_ids: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None


class SsuFormerForSoundSourceUnderstanding(SsuFormerPreTrainedModel):
    """
    [`SsuFormerModel`] with decoders that segment all that sounds in each frame and describe it in a sentence.

    The text decoder reads the frame masked with the predicted mask (MCM), its prediction is compared with that frame
    (RCC), and a router adds the text of a video-language model to its states (MoHE), if `visual_caption_*` has one.

    Args:
        config: The configuration.
    """

    exported_outputs = ("logits",)
    decoded_outputs = ("description_ids", "router_probs")
    exports_captions = False

    def __init__(self, config: SsuFormerConfig):
        super().__init__(config)
        self.model = SsuFormerModel(config)
        self.mask_decoder: MaskDecoder | None = None
        if config.has_masks:
            self.mask_decoder = MaskDecoder(config)
        self.description_decoder: DescriptionDecoder | None = None
        if config.has_descriptions:
            region = config.region_config.stages()[-1].hidden_size if config.collaborates else None
            self.description_decoder = DescriptionDecoder(config, region)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        description_ids: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        use_cache: bool = True,
    ) -> SsuFormerSoundSourceUnderstandingOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask: See [`SsuFormerModel.forward`].
            labels: `(batch_size, num_frames, mask_size, mask_size)`, 1 for what sounds, 0 for the rest, -100 in frames
                without annotation.
            description_ids: `(batch_size, num_frames, length)`, ids from start to end, -100 after the end and in
                frames without annotation. Without them descriptions are decoded, except in training.
            visual_caption_ids, visual_caption_mask, visual_caption_embeds: The expert's text on each clip, see
                [`CaeAvModel.forward`]. A row without real tokens marks a clip without it.
            audio_caption_ids, audio_caption_mask, audio_caption_embeds: Not read.
            max_length: Most ids of a decoded description with its start, `max_description_length` by default.
            max_new_tokens: Likewise without its start; replaces `max_length`.
            use_cache: Whether decoding keeps the keys and values of earlier ids.

        Returns:
            [`SsuFormerSoundSourceUnderstandingOutput`]

        Raises:
            CaeAvError: Shapes do not match each other or the configuration, or a length is out of range.
        """
        length = self._decoded_length(max_length, max_new_tokens)
        encoded = self.model(pixel_values_videos, input_features, frame_mask, return_dict=True)
        frames = FrameLayout(pixel_values_videos.shape[0], pixel_values_videos.shape[1], frame_mask)
        self._check_targets(labels, description_ids, frames)
        queries, visual = (
            frames.to_list(tokens) for tokens in (encoded.query_hidden_state, encoded.visual_hidden_state)
        )
        mask_logits, regions, region_embeds = None, None, None
        if self.mask_decoder is not None:
            mask_logits = self.mask_decoder(queries, visual, [*map(frames.to_list, encoded.visual_feature_maps)])
        is_compared = self.config.is_consistent and description_ids is not None
        if mask_logits is not None and (self.config.collaborates or is_compared):
            pixels = masked_frames(frames.to_list(pixel_values_videos), mask_logits, self.config)
            regions, region_embeds = self.model.encode_regions(pixels)
        values: dict[str, Any] = dict(encoded)
        losses: dict[str, Tensor] = {}
        if mask_logits is not None:
            values["logits"] = frames.to_grid(mask_logits)
            if labels is not None:
                losses["segmentation"] = dice_loss(mask_logits, frames.to_list(labels))
        if self.description_decoder is not None:
            captions = (visual_caption_ids, visual_caption_mask, visual_caption_embeds)
            text = self._expert_text(captions, frames)
            memory = self.description_decoder.memory(queries, visual, regions if self.config.collaborates else None)
            if description_ids is not None:
                described, terms = self._teach(frames.to_list(description_ids), memory, text, region_embeds)
                values |= {name: frames.to_grid(tensor) for name, tensor in described.items()}
                losses |= terms
            elif not (self.training or torch.compiler.is_exporting()):
                ids, weights = self.description_decoder.decode(memory, text, length, use_cache)
                # The grid is zero in padded frames, which is an id.
                values["description_ids"] = frames.to_grid(ids - IGNORED_LABEL) + IGNORED_LABEL
                if weights is not None:
                    values["router_probs"] = frames.to_grid(weights)
        if losses:
            values["loss"] = torch.stack([self._loss_weight(name) * loss for name, loss in losses.items()]).sum()
            values["loss_dict"] = losses
        return SsuFormerSoundSourceUnderstandingOutput(**values)

    def _teach(
        self, ids: Tensor, memory: Tensor, text: ExpertText | None, region_embeds: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs and the losses of the text decoder, given the descriptions (N, L)."""
        decoder = cast(DescriptionDecoder, self.description_decoder)
        # Ids after the end change nothing before it, but must lie in the vocabulary.
        known = ids.clamp_min(0)
        logits, weights, _ = decoder(known[:, :-1], memory, text)
        outputs = {"description_logits": logits}
        if weights is not None:
            outputs["router_probs"] = weights
        losses = {"description": description_loss(logits, ids, self.config.focal_gamma)}
        if self.config.is_consistent and region_embeds is not None:
            probabilities = logits.softmax(-1, dtype=torch.float32)
            predicted = soft_text(probabilities, known, self.model.text_tower)
            # A sentence has more than a start and an end.
            is_described = (ids != IGNORED_LABEL).sum(1) > 2
            losses["consistency"] = consistency_loss(region_embeds, predicted, is_described)
        return outputs, losses

    def _loss_weight(self, name: str) -> float:
        share = self.config.segmentation_loss_weight
        return {"segmentation": share, "description": 1 - share, **self.loss_weights}[name]

    def _decoded_length(self, max_length: int | None, max_new_tokens: int | None) -> int:
        name, length = "max_length", self.config.max_description_length if max_length is None else max_length
        if max_new_tokens is not None:
            name, length = "max_new_tokens", 1 + max_new_tokens
        most = self.config.decoder_config.max_position_embeddings
        if not 2 <= length <= most:
            raise CaeAvError(
                f"`{name}` must give descriptions of 2 to {most} ids, their start among them, got {length}"
            )
        return length

    def _check_targets(self, labels: Tensor | None, ids: Tensor | None, frames: FrameLayout) -> None:
        if labels is not None:
            frames.check_target("labels", labels, self.config.mask_size, self.config.mask_size)
        if ids is None:
            return
        expected = (frames.batch_size, frames.num_frames)
        most = self.config.decoder_config.max_position_embeddings
        if ids.ndim != 3 or ids.shape[:2] != expected or not 2 <= ids.shape[2] <= most:
            raise CaeAvError(
                f"`description_ids` must be {expected} and 2 to {most} ids of each frame, got {tuple(ids.shape)}"
            )

    def _expert_text(
        self, captions: tuple[Tensor | None, Tensor | None, Tensor | None], frames: FrameLayout
    ) -> ExpertText | None:
        """Return the features of the expert's text, given as (ids, mask, embeds) of each clip, for each frame."""
        if not self.config.reads_captions:
            return None
        ids, mask, embeds = captions
        if ids is not None and embeds is not None:
            raise CaeAvError("give either `visual_caption_ids` or `visual_caption_embeds`, not both")
        given = embeds if embeds is not None else ids
        device = self.device
        if anywhere(given is not None, device) and given is None:
            # Another process has texts: FSDP waits for the gradients of the experts here too, which are zero.
            embeds = given = torch.zeros(frames.batch_size, 1, self.config.text_config.hidden_size, device=device)
            mask = torch.zeros(given.shape[:2], dtype=torch.bool, device=device)
        if given is None:
            logger.warning_once(
                "No `visual_caption_*` given: without the expert's text, MoHE leaves the decoder's states as they are."
            )
            return None
        if given.shape[0] != frames.batch_size or (mask is not None and mask.shape != given.shape[:2]):
            raise CaeAvError(
                f"`visual_caption_*` must have one row per clip ({frames.batch_size}) and a mask of the same length, "
                f"got {tuple(given.shape)} and mask {None if mask is None else tuple(mask.shape)}"
            )
        features = embeds if embeds is not None else self.model.get_caption_features(cast(Tensor, ids), mask)
        real = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device) if mask is None else mask.bool()
        present = real.any(1)
        clip = frames.clip_of_frame(given.device)
        # Attention without any key is undefined, so a clip without text attends to all; the result is not used.
        return ExpertText(features.to(self.dtype)[clip], (real | ~present[:, None])[clip], present[clip])


__all__ = ["SsuFormerForSoundSourceUnderstanding", "SsuFormerSoundSourceUnderstandingOutput"]
