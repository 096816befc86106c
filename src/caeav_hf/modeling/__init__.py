"""The CAE-AV models."""

from .modeling_cae_av import (
    CaeAvEventLocalizationOutput,
    CaeAvForEventLocalization,
    CaeAvForSegmentation,
    CaeAvModel,
    CaeAvModelOutput,
    CaeAvPreTrainedModel,
    CaeAvSegmentationOutput,
)


__all__ = [
    "CaeAvEventLocalizationOutput",
    "CaeAvForEventLocalization",
    "CaeAvForSegmentation",
    "CaeAvModel",
    "CaeAvModelOutput",
    "CaeAvPreTrainedModel",
    "CaeAvSegmentationOutput",
]
