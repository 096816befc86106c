"""A model that matches frames and sounds with class names: few-shot and zero-shot (DG-SCT)."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import can_return_tuple

from ...configuration_cae_av import CaeAvConfig
from ...errors import CaeAvError
from ...modeling.modeling_cae_av import CaeAvModel, CaeAvModelOutput, CaeAvPreTrainedModel
from .head import MatchingHead, classification_loss, fuse, loss_weights


# Name of the last class of models that classify frames, in which nothing is both seen and heard.
BACKGROUND = "background"


@dataclass
class CaeAvFewShotLocalizationOutput(CaeAvModelOutput):
    r"""
    Output of [`CaeAvForFewShotLocalization`]: that of [`CaeAvModel`], whose `loss` also includes the task's. K is the
    number of prompts: of the model's classes, and of background with `matching_level="frame"`; or of the given ones.

    Attributes:
        logits (`torch.FloatTensor` of shape `(batch_size, num_frames, K)`): Scores of each frame, of both modalities.
        visual_logits (`torch.FloatTensor` of shape `(batch_size, num_frames, K)`): Logits of what is seen.
        audio_logits (`torch.FloatTensor` of shape `(batch_size, num_frames, K)`): Logits of what is heard.
    """

    logits: torch.Tensor | None = None
    visual_logits: torch.Tensor | None = None
    audio_logits: torch.Tensor | None = None


class CaeAvForFewShotLocalization(CaeAvPreTrainedModel):
    """
    [`CaeAvModel`] on the towers of CLIP and CLAP, whose frames and sounds are matched with class names. It learns from
    few clips of each class, and classifies clips of classes that it was not trained on by their names.

    The names are token ids: those of the model's own classes are stored with it by
    [`~CaeAvForFewShotLocalization.name_classes`], others are arguments of `forward`.

    Args:
        config: The configuration; it needs `audio_text_config`.

    Raises:
        CaeAvError: The configuration has no `audio_text_config`.
    """

    exported_outputs = ("logits", "visual_logits", "audio_logits")

    def __init__(self, config: CaeAvConfig):
        super().__init__(config)
        if config.audio_text_config is None:
            raise CaeAvError(
                "`audio_text_config` is missing; expected one as in `CaeAvConfig.from_preset('ave_few_shot')`"
            )
        self.model = CaeAvModel(config)
        self.head = MatchingHead(config, len(self.class_names))
        self.epoch = 1
        self.post_init()

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the logits, with background if frames are classified."""
        names = [cast(dict, self.config.id2label)[index] for index in range(self.config.num_labels)]
        return [*names, BACKGROUND] if self.config.matching_level == "frame" else names

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch + 1

    @torch.no_grad()
    def name_classes(self, processor: Any) -> None:
        """Store the token ids of the class names that the processor computes."""
        prompts = processor.class_prompts(self.class_names, num_context_tokens=self.config.num_context_tokens)
        for name, ids in prompts.items():
            getattr(self.head, name).copy_(ids)

    def example_inputs(self, batch_size: int, num_frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return nothing: a traced model scores its own classes, whose names must be known by then."""
        self._check_names(self.head.visual_prompt_ids)
        return {}

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        input_features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visual_prompt_ids: torch.Tensor | None = None,
        sound_prompt_ids: torch.Tensor | None = None,
        visual_caption_ids: torch.Tensor | None = None,
        audio_caption_ids: torch.Tensor | None = None,
        visual_caption_mask: torch.Tensor | None = None,
        audio_caption_mask: torch.Tensor | None = None,
        visual_caption_embeds: torch.Tensor | None = None,
        audio_caption_embeds: torch.Tensor | None = None,
        output_feature_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> CaeAvFewShotLocalizationOutput:
        r"""
        Args:
            pixel_values_videos, input_features, frame_mask, visual_caption_*, audio_caption_*, output_*: See
                [`CaeAvModel.forward`].
            labels: `(batch_size, num_frames)` with `matching_level="frame"`, class of each frame, `num_labels` for
                background, -100 for padding; else `(batch_size,)`, class of each clip.
            visual_prompt_ids, sound_prompt_ids: `(K, N)` and `(K, M)`, token ids of other class names, from
                [`CaeAvProcessor.class_prompts`], by default those of the model's own classes.

        Returns:
            [`CaeAvFewShotLocalizationOutput`]

        Raises:
            CaeAvError: Shapes do not match, or the names of the classes are not known.
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
        embeddings = [
            reader.tower.project(reader.pool(reader.final_norm(states)))
            for reader, states in zip(
                self.model.readers(), (outputs.visual_hidden_state, outputs.audio_hidden_state), strict=True
            )
        ]
        texts = self._embed_classes(visual_prompt_ids, sound_prompt_ids)
        scales = cast(Any, self.model.text_tower).logit_scale, cast(Any, self.model.audio_text_tower).logit_scale
        visual_logits, audio_logits, adapted = self.head(*embeddings, texts, scales)
        logits = fuse(visual_logits, audio_logits, self.head.fusion)
        values = dict(outputs)
        if labels is not None:
            expected = logits.shape[:2] if self.config.matching_level == "frame" else logits.shape[:1]
            if labels.shape != expected:
                raise CaeAvError(f"`labels` must have the shape {tuple(expected)}, got {tuple(labels.shape)}")
            mask = frames.mask
            losses = torch.stack(
                [
                    classification_loss(logits, labels, mask),
                    *self.head.contrast_losses(adapted, embeddings[1], mask, scales[0]),
                ]
            )
            weights = loss_weights(losses, self.epoch, self.config.matching_loss_weights)
            values["loss"] = outputs.loss + (weights * losses).sum()
            names = ("task", "sound_to_picture", "picture_to_sound")
            values["loss_dict"] = {**outputs.loss_dict, **dict(zip(names, losses, strict=True))}
        return CaeAvFewShotLocalizationOutput(
            **values, logits=logits, visual_logits=visual_logits, audio_logits=audio_logits
        )

    @staticmethod
    def _check_names(ids: Tensor) -> None:
        if not bool(ids.any()):
            raise CaeAvError(
                "the model does not know the names of its classes yet: call `model.name_classes(processor)`, or give "
                "`visual_prompt_ids` and `sound_prompt_ids`"
            )

    def _embed_classes(self, visual_ids: Tensor | None, sound_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the embeddings (K, P) of the class names by CLIP and by CLAP."""
        if (visual_ids is None) != (sound_ids is None) or (
            visual_ids is not None and sound_ids is not None and len(visual_ids) != len(sound_ids)
        ):
            raise CaeAvError(
                "`visual_prompt_ids` and `sound_prompt_ids` must be given together, one row each per class"
            )
        if visual_ids is None or sound_ids is None:
            visual_ids, sound_ids = self.head.visual_prompt_ids, self.head.sound_prompt_ids
        padding = self.config.audio_text_config.pad_token_id
        if not torch.compiler.is_compiling():
            self._check_names(visual_ids)
            # Padding after the longest text has no effect.
            visual_ids = visual_ids[:, : int((visual_ids != 0).any(0).nonzero().max()) + 1]
            sound_ids = sound_ids[:, : int((sound_ids != padding).any(0).nonzero().max()) + 1]
        seen = cast(Any, self.model.text_tower).embed_prompts(visual_ids, self.head.context)
        return seen, cast(Any, self.model.audio_text_tower).embed_prompts(sound_ids)


__all__ = ["CaeAvFewShotLocalizationOutput", "CaeAvForFewShotLocalization"]
