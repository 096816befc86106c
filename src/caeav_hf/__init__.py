"""CAE-AV audio-visual learning for the Hugging Face ecosystem."""

from typing import TYPE_CHECKING

from .errors import CaeAvError, DataError, MediaError
from .lazy import lazy_names
from .registration import register_with_transformers


if TYPE_CHECKING:
    from .configuration_cae_av import (
        CaeAvAudioConfig,
        CaeAvConfig,
        CaeAvTextConfig,
        CaeAvVisionConfig,
        CaeAvVitConfig,
    )
    from .configuration_ssuformer import SsuFormerConfig
    from .modeling import (
        CaeAvForEventLocalization,
        CaeAvForFewShotLocalization,
        CaeAvForQuestionAnswering,
        CaeAvForSegmentation,
        CaeAvForVideoParsing,
        CaeAvModel,
        CaeAvPreTrainedModel,
        SsuFormerForSegmentation,
        SsuFormerForSoundSourceUnderstanding,
        SsuFormerModel,
        SsuFormerPreTrainedModel,
    )
    from .processing import CaeAvFeatureExtractor, CaeAvProcessor, CaeAvVideoProcessor


__version__ = "0.1.0"

__all__ = [
    "CaeAvAudioConfig",
    "CaeAvConfig",
    "CaeAvError",
    "CaeAvFeatureExtractor",
    "CaeAvForEventLocalization",
    "CaeAvForFewShotLocalization",
    "CaeAvForQuestionAnswering",
    "CaeAvForSegmentation",
    "CaeAvForVideoParsing",
    "CaeAvModel",
    "CaeAvPreTrainedModel",
    "CaeAvProcessor",
    "CaeAvTextConfig",
    "CaeAvVideoProcessor",
    "CaeAvVisionConfig",
    "CaeAvVitConfig",
    "DataError",
    "MediaError",
    "SsuFormerConfig",
    "SsuFormerForSegmentation",
    "SsuFormerForSoundSourceUnderstanding",
    "SsuFormerModel",
    "SsuFormerPreTrainedModel",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".configuration_cae_av": (
            "CaeAvAudioConfig",
            "CaeAvConfig",
            "CaeAvTextConfig",
            "CaeAvVisionConfig",
            "CaeAvVitConfig",
        ),
        ".configuration_ssuformer": ("SsuFormerConfig",),
        ".modeling": (
            "CaeAvForEventLocalization",
            "CaeAvForFewShotLocalization",
            "CaeAvForQuestionAnswering",
            "CaeAvForSegmentation",
            "CaeAvForVideoParsing",
            "CaeAvModel",
            "CaeAvPreTrainedModel",
            "SsuFormerForSegmentation",
            "SsuFormerForSoundSourceUnderstanding",
            "SsuFormerModel",
            "SsuFormerPreTrainedModel",
        ),
        ".processing": ("CaeAvFeatureExtractor", "CaeAvProcessor", "CaeAvVideoProcessor"),
    },
)

register_with_transformers()
