"""Configuration of CAE-AV: sub-configurations of the three frozen towers, presets, validation.

Hu, Li and Zhang, "CAE-AV: Improving Audio-Visual Learning via Cross-modal Interactive Enrichment"; the presets hold
the sizes of its Table I and of the authors' code.
"""

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, ClapAudioConfig, ClapTextConfig, PreTrainedConfig, PvtV2Config
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_base import (
    TowersConfig,
    divisible,
    positive,
    probability,
    refuse_huge,
    refuse_unknown,
    tuples_to_lists,
)
from .errors import CaeAvError
from .task import get_task


@dataclass(frozen=True)
class TowerStage:
    """
    One stage of a tower.

    Attributes:
        depth: Number of blocks.
        num_heads: Number of attention heads per block.
        hidden_size: Number of channels, C.
        grid: Height and width of the grid of patch tokens, which are in row-major order.
        num_prefix_tokens: Number of tokens before the patch tokens, such as a class token.
        has_windows: Whether attention stays within windows of the grid.
    """

    depth: int
    num_heads: int
    hidden_size: int
    grid: tuple[int, int]
    num_prefix_tokens: int = 0
    has_windows: bool = False

    @property
    def num_tokens(self) -> int:
        """Number of tokens, L, including prefix tokens."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]


class TowerGeometry:
    """
    Sizes of a tower that are known before it is built. The configuration of a tower for frames or sound inherits from
    it and from `PreTrainedConfig`.

    Attributes:
        read_out: Pooling of the last stage's tokens for the heads: the `"mean"` of the patch tokens, or the `"class"`
            token, which is the first one.
    """

    read_out: Literal["mean", "class"] = "mean"

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the frames that the tower reads."""
        raise NotImplementedError

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """
        Return the stages of the tower.

        Args:
            input_size: Height and width of the inputs, by default those of the configuration.

        Raises:
            ValueError: The tower cannot read inputs of this size.
        """
        raise NotImplementedError


@dataclass(kw_only=True, repr=False, eq=False)
class AudioFrontEnd:
    """
    Settings of the conversion of a waveform to a tower's input; see [`CaeAvAudioConfig`] for the fields. The
    configuration of a tower for sound inherits from it, [`TowerGeometry`] and `PreTrainedConfig`.
    """

    num_mel_bins: int = 64
    sampling_rate: int = 32000
    fft_window_size: int = 1024
    hop_length: int = 320
    frequency_min: float | int = 50
    frequency_max: float | int = 14000
    tile_seconds: int = 10
    tile_padding: Literal["repeat", "repeatpad", "pad"] = "repeat"
    mel_scale: Literal["slaney", "htk", "kaldi", "vggish"] = "slaney"
    spectrogram_dtype: Literal["float32", "float64"] = "float32"
    # Statistics of AVE's training sound at 192 bands, from public code for audio-visual Swin-V2.
    feature_mean: float | int = -4.984795570373535
    feature_std: float | int = 3.7079780101776123
    spectrogram_frames: int | None = None
    filter_sampling_rate: int | None = None
    window_seconds: float | int | None = None

    @property
    def spectrogram_size(self) -> tuple[int, int]:
        """Number of frames and bands of a segment's spectrogram or filter bank."""
        if self.mel_scale == "kaldi":
            return self.spectrogram_frames or self.num_mel_bins, self.num_mel_bins
        if self.mel_scale == "vggish":
            return self.spectrogram_frames or 96, self.num_mel_bins
        return self.tile_seconds * self.sampling_rate // self.hop_length + 1, self.num_mel_bins

    def validate_front_end(self) -> None:
        """
        Check the fields.

        Raises:
            ValueError: A field is invalid; the message names it.
        """
        positive(self, "num_mel_bins", "sampling_rate", "fft_window_size", "hop_length", "tile_seconds", "feature_std")
        if self.spectrogram_frames is not None:
            positive(self, "spectrogram_frames")
            if self.mel_scale not in ("kaldi", "vggish"):
                raise ValueError(
                    f"`spectrogram_frames` of {type(self).__name__} is for `mel_scale` 'kaldi' or 'vggish'; with "
                    f"{self.mel_scale!r} `tile_seconds` and `hop_length` give their number"
                )
        if self.filter_sampling_rate is not None:
            positive(self, "filter_sampling_rate")
        if self.window_seconds is not None:
            positive(self, "window_seconds")
            if self.mel_scale != "kaldi":
                raise ValueError(
                    f"`window_seconds` of {type(self).__name__} is for `mel_scale` 'kaldi', got {self.mel_scale!r}"
                )
        # Filters may end above the Nyquist frequency, as in a public HTS-AT at 16 kHz; bands there stay empty.
        lowest, highest = self.frequency_min, self.frequency_max
        rate = self.filter_sampling_rate or self.sampling_rate
        if not 0 <= lowest < min(highest, rate / 2) or highest > rate:
            raise ValueError(
                f"`frequency_min` and `frequency_max` of {type(self).__name__} must satisfy 0 <= frequency_min < "
                "frequency_max <= sampling_rate and frequency_min < sampling_rate / 2, "
                f"got {lowest}, {highest} at {rate} Hz"
            )


