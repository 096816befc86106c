"""
LAVisH: latent tokens carry what one modality knows into the other's stream, at every block of one shared frozen tower.

Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (CVPR 2023), in the form of its code.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.recompute import recomputed
from .adapters import LatentAdapter, LatentAdapterOptions
from .frames import FrameLayout
from .interaction import BlockPosition, InteractionLayer, InteractionOutput, PairPosition, register_interaction


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock


_SEGMENTATION: dict[str, Any] = {
    "reduction": 4,
    "num_latent_tokens": 16,
    "zero_latents": True,
    "norm_before": False,
    "batch_norm": False,
    "gated_streams": "visual",
    "gate_before_norm": True,
}

# Options in which the authors' scripts for a task differ from those for event localization. They publish results, but
# no script, for segmentation of several sources, and nothing for video parsing.
TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "avs_s4": _SEGMENTATION,
    "avs_ms3": _SEGMENTATION,
    "avqa": {"groups": 4, "num_latent_tokens": 64, "zero_latents": True, "batch_norm": False},
}

# Front end and heads of the full-size presets: Kaldi frames every 10 ms, where event localization has one every
# 5.2 ms, and statistics of the training sound. Question answering hears 1.95 s around each frame.
TASK_VALUES: dict[str, dict[str, Any]] = {
    "avs_s4": {
        "audio_config": {"hop_length": 160, "feature_mean": -5.210531711578369, "feature_std": 3.5918314456939697},
        "head_map_sizes": (64, 128, 320, 512),
        "frame_size": 224,
    },
    "avqa": {
        "audio_config": {"hop_length": 160, "feature_mean": -5.385333061218262, "feature_std": 3.5928637981414795},
        "segment_seconds": 1.95,
        "head_answer_size": 512,
        "trained_tower_norms": "all",
    },
}
TASK_VALUES["avs_ms3"] = {**TASK_VALUES["avs_s4"], "matching_loss_form": "sum"}

# Heads of the toy presets; their sound fills the image as in event localization.
TOY_VALUES: dict[str, dict[str, Any]] = {
    "avs_s4": {"head_map_sizes": (16, 16, 32, 32)},
    "avs_ms3": {"head_map_sizes": (16, 16, 32, 32), "matching_loss_form": "sum"},
    "avqa": {"head_answer_size": 64},
}


@dataclass(frozen=True, kw_only=True)
class LavishOptions(LatentAdapterOptions):
    """
    Options of LAVisH, see [`~modeling.adapters.LatentAdapterOptions`]. The defaults are those of the authors' script
    for event localization.
    """

    num_latent_tokens: int = 2


class LavishAdapter(LatentAdapter):
    """
    The adapter of one stream: latent tokens gather from the other modality, the stream attends to them, and passes a
    bottleneck.

    Args:
        options: Options of the method.
        own, other: The stream's block, and the other modality's.
        has_gate: Whether a gate that begins at 0 scales the result.

    Raises:
        CaeAvError: The streams differ in channels, or the options do not fit these.
    """

    def __init__(self, options: LavishOptions, own: BlockPosition, other: BlockPosition, has_gate: bool):
        super().__init__(options)
        if own.hidden_size != other.hidden_size:
            raise CaeAvError(
                "`interaction` 'lavish' needs streams of equal channels in every pair of blocks, such as those of one "
                f"tower for both (`shared_tower`), got {own.hidden_size} and {other.hidden_size}"
            )
        if has_gate:
            self.add_gate()
        self.add_bottleneck(own.hidden_size)

    def forward(self, states: Tensor, other: Tensor) -> Tensor:
        """Return the term to add to the stream (N, L, C), given the other modality's tokens (N, L', C)."""
        return recomputed(self._adapt, states, self.gather(other))

    def _adapt(self, states: Tensor, gathered: Tensor) -> Tensor:
        return self.bottleneck(self.exchange(states, gathered))


@register_interaction("lavish")
class LavishInteraction(InteractionLayer):
    """
    LAVisH: two adapters in each direction, beside the attention and beside the feed-forward branch, in every pair of
    all stages. Both read the streams before the branch.
    """

    title = "LAVisH"
    reference = 'Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners"'
    options_class = LavishOptions
    options: LavishOptions

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        options: dict[str, Any] = dict(TASK_OPTIONS.get(task, {}))
        if size == "toy":
            options |= {"reduction": 4, "groups": 2, "num_latent_tokens": 4}
        values: dict[str, Any] = {
            "formulation": "official",  # of the heads
            "use_case": False,
            "use_text_tower": False,
            "shared_tower": True,
            "audio_final_norm": True,
            "adapter_stages": (1,),  # of AVMoE; a vision transformer has one stage
            "interaction_options": options,
        }
        if task == "ave":
            values |= {"event_head": "mlp", "event_loss": "binary"}
        return values | (TOY_VALUES if size == "toy" else TASK_VALUES).get(task, {})

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__(config, position)
        visual, audio = position.visual, position.audio
        audio_gate = self.options.gated_streams == "both"
        self.visual_attention_adapter = LavishAdapter(self.options, visual, audio, has_gate=True)
        self.audio_attention_adapter = LavishAdapter(self.options, audio, visual, has_gate=audio_gate)
        self.visual_feed_forward_adapter = LavishAdapter(self.options, visual, audio, has_gate=True)
        self.audio_feed_forward_adapter = LavishAdapter(self.options, audio, visual, has_gate=audio_gate)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> InteractionOutput:
        visual, audio = self.step(self.attend, visual, audio, visual_block, audio_block)
        visual, audio = self.step(self.feed_forward, visual, audio, visual_block, audio_block)
        return InteractionOutput(visual, audio)

    def attend(
        self, visual: Tensor, audio: Tensor, visual_block: "FrozenBlock", audio_block: "FrozenBlock"
    ) -> tuple[Tensor, Tensor]:
        """Return both streams after the attention branches and the first adapters."""
        new_visual = visual + visual_block.attention(visual) + self.visual_attention_adapter(visual, audio)
        new_audio = audio + audio_block.attention(audio) + self.audio_attention_adapter(audio, visual)
        return new_visual, new_audio

    def feed_forward(
        self, visual: Tensor, audio: Tensor, visual_block: "FrozenBlock", audio_block: "FrozenBlock"
    ) -> tuple[Tensor, Tensor]:
        """Return both streams after the feed-forward branches and the second adapters."""
        new_visual = visual + visual_block.feed_forward(visual) + self.visual_feed_forward_adapter(visual, audio)
        new_audio = audio + audio_block.feed_forward(audio) + self.audio_feed_forward_adapter(audio, visual)
        return new_visual, new_audio
