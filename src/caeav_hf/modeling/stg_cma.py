"""
STG-CMA: one frozen image tower reads frames and sound, with adapters along time, within and across the modalities.

Wang, Tian and Hatzinakos, "Towards Efficient Audio-Visual Learners via Empowering Pre-trained Vision Transformers
with Cross-Modal Adaptation". `formulation` of [`STGCMAOptions`] chooses between the printed equations and the authors'
code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_cae_av import CaeAvConfig, CaeAvSwinConfig, CaeAvVitConfig, SwinGeometry
from ..errors import CaeAvError
from ..towers.linear import Linear
from .frames import FrameLayout
from .interaction import InteractionLayer, InteractionOutput, PairPosition, register_interaction


if TYPE_CHECKING:
    from ..towers.base import FrozenBlock, Tower, TowerReader
    from ..towers.windows import Windows


# Standard deviation of new weights.
INIT_STD = 0.02

# Widths at which the authors change the ratios of the larger adapters: CLIP's ViT-L and Swin-L.
LARGE_VIT, LARGE_SWIN = 1024, 192

# Seconds of the windows of sound, spaced over a clip. Video parsing, for which nothing is published, keeps the sound
# of each segment; the clips of question answering are longer than their segments, which are spread.
WINDOW_SECONDS = {"ave": 1.0, "avs_s4": 1.95, "avs_ms3": 1.95}

# Mean and deviation of the filter banks of the training sound.
FEATURE_STATISTICS: dict[str, tuple[float, float]] = {
    "ave": (-4.1426, 3.2001),
    "avs_s4": (-5.669627666, 3.948380470),
    "avqa": (-5.214385986, 3.869907618),
}


@dataclass(frozen=True)
class STGCMAOptions:
    """
    Options of STG-CMA.

    Args:
        formulation: `"official"` computes what the authors' code computes, `"paper"` the printed equations.
        size: `"base"` or `"tiny"` adapters, with the ratios of the authors' code for the tower.
        ratios: Width of the adapters over that of the tower, one value per stage, instead of those of `size`.
        exchange: Whether the streams read each other. By default they do, except in the official formulation of event
            localization on a tower with windows, whose script turns it off.
        drop_path: Rate at which the temporal branch of the last block is dropped in training; it grows linearly from
            0 at the first block.
    """

    formulation: Literal["official", "paper"] = "official"
    size: Literal["base", "tiny"] = "base"
    ratios: list[float] | tuple[float, ...] | None = None
    exchange: bool | None = None
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        for name, choices in (("formulation", ("official", "paper")), ("size", ("base", "tiny"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be {choices[0]!r} or {choices[1]!r}, got {getattr(self, name)!r}")
        if self.ratios is not None and not (
            isinstance(self.ratios, list | tuple)
            and all(isinstance(r, float | int) and not isinstance(r, bool) and r > 0 for r in self.ratios)
        ):
            raise ValueError(f"`ratios` must be a list of positive numbers, got {self.ratios!r}")
        if self.exchange not in (None, True, False):
            raise ValueError(f"`exchange` must be a bool or None, got {self.exchange!r}")
        if (
            isinstance(self.drop_path, bool)
            or not isinstance(self.drop_path, float | int)
            or not 0 <= self.drop_path < 1
        ):
            raise ValueError(f"`drop_path` must lie in [0, 1), got {self.drop_path!r}")

    @property
    def is_official(self) -> bool:
        """Whether the authors' code, rather than the printed equations, is followed."""
        return self.formulation == "official"

    def stage_ratios(self, config: CaeAvConfig) -> list[float]:
        """
        Return the ratio of each stage of a model.

        Raises:
            CaeAvError: `ratios` has another number of values.
        """
        stages = config.visual_stages
        if self.ratios is not None:
            if len(self.ratios) != len(stages):
                raise CaeAvError(
                    f"`ratios` of STG-CMA needs one value per stage of the tower ({len(stages)}), got {self.ratios}"
                )
            return [float(ratio) for ratio in self.ratios]
        if len(stages) == 1:
            large = stages[0].hidden_size >= LARGE_VIT
            return [1 / 32 if self.size == "tiny" else 1 / 16 if large else 1 / 8]
        large = stages[0].hidden_size >= LARGE_SWIN
        ratios = [1 / 2, 1 / 4, 1 / 8, 1 / 16] if large else [1 / 4, 1 / 4, 1 / 8, 1 / 8]
        if self.size == "tiny":
            ratios = [1 / 8, 1 / 8, 1 / 16, 1 / 16]
        return [*ratios, *ratios[-1:] * len(stages)][: len(stages)]


