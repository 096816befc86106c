"""Conversion of the checkpoints of the authors of CAE-AV, AVMoE and DG-SCT, and of public HTS-AT checkpoints."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from ..towers.checkpoint_files import load_checkpoint
    from ..towers.public_htsat import htsat_from_public
    from ..towers.report import ConversionReport
    from .official import from_official


__all__ = ["ConversionReport", "from_official", "htsat_from_public", "load_checkpoint"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "..towers.report": ("ConversionReport",),
        ".official": ("from_official",),
        "..towers.public_htsat": ("htsat_from_public",),
        "..towers.checkpoint_files": ("load_checkpoint",),
    },
)