class SwinGeometry(TowerGeometry):
    """Sizes of both versions of the Swin Transformer."""

    image_size: int
    patch_size: int
    embed_dim: int
    depths: list[int] | tuple[int, ...]
    num_heads: list[int] | tuple[int, ...]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        return self.image_size, self.image_size

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """See [`TowerGeometry.stages`]; sides must be multiples of `patch_size`."""
        height, width = input_size or self.input_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"{type(self).__name__} reads sides that are multiples of {self.patch_size}, got {height}x{width}"
            )
        pixels = [self.patch_size * 2**stage for stage in range(len(self.depths))]
        return [
            TowerStage(
                depth,
                self.num_heads[stage],
                self.embed_dim * 2**stage,
                # An odd grid is padded before it is halved.
                (-(-height // pixels[stage]), -(-width // pixels[stage])),
                has_windows=True,
            )
            for stage, depth in enumerate(self.depths)
        ]


def _validate_swin(config: Any, *by_stage: str) -> None:
    """Check the sizes of a Swin Transformer, of which `by_stage` have one value per stage."""
    positive(config, "image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads", "window_size")
    name_of_class = type(config).__name__
    for name in by_stage:
        if len(getattr(config, name)) != len(config.depths):
            raise ValueError(
                f"`{name}` of {name_of_class} needs one value per stage ({len(config.depths)} by `depths`), "
                f"got {list(getattr(config, name))}"
            )
    divisible(config, "image_size", config.image_size, "patch_size", config.patch_size)
    for stage, heads in enumerate(config.num_heads):
        divisible(config, f"channels of stage {stage + 1}", config.embed_dim * 2**stage, "num_heads", heads)


@strict
class CaeAvVisionConfig(SwinGeometry, PreTrainedConfig):
    r"""
    The frozen Swin Transformer V2 that reads the frames, built by timm. The defaults are
    `swinv2_large_window12_192`, the tower of the paper's main results.

    Args:
        image_size (`int`, defaults to 192): Side of the square frame in pixels.
        patch_size (`int`, defaults to 4): Side of a patch in pixels.
        num_channels (`int`, defaults to 3): Colour channels.
        embed_dim (`int`, defaults to 192): Channels of the first stage; every later stage doubles them.
        depths (`list[int]`): Blocks of each stage.
        num_heads (`list[int]`): Attention heads of each stage.
        window_size (`int`, defaults to 12): Side of an attention window in tokens.
        mlp_ratio (`float`, defaults to 4.0): Ratio of a feed-forward's hidden width to its channels.
        pretrained_window_sizes (`list[int]`): Window sizes of the pre-training per stage; 0 where they did not change.
    """

    model_type = "cae_av_vision"
    base_config_key = "vision_config"

    image_size: int = 192
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 192
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (6, 12, 24, 48)
    window_size: int = 12
    mlp_ratio: float | int = 4.0
    pretrained_window_sizes: list[int] | tuple[int, ...] = (0, 0, 0, 0)

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        tuples_to_lists(self, "depths", "num_heads", "pretrained_window_sizes")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        _validate_swin(self, "num_heads", "pretrained_window_sizes")


@strict
class CaeAvSwinConfig(SwinGeometry, PreTrainedConfig):
    r"""
    timm's Swin Transformer, version 1, as a tower for frames. The defaults are `swin_base_patch4_window7_224`.

    Args:
        image_size (`int`, defaults to 224): Side of the square frame in pixels.
        patch_size (`int`, defaults to 4): Side of a patch in pixels.
        num_channels (`int`, defaults to 3): Colour channels.
        embed_dim (`int`, defaults to 128): Channels of the first stage; every later stage doubles them.
        depths (`list[int]`): Blocks of each stage.
        num_heads (`list[int]`): Attention heads of each stage.
        window_size (`int`, defaults to 7): Side of an attention window in tokens.
        mlp_ratio (`float`, defaults to 4.0): Ratio of a feed-forward's hidden width to its channels.
    """

    model_type = "cae_av_swin"
    base_config_key = "vision_config"

    image_size: int = 224
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 7
    mlp_ratio: float | int = 4.0

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        tuples_to_lists(self, "depths", "num_heads")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        _validate_swin(self, "num_heads")


@strict
class CaeAvVitConfig(TowerGeometry, PreTrainedConfig):
    r"""
    CLIP's frozen vision transformer, built by timm, as a tower for frames. The defaults are those of `ViT-B-32`.

    Args:
        image_size (`int`, defaults to 224): Side of the square frame in pixels.
        patch_size (`int`, defaults to 32): Side of a patch in pixels.
        num_channels (`int`, defaults to 3): Colour channels.
        hidden_size (`int`, defaults to 768): Channels of a token.
        num_hidden_layers (`int`, defaults to 12): Number of blocks.
        num_attention_heads (`int`, *optional*): Attention heads of a block; by default of 64 channels, as in CLIP.
        mlp_ratio (`float`, defaults to 4.0): Ratio of a feed-forward's hidden width to `hidden_size`.
        hidden_act (`str`, defaults to `"quick_gelu"`): `"quick_gelu"` (OpenAI's weights) or `"gelu"` (most others).
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the layer norms.
        projection_dim (`int`, *optional*): Width of the space that the tower shares with CLIP's text tower, 512 for
            `ViT-B-32`. By default the tower has no projection to it.
    """

    model_type = "cae_av_vit"
    base_config_key = "vision_config"
    read_out = "class"

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int | None = None
    mlp_ratio: float | int = 4.0
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        if self.num_attention_heads is None:
            self.num_attention_heads = max(1, self.hidden_size // 64)
        super().__post_init__(**kwargs)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        return self.image_size, self.image_size

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """See [`TowerGeometry.stages`]; one stage. What is left of a side after the last whole patch is not read."""
        height, width = input_size or self.input_size
        if min(height, width) < self.patch_size:
            raise ValueError(f"CaeAvVitConfig reads sides of at least {self.patch_size}, got {height}x{width}")
        grid = (height // self.patch_size, width // self.patch_size)
        assert self.num_attention_heads is not None
        return [TowerStage(self.num_hidden_layers, self.num_attention_heads, self.hidden_size, grid, 1)]

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        assert self.num_attention_heads is not None
        positive(
            self,
            *("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("mlp_ratio", "layer_norm_eps"),
        )
        if self.projection_dim is not None:
            positive(self, "projection_dim")
        divisible(self, "image_size", self.image_size, "patch_size", self.patch_size)
        divisible(self, "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)


@strict
class CaeAvPvtV2Config(TowerGeometry, PvtV2Config):
    r"""
    Transformers' PVT-v2 (`PvtV2Model`) as a tower for frames. The defaults are those of `OpenGVLab/pvt_v2_b5`; see
    [`~transformers.PvtV2Config`] for the fields.
    """

    model_type = "cae_av_pvt_v2"
    base_config_key = "vision_config"

    depths: list[int] | tuple[int, ...] = (3, 6, 40, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: list[int] | tuple[int, ...] = (4, 4, 4, 4)

    def __post_init__(self, **kwargs):
        # Written by Transformers' class, but not among its fields.
        known = ("stage_names", "out_features", "out_indices")
        refuse_unknown(type(self), (name for name in kwargs if name not in known))
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)
        tuples_to_lists(self, *(name for name, value in vars(self).items() if isinstance(value, tuple)))

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        by_stage = ("hidden_sizes", "num_attention_heads", "mlp_ratios", "sr_ratios", "patch_sizes", "strides")
        positive(self, "image_size", "num_channels", "depths", *by_stage)
        for name in (*by_stage, "depths"):
            if len(getattr(self, name)) != self.num_encoder_blocks:
                raise ValueError(
                    f"`{name}` of CaeAvPvtV2Config needs one value per stage ({self.num_encoder_blocks} by "
                    f"`num_encoder_blocks`), got {list(getattr(self, name))}"
                )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        height, width = self.image_size
        return height, width

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """See [`TowerGeometry.stages`]; a stage's sides must hold its spatial reduction at least once."""
        height, width = input_size or self.input_size
        stages = []
        for index, depth in enumerate(self.depths):
            patch, stride = self.patch_sizes[index], self.strides[index]
            height, width = ((side + 2 * (patch // 2) - patch) // stride + 1 for side in (height, width))
            if min(height, width) < self.sr_ratios[index]:
                raise ValueError(
                    f"CaeAvPvtV2Config reads frames whose stage {index + 1} has sides of at least "
                    f"{self.sr_ratios[index]} tokens, got {height}x{width}"
                )
            stages.append(
                TowerStage(depth, self.num_attention_heads[index], self.hidden_sizes[index], (height, width))
            )
        return stages


@strict
class CaeAvAudioConfig(AudioFrontEnd, TowerGeometry, ClapAudioConfig):
    r"""
    The frozen HTS-AT that reads the sound, Transformers' `ClapAudioModel`, and the front end that computes its input.
    The defaults are those of the public AudioSet HTS-AT.

    Args:
        sampling_rate (`int`, defaults to 32000): Sampling rate of the waveform in Hz.
        fft_window_size (`int`, defaults to 1024): Length of an analysis window in samples.
        hop_length (`int`, defaults to 320): Distance between analysis windows in samples.
        frequency_min (`float`, defaults to 50): Lower edge of the mel filters in Hz.
        frequency_max (`float`, defaults to 14000): Upper edge of the mel filters in Hz.
        tile_seconds (`int`, defaults to 10): Length in seconds to which a segment is repeated for its spectrogram.
        tile_padding (`str`, defaults to `"repeat"`):
            How a segment fills `tile_seconds`, under the names of `ClapFeatureExtractor`: `"repeat"` cuts the last
            repetition, `"repeatpad"` adds silence after the last whole one, `"pad"` only adds silence.
        mel_scale (`str`, defaults to `"slaney"`):
            Scale of the mel filters: `"slaney"`, normalised by area, for HTS-AT; `"htk"`, not normalised, for CLAP
            models trained with `truncation="fusion"`. `"kaldi"` computes a Kaldi-style filter bank, a square image of
            a segment that the visual tower reads. There is no audio tower then; only the fields of the front end are
            used.
        spectrogram_frames (`int`, *optional*): Number of frames to which a `"kaldi"` filter bank is cut or padded, by
            default `num_mel_bins`. A visual tower that supports other sizes than the frames' gets an image of
            `spectrogram_frames` times `num_mel_bins`.
        spectrogram_dtype (`str`, defaults to `"float32"`):
            Precision of the spectrogram. `"float64"` is that of `ClapFeatureExtractor`; bands far below the loudest
            one differ by up to some tenths of a dB.
        feature_mean, feature_std (`float`): Statistics that normalise Kaldi-style features x to (x - mean) / (2 std).
        filter_sampling_rate (`int`, *optional*): Sampling rate in Hz for which the mel filters are made, by default
            `sampling_rate`. The authors of DG-SCT apply CLAP's filters for 48 kHz to sound at 32 kHz.
        window_seconds (`float`, *optional*): Length in seconds of windows of sound that are spaced evenly over a clip,
            one for each segment, as in the code of STG-CMA; only with `"kaldi"` and consecutive segments. By default
            the sound of a segment is that of its own seconds.
        use_projection (`bool`, defaults to `False`): Whether the tower has CLAP's projection to the space, of width
            `projection_dim`, that it shares with its text branch.
    """

    model_type = "cae_av_audio"

    use_projection: bool = False

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        tuples_to_lists(self, "depths", "num_attention_heads", "patch_size", "patch_stride")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        positive(
            self,
            *("window_size", "num_mel_bins", "spec_size", "depths", "num_attention_heads", "patch_embeds_hidden_size"),
        )
        self.validate_front_end()
        if self.mel_scale != "kaldi":
            self._validate_tower()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the image to which a spectrogram is folded."""
        return self.spec_size, self.spec_size

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """See [`TowerGeometry.stages`]; spectrograms of any size are folded to one image."""
        stride = self.patch_stride if not isinstance(self.patch_stride, int) else (self.patch_stride,) * 2
        height, width = (self.spec_size // step for step in stride)
        return [
            TowerStage(
                depth,
                self.num_attention_heads[stage],
                self.patch_embeds_hidden_size * 2**stage,
                (height // 2**stage, width // 2**stage),
                has_windows=True,
            )
            for stage, depth in enumerate(self.depths)
        ]

    def _validate_tower(self):
        if self.enable_fusion:
            raise ValueError("`enable_fusion` of CaeAvAudioConfig must be False: a segment is one spectrogram")
        if len(self.num_attention_heads) != len(self.depths):
            raise ValueError(
                f"`num_attention_heads` of CaeAvAudioConfig needs one value per stage ({len(self.depths)} by "
                f"`depths`), got {list(self.num_attention_heads)}"
            )
        divisible(self, "spec_size", self.spec_size, "num_mel_bins", self.num_mel_bins)
        stride = self.patch_stride if isinstance(self.patch_stride, int) else min(self.patch_stride)
        smallest = self.spec_size // stride // 2 ** (len(self.depths) - 1)
        if smallest < self.window_size:
            raise ValueError(
                f"`window_size` ({self.window_size}) of CaeAvAudioConfig must fit the last stage's grid, {smallest} "
                "tokens wide by `spec_size`, `patch_stride` and `depths`"
            )
        width = self.patch_embeds_hidden_size * 2 ** (len(self.depths) - 1)
        if self.hidden_size != width:
            raise ValueError(
                f"`hidden_size` of CaeAvAudioConfig must be the width of the last stage, {width} by "
                f"`patch_embeds_hidden_size` and `depths`, got {self.hidden_size}"
            )


@strict
class CaeAvVggishConfig(AudioFrontEnd, TowerGeometry, PreTrainedConfig):
    r"""
    VGGish as a tower for sound: a convolutional network without blocks, whose only token is the embedding of a
    segment. The defaults are those of the public AudioSet model: windows of 25 ms every 10 ms at 16 kHz, 64 bands from
    125 to 7500 Hz, 96 frames.

    Args:
        hidden_sizes (`list[int]`): Channels of each group of convolutions, after which the map is halved.
        depths (`list[int]`): Convolutions of each group.
        intermediate_size (`int`, defaults to 4096): Width of the two hidden linear layers.
        hidden_size (`int`, defaults to 128): Width of the embedding.
        sampling_rate, fft_window_size, ...: The front end, see [`CaeAvAudioConfig`].
    """

    model_type = "cae_av_vggish"
    base_config_key = "audio_config"

    sampling_rate: int = 16_000
    fft_window_size: int = 400
    hop_length: int = 160
    frequency_min: float | int = 125
    frequency_max: float | int = 7500
    tile_seconds: int = 1
    tile_padding: Literal["repeat", "repeatpad", "pad"] = "pad"
    mel_scale: Literal["slaney", "htk", "kaldi", "vggish"] = "vggish"
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (1, 1, 2, 2)
    intermediate_size: int = 4096
    hidden_size: int = 128

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        tuples_to_lists(self, "hidden_sizes", "depths")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        positive(self, "hidden_sizes", "depths", "intermediate_size", "hidden_size")
        self.validate_front_end()
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"`depths` of CaeAvVggishConfig needs one value per group ({len(self.hidden_sizes)} by "
                f"`hidden_sizes`), got {self.depths}"
            )
        if min(self.map_size) < 1:
            height, width = self.spectrogram_size
            raise ValueError(
                f"`hidden_sizes` of CaeAvVggishConfig has too many groups: {len(self.hidden_sizes)} halvings of "
                f"{height} frames and {width} bands leave nothing"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """Number of frames and bands of a segment's spectrogram."""
        return self.spectrogram_size

    @property
    def map_size(self) -> tuple[int, int]:
        """Number of rows (time) and columns (bands) of the last group's output."""
        height, width = self.spectrogram_size
        return height >> len(self.hidden_sizes), width >> len(self.hidden_sizes)

    def stages(self, input_size: tuple[int, int] | None = None) -> list[TowerStage]:
        """See [`TowerGeometry.stages`]; one stage of one token, without blocks."""
        return [TowerStage(0, 1, self.hidden_size, (1, 1))]


@strict
class CaeAvTextConfig(PreTrainedConfig):
    r"""
    The frozen CLIP text tower that reads the captions, built by open_clip. The defaults are those of `ViT-L-14`.

    Args:
        vocab_size (`int`, defaults to 49408): Number of tokens; a smaller vocabulary keeps the most frequent merges.
        context_length (`int`, defaults to 77): Number of tokens of a caption, including start and end.
        hidden_size (`int`, defaults to 768): Width of the token features.
        num_hidden_layers (`int`, defaults to 12): Number of layers.
        num_attention_heads (`int`, defaults to 12): Number of attention heads.
        mlp_ratio (`float`, defaults to 4.0): Ratio of the feed-forward's hidden width to `hidden_size`.
        hidden_act (`str`, defaults to `"quick_gelu"`): `"quick_gelu"` (OpenAI's weights) or `"gelu"` (most others).
        projection_dim (`int`, *optional*): Width of the space that the tower shares with CLIP's vision transformer,
            512 for `ViT-B-32`. By default the tower has no projection to it.
    """

    model_type = "cae_av_text"
    base_config_key = "text_config"

    vocab_size: int = 49408
    context_length: int = 77
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection_dim: int | None = None

    def __post_init__(self, **kwargs):
        refuse_unknown(type(self), kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks."""
        if self.projection_dim is not None:
            positive(self, "projection_dim")
        positive(self, "vocab_size", "context_length", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if not 514 <= self.vocab_size <= 49408:
            raise ValueError(
                "`vocab_size` of CaeAvTextConfig must lie between 514 (the byte tokens and the two specials of CLIP's "
                f"vocabulary) and 49408 (all of it), got {self.vocab_size}"
            )
        divisible(self, "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)


def _tower_type(name: str, values: dict[str, Any], default: str) -> str:
    """
    Return the model type of a tower's values: their own if it is a tower's, otherwise the default.

    Raises:
        CaeAvError: The model type is not registered.
    """
    model_type = values.get("model_type", default)
    if model_type not in CONFIG_MAPPING:
        raise CaeAvError(
            f"`{name}` is of the model type {model_type!r}, for which no tower is registered; import the module that "
            "registers it first"
        )
    return model_type if issubclass(CONFIG_MAPPING[model_type], TowerGeometry) else default


@strict
class CaeAvConfig(TowersConfig):
    r"""
    Configuration of [`CaeAvModel`] and the `CaeAvFor...` classes. `CaeAvConfig.from_preset(task)` gives the paper's
    sizes; the defaults below are those of `ave`.

    Args:
        vision_config, audio_config, text_config (`dict` or configuration): The three frozen towers. A `model_type`
            registered by [`~towers.base.register_tower`] selects another tower than Swin-V2 or HTS-AT.
        audio_text_config (`dict` or `ClapTextConfig`, *optional*): A fourth frozen tower, CLAP's text branch, which
            few-shot models match the sound with. `text_config` is then CLIP's, which they match the frames with, and
            all four towers have projections to spaces that they share.
        task (`str`): One of `ave`, `avvp`, `avs_s4`, `avs_ms3`, `avqa`.
        formulation (`str`, defaults to `"paper"`):
            `"paper"` follows the printed equations, `"official"` the authors' code, so that checkpoints trained with
            it give the same results.
        shared_tower (`bool`, defaults to `False`): Whether the visual tower reads the sound too, as filter bank images
            (Table II, "shared"); `audio_config` then describes these.
        audio_final_norm (`bool`, defaults to `False`): Whether the heads read the sound after the final norm of its
            tower, as they do the frames. HTS-AT's is not used by any of the published heads.
        trained_tower_norms (`str`, defaults to `"none"`): Layer norms of the visual and the audio tower that are
            trained with the adapters: `"none"`, `"all"` that run, or only the `"final"` one.
        use_text_tower (`bool`, defaults to `True`): Whether the model has a text tower. Without one, captions are
            given as features of the width in `text_config`, or not used (`use_case=False`).
        interaction (`str`, defaults to `"cae_av"`): Interaction method of the paired blocks: `"cae_av"`, `"avmoe"`,
            `"dg_sct"`, `"lavish"`, or one registered by [`~modeling.interaction.register_interaction`].
        interaction_options (`dict`, *optional*): Options of that method, if it has any.
        num_frames (`int`, defaults to 10): Segments of a clip, one frame each. Any other number works at run time.
        segment_seconds (`float`, defaults to 1.0): Length of a segment in seconds.
        frame_sampling (`str`, defaults to `"consecutive"`):
            `"consecutive"` takes consecutive segments from the start of a clip, `"spread"` takes `num_frames` segments
            evenly from the whole clip. With `"spread_to_ends"` the sound of these begins at equal distances, from the
            clip's beginning to a tenth of a second and `segment_seconds` before its end, as in the code of STG-CMA.
        frame_size (`int`, *optional*): Side in pixels of the square frames that the processor makes, if it is not the
            visual tower's. The model resizes frames of any size to the tower's, bicubic, as DG-SCT's segmentation.
        frame_crop (`bool`, defaults to `False`): Whether the processor resizes the short side of a frame, bilinear,
            and crops the middle, instead of resizing the whole frame to a square, bicubic. Not for tasks with masks.
        adapter_stages (`list[int]`, defaults to `(1, 3)`): Stages with AVMoE adapters, counted from 1.
        num_cross_modal_experts, num_unimodal_experts (`int`): Experts of an AVMoE module (Table I).
        num_latent_tokens (`int`, defaults to 32): Latent tokens of an expert that attends through them.
        adapter_reduction (`int`, defaults to 8): Ratio of an expert's channels to its bottleneck's.
        adapter_groups (`int`, defaults to 2): Groups of an expert's two projections.
        adapter_batch_norm, adapter_gate (`bool`): Batch normalisation in, and a learnable gate after, an expert.
        visual_adapter_gate (`bool`, *optional*): Whether the experts of the visual stream have that gate. Defaults to
            `adapter_gate`; in the official formulation to `True`, except for `avvp`, as in the authors' code.
        adapter_norm_before, adapter_norm_after (`bool`, default to `True`): Layer norms around an expert's bottleneck.
        unimodal_attention (`str`): Attention inside the stream in unimodal experts: none, self, latent or dot.
        router_noise_std (`float`): Standard deviation of the noise on routing logits while training.
        load_balancing_loss_weight (`float`): Weight of the routing's divergence from uniform.
        matching_loss_weight (`float`): Weight of the loss that matches the audio with the masked pixels
            (segmentation) or with the frames (question answering).
        matching_loss_form (`str`, defaults to `"mean"`): Form of that loss in segmentation. `"mean"`, over frames, of
            maps averaged with the mask's probabilities as weights; or `"sum"`, as in the code of AVSBench and DG-SCT:
            logits are averaged to a map's size before the sigmoid, the masked map over all its pixels, and frames are
            summed.
        caste_position (`str`, defaults to `"before"`):
            Position of CASTE in a pair of blocks: `"before"` the first adapters, `"between"` both, or `"after"` the
            second (Table VIII).
        gate_dim (`int`, defaults to 128): Width of CASTE's agreement gate (Eq. 1 to 4).
        topk_ratio (`float`, defaults to 0.3): Share of a frame's tokens that CASTE and CASE enrich (rho).
        use_case (`bool`, defaults to `True`): Whether captions enrich the last stage.
        caption_mapper_heads, caption_bottleneck_dim (`int`): Sizes of the caption mapper (Eq. 15, 16).
        case_num_heads (`int`, defaults to 8): Attention heads of CASE.
        case_scale_init (`float`, defaults to 0.0): Initial value of CASE's scales gamma_v and gamma_a (Eq. 20, 21).
            The official formulation has no such scales.
        attention_dropout, branch_dropout (`float`): Dropout on CASE's attention maps, and on the branches of CASE and
            the caption mapper.
        projection_dim (`int`, defaults to 512): Width of the space in which the losses compare modalities.
        contrastive_temperature (`float`, defaults to 0.2): Initial value of InfoNCE's learnable temperature (Eq. 22).
        caption_loss_weight, alignment_loss_weight, entropy_loss_weight (`float`): alpha, beta, gamma (Eq. 25).
        entropy_sign (`str`, defaults to `"as_printed"`):
            Eq. 24 prints minus the entropy, which rewards flat selections; `"sharpen"` rewards sharp ones, as the
            paper's text intends.
        agreement_loss_weight (`float`, defaults to 0.0): Weight of the contrastive loss between matching and
            mismatched frames and sounds that trains CASTE's agreement (Eq. 1). Not part of the paper; with 0, the
            default, only the task trains the agreement, which then says nothing about misalignment.
        event_gate_loss_weight (`float`, defaults to 0.0): Weight of the third loss of DG-SCT's event localization: BCE
            between the product of both gates of the head, taken as a logit, and "something happens". Only the head
            `cmbs` has gates.
        head_gate_scale (`float`, defaults to 0.05): How far the gates of the segmentation head scale its maps and its
            audio, and that of video parsing its visual frames.
        head_gate_size (`int`, defaults to 0): Width of DG-SCT's temporal gate in the head of video parsing, a multiple
            of 4; 0 for none.
        event_head (`str`, defaults to `"cmbs"`): Head of event localization: `"cmbs"`, `"cmbs_linear"` (without its
            temporal relations) or `"mlp"` (Appendix B).
        event_loss (`str`, defaults to `"cross_entropy"`): Loss of the head `mlp`: `"cross_entropy"`, or `"binary"`,
            the binary cross-entropy of each class's probability, as in LAVisH.
        event_head_dropout (`float`, defaults to 0.0): Dropout between the two layers of the head `mlp`.
        head_visual_dim, head_audio_dim, head_hidden_size, head_num_heads, head_intermediate_size (`int`),
            head_dropout (`float`): Sizes of the temporal relation blocks of the task heads.
        head_map_sizes (`list[int]`, *optional*): Selects the segmentation head of LAVisH: channels of each stage's map
            before four dilated convolutions. Without them, gates along time stand in the place of these.
        head_decoder_sizes (`list[int]`, *optional*): Channels of the segmentation head's last two hidden convolutions;
            by default half of `head_hidden_size`, and 32.
        head_answer_size (`int`, defaults to 0): Width of the head of question answering, to which frames are projected
            first; 0 for that of the visual tower, without projection.
        head_answer_audio_size (`int`, defaults to 0): Width to which that head projects the sound before its own
            hidden layer; 0 for no such projection.
        head_audio_hidden (`bool`, defaults to `True`): Whether that head has a hidden layer for the sound. Without
            one, the audio tower must be as wide as the head.
        mask_size (`int`, defaults to 224): Side of the segmentation head's square logits in pixels, a multiple of 32.
        visual_3d_size (`int`, defaults to 0): Width of precomputed 3D features that video parsing reads beside the
            frames, 512 for R(2+1)D-18; 0 for none.
        unimodal_grouping_depth, cross_modal_grouping_depth (`int`): Layers of video parsing's class-token grouping.
        audio_label_smoothing, visual_label_smoothing (`float`): Weight s of a clip's labels as targets of a single
            modality in video parsing; the target of a present class is s + (1 - s) / 2.
        question_vocab_size (`int`, defaults to 93): Number of words of the questions, including padding and unknown.
        matching_hidden_sizes (`list[int]`): Hidden widths of question answering's classifier of matching sound.
        num_context_tokens (`int`, defaults to 4): Learned vectors in front of a class name in few-shot models.
        feature_adapter_reduction (`int`, defaults to 4): Ratio of channels to the bottleneck of the adapters that
            change the embeddings of frames and of class names in few-shot models.
        feature_adapter_ratio (`float`, defaults to 0.2): Weight r of such an adapter, r A(x) + (1 - r) x.
        score_fusion (`str`, defaults to `"sum"`): Scores of few-shot models from the logits y_v of the frames and y_a
            of the sound: `"sum"`, 2 y_v + 2 y_a, or `"contraharmonic"`, (y_v^2 + y_a^2) / (y_v + y_a), with which
            models for new class names are pre-trained.
        matching_level (`str`, defaults to `"frame"`): Whether few-shot models classify each `"frame"`, among the
            classes and "background", or each `"clip"`, by the mean scores of its frames.
        matching_loss_weights (`str`, defaults to `"fixed"`): Weights of the terms of few-shot models' loss: `"fixed"`
            or `"adaptive"`, by their shares of the loss and the epoch.
        initializer_range (`float`, defaults to 0.02): Standard deviation of new linear weights in the task heads.
        lora (`dict`, *optional*):
            LoRA on the towers: arguments of `peft.LoraConfig`. Set by a model's `add_lora`.
        tower_sources (`dict`, *optional*):
            Sources of the towers' weights: for `vision`, `audio` and `text` a dict of `name`, `revision` and `sha256`,
            the hash of their tensors. Set by `from_backbones`.
        adapter_only (`bool`, defaults to `False`): Whether the checkpoint lacks the towers.

    ```python
    >>> from caeav_hf import CaeAvConfig, CaeAvForEventLocalization

    >>> configuration = CaeAvConfig.from_preset("ave", size="toy")
    >>> model = CaeAvForEventLocalization(configuration)
    ```
    """

    model_type = "cae_av"
    name_prefix: ClassVar[str] = "CaeAv"
    # Evaluation gathers decisions over a split, not what explains them.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("loss_dict", "visual_hidden_state", "audio_hidden_state", "visual_hidden_states", "audio_hidden_states"),
        *("visual_pooler_output", "audio_pooler_output"),
        *("visual_feature_maps", "agreement", "agreement_probs", "enrichment_weights"),
        *("audio_enrichment_weights", "router_probs", "explained"),
        *("caption_agreement", "audio_caption_agreement", "visual_selected_tokens", "audio_selected_tokens"),
        *("frame_mask", "av_logits", "match_logits", "match_logits_negative", "grounding"),
        *("visual_attention", "audio_attention"),
    ]
    sub_configs_defaults: ClassVar[dict] = {
        f"{kind}_config": SubConfigSpec(AutoConfig, model_type=f"cae_av_{kind}")
        for kind in ("vision", "audio", "text")
    }

    # A dict becomes the class of its `model_type`; without `model_type`, or from `None`, the class of this package.
    vision_config: Any = None
    audio_config: Any = None
    text_config: Any = None
    audio_text_config: Any = None

    # Declared here so that defaults can be set before the base class does.
    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None

    task: str = "ave"
    formulation: Literal["paper", "official"] = "paper"
    shared_tower: bool = False
    audio_final_norm: bool = False
    trained_tower_norms: Literal["none", "final", "all"] = "none"
    use_text_tower: bool = True
    interaction: str = "cae_av"
    interaction_options: dict[str, Any] | None = None
    num_frames: int = 10
    segment_seconds: float | int = 1.0
    frame_sampling: Literal["consecutive", "spread", "spread_to_ends"] = "consecutive"
    frame_size: int | None = None
    frame_crop: bool = False

    adapter_stages: list[int] | tuple[int, ...] = (1, 3)
    num_cross_modal_experts: int = 1
    num_unimodal_experts: int = 1
    num_latent_tokens: int = 32
    adapter_reduction: int = 8
    adapter_groups: int = 2
    adapter_batch_norm: bool = True
    adapter_gate: bool = True
    visual_adapter_gate: bool | None = None
    adapter_norm_before: bool = True
    adapter_norm_after: bool = True
    unimodal_attention: Literal["none", "self", "latent", "dot"] = "none"
    router_noise_std: float | int = 0.0
    load_balancing_loss_weight: float | int = 0.0
    matching_loss_weight: float | int = 0.0
    matching_loss_form: Literal["mean", "sum"] = "mean"

    caste_position: Literal["before", "between", "after"] = "before"
    gate_dim: int = 128
    topk_ratio: float | int = 0.3

    use_case: bool = True
    caption_mapper_heads: int = 8
    caption_bottleneck_dim: int = 48
    case_num_heads: int = 8
    case_scale_init: float | int = 0.0
    attention_dropout: float | int = 0.1
    branch_dropout: float | int = 0.2

    projection_dim: int = 512
    contrastive_temperature: float | int = 0.2
    caption_loss_weight: float | int = 0.10
    alignment_loss_weight: float | int = 0.05
    entropy_loss_weight: float | int = 0.003
    entropy_sign: Literal["as_printed", "sharpen"] = "as_printed"
    agreement_loss_weight: float | int = 0.0

    event_gate_loss_weight: float | int = 0.0
    head_gate_scale: float | int = 0.05
    head_gate_size: int = 0
    event_head: Literal["cmbs", "cmbs_linear", "mlp"] = "cmbs"
    event_loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    event_head_dropout: float | int = 0.0
    head_visual_dim: int = 512
    head_audio_dim: int = 128
    head_hidden_size: int = 256
    head_num_heads: int = 4
    head_intermediate_size: int = 1024
    head_dropout: float | int = 0.1
    head_map_sizes: list[int] | tuple[int, ...] | None = None
    head_decoder_sizes: list[int] | tuple[int, ...] | None = None
    head_answer_size: int = 0
    head_answer_audio_size: int = 0
    head_audio_hidden: bool = True
    mask_size: int = 224
    visual_3d_size: int = 0
    unimodal_grouping_depth: int = 3
    cross_modal_grouping_depth: int = 6
    audio_label_smoothing: float | int = 1.0
    visual_label_smoothing: float | int = 0.9
    question_vocab_size: int = 93
    matching_hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 128)
    num_context_tokens: int = 4
    feature_adapter_reduction: int = 4
    feature_adapter_ratio: float | int = 0.2
    score_fusion: Literal["sum", "contraharmonic"] = "sum"
    matching_level: Literal["frame", "clip"] = "frame"
    matching_loss_weights: Literal["fixed", "adaptive"] = "fixed"
    initializer_range: float | int = 0.02

    lora: dict[str, Any] | None = None
    tower_sources: dict[str, dict[str, str | None]] | None = None
    adapter_only: bool = False

    def __post_init__(self, **kwargs):
        refuse_huge({**vars(self), **kwargs})
        refuse_unknown(type(self), kwargs)
        if (count := kwargs.get("num_labels")) is not None and not (isinstance(count, int) and count > 0):
            raise CaeAvError(f"`num_labels` of CaeAvConfig must be a positive whole number, got {count!r}")
        if self.id2label is not None and not self.id2label:
            raise CaeAvError("`id2label` of CaeAvConfig must name at least one class")
        tuples_to_lists(self, "adapter_stages", "matching_hidden_sizes", "head_map_sizes", "head_decoder_sizes")
        if self.id2label is None and kwargs.get("num_labels") is None:
            # Also for other tasks, whose configurations are saved without names that are the default.
            self.id2label = dict(get_task(CaeAvConfig.task).preset["id2label"])
        if self.visual_adapter_gate is None:
            self.visual_adapter_gate = self.adapter_gate or (
                self.is_official and get_task(self.task).official.get("visual_adapter_gate", True)
            )
        # The base class derives `label2id` only for names that it generates itself.
        if self.id2label is not None and self.label2id is None:
            self.label2id = {name: int(index) for index, name in self.id2label.items()}
        for name, spec in self.sub_configs_defaults.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, {**value, "model_type": _tower_type(name, value, spec.model_type)})
        if isinstance(self.audio_text_config, dict):
            self.audio_text_config = ClapTextConfig(**self.audio_text_config)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks; every message names the field."""
        get_task(self.task)
        positive(
            self,
            *("num_frames", "segment_seconds", "num_latent_tokens", "adapter_reduction", "adapter_groups", "gate_dim"),
            *("caption_mapper_heads", "caption_bottleneck_dim", "case_num_heads", "projection_dim", "head_num_heads"),
            *("head_visual_dim", "head_audio_dim", "head_hidden_size", "head_intermediate_size"),
            *("mask_size", "unimodal_grouping_depth", "cross_modal_grouping_depth", "question_vocab_size"),
            *("matching_hidden_sizes", "contrastive_temperature", "num_context_tokens", "feature_adapter_reduction"),
        )
        if not 0.0 <= self.feature_adapter_ratio <= 1.0:
            raise ValueError(
                f"`feature_adapter_ratio` of CaeAvConfig must lie in [0, 1], got {self.feature_adapter_ratio}"
            )
        if self.audio_text_config is not None:
            self._validate_spaces()
        if self.frame_size is not None:
            positive(self, "frame_size")
        if self.frame_crop and any(target.is_image for target in get_task(self.task).targets.values()):
            raise ValueError(
                f"`frame_crop` of CaeAvConfig must be False for task {self.task!r}, whose masks are of whole frames"
            )
        if self.frame_sampling != "consecutive" and getattr(self.audio_config, "window_seconds", None) is not None:
            raise ValueError(
                "`window_seconds` of the audio front end needs `frame_sampling` 'consecutive', got "
                f"{self.frame_sampling!r}"
            )
        for name in ("audio_label_smoothing", "visual_label_smoothing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` of CaeAvConfig must lie in [0, 1], got {getattr(self, name)}")
        for name in ("visual_3d_size", "head_answer_size", "head_answer_audio_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` of CaeAvConfig must not be negative, got {getattr(self, name)}")
        if self.head_decoder_sizes is not None:
            positive(self, "head_decoder_sizes")
            if len(self.head_decoder_sizes) != 2:
                raise ValueError(
                    f"`head_decoder_sizes` of CaeAvConfig needs two values, got {self.head_decoder_sizes}"
                )
        if self.head_map_sizes is not None:
            positive(self, "head_map_sizes")
            if len(self.head_map_sizes) != len(self.visual_stages):
                raise ValueError(
                    "`head_map_sizes` of CaeAvConfig needs one value per stage of the visual tower "
                    f"({len(self.visual_stages)}), got {self.head_map_sizes}"
                )
        if self.head_gate_size < 0 or self.head_gate_size % 4:
            raise ValueError(
                "`head_gate_size` of CaeAvConfig must be a multiple of 4, the gate's attention heads, or 0 for none, "
                f"got {self.head_gate_size}"
            )
        probability(self, "attention_dropout", "branch_dropout", "head_dropout", "event_head_dropout")
        if not 0.0 < self.topk_ratio <= 1.0:
            raise ValueError(f"`topk_ratio` of CaeAvConfig must lie in (0, 1], got {self.topk_ratio}")
        if min(self.num_cross_modal_experts, self.num_unimodal_experts) < 0 or not self.num_experts:
            raise ValueError(
                "`num_cross_modal_experts` and `num_unimodal_experts` of CaeAvConfig must not be negative "
                f"and not both be 0, got {self.num_cross_modal_experts} and {self.num_unimodal_experts}"
            )
        for name in (
            *("caption_loss_weight", "alignment_loss_weight", "entropy_loss_weight", "agreement_loss_weight"),
            *("router_noise_std", "event_gate_loss_weight", "head_gate_scale"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` of CaeAvConfig must not be negative, got {getattr(self, name)}")
        if self.event_gate_loss_weight and self.event_head != "cmbs":
            raise ValueError(
                "`event_gate_loss_weight` of CaeAvConfig needs `event_head` 'cmbs', which alone has gates, got "
                f"{self.event_head!r}"
            )
        if self.event_loss != "cross_entropy" and self.event_head != "mlp":
            raise ValueError(
                f"`event_loss` {self.event_loss!r} of CaeAvConfig needs `event_head` 'mlp', got {self.event_head!r}"
            )
        if self.agreement_loss_weight and self.interaction == "avmoe":
            raise ValueError(
                "`agreement_loss_weight` of CaeAvConfig must be 0 with `interaction` 'avmoe', which has no agreement"
            )
        for name, kinds in (("vision_config", TowerGeometry), ("audio_config", (TowerGeometry, AudioFrontEnd))):
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                if not isinstance(getattr(self, name), kind):
                    raise ValueError(
                        f"`{name}` of CaeAvConfig must be the configuration of a tower, a {kind.__name__}, got a "
                        f"{type(getattr(self, name)).__name__}"
                    )
        if self.shared_tower:
            self._validate_shared_tower()
        elif self.audio_config.mel_scale == "kaldi" and isinstance(self.audio_config, CaeAvAudioConfig):
            raise ValueError("`mel_scale` 'kaldi' of CaeAvAudioConfig has no audio tower: it needs `shared_tower`")
        for name, tower_stages in (("vision_config", self.visual_stages), ("audio_config", self.audio_stages)):
            if not sum(stage.depth for stage in tower_stages):
                raise ValueError(f"`{name}` of CaeAvConfig has no blocks, which interaction layers need")
        stages = range(1, self.num_stages + 1)
        if any(stage not in stages for stage in self.adapter_stages):
            raise ValueError(
                f"`adapter_stages` of CaeAvConfig must name stages from {list(stages)}, got {self.adapter_stages}"
            )
        widths = (self.visual_hidden_size, self.audio_hidden_size)
        if not self.head_audio_hidden:
            sound, head = self.head_answer_audio_size or widths[1], self.head_answer_size or widths[0]
            if sound != head:
                raise ValueError(
                    "`head_audio_hidden` False of CaeAvConfig needs sound as wide as the head of question answering, "
                    f"got {sound} channels for {head}"
                )
        if self.use_case:
            for name, width in zip(("visual_hidden_size", "audio_hidden_size"), widths, strict=True):
                divisible(self, name, width, "case_num_heads", self.case_num_heads)
        divisible(
            self,
            "text_config.hidden_size",
            self.text_config.hidden_size,
            "caption_mapper_heads",
            self.caption_mapper_heads,
        )
        divisible(self, "mask_size", self.mask_size, "coarsest scale of the decoder", 32)
        divisible(self, "head_hidden_size", self.head_hidden_size, "head_num_heads", self.head_num_heads)
        if self.interaction in ("cae_av", "avmoe"):
            self._validate_experts()

    def _validate_experts(self):
        for name, tower_stages in (("vision_config", self.visual_stages), ("audio_config", self.audio_stages)):
            for width in sorted({stage.hidden_size for stage in tower_stages}):
                channels = f"channels of a stage by `{name}`"
                divisible(self, channels, width, "adapter_reduction", self.adapter_reduction)
                # Both projections of an expert are grouped, so the groups divide its bottleneck too.
                bottleneck = width // self.adapter_reduction
                divisible(self, f"{channels} / adapter_reduction", bottleneck, "adapter_groups", self.adapter_groups)

    def _validate_spaces(self):
        if not isinstance(self.audio_text_config, ClapTextConfig):
            raise ValueError(
                "`audio_text_config` of CaeAvConfig must be a ClapTextConfig, got a "
                f"{type(self.audio_text_config).__name__}"
            )
        widths = {
            "vision_config": getattr(self.vision_config, "projection_dim", None),
            "text_config": self.text_config.projection_dim if self.use_text_tower else None,
            "audio_config": self.audio_config.projection_dim
            if getattr(self.audio_config, "use_projection", False)
            else None,
            "audio_text_config": self.audio_text_config.projection_dim,
        }
        if None in widths.values() or len(set(widths.values())) > 1:
            raise ValueError(
                "`audio_text_config` of CaeAvConfig needs `projection_dim` of one width in all four towers, "
                f"`use_projection` of `audio_config` and a text tower; got the widths {widths}"
            )
        divisible(
            self,
            "projection_dim",
            widths["vision_config"],
            "feature_adapter_reduction",
            self.feature_adapter_reduction,
        )

    def _validate_shared_tower(self):
        front_end, problem = self.audio_config, None
        if front_end.mel_scale != "kaldi":
            problem = f"`mel_scale` {front_end.mel_scale!r}"
        else:
            try:
                self.vision_config.stages(front_end.spectrogram_size)
            except ValueError as error:
                problem = f"`spectrogram_frames` and `num_mel_bins` {front_end.spectrogram_size}: {error}"
        if problem is not None:
            raise ValueError(
                "`shared_tower` of CaeAvConfig needs an `audio_config` with `mel_scale` 'kaldi' and sides that the "
                f"tower of `vision_config` can read, such as `num_mel_bins` {self.vision_config.input_size[1]}; got "
                f"{problem}"
            )

    @property
    def num_experts(self) -> int:
        """Number of experts of an AVMoE module, cross-modal and unimodal."""
        return self.num_cross_modal_experts + self.num_unimodal_experts

    @property
    def visual_hidden_size(self) -> int:
        """Channels of the last visual stage."""
        return self.visual_stages[-1].hidden_size

    @property
    def audio_hidden_size(self) -> int:
        """Channels of the last audio stage."""
        return self.audio_stages[-1].hidden_size

    @property
    def visual_stages(self) -> list[TowerStage]:
        """The stages of the tower that reads the frames."""
        return self.vision_config.stages()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the frames that the processor makes."""
        return self.vision_config.input_size if self.frame_size is None else (self.frame_size, self.frame_size)

    @property
    def audio_stages(self) -> list[TowerStage]:
        """The stages of the tower that reads the sound."""
        if self.shared_tower:
            return self.vision_config.stages(self.audio_config.spectrogram_size)
        return self.audio_config.stages()

    @property
    def audio_depths(self) -> list[int]:
        """Number of blocks in each stage of the tower that reads the sound."""
        return [stage.depth for stage in self.audio_stages]

    @property
    def num_stages(self) -> int:
        """Number of stages of paired blocks, that of the tower with more stages."""
        return max(len(self.visual_stages), len(self.audio_stages))

    @property
    def reads_captions(self) -> bool:
        """Whether the model reads captions."""
        return self.use_case

    @property
    def is_official(self) -> bool:
        """Whether the model follows the authors' code rather than the printed equations."""
        return self.formulation == "official"

    @classmethod
    def from_preset(cls, task: str, size: str = "full", method: str | None = None, **overrides: Any) -> "CaeAvConfig":
        """
        Return the configuration of a task, in the paper's sizes or in sizes that train on a laptop's CPU.

        Args:
            task: One of `ave`, `avvp`, `avs_s4`, `avs_ms3`, `avqa`, or a task of your own ([`~task.register_task`]).
            size: `"full"` (Swin-V2-L, HTS-AT, CLIP ViT-L-14) or `"toy"` (towers of a few hundred thousand weights).
            method: An interaction method, such as `"dg_sct"`, with the values that it is published with for this task.
                Without one it is CAE-AV.
            overrides: Any field of the configuration. A dict for a sub-configuration changes only the values it names,
                as do `interaction_options` of a `method`.

        Raises:
            ValueError: `task`, `size` or `method` is none of the above, or a value is rejected by the validation.
        """
        record = cls._record_of_preset(task, size, method, overrides)
        preset = record.preset
        values: dict[str, Any] = {"task": task, **preset}
        front_end: dict[str, Any] = {}
        models: Any = None
        if size == "toy":
            values |= {**_TOY, **record.toy_preset}
            for name in cls.sub_configs_defaults:
                if name in record.toy_preset:
                    values[name] = _toy_tower(_TOY[name], record.toy_preset[name])
        method = method or preset.get("interaction")
        if method is not None:
            # Methods build on the configuration, so they are found by name, as tasks are, and only here, since they
            # load PyTorch. Importing the models registers the methods of this package.
            models = importlib.import_module(f"{__package__}.modeling.modeling_cae_av")
            changes = models.method_preset(method, task, size)
            if changes.get("shared_tower") and not overrides.get("shared_tower", True):
                changes.pop("audio_config", None)  # It describes filter banks.
            front_end = changes.get("audio_config", {})
            for name in cls.sub_configs_defaults:
                if name in changes and "model_type" not in changes[name]:
                    changes[name] = {**values.get(name, {}), **changes[name]}
            values |= changes
            if overrides.get("interaction_options") is not None:
                own_options = values.get("interaction_options") or {}
                overrides["interaction_options"] = {**own_options, **overrides["interaction_options"]}
        if overrides.get("shared_tower", values.get("shared_tower")):
            vision = overrides.get("vision_config") or values.get("vision_config") or {}
            vision = vision if isinstance(vision, dict) else vision.to_dict()
            if vision.get("model_type") in (None, (values.get("vision_config") or {}).get("model_type")):
                vision = {**values.get("vision_config", {}), **vision}
            tower_config = CONFIG_MAPPING[_tower_type("vision_config", vision, CaeAvVisionConfig.model_type)]
            image_size = vision.get("image_size", getattr(tower_config, "image_size", CaeAvVisionConfig.image_size))
            seconds = overrides.get("segment_seconds", values.get("segment_seconds", 1.0))
            if method is not None:
                options = overrides.get("interaction_options", values.get("interaction_options"))
                if isinstance(overrides.get("vision_config"), dict):
                    of_method = models.method_vision_preset(method, vision, options)
                    overrides["vision_config"] = {**of_method, **overrides["vision_config"]}
                by_tower = models.method_tower_preset(method, task, size, vision)
                front_end = {**by_tower.pop("audio_config", {}), **front_end}
                values |= by_tower
            values["audio_config"] = {**_filter_bank(image_size, seconds), **front_end}
        for name, value in overrides.items():
            is_partial = False
            if name in cls.sub_configs_defaults and isinstance(value, dict):
                # Sizes of the preset are those of its own tower.
                own = (values.get(name) or {}).get("model_type", cls.sub_configs_defaults[name].model_type)
                is_partial = _tower_type(name, value, own) == own
            values[name] = {**values.get(name, {}), **value} if is_partial else value
        if "num_labels" in overrides or "id2label" in overrides:
            values = {k: v for k, v in values.items() if k not in ("num_labels", "id2label") or k in overrides}
        return cls(**values)


def _toy_tower(own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the toy sizes of a tower with a task's changes, or those of another tower that the task has instead."""
    return changes if "model_type" in changes else {**own, **changes}


def _filter_bank(image_size: int, segment_seconds: float) -> dict[str, Any]:
    """Return an audio configuration whose segments fill a square image, for example 192 rows of 5.2 ms."""
    rate = 16_000
    return {
        "mel_scale": "kaldi",
        "num_mel_bins": image_size,
        "sampling_rate": rate,
        "fft_window_size": 400,
        "hop_length": int(rate * segment_seconds) // image_size,
        "frequency_min": 20,
        "frequency_max": rate // 2,
    }


# Sizes of this package.
_TOY: dict[str, Any] = {
    "vision_config": {
        "image_size": 64,
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
    },
    "audio_config": {
        "spec_size": 64,
        "num_mel_bins": 32,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "depths": (1, 1, 2, 1),
        "num_attention_heads": (1, 2, 4, 8),
        "window_size": 2,
        "tile_seconds": 1,
    },
    "text_config": {"vocab_size": 1026, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "num_latent_tokens": 4,
    "adapter_reduction": 4,
    "adapter_groups": 2,
    "gate_dim": 32,
    "caption_bottleneck_dim": 16,
    "projection_dim": 64,
    "head_visual_dim": 64,
    "head_audio_dim": 32,
    "head_hidden_size": 64,
    "head_intermediate_size": 128,
    "mask_size": 64,
    "matching_hidden_sizes": (64, 32, 16),
}


for _config_class in (
    *(CaeAvVisionConfig, CaeAvSwinConfig, CaeAvVitConfig, CaeAvPvtV2Config),
    *(CaeAvAudioConfig, CaeAvVggishConfig, CaeAvTextConfig),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
