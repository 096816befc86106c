"""
CAE-AV's interaction: CASTE before AVMoE's adapters, and an optional loss that calibrates CASTE's agreement.

Hu, Li and Zhang, "CAE-AV: Improving Audio-Visual Learning via Cross-modal Interactive Enrichment", Section III-B.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from ..task import get_task
from .avmoe import AVMoEInteraction
from .caste import CASTE
from .collectives import at_least_float32, batch_mean, gather_rows
from .frames import FrameLayout
from .interaction import InteractionOutput, register_interaction


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock


@register_interaction("cae_av")
class CaeAvInteraction(AVMoEInteraction):
    """
    CAE-AV: CASTE once per stage, at its first pair, by default before the adapters (`caste_position`, Table VIII).

    CASTE's enrichment reaches the streams only through the adapters, or directly if there are none.
    """

    title = "CAE-AV"
    reference = 'Hu, Li and Zhang, "CAE-AV: Improving Audio-Visual Learning via Cross-modal Interactive Enrichment"'

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        return {}

    def add_layers(self) -> None:
        config, visual, audio = self.config, self.position.visual, self.position.audio
        self.caste_position = config.caste_position if self.position.is_first else None
        if self.caste_position is not None:
            self.visual_caste = CASTE(config, visual.hidden_size, audio.hidden_size)
            self.audio_caste = CASTE(config, audio.hidden_size, visual.hidden_size)
        official = get_task(config.task).official if config.is_official else {}
        self.skips_audio_blocks = official.get("skips_audio_blocks", False)
        super().add_layers()

    def attend(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
        enrichment: tuple[Tensor, Tensor] | None = None,
    ) -> InteractionOutput:
        if self.caste_position != "before":
            return super().attend(visual, audio, visual_block, audio_block, frames, enrichment)
        enrichment, explained = self.enrich(visual, audio, frames)
        output = super().attend(visual, audio, visual_block, audio_block, frames, enrichment)
        if self.skips_audio_blocks and self.has_adapters:
            output.audio = output.audio + enrichment[1]
        output.explained |= explained
        return output

    def feed_forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
        enrichment: tuple[Tensor, Tensor] | None = None,
    ) -> InteractionOutput:
        explained: dict[str, Tensor] = {}
        if self.caste_position == "between":
            enrichment, explained = self.enrich(visual, audio, frames)
        output = super().feed_forward(visual, audio, visual_block, audio_block, frames, enrichment)
        if self.caste_position == "after":
            enrichment, explained = self.enrich(output.visual, output.audio, frames)
            output.visual, output.audio = output.visual + enrichment[0], output.audio + enrichment[1]
        output.explained |= explained
        return output

    def run_audio_attention(self, audio: Tensor, audio_block: "FrozenBlock") -> Tensor:
        return audio if self.skips_audio_blocks else super().run_audio_attention(audio, audio_block)

    def enrich(
        self, visual: Tensor, audio: Tensor, frames: FrameLayout
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """
        Return CASTE's enrichment of both streams, and its explanation: weights (N, 2) of both streams, and embeddings
        (N, 2, 2 D) of both modalities, visual first, whose dot product is their agreement (Eq. 1).
        """
        visual_added, visual_weights, visual_projections = self.visual_caste(visual, audio, frames)
        audio_added, audio_weights, audio_projections = self.audio_caste(audio, visual, frames)
        # Concatenated unit vectors of both directions' gates: their dot product is the mean of the two cosines.
        sides = torch.stack([visual_projections, audio_projections.flip(0)], dim=2)
        embeddings = F.normalize(sides, dim=-1).flatten(2) / math.sqrt(2)
        return (visual_added, audio_added), {
            "enrichment_weights": visual_weights,
            "audio_enrichment_weights": audio_weights,
            "embeddings": embeddings.transpose(0, 1),
        }

    @classmethod
    def loss_weights(cls, config: CaeAvConfig) -> dict[str, float]:
        return {**super().loss_weights(config), "agreement": float(config.agreement_loss_weight)}

    @classmethod
    def shared_modules(cls, config: CaeAvConfig) -> dict[str, nn.Module]:
        if not config.agreement_loss_weight:
            return {}
        return {"agreement_calibration": AgreementCalibration(config.num_stages)}

    @classmethod
    def collect(
        cls,
        config: CaeAvConfig,
        explained: dict[str, list[Tensor]],
        frames: FrameLayout,
        shared: Mapping[str, nn.Module],
        loss_weights: Mapping[str, float] | None,
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        explained, losses = super().collect(config, explained, frames, shared, loss_weights)
        embeddings = [stage.unbind(1) for stage in explained.pop("embeddings")]
        explained["agreement"] = [(visual * audio).sum(-1) for visual, audio in embeddings]
        if "agreement_calibration" not in shared:
            return explained, losses
        calibration = cast(AgreementCalibration, shared["agreement_calibration"])
        logits = map(calibration.logits, explained["agreement"], range(len(embeddings)))
        explained["agreement_probs"] = [stage.sigmoid() for stage in logits]
        if loss_weights is not None:
            device = embeddings[0][0].device
            clip, moment = frames.clip_of_frame(device), frames.moment_of_frame(device)
            # Events last a while, so only sounds at least half a clip away count as mismatched.
            far = max(1, config.num_frames // 2)
            stage_losses = [
                agreement_loss(visual, audio, clip, moment, far, partial(calibration.logits, stage=stage))
                for stage, (visual, audio) in enumerate(embeddings)
            ]
            losses["agreement"] = torch.stack(stage_losses).mean()
        return explained, losses


class AgreementCalibration(nn.Module):
    """
    Calibration of the agreement g of each stage (Eq. 1): sigmoid(scale (g - threshold)) is the probability that a
    frame and a sound belong together, given that half of all pairs do. Not part of the paper.
    """

    def __init__(self, num_stages: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(num_stages))
        self.threshold = nn.Parameter(torch.empty(num_stages))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, math.log(10.0))
        nn.init.zeros_(self.threshold)

    def logits(self, agreement: Tensor, stage: int) -> Tensor:
        """Return the log-odds of agreements of any shape."""
        scale, threshold = at_least_float32(self.log_scale[stage]).exp(), at_least_float32(self.threshold[stage])
        return scale * (at_least_float32(agreement) - threshold)


def agreement_loss(
    visual: Tensor, audio: Tensor, clip: Tensor, moment: Tensor, far: int, to_logits: Callable[[Tensor], Tensor]
) -> Tensor:
    """
    Compute a contrastive loss between the frames and the sounds of a batch. A frame matches its own sound; it
    mismatches sounds of other clips, on all processes, and sounds of its own clip at least `far` segments away. Nearer
    sounds are ignored. Not part of the paper, which trains CASTE's agreement only through the task.

    This is the pairwise sigmoid loss of SigLIP (Zhai et al., ICCV 2023), with equal total weights of matching and
    mismatched pairs.

    Args:
        visual, audio: (N, D) embeddings of the frames and their sounds; their dot products are agreements.
        clip: (N,) index of each frame's clip, from 0 on each process.
        moment: (N,) position of each frame in its clip.
        far: Minimum distance in segments of mismatched sounds of the same clip.
        to_logits: Maps agreements to log-odds.

    Returns:
        Mean of the losses of both kinds of pairs over the frames of all processes; a kind without pairs adds 0.
    """
    visual, audio = at_least_float32(visual), at_least_float32(audio)
    parts, place = gather_rows(audio)
    sounds = torch.cat(parts)
    # Each process numbers its clips from 0, so the same number on another process is another clip.
    process = torch.cat([torch.full((len(rows),), number, device=clip.device) for number, rows in enumerate(parts)])
    position = torch.stack([clip, moment], dim=-1)
    sound_clip, sound_moment = torch.cat(gather_rows(position)[0]).unbind(-1)
    same_clip = (process == place) & (clip[:, None] == sound_clip)
    distance = (moment[:, None] - sound_moment).abs()
    mismatched = ~same_clip | (distance >= far)
    positive = -F.logsigmoid(to_logits((visual * audio).sum(-1)))
    negative = -F.logsigmoid(-to_logits(visual @ sounds.T)).masked_fill(~mismatched, 0.0)
    return (batch_mean(positive.sum(), len(positive)) + batch_mean(negative.sum(), mismatched.sum())) / 2
