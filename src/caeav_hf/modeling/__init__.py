"""The CAE-AV models."""

from .modeling_cae_av import (
    CaeAvEventLocalizationOutput,
    CaeAvForEventLocalization,
    CaeAvModel,
    CaeAvModelOutput,
    CaeAvPreTrainedModel,
)


__all__ = [
    "CaeAvEventLocalizationOutput",
    "CaeAvForEventLocalization",
    "CaeAvModel",
    "CaeAvModelOutput",
    "CaeAvPreTrainedModel",
]
