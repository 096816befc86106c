"""
Head of segmentation, which predicts the pixels of sounding objects.

The visual tower's stages are gated along time, interact with the audio in TPAVI, and are fused from coarse to fine.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration_cae_av import CaeAvConfig
from ...constants import IGNORED_LABEL
from ...modeling.collectives import SharedBatchNorm, batch_mean, batch_sum
from ...modeling.frames import FrameLayout
from ...modeling.temporal import RelationEncoder, run_rnn


# Dilations of the convolutions that bring a map to the decoder's width without gates, and deviation of their weights.
DILATIONS = (3, 6, 12, 18)
DILATED_STD = 0.01
# Initial logit of the decoder, since about a tenth of the pixels belongs to sounding objects.
PRIOR_LOGIT = -2.0


@dataclass
class MaskLogits:
    """
    Output of the head for N frames.

    Attributes:
        logits: (N, 1, S, S), where S is the configuration's `mask_size`.
        maps: One (N, D, H, W) per scale, fine to coarse, after the interaction with the audio.
        audio: One (N, D) per scale, the projected audio of the interaction.
    """

    logits: Tensor
    maps: list[Tensor]
    audio: list[Tensor]


class TemporalGate(nn.Module):
    """
    Gates of one scale, from each frame's picture on its sound and vice versa.

    As in event localization, but without the decoders.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size = config.head_hidden_size
        self.visual_projection = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.branch_dropout)
        self.visual_rnn = nn.LSTM(size, size, batch_first=True, bidirectional=True)
        self.audio_rnn = nn.LSTM(config.head_audio_dim, size // 2, batch_first=True, bidirectional=True)
        self.visual_encoder = RelationEncoder(config, 2 * size)
        self.audio_encoder = RelationEncoder(config, size)
        self.visual_gate = nn.Linear(size, 1)
        self.audio_gate = nn.Linear(size, 1)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """Return the visual and the audio gate, (N, 1) each, of frame means (N, D) and audio (N, D_a)."""
        mask = frames.attention_mask()
        visual = self.dropout(F.relu(self.visual_projection(frames.to_grid(visual))))
        visual = self.visual_encoder(run_rnn(self.visual_rnn, visual, frames), mask)
        audio = self.audio_encoder(run_rnn(self.audio_rnn, frames.to_grid(audio), frames), mask)
        return (
            frames.to_list(self.visual_gate(visual).sigmoid()),
            frames.to_list(self.audio_gate(audio).sigmoid()),
        )


class DilatedConv2d(nn.Conv2d):
    """A 3x3 convolution with a dilation that keeps the size, and weights drawn from N(0, 0.01)."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int):
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, std=DILATED_STD)


class DilatedSum(nn.ModuleList):
    """Sum of convolutions of several dilations: (N, C, H, W) -> (N, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(DilatedConv2d(in_channels, out_channels, dilation) for dilation in DILATIONS)

    def forward(self, maps: Tensor) -> Tensor:
        first, *others = self
        total = first(maps)
        for convolution in others:
            total = total + convolution(maps)
        return total


class ZeroBatchNorm(SharedBatchNorm):
    """Batch normalisation with an initial scale of zero, so that its branch starts without effect."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class TPAVI(nn.Module):
    """
    Temporal pixel-wise audio-visual interaction (Zhou et al., Audio-Visual Segmentation, ECCV 2022): every pixel of a
    clip attends to the audio of all its frames, by plain dot products divided by their number.

    Without a softmax the products associate: keys are multiplied by values first, a matrix of channels by channels,
    and no map between all pixels of a clip is ever formed.
    """

    def __init__(self, hidden_size: int, audio_size: int):
        super().__init__()
        inner = hidden_size // 2
        self.audio_projection = nn.Linear(audio_size, hidden_size)
        self.query = nn.Linear(hidden_size, inner)
        self.key = nn.Linear(hidden_size, inner)
        self.value = nn.Linear(hidden_size, inner)
        self.output = nn.Linear(inner, hidden_size)
        self.batch_norm = ZeroBatchNorm(hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, maps: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """Map maps (N, D, H, W) and audio (N, D_a) to new maps, and the audio in their width (N, D)."""
        pixels = maps.permute(0, 2, 3, 1)
        audio = self.audio_projection(audio)
        # All pixels of a frame share one key, the audio's, so their values are summed first.
        keys = self.key(audio)
        values = self.value(pixels).sum((1, 2))
        products = frames.to_grid(keys).transpose(1, 2) @ frames.to_grid(values)
        count = frames.lengths(maps.device) * pixels.shape[1] * pixels.shape[2]
        context = (products / count[:, None, None].to(products.dtype))[frames.clip_of_frame(maps.device)]
        attended = self.output(self.query(pixels).flatten(1, 2) @ context)
        attended = self.batch_norm(attended).view_as(pixels)
        return self.norm(attended + pixels).permute(0, 3, 1, 2), audio


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions after ReLUs, added to the rectified input, like the authors' in-place layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.relu(maps)
        return self.second(F.relu(self.first(maps))) + maps


class FusionBlock(nn.Module):
    """Adds a finer map to the fused coarser ones and doubles the size."""

    def __init__(self, channels: int, is_coarsest: bool):
        super().__init__()
        self.lateral = None if is_coarsest else ResidualConvUnit(channels)
        self.residual = ResidualConvUnit(channels)

    def forward(self, maps: Tensor, coarser: Tensor | None) -> Tensor:
        if self.lateral is not None and coarser is not None:
            maps = coarser + self.lateral(maps)
        return F.interpolate(self.residual(maps), scale_factor=2, mode="bilinear", align_corners=True)


class MaskClassifier(nn.Conv2d):
    """A convolution whose bias is initialised to `PRIOR_LOGIT`."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        assert self.bias is not None
        nn.init.constant_(self.bias, PRIOR_LOGIT)


class SegmentationHead(nn.Module):
    """
    Decoder of masks.

    With `head_map_sizes` it is the decoder of Zhou et al. (ECCV 2022), as LAVisH uses it: dilated convolutions bring
    each map to the decoder's width, and there are no gates.

    Args:
        config: Sizes of the head and of the towers.
    """

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        size, stages = config.head_hidden_size, config.visual_stages
        # Fine to coarse: a quarter of the mask's side for the first stage, and half as much for each later one.
        self.sides = [config.mask_size // 4 // 2**stage for stage in range(len(stages))]
        self.grids = [stage.grid for stage in stages]
        self.gate_scale = config.head_gate_scale
        self.matching_loss_form = config.matching_loss_form
        map_sizes = config.head_map_sizes or [size for _ in stages]
        self.projections = nn.ModuleList(
            nn.Linear(stage.hidden_size, map_size) for stage, map_size in zip(stages, map_sizes, strict=True)
        )
        self.audio_projection = nn.Linear(config.audio_hidden_size, config.head_audio_dim)
        self.convolutions: nn.ModuleList | None = None
        self.gates: nn.ModuleList | None = None
        if config.head_map_sizes is None:
            self.gates = nn.ModuleList(TemporalGate(config) for _ in self.sides)
        else:
            self.convolutions = nn.ModuleList(DilatedSum(map_size, size) for map_size in map_sizes)
        self.interactions = nn.ModuleList(TPAVI(size, config.head_audio_dim) for _ in self.sides)
        coarsest = len(self.sides) - 1
        self.fusions = nn.ModuleList(
            FusionBlock(size, is_coarsest=scale == coarsest) for scale in range(len(self.sides))
        )
        first, second = config.head_decoder_sizes or (size // 2, 32)
        self.upsample = nn.Conv2d(size, first, 3, padding=1)
        self.hidden = nn.Conv2d(first, second, 3, padding=1)
        self.classifier = MaskClassifier(second, 1, 1)

    def forward(self, feature_maps: tuple[Tensor, ...], audio: Tensor, frames: FrameLayout) -> MaskLogits:
        """
        Args:
            feature_maps: One (N, L, C) per stage of the visual tower, see `visual_feature_maps`.
            audio: (N, C_a), mean over the audio tokens after CASE.
            frames: Which clips the N frames belong to.
        """
        maps = []
        for tokens, projection, grid, side in zip(feature_maps, self.projections, self.grids, self.sides, strict=True):
            patches = tokens[:, -grid[0] * grid[1] :]  # Without prefix tokens.
            image = projection(patches).unflatten(1, grid).permute(0, 3, 1, 2)
            maps.append(F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False))
        audio = self.audio_projection(audio)
        if self.gates is not None:
            visual_gates = []
            for scale, gate in enumerate(self.gates):
                visual_gate, audio_gate = gate(maps[scale].mean((2, 3)), audio, frames)
                visual_gates.append(visual_gate)
                maps[scale] = maps[scale] * (1 + self.gate_scale * audio_gate[..., None, None])
            audio = audio * (1 + self.gate_scale * torch.stack(visual_gates).mean(0))
        else:
            assert self.convolutions is not None
            maps = [convolution(image) for image, convolution in zip(maps, self.convolutions, strict=True)]
        audio_by_scale = []
        for scale, interaction in enumerate(self.interactions):
            maps[scale], aligned = interaction(maps[scale], audio, frames)
            audio_by_scale.append(aligned)
        fused: Tensor | None = None
        for image, fusion in zip(reversed(maps), reversed(self.fusions), strict=True):
            fused = fusion(image, fused)
        assert fused is not None
        fused = F.interpolate(self.upsample(fused), scale_factor=2, mode="bilinear", align_corners=False)
        return MaskLogits(self.classifier(F.relu(self.hidden(fused))), maps, audio_by_scale)

    def loss(self, output: MaskLogits, labels: Tensor) -> Tensor:
        """
        Return the mean binary cross-entropy over the pixels of frames that have a mask.

        Args:
            output: Output for N frames.
            labels: (N, S, S), 1 for sounding objects, 0 for the rest, -100 in frames without a mask.
        """
        has_mask = labels.flatten(1)[:, 0] != IGNORED_LABEL
        logits, targets = output.logits[has_mask, 0].float(), labels[has_mask].float()
        total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return batch_mean(total, targets.numel())

    def matching_loss(self, output: MaskLogits) -> Tensor:
        """
        Return the divergence between the audio and the masked maps, averaged over scales: the audio-mask matching loss
        of Zhou et al. for several sources, in the form that `matching_loss_form` of the configuration chooses.
        """
        losses = []
        for maps, audio in zip(output.maps, output.audio, strict=True):
            log_probs = F.log_softmax(self._masked_mean(maps, output.logits).float(), dim=-1)
            losses.append(F.kl_div(log_probs, F.softmax(audio.float(), dim=-1), reduction="sum"))
        total = torch.stack(losses).mean()
        return batch_sum(total) if self.matching_loss_form == "sum" else batch_mean(total, len(output.logits))

    def _masked_mean(self, maps: Tensor, logits: Tensor) -> Tensor:
        """Average maps (N, D, H, W) over the pixels that the logits (N, 1, S, S) choose: (N, D)."""
        size = (maps.shape[-2], maps.shape[-1])
        if self.matching_loss_form == "sum":
            return (maps * F.adaptive_avg_pool2d(logits, size).sigmoid()).mean((2, 3))
        covered = F.adaptive_avg_pool2d(logits.sigmoid(), size)
        return (maps * covered).sum((2, 3)) / covered.sum((2, 3)).clamp_min(1e-6)
