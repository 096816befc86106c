"""CAE-AV audio-visual learning for the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoVideoProcessor

from .configuration_cae_av import CaeAvAudioConfig, CaeAvConfig, CaeAvTextConfig, CaeAvVisionConfig
from .errors import CaeAvError, DataError, MediaError
from .modeling import (
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
    CaeAvModel,
    CaeAvPreTrainedModel,
)
from .pipelines import register
from .processing import CaeAvFeatureExtractor, CaeAvProcessor, CaeAvVideoProcessor


AutoConfig.register(CaeAvVisionConfig.model_type, CaeAvVisionConfig)
AutoConfig.register(CaeAvAudioConfig.model_type, CaeAvAudioConfig)
AutoConfig.register(CaeAvTextConfig.model_type, CaeAvTextConfig)
AutoConfig.register(CaeAvConfig.model_type, CaeAvConfig)
AutoModel.register(CaeAvConfig, CaeAvModel)
AutoFeatureExtractor.register(CaeAvConfig, CaeAvFeatureExtractor)
AutoVideoProcessor.register(CaeAvConfig, CaeAvVideoProcessor)
AutoProcessor.register(CaeAvConfig, CaeAvProcessor)
register()

__version__ = "0.1.0"

__all__ = [
    "CaeAvAudioConfig",
    "CaeAvConfig",
    "CaeAvError",
    "CaeAvFeatureExtractor",
    "CaeAvForEventLocalization",
    "CaeAvForQuestionAnswering",
    "CaeAvForSegmentation",
    "CaeAvForVideoParsing",
    "CaeAvModel",
    "CaeAvPreTrainedModel",
    "CaeAvProcessor",
    "CaeAvTextConfig",
    "CaeAvVideoProcessor",
    "CaeAvVisionConfig",
    "DataError",
    "MediaError",
]