class Down(Linear):
    """The linear map into a bottleneck."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=INIT_STD)
        nn.init.zeros_(self.bias)


class Up(Linear):
    """The linear map out of a bottleneck, which begins at 0."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Adapter(nn.Module):
    """
    A bottleneck: a linear map, GELU, a linear map that begins at 0.

    Args:
        hidden_size: Channels of the tokens, C.
        width: Channels of the bottleneck, r.
    """

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.down = Down(hidden_size, width)
        self.up = Up(width, hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(F.gelu(self.down(states)))


class AudioVisualAdapter(nn.Module):
    """
    The adapters of both streams, whose bottlenecks read each other (Eq. 2 to 5).

    Args:
        hidden_size: Channels of both streams, C.
        width: Channels of the bottlenecks, r.
    """

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.visual = Adapter(hidden_size, width)
        self.audio = Adapter(hidden_size, width)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        gates: tuple[Tensor, Tensor],
        windows: "Windows | None" = None,
        exchange: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            visual, audio: (N, L_v, C) and (N, L_a, C), outputs of a frozen branch.
            gates: Scales of what the visual and what the audio stream takes in.
            windows: Windows to which the exchange is confined; `None` for all tokens of a frame.
            exchange: Whether the bottlenecks read each other.

        Returns:
            The inputs plus what is adapted.
        """
        visual_hidden, audio_hidden = F.gelu(self.visual.down(visual)), F.gelu(self.audio.down(audio))
        if exchange:
            visual_hidden, audio_hidden = (
                visual_hidden + gates[0] * read(visual_hidden, audio_hidden, windows),
                audio_hidden + gates[1] * read(audio_hidden, visual_hidden, windows),
            )
        else:
            # Distributed training expects a gradient for each trained parameter.
            visual_hidden, audio_hidden = visual_hidden + 0 * gates[0], audio_hidden + 0 * gates[1]
        return visual + self.visual.up(visual_hidden), audio + self.audio.up(audio_hidden)


def read(own: Tensor, other: Tensor, windows: "Windows | None") -> Tensor:
    """
    Attend from tokens (N, L, r) to tokens (N, L', r): a softmax of plain products, without the map being formed.
    """
    mask = None
    if windows is not None:
        num_frames, is_token = own.shape[0], windows.is_token(own)
        own, other = windows.split(own), windows.split(other)
        if is_token is not None:
            mask = is_token.repeat(num_frames, 1)[:, None, None]
    # Efficient kernels expect an axis of heads.
    found = F.scaled_dot_product_attention(own[:, None], other[:, None], other[:, None], mask, scale=1.0).squeeze(1)
    return found if windows is None else windows.join(found)


class TemporalEmbeddings(nn.Module):
    """Embeddings of time, which all tokens of a frame share, for towers with position embeddings."""

    def __init__(self, num_frames: int, hidden_size: int):
        super().__init__()
        self.visual = nn.Parameter(torch.empty(1, num_frames, hidden_size))
        self.audio = nn.Parameter(torch.empty(1, num_frames, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.visual)
        nn.init.zeros_(self.audio)

    def forward(self, visual: Tensor, audio: Tensor, frames: FrameLayout) -> tuple[Tensor, Tensor]:
        """Add them to tokens (N, L, C); in longer clips, later frames have the last embedding."""
        moments = frames.moment_of_frame(visual.device).clamp(max=self.visual.shape[1] - 1)
        return visual + self.visual[0, moments][:, None], audio + self.audio[0, moments][:, None]


class AudioEmbedding(nn.Module):
    """
    The frozen embedding of filter banks, made from the tower's of frames: patches of one channel, and position
    embeddings if the tower has them.

    Args:
        config: The configuration.
    """

    is_frozen = True

    def __init__(self, config: CaeAvConfig):
        super().__init__()
        vision, stage = config.vision_config, config.audio_stages[0]
        self.grid = stage.grid
        self.is_vit = isinstance(vision, CaeAvVitConfig)
        self.is_official = read_options(config).is_official
        size, patch = stage.hidden_size, vision.patch_size
        self.projection = nn.Conv2d(1, size, patch, stride=patch, bias=not self.is_vit)
        self.norm = nn.Identity() if self.is_vit else nn.LayerNorm(size)
        self.positions = nn.Parameter(torch.empty(stage.num_tokens, size)) if self.is_vit else None
        self.reset_parameters()
        self.requires_grad_(False)

    def reset_parameters(self) -> None:
        if self.positions is not None:
            nn.init.normal_(self.positions, std=INIT_STD)

    def initialize_from(self, tower: Any) -> None:
        """Make the weights from those of a tower: its kernel without colours, and its positions cut to the grid."""
        kernel = tower.patch_embed.proj
        # The authors add the colours' kernels for CLIP and average them for Swin.
        adds_colours = self.is_vit and self.is_official
        weight = kernel.weight.sum(1, keepdim=True) if adds_colours else kernel.weight.mean(1, keepdim=True)
        self.projection.weight.copy_(weight)
        if not self.is_vit:
            assert self.projection.bias is not None
            self.projection.bias.copy_(kernel.bias)
            self.norm.load_state_dict(tower.patch_embed.norm.state_dict())
            return
        assert self.positions is not None
        self.positions.copy_(self._positions_of(tower.pos_embed[0], tower.config.stages()[0].grid))

    def _positions_of(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Cut the positions (1 + G * G, C) of a grid to time and mel bands, (1 + t * F, C)."""
        (times, bands), (rows, columns) = self.grid, grid
        image = positions[1:].float().T.unflatten(1, grid)[None]
        # Bands follow the rows of an image, time its columns.
        if times <= columns:
            first = columns // 2 - times // 2
            image = image[..., first : first + times]
        else:
            image = F.interpolate(image, size=(rows, times), mode="bilinear")
        if bands <= rows:
            first = rows // 2 - bands // 2
            image = image[..., first : first + bands, :]
        else:
            image = F.interpolate(image, size=(bands, times), mode="bilinear")
        if not self.is_official:
            # Patches are in the order of time. The authors' code leaves the positions in that of bands.
            image = image.transpose(2, 3)
        return torch.cat([positions[:1], image[0].flatten(1).T.to(positions.dtype)])

    def forward(self, inputs: Tensor, class_token: Tensor | None) -> Tensor:
        """(N, 1, frames, bands) -> tokens (N, L, C), the class token (1, 1, C) first if there is one."""
        tokens = self.norm(self.projection(inputs).flatten(2).transpose(1, 2))
        if class_token is None or self.positions is None:
            return tokens
        return torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions


def read_options(config: CaeAvConfig) -> STGCMAOptions:
    """Return the options of a configuration."""
    return cast(STGCMAOptions, STGCMAInteraction.read_options(config))


@register_interaction("stg_cma")
class STGCMAInteraction(InteractionLayer):
    """
    STG-CMA in one pair of blocks: temporal adaptation of each stream (Eq. 6, 7), then audio-visual adapters after the
    attention (Eq. 8 to 11) and after the feed-forward branch (Eq. 12 to 15).
    """

    title = "STG-CMA"
    reference = (
        'Wang, Tian and Hatzinakos, "Towards Efficient Audio-Visual Learners via Empowering Pre-trained Vision '
        'Transformers with Cross-Modal Adaptation"'
    )
    options_class = STGCMAOptions
    options: STGCMAOptions

    @classmethod
    def preset(cls, task: str, size: str) -> dict[str, Any]:
        sizes: dict[str, Any] = {"image_size": 224, "embed_dim": 192, "num_heads": (6, 12, 24, 48)}
        if size == "toy":
            sizes = {"image_size": 64, "embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
            sizes["window_size"] = 4
        values: dict[str, Any] = {
            "formulation": "official",  # of the heads
            "use_case": False,
            "use_text_tower": False,
            "shared_tower": True,
            "audio_final_norm": True,
            # Of other methods: values that fit towers of any size.
            "adapter_stages": (1,),
            "adapter_reduction": 1,
            "adapter_groups": 1,
            "case_num_heads": 1,
            "vision_config": {"model_type": CaeAvSwinConfig.model_type, **sizes},
            "interaction_options": {},
        }
        if task == "ave":
            values |= {"event_head": "mlp", "event_head_dropout": 0.5, "frame_crop": size == "full"}
        if task.startswith("avs_"):
            values["head_map_sizes"] = (16, 16, 32, 32) if size == "toy" else (64, 128, 320, 512)
        if task == "avqa":
            values["head_audio_hidden"] = False
            if size == "full":
                values |= {"segment_seconds": 1.95, "frame_sampling": "spread_to_ends"}
        return values

    @classmethod
    def tower_preset(cls, task: str, size: str, vision_config: Mapping[str, Any]) -> dict[str, Any]:
        mean, std = FEATURE_STATISTICS.get("avs_s4" if task == "avs_ms3" else task, FEATURE_STATISTICS["ave"])
        front_end: dict[str, Any] = {"feature_mean": mean, "feature_std": std}
        if size == "full" and task in WINDOW_SECONDS:
            front_end["window_seconds"] = WINDOW_SECONDS[task]
        is_vit = vision_config.get("model_type") == CaeAvVitConfig.model_type
        side = vision_config.get("image_size", CaeAvSwinConfig.image_size)
        if is_vit and size == "full":
            front_end |= {"num_mel_bins": 128, "spectrogram_frames": 102, "hop_length": 160}
        elif side == CaeAvSwinConfig.image_size:
            front_end["hop_length"] = 70  # 4.4 ms
        values: dict[str, Any] = {"audio_config": front_end}
        if is_vit:
            values["trained_tower_norms"] = "final"
            if task.startswith("avs_"):
                values["head_map_sizes"] = (512,) if size == "full" else (32,)  # of its single stage
        return values

    @classmethod
    def vision_preset(cls, vision_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        # The authors' code cuts the attention of CLIP's ViT-B/16 into 8 heads instead of 12.
        names = ("hidden_size", "patch_size")
        sizes = {name: vision_config.get(name, getattr(CaeAvVitConfig, name)) for name in names}
        is_vit = vision_config.get("model_type") == CaeAvVitConfig.model_type
        is_official = options.get("formulation", STGCMAOptions.formulation) == "official"
        if is_vit and is_official and sizes == {"hidden_size": 768, "patch_size": 16}:
            return {"num_attention_heads": 8}
        return {}

    @classmethod
    def shared_modules(cls, config: CaeAvConfig) -> dict[str, nn.Module]:
        vision = config.vision_config
        if not config.shared_tower:
            raise CaeAvError(
                "`interaction` 'stg_cma' of CaeAvConfig needs `shared_tower`: one tower reads frames and sound"
            )
        if not isinstance(vision, CaeAvVitConfig | SwinGeometry):
            raise CaeAvError(
                "`interaction` 'stg_cma' of CaeAvConfig needs a Swin Transformer or CLIP's vision transformer as "
                f"`vision_config`, got a {type(vision).__name__}"
            )
        modules: dict[str, nn.Module] = {"audio_embedding": AudioEmbedding(config)}
        if isinstance(vision, CaeAvVitConfig):
            modules["temporal_embeddings"] = TemporalEmbeddings(config.num_frames, vision.hidden_size)
        return modules

    @classmethod
    def initialize_from_towers(cls, config: CaeAvConfig, vision: "Tower", shared: Mapping[str, nn.Module]) -> None:
        cast(AudioEmbedding, shared["audio_embedding"]).initialize_from(vision)

    @classmethod
    def embed_audio(
        cls, config: CaeAvConfig, reader: "TowerReader", inputs: Tensor, shared: Mapping[str, nn.Module]
    ) -> Tensor:
        class_token = getattr(reader.tower, "cls_token", None)
        return shared["audio_embedding"](reader.checked_spectrogram(inputs), class_token)

    @classmethod
    def embed(
        cls, config: CaeAvConfig, visual: Tensor, audio: Tensor, frames: FrameLayout, shared: Mapping[str, nn.Module]
    ) -> tuple[Tensor, Tensor]:
        if "temporal_embeddings" not in shared:
            return visual, audio
        return shared["temporal_embeddings"](visual, audio, frames)

    def __init__(self, config: CaeAvConfig, position: PairPosition):
        super().__init__(config, position)
        options, place = self.options, position.visual
        size, self.has_windows = place.hidden_size, place.has_windows
        if self.has_windows and place.grid != position.audio.grid:
            raise CaeAvError(
                "`interaction` 'stg_cma' of CaeAvConfig needs filter banks of the frames' size on a tower with "
                f"windows, got grids of {place.grid} and {position.audio.grid} tokens"
            )
        width = int(options.stage_ratios(config)[position.stage - 1] * size)
        if width < 1:
            raise CaeAvError(f"`ratios` of STG-CMA leave no channel of {size} in stage {position.stage}")
        self.drop_path = options.drop_path * place.index / max(1, place.depth - 1)
        # The authors' code adapts along time only in the blocks of a stage whose windows are not shifted.
        self.is_temporal = not (options.is_official and self.has_windows and place.index_in_stage % 2)
        self.temporal_biases: nn.ParameterDict | None = None
        if self.is_temporal:
            self.visual_temporal_adapter = Adapter(size, width)
            self.audio_temporal_adapter = Adapter(size, width)
            if self.has_windows:
                table = (2 * config.num_frames - 1, place.num_heads)
                self.temporal_biases = nn.ParameterDict(
                    {name: nn.Parameter(torch.empty(table)) for name in ("visual", "audio")}
                )
        self.spatial_adapter = AudioVisualAdapter(size, width)
        self.global_adapter = AudioVisualAdapter(size, width)
        exchange = options.exchange
        if exchange is None:
            exchange = not (options.is_official and self.has_windows and config.task == "ave")
        self.exchange = exchange
        self.visual_gate = nn.Parameter(torch.empty(1))
        self.audio_gate = nn.Parameter(torch.empty(1))
        if not options.is_official:
            self.global_visual_gate = nn.Parameter(torch.empty(1))
            self.global_audio_gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("gate"):
                nn.init.zeros_(parameter)
        if self.temporal_biases is not None:
            for table in self.temporal_biases.values():
                nn.init.trunc_normal_(table, std=INIT_STD)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> InteractionOutput:
        if self.is_temporal:
            visual, audio = self.step(self.along_time, visual, audio, visual_block, audio_block, frames)
        visual, audio = self.step(self.spatial, visual, audio, visual_block, audio_block)
        visual, audio = self.step(self.across, visual, audio, visual_block, audio_block)
        return InteractionOutput(visual, audio)

    def along_time(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_block: "FrozenBlock",
        audio_block: "FrozenBlock",
        frames: FrameLayout,
    ) -> tuple[Tensor, Tensor]:
        """Adapt each stream along time: the frozen attention, between the tokens at one position of all frames."""
        return (
            visual + self._along_time("visual", visual, visual_block, self.visual_temporal_adapter, frames),
            audio + self._along_time("audio", audio, audio_block, self.audio_temporal_adapter, frames),
        )

    def _along_time(
        self, stream: str, states: Tensor, block: "FrozenBlock", adapter: Adapter, frames: FrameLayout
    ) -> Tensor:
        grid = frames.to_grid(states)
        batch_size, num_frames, num_tokens = grid.shape[:3]
        bias = None
        if self.temporal_biases is not None:
            table = self.temporal_biases[stream]
            reach = len(table) // 2
            moments = torch.arange(num_frames, device=table.device)
            # In longer clips, frames further apart have the bias of the largest known distance.
            distances = (moments[:, None] - moments).clamp(-reach, reach) + reach
            bias = table[distances].permute(2, 0, 1)[None]
        if frames.mask is not None:
            padded = torch.zeros_like(frames.mask, dtype=states.dtype).masked_fill(~frames.mask, -torch.inf)
            padded = padded[:, None, None]
            bias = (padded if bias is None else bias + padded).repeat_interleave(num_tokens, 0)
        mixed = adapter(block.group_attention(grid.transpose(1, 2).flatten(0, 1), bias))
        mixed = mixed.unflatten(0, (batch_size, num_tokens))
        if self.training and self.drop_path:
            # The authors draw once per position, on a tower without windows for all clips together.
            drawn = mixed.new_empty(batch_size if self.has_windows else 1, num_tokens, 1, 1)
            mixed = mixed * drawn.bernoulli_(1 - self.drop_path) / (1 - self.drop_path)
        return frames.to_list(mixed.transpose(1, 2))

    def spatial(
        self, visual: Tensor, audio: Tensor, visual_block: "FrozenBlock", audio_block: "FrozenBlock"
    ) -> tuple[Tensor, Tensor]:
        """Add the attention branches and the first adapters, which exchange within the windows of the tower."""
        new_visual, new_audio = self.spatial_adapter(
            visual_block.attention(visual),
            audio_block.attention(audio),
            (self.visual_gate, self.audio_gate),
            visual_block.windows,
            self.exchange,
        )
        return visual + new_visual, audio + new_audio

    def across(
        self, visual: Tensor, audio: Tensor, visual_block: "FrozenBlock", audio_block: "FrozenBlock"
    ) -> tuple[Tensor, Tensor]:
        """Add the feed-forward branches and the second adapters, which exchange between all tokens of a frame."""
        gates = (self.visual_gate, self.audio_gate)
        if not self.options.is_official:
            gates = (self.global_visual_gate, self.global_audio_gate)
        new_visual, new_audio = self.global_adapter(
            visual_block.feed_forward(visual), audio_block.feed_forward(audio), gates, exchange=self.exchange
        )
        return visual + new_visual, audio + new_audio
