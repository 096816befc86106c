"""
DG-SCT: each modality guides which channels and tokens of the other one its frozen tower attends to.

Duan et al., "Cross-modal Prompts: Adapting Large Pre-trained Models for Audio-Visual Downstream Tasks" (NeurIPS 2023).
The published results are those of the authors' code, which differs from the paper's equations; `formulation` of
[`DGSCTOptions`] chooses, the code being the default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..task import get_task
from ..towers.recompute import recomputed
from .adapters import CrossModalMap, LatentAdapter, LatentAdapterOptions
from .frames import FrameLayout
from .interaction import BlockPosition, InteractionLayer, InteractionOutput, PairPosition, register_interaction
from .temporal import run_rnn


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock


# Width of the spatial map in the paper, and here of both directions of its temporal RNN together, of which the paper
# gives neither kind nor width.
PAPER_SIZE = 256


# Options of the authors' few-shot code. On AVE frames gamma is .01, for classification .05.
FEW_SHOT_OPTIONS: dict[str, Any] = {
    "order": "after",
    "alpha": 0.2,
    "beta": 0.05,
    "gamma": 0.05,
    "temporal_gate": True,
    "num_latent_tokens": 2,
}


# Options in which the authors' scripts for a task differ from event localization's. Only the paper's formulation
# uses gamma; its value for question answering is only in the paper.
TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "avvp": {"gamma": 0.05},
    "avs_s4": {
        "gamma": 0.05,
        "resize": "bicubic",
        "zero_latents": True,
        "norm_before": False,
        "batch_norm": False,
        "gated_streams": "visual",
        "gate_before_norm": True,
    },
    "avs_ms3": {
        "alpha": 0.2,
        "beta": 0.1,
        "reduction": 2,
        "zero_latents": True,
        "norm_before": False,
        "batch_norm": False,
        "gated_streams": "visual",
        "gate_before_norm": True,
    },
    "ave_few_shot": {**FEW_SHOT_OPTIONS, "gamma": 0.01},
    "ave_few_shot_classification": FEW_SHOT_OPTIONS,
    "avvp_few_shot_classification": FEW_SHOT_OPTIONS,
    "avqa": {
        "groups": 4,
        "num_latent_tokens": 2,
        "zero_latents": True,
        "batch_norm": False,
        "gated_streams": "visual",
    },
}


@dataclass(frozen=True, kw_only=True)
class DGSCTOptions(LatentAdapterOptions):
    """
    Options of DG-SCT. The defaults are those of the authors' scripts for event localization.

    Args:
        formulation: `"official"` computes what the authors' code computes, `"paper"` the printed equations. The
            options of [`~modeling.adapters.LatentAdapterOptions`] are about the bottleneck and the exchange, which
            only the code has.
        alpha, beta: Weights of the channel map and of the spatial map (Eq. 6).
        gamma: Weight of the adapters' temporal gate (Eq. 7).
        temporal_gate: Whether adapters of the official formulation have one, of each frame alone, as those of the
            authors' few-shot code. The paper's always have one, of the frames of a clip.
        resize: How the other modality's tokens become as many as the stream's: `"linear"`, a map over tokens, or
            `"bicubic"`, which needs tokens in a grid.
        order: Whether the first adapters stand `"beside"` the frozen branches and read the same tokens, or `"after"`
            them and read what these compute, as in the authors' few-shot code, which also does not pool by the
            adapters' attention. Only of the official formulation.
    """

    formulation: Literal["official", "paper"] = "official"
    alpha: float = 0.3
    beta: float = 0.05
    gamma: float = 0.1
    temporal_gate: bool = False
    resize: Literal["linear", "bicubic"] = "linear"
    order: Literal["beside", "after"] = "beside"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == "after" and not self.is_official:
            raise ValueError("`order` 'after' needs `formulation` 'official'")

    @property
    def is_official(self) -> bool:
        """Whether the authors' code, rather than the printed equations, is followed."""
        return self.formulation == "official"


