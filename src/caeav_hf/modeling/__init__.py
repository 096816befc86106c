"""The CAE-AV models."""

from .modeling_cae_av import (
    CaeAvEventLocalizationOutput,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
    CaeAvModel,
    CaeAvModelOutput,
    CaeAvPreTrainedModel,
    CaeAvQuestionAnsweringOutput,
    CaeAvSegmentationOutput,
    CaeAvVideoParsingOutput,
)


__all__ = [
    "CaeAvEventLocalizationOutput",
    "CaeAvForEventLocalization",
    "CaeAvForQuestionAnswering",
    "CaeAvForSegmentation",
    "CaeAvForVideoParsing",
    "CaeAvModel",
    "CaeAvModelOutput",
    "CaeAvPreTrainedModel",
    "CaeAvQuestionAnsweringOutput",
    "CaeAvSegmentationOutput",
    "CaeAvVideoParsingOutput",
]
