"""
Configuration of SSUFormer: sub-configurations of its four towers and its text decoder, presets, validation.

Sun et al., "RA-SSU: Towards Fine-Grained Audio-Visual Learning with Region-Aware Sound Source Understanding". The
authors' code and weights are not public, so each value says where it comes from: [p] printed in the paper, [fig] read
off its figures, [inf] inferred, [avsf] a fact of AVSegFormer's public code (Gao et al., AAAI 2024), the paper's
baseline, or [ours], a decision of this package where nothing says it.
"""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GPT2Config
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .configuration_base import (
    TowersConfig,
    divisible,
    positive,
    probability,
    refuse_huge,
    refuse_unknown,
    tuples_to_lists,
)
from .configuration_cae_av import (
    _TOY,
    AudioFrontEnd,
    CaeAvTextConfig,
    CaeAvVitConfig,
    TowerGeometry,
    TowerStage,
    _tower_type,
)
from .task import get_task


@strict
class SsuFormerConfig(TowersConfig):
    r"""
    Configuration of [`SsuFormerModel`], [`SsuFormerForSoundSourceUnderstanding`] and [`SsuFormerForSegmentation`]. The
    defaults are the full size, `SsuFormerConfig.from_preset("ra_ssu")`.

    Args:
        vision_config (`dict` or configuration): Tower of the frames, whose four feature maps have strides 4, 8, 16 and
            32 [p]: PVT-v2, variant b5 at 224 x 224 [avsf], or any tower of four stages.
        audio_config (`dict` or configuration): Tower of the sound: VGGish [p], or any tower of sound.
        region_config (`dict` or configuration): Tower of the frames that are masked with the predicted masks (MCM):
            CLIP's vision transformer [p], ViT-B/16 [ours].
        text_config (`dict` or [`CaeAvTextConfig`]): CLIP's text tower, whose space the region tower shares. RCC embeds
            the predicted text with it, and MoHE the expert's; its vocabulary is that of the descriptions [ours].
        decoder_config (`dict` or [`~transformers.GPT2Config`]): The description decoder, a small Transformer trained
            from scratch [p, fig]: 6 layers of width 512, 8 heads, 77 positions [ours].
        task (`str`): Name of the task: `ra_ssu`, `avs_s4` or `avs_ms3`.
        num_frames (`int`, defaults to 10): Segments of a clip, one frame each [inf]. Any other number works at run
            time; segments beyond these share the last one's time embedding.
        segment_seconds (`float`, defaults to 1.0): Length of a segment in seconds [inf].
        frame_sampling (`str`, defaults to `"consecutive"`): See [`CaeAvConfig`].
        hidden_size (`int`, defaults to 256): Width of tokens and queries, D [ours].
        num_attention_heads (`int`, defaults to 8): Attention heads of the integration and of the mask decoder [ours].
        intermediate_size (`int`, defaults to 2048): Hidden width of their feed-forwards [ours].
        dropout (`float`, defaults to 0.1): Dropout of their attention and branches [ours].
        num_queries (`int`, defaults to 300): Queries of a frame's sound [avsf].
        num_integration_layers (`int`, defaults to 3): Layers of the multi-modality integration [p]; 0 for none.
        num_mask_layers (`int`, defaults to 6): Layers of the mask decoder [avsf].
        mask_norm_groups (`int`, defaults to 32): Groups of the mask decoder's group norms [ours].
        mask_size (`int`, defaults to 224): Side of the square mask logits in pixels.
        max_description_length (`int`, defaults to 60): Most ids of a decoded description, with start and end [ours].
        outputs (`str`, defaults to `"both"`): What the model predicts: `"both"`, `"masks"` (SSU-S) or
            `"descriptions"` (SSU-D) [p].
        use_mcm (`bool`, defaults to `True`): Mask collaboration: whether the text decoder reads the masked frames.
        use_rcc (`bool`, defaults to `True`): Regional consistency loss between masked frames and predicted text.
        use_mohe (`bool`, defaults to `True`): Mixture of hierarchical experts: whether a router adds the text of a
            video-language model to the decoder's states.
        focal_gamma (`float`, defaults to 2.0): Exponent of the focal loss of the text [ours]; 0 for cross-entropy.
        segmentation_loss_weight (`float`, defaults to 0.25): a, the weight of the masks' loss; that of the text is
            1 - a [p].
        consistency_loss_weight (`float`, defaults to 1.0): Weight of the regional consistency loss [p].
        unfreeze_vision_epoch (`int`, *optional*, defaults to 10): Epoch, from 0, from which on the tower of the frames
            is trained too [avsf]; `None` keeps it frozen. The other towers are always frozen.
        region_image_mean, region_image_std (`list[float]`): Statistics with which the region tower's frames are
            normalised, CLIP's by default.
        initializer_range (`float`, defaults to 0.02): Standard deviation of new embeddings.
        lora, tower_sources, adapter_only: See [`CaeAvConfig`]; a fourth source is that of the `region` tower.

    ```python
    >>> from caeav_hf import SsuFormerConfig, SsuFormerForSoundSourceUnderstanding

    >>> configuration = SsuFormerConfig.from_preset("ra_ssu", size="toy")
    >>> model = SsuFormerForSoundSourceUnderstanding(configuration)
    ```
    """

    model_type = "ssuformer"
    # Evaluation gathers predictions over a split, not states.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("loss_dict", "query_hidden_state", "visual_hidden_state", "visual_feature_maps", "frame_mask"),
        "router_probs",
    ]
    sub_configs_defaults: ClassVar[dict] = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="cae_av_pvt_v2"),
        "audio_config": SubConfigSpec(AutoConfig, model_type="cae_av_vggish"),
        "region_config": SubConfigSpec(AutoConfig, model_type="cae_av_vit"),
        "text_config": SubConfigSpec(AutoConfig, model_type="cae_av_text"),
        "decoder_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
    }

    name_prefix: ClassVar[str] = "SsuFormer"
    interaction: ClassVar[str] = "ssuformer"  # type: ignore[misc]

    vision_config: Any = None
    audio_config: Any = None
    region_config: Any = None
    text_config: Any = None
    decoder_config: Any = None

    task: str = "ra_ssu"
    num_frames: int = 10
    segment_seconds: float | int = 1.0
    frame_sampling: Literal["consecutive", "spread"] = "consecutive"

    hidden_size: int = 256
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    dropout: float | int = 0.1
    num_queries: int = 300
    num_integration_layers: int = 3
    num_mask_layers: int = 6
    mask_norm_groups: int = 32
    mask_size: int = 224
    max_description_length: int = 60

    outputs: Literal["both", "masks", "descriptions"] = "both"
    use_mcm: bool = True
    use_rcc: bool = True
    use_mohe: bool = True
    focal_gamma: float | int = 2.0
    segmentation_loss_weight: float | int = 0.25
    consistency_loss_weight: float | int = 1.0
    unfreeze_vision_epoch: int | None = 10
    region_image_mean: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    region_image_std: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    initializer_range: float | int = 0.02

    lora: dict[str, Any] | None = None
    tower_sources: dict[str, dict[str, str | None]] | None = None
    adapter_only: bool = False

    def __post_init__(self, **kwargs):
        refuse_huge({**vars(self), **kwargs})
        refuse_unknown(type(self), kwargs)
        tuples_to_lists(self, "region_image_mean", "region_image_std")
        if self.region_config is None:
            self.region_config = dict(_REGION)
        if self.text_config is None:
            self.text_config = dict(_TEXT)
        for name in ("vision_config", "audio_config", "region_config"):
            value = getattr(self, name)
            if isinstance(value, dict):
                default = self.sub_configs_defaults[name].model_type
                setattr(self, name, {**value, "model_type": _tower_type(name, value, default)})
        if isinstance(self.text_config, dict):
            self.text_config = CaeAvTextConfig(**_without_type(self.text_config))
        if self.decoder_config is None or isinstance(self.decoder_config, dict):
            self.decoder_config = GPT2Config(
                **{**_DECODER, **_vocabulary(self.text_config), **_without_type(self.decoder_config or {})}
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Check the fields, as `@strict` asks; every message names the field."""
        get_task(self.task)
        positive(
            self,
            *("num_frames", "segment_seconds", "hidden_size", "num_attention_heads", "intermediate_size"),
            *("num_queries", "num_mask_layers", "mask_norm_groups", "mask_size", "region_image_std"),
        )
        probability(self, "dropout")
        divisible(self, "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        divisible(self, "hidden_size", self.hidden_size, "sine embedding of two axes", 4)
        divisible(self, "hidden_size", self.hidden_size, "mask_norm_groups", self.mask_norm_groups)
        for name in ("num_integration_layers", "focal_gamma", "consistency_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` of SsuFormerConfig must not be negative, got {getattr(self, name)}")
        if not 0 <= self.segmentation_loss_weight <= 1:
            raise ValueError(
                "`segmentation_loss_weight` of SsuFormerConfig must lie in [0, 1], got "
                f"{self.segmentation_loss_weight}"
            )
        if self.unfreeze_vision_epoch is not None and self.unfreeze_vision_epoch < 0:
            raise ValueError(
                "`unfreeze_vision_epoch` of SsuFormerConfig must be an epoch from 0, or None for a frozen tower, got "
                f"{self.unfreeze_vision_epoch}"
            )
        for name in ("region_image_mean", "region_image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"`{name}` of SsuFormerConfig needs one value per channel, got {getattr(self, name)}")
        for name, kinds in (
            ("vision_config", (TowerGeometry,)),
            ("audio_config", (TowerGeometry, AudioFrontEnd)),
            ("region_config", (TowerGeometry,)),
        ):
            if missing := [kind.__name__ for kind in kinds if not isinstance(getattr(self, name), kind)]:
                raise ValueError(
                    f"`{name}` of SsuFormerConfig must be the configuration of a tower, a {missing[0]}, got a "
                    f"{type(getattr(self, name)).__name__}"
                )
        if len(self.vision_config.stages()) != 4:
            raise ValueError(
                "`vision_config` of SsuFormerConfig needs a tower of four stages, whose maps have strides 4 to 32, "
                f"got {len(self.vision_config.stages())}"
            )
        self._validate_text()

    def _validate_text(self):
        if not isinstance(self.decoder_config, GPT2Config) or not self.decoder_config.add_cross_attention:
            raise ValueError(
                "`decoder_config` of SsuFormerConfig must be a GPT2Config with `add_cross_attention`, since the "
                f"decoder reads what is seen and heard, got a {type(self.decoder_config).__name__}"
            )
        if not 2 <= self.max_description_length <= self.decoder_config.max_position_embeddings:
            raise ValueError(
                "`max_description_length` of SsuFormerConfig must be at least 2 (start and end) and at most "
                f"`n_positions` of `decoder_config`, {self.decoder_config.max_position_embeddings}, got "
                f"{self.max_description_length}"
            )
        if self.is_consistent:
            shared = (
                getattr(self.region_config, "projection_dim", None),
                self.text_config.projection_dim,
            )
            if None in shared or len(set(shared)) > 1:
                raise ValueError(
                    "`use_rcc` of SsuFormerConfig needs `projection_dim` of one width in `region_config` and "
                    f"`text_config`, got {shared[0]} and {shared[1]}"
                )
            if self.text_config.vocab_size != self.decoder_config.vocab_size:
                raise ValueError(
                    "`use_rcc` of SsuFormerConfig needs one vocabulary for `decoder_config` and `text_config`, got "
                    f"{self.decoder_config.vocab_size} and {self.text_config.vocab_size} ids"
                )

    @property
    def has_masks(self) -> bool:
        """Whether the model predicts masks."""
        return self.outputs != "descriptions"

    @property
    def has_descriptions(self) -> bool:
        """Whether the model predicts descriptions."""
        return self.outputs != "masks"

    @property
    def collaborates(self) -> bool:
        """Whether the text decoder reads frames that are masked with the predicted masks."""
        return self.use_mcm and self.outputs == "both"

    @property
    def is_consistent(self) -> bool:
        """Whether training compares the masked frames with the predicted text."""
        return self.use_rcc and self.outputs == "both"

    @property
    def reads_captions(self) -> bool:
        """Whether the model reads the text of a video-language model, `visual_caption_*`."""
        return self.use_mohe and self.has_descriptions

    @property
    def use_text_tower(self) -> bool:
        """Whether the model has a text tower."""
        return self.reads_captions or self.is_consistent

    @property
    def visual_stages(self) -> list[TowerStage]:
        """The stages of the tower of the frames."""
        return self.vision_config.stages()

    @property
    def audio_stages(self) -> list[TowerStage]:
        """The stages of the tower of the sound."""
        return self.audio_config.stages()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the frames that the processor makes."""
        return self.vision_config.input_size

    @classmethod
    def from_preset(
        cls, task: str = "ra_ssu", size: str = "full", method: str | None = None, **overrides: Any
    ) -> "SsuFormerConfig":
        """
        Return the configuration of a task, in the paper's sizes or in sizes that train on a laptop's CPU.

        Args:
            task: `"ra_ssu"`; `"avs_s4"` or `"avs_ms3"`, masks alone; or a task of your own whose model is SSUFormer.
            size: `"full"`, or `"toy"`: Swin-V2 and HTS-AT of a few hundred thousand weights in place of PVT-v2 and
                VGGish, and a CLIP of width 64.
            method: The method as recipes name it, `"ssuformer"`.
            overrides: Any field of the configuration. A dict for a sub-configuration changes only the values it names,
                unless it names another `model_type`.

        Raises:
            ValueError: `task`, `size` or `method` is none of the above, or a value is rejected by the validation.
        """
        if method not in (None, cls.interaction):
            raise ValueError(f"`method` of {cls.__name__} must be {cls.interaction!r}, got {method!r}")
        record = cls._record_of_preset(task, size, cls.interaction, overrides)
        values: dict[str, Any] = {"region_config": _REGION, "text_config": _TEXT, "task": task}
        for changes in (
            _TOY_SIZES if size == "toy" else {},
            record.preset,
            record.toy_preset if size == "toy" else {},
        ):
            values = _merged(cls, values, changes)
        return cls(**_merged(cls, values, overrides))


def _merged(cls: type[SsuFormerConfig], values: dict[str, Any], changes: Any) -> dict[str, Any]:
    """Return values with changes; sub-configurations of the same model type are merged."""
    merged = dict(values)
    for name, value in changes.items():
        own = values.get(name)
        if name in cls.sub_configs_defaults and isinstance(value, dict) and isinstance(own, dict):
            default = cls.sub_configs_defaults[name].model_type
            if value.get("model_type", own.get("model_type", default)) == own.get("model_type", default):
                value = {**own, **value}
        merged[name] = value
    return merged


def _without_type(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "model_type"}


def _vocabulary(text: Any) -> dict[str, Any]:
    """Return the ids of CLIP's vocabulary, whose last two are the start and the end."""
    size = text.vocab_size
    return {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "n_positions": text.context_length}


# CLIP ViT-B/16 and its text tower.
_REGION: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 512,
}
_TEXT: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 8, "projection_dim": 512}
_DECODER: dict[str, Any] = {"n_embd": 512, "n_layer": 6, "n_head": 8, "add_cross_attention": True}

_TOY_SIZES: dict[str, Any] = {
    "vision_config": {"model_type": "cae_av_vision", **_TOY["vision_config"]},
    "audio_config": {"model_type": "cae_av_audio", **_TOY["audio_config"]},
    "region_config": {
        "model_type": CaeAvVitConfig.model_type,
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 64,
    },
    "text_config": {**_TOY["text_config"], "projection_dim": 64},
    "decoder_config": {"n_embd": 64, "n_layer": 3, "n_head": 4},
    "num_frames": 5,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_queries": 16,
    "num_mask_layers": 2,
    "mask_size": 64,
    "unfreeze_vision_epoch": None,
    # At 1 it outweighs the loss of the masks: four clips that are learnt by heart then keep wrong ones.
    "consistency_loss_weight": 0.1,
    # The toy CLIP reads frames as the toy tower of whole frames does.
    "region_image_mean": IMAGENET_DEFAULT_MEAN,
    "region_image_std": IMAGENET_DEFAULT_STD,
}