class BicubicMap(nn.Module):
    """
    Bring the other modality's tokens to the stream's shape by a linear map over channels and bicubic resizing of their
    grid. Its methods are those of [`~modeling.adapters.CrossModalMap`].
    """

    def __init__(self, grid: tuple[int, int], other_grid: tuple[int, int], hidden_size: int, other_size: int):
        super().__init__()
        self.grid, self.other_grid = grid, other_grid
        self.channels = nn.Linear(other_size, hidden_size)

    def forward(self, other: Tensor) -> Tensor:
        """Map tokens (N, L', C') to (N, L, C)."""
        image = self.channels(other).transpose(1, 2).unflatten(2, self.other_grid)
        resized = F.interpolate(image, size=self.grid, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


class TemporalGate(nn.Module):
    """The paper's temporal gate (Eq. 5): a bidirectional LSTM over a clip's prompts, a linear map and a sigmoid."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.rnn = nn.LSTM(hidden_size, PAPER_SIZE // 2, batch_first=True, bidirectional=True)
        self.output = nn.Linear(PAPER_SIZE, 1)

    def forward(self, prompt: Tensor, frames: FrameLayout) -> Tensor:
        """Map vectors (N, C) to (N, 1)."""
        return self.output(frames.to_list(run_rnn(self.rnn, frames.to_grid(prompt), frames))).sigmoid()


class DGSCTAdapter(LatentAdapter):
    """
    The adapter of one stream, which the other modality's tokens guide.

    Args:
        options: Options of the method.
        own, other: The stream's block, and the other modality's.
        has_gate: Whether a gate that begins at 0 scales the result.

    Raises:
        CaeAvError: The options do not fit the stream's sizes.
    """

    options: DGSCTOptions

    def __init__(self, options: DGSCTOptions, own: BlockPosition, other: BlockPosition, has_gate: bool):
        super().__init__(options)
        size = own.hidden_size
        width = size // 2 if options.is_official else PAPER_SIZE
        self.cross_modal_map: CrossModalMap | BicubicMap
        if options.resize == "linear":
            self.cross_modal_map = CrossModalMap(own.num_tokens, other.num_tokens, size, other.hidden_size)
        else:
            if own.num_prefix_tokens or other.num_prefix_tokens:
                raise CaeAvError("`resize` 'bicubic' of DG-SCT needs towers whose tokens are all patches in a grid")
            self.cross_modal_map = BicubicMap(own.grid, other.grid, size, other.hidden_size)
        self.channel_prompt = nn.Linear(size, size)
        self.channel_states = nn.Linear(size, size)
        self.channel_bottleneck = nn.Linear(size, size // 2)
        self.channel_map = nn.Linear(size // 2, size)
        self.spatial_prompt = nn.Linear(size, width)
        self.spatial_states = nn.Linear(size, width)
        self.spatial_map = nn.Linear(width, 1)
        self.temporal_gate: nn.Module | None = None
        if not options.is_official:
            self.temporal_gate = TemporalGate(size)
        elif options.temporal_gate:
            self.temporal_gate = nn.Linear(size, 1)
        # Without a gate the paper's adapter would double its stream at every step.
        if has_gate or not options.is_official:
            self.add_gate()
        if options.is_official:
            self.add_bottleneck(size)

    def forward(self, states: Tensor, other: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
            states: (N, L, C), the stream.
            other: (N, L', C'), the other modality.
            frames: Which clips the N frames belong to.

        Returns:
            The term to add to the stream (N, L, C); the attention map (N, L), which is 1 in sum over the tokens; and
            the temporal gate (N, 1), if there is one.
        """
        if self.options.is_official:
            return self._official(states, other)
        return self._paper(states, other, frames)

    def _official(self, states: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(self.cross_modal_map, CrossModalMap):
            # The other modality's tokens in the stream's shape are read by few queries and by a mean.
            gathered, prompt = self.cross_modal_map.attend_and_mean(self.exchange.latents, other)
        else:
            mapped = self.cross_modal_map(other)
            prompt, gathered = mapped.mean(1), self.gather(mapped)
        states = self.exchange(states, gathered)
        # The prompt is the same for all tokens, so that their mean is taken first.
        tokens = recomputed(_mean_of_positive, self.channel_states(states))
        channels = self._channel_map(F.relu(self.channel_prompt(prompt)) * tokens)
        focused = F.relu(self.spatial_states(states * (channels + 1)[:, None]))
        guide = F.relu(self.spatial_prompt(prompt)) * self.spatial_map.weight
        scores = (focused @ guide[..., None]).squeeze(-1) + self.spatial_map.bias
        gate = None if self.temporal_gate is None else self.temporal_gate(prompt).sigmoid()
        scale = self._scale(channels, scores, 1 - self.options.alpha)
        if gate is not None:
            scale = scale + self.options.gamma * gate[..., None]
        return recomputed(self._scaled_bottleneck, states, scale), _attention(scores), gate

    def _paper(self, states: Tensor, other: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor, Tensor | None]:
        mapped = self.cross_modal_map(other)
        prompt = mapped.mean(1)
        channels = self._channel_map(self.channel_prompt(prompt) * self.channel_states(states.mean(1)))
        focused = self.spatial_states(states * (channels + 1)[:, None])
        scores = self.spatial_map(focused * self.spatial_prompt(mapped)).squeeze(-1)
        assert self.temporal_gate is not None
        gate = self.temporal_gate(prompt, frames)
        scale = self._scale(channels, scores, 1.0) * (self.options.gamma * gate + 1)[..., None]
        return states * scale * self.gate, _attention(scores), gate

    def _channel_map(self, guided: Tensor) -> Tensor:
        """Return M_c (N, C), Eq. 3, from the guided channels' means (N, C)."""
        return self.channel_map(F.relu(self.channel_bottleneck(guided))).sigmoid()

    def _scale(self, channels: Tensor, scores: Tensor, rest: float) -> Tensor:
        """Return the factor on the tokens (N, L, C), Eq. 6."""
        return self.options.alpha * channels[:, None] + self.options.beta * scores.sigmoid()[..., None] + rest

    def _scaled_bottleneck(self, states: Tensor, scale: Tensor) -> Tensor:
        return self.bottleneck(states * scale)


def _mean_of_positive(states: Tensor) -> Tensor:
    """Return the mean (N, C) over the positive parts of tokens (N, L, C)."""
    return F.relu(states).mean(1)


def _attention(scores: Tensor) -> Tensor:
    """Return the map that pools tokens, from the spatial scores (N, L)."""
    return scores.tanh().softmax(-1)


@register_interaction("dg_sct")
class DGSCTInteraction(InteractionLayer):
    """
    DG-SCT: two adapters in each direction, beside the attention and beside the feed-forward branch, in every pair of
    all stages. In the official formulation the audio stream's first half is its whole frozen block. The attention
    maps of the last two adapters pool the tokens for the heads.

    `explained` has the temporal gates of adapters that have one, `temporal_gate`, one (N, 4) a pair: visual and audio
    beside attention, visual and audio beside the feed-forward.
    """

    title = "DG-SCT"
    reference = (
        'Duan et al., "Cross-modal Prompts: Adapting Large Pre-trained Models for Audio-Visual Downstream Tasks"'
    )
    options_class = DGSCTOptions
    options: DGSCTOptions

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        options: dict[str, Any] = dict(TASK_OPTIONS.get(task, {}))
        if size == "toy":
            options |= {"reduction": 4, "groups": 2, "num_latent_tokens": 4}
        values: dict[str, Any] = {
            "formulation": "official",  # of the heads
            "use_case": False,
            "use_text_tower": get_task(task).preset.get("use_text_tower", False),
            "interaction_options": options,
        }
        if task == "ave":
            values["event_gate_loss_weight"] = 1.0
        if task == "avvp":
            values["head_gate_size"] = 32 if size == "toy" else 64
        if task == "avs_ms3":
            values |= {"head_gate_scale": 0.1, "matching_loss_form": "sum"}
        if task.startswith("avs_") and size == "full":
            values |= {"frame_size": 224, "audio_config": {"tile_seconds": 5}}
        return values

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__(config, position)
        visual, audio = position.visual, position.audio
        audio_gate = self.options.gated_streams == "both"
        self.visual_attention_adapter = DGSCTAdapter(self.options, visual, audio, has_gate=True)
        self.audio_attention_adapter = DGSCTAdapter(self.options, audio, visual, has_gate=audio_gate)
        self.visual_feed_forward_adapter = DGSCTAdapter(self.options, visual, audio, has_gate=True)
        self.audio_feed_forward_adapter = DGSCTAdapter(self.options, audio, visual, has_gate=audio_gate)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> InteractionOutput:
        visual, audio, *_, first_gates = self.step(self.attend, visual, audio, visual_block, audio_block, frames)
        visual, audio, *maps, gates = self.step(self.feed_forward, visual, audio, visual_block, audio_block, frames)
        output = InteractionOutput(visual, audio)
        if gates is not None:
            output.explained["temporal_gate"] = torch.cat([first_gates, gates], dim=1)
        if self.position.is_last and self.options.order == "beside":
            output.visual_pooling, output.audio_pooling = maps
        return output

    def attend(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """
        Run the attention branches, in the official formulation the audio's whole block, and the first adapters.

        Returns:
            Both streams, the adapters' attention maps (N, L) and temporal gates (N, 2).
        """
        if self.options.order == "after":
            audio, visual = audio_block(audio), visual + visual_block.attention(visual)
            adapted = self._adapt("attention", visual, audio, frames)
            return visual + adapted[0], audio + adapted[1], *adapted[2:]
        adapted = self._adapt("attention", visual, audio, frames)
        run_audio: Callable[[Tensor], Tensor] = (
            audio_block if self.options.is_official else lambda tokens: tokens + audio_block.attention(tokens)
        )
        return (visual + visual_block.attention(visual) + adapted[0], run_audio(audio) + adapted[1], *adapted[2:])

    def feed_forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Run the feed-forward branches and the second adapters; returns as [`DGSCTInteraction.attend`]."""
        adapted = self._adapt("feed_forward", visual, audio, frames)
        new_audio = audio if self.options.is_official else audio + audio_block.feed_forward(audio)
        return (visual + visual_block.feed_forward(visual) + adapted[0], new_audio + adapted[1], *adapted[2:])

    def _adapt(
        self, branch: str, visual: Tensor, audio: Tensor, frames: FrameLayout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Return what the adapters of a branch add, their attention maps, and their temporal gates."""
        visual_adapter, audio_adapter = (getattr(self, f"{name}_{branch}_adapter") for name in ("visual", "audio"))
        visual_added, visual_map, visual_gate = visual_adapter(visual, audio, frames)
        audio_added, audio_map, audio_gate = audio_adapter(audio, visual, frames)
        gates = None if visual_gate is None else torch.cat([visual_gate, audio_gate], dim=1)
        return visual_added, audio_added, visual_map, audio_map, gates
