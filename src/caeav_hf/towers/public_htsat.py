"""Conversion of public HTS-AT checkpoints to the audio tower."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_cae_av import CaeAvAudioConfig
from ..errors import CaeAvError
from .checkpoint_files import without_prefix
from .htsat import HtsatTower
from .renaming import HTSAT, HTSAT_IGNORED, convert_keys, section
from .report import ConversionReport
from .sizes import audio_values, relative_position_indices


def htsat_from_public(
    state_dict: Mapping[str, Tensor], audio: Mapping[str, Any] | None = None
) -> tuple[CaeAvAudioConfig, dict[str, Tensor], ConversionReport]:
    """
    Convert a public HTS-AT checkpoint to the audio tower.

    The settings of the front end follow from the number of classes, which identifies the three checkpoints that the
    authors published: AudioSet and ESC-50 (both at 32 kHz), and Speech Commands V2 (16 kHz).

    Args:
        state_dict: Tensors under the authors' names, with or without their Lightning module's prefix `sed_model.`.
        audio: See [`from_official`].

    Returns:
        The configuration, the tensors under the tower's names, and the report of the conversion.

    Raises:
        CaeAvError: See [`from_official`].
    """
    state = without_prefix(without_prefix(state_dict), "sed_model.")
    values = audio_values(state, audio or {}, prefix="")
    try:
        config = CaeAvAudioConfig(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"no HTS-AT has the sizes of the checkpoint and of `audio`: {error}") from error
    with torch.device("meta"):
        expected = {key: value.shape for key, value in HtsatTower(config).state_dict().items()}
    tensors, report = convert_keys(state, expected, [section("", "", HTSAT, HTSAT_IGNORED)])
    indices = relative_position_indices(config, "audio_encoder.")
    report.missing = dict.fromkeys(indices, "constant, computed from the sizes")
    tensors |= indices
    if lacking := [key for key in expected if key not in tensors]:
        raise CaeAvError(
            f"the checkpoint lacks {len(lacking)} tensors of the tower; the first is {lacking[0]!r} in this package"
        )
    return config, tensors, report
