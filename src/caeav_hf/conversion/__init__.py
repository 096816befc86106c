"""The checkpoints of others - CAE-AV's and AVMoE's authors', public HTS-AT - as models and towers of this package."""

from .checkpoint import load_checkpoint
from .htsat import htsat_from_public
from .official import from_official
from .report import ConversionReport


__all__ = ["ConversionReport", "from_official", "htsat_from_public", "load_checkpoint"]
