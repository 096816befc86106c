"""Public checkpoints of HTS-AT, as the audio tower."""

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
    The audio tower that a public checkpoint of HTS-AT holds.

    The three that its authors published, of AudioSet, ESC-50 (both at 32 kHz) and Speech Commands V2 (16 kHz), are
    told apart by their number of classes, and the front end's settings with them.

    Args:
        state_dict: Under the authors' names, with or without the prefix `sed_model.` of their Lightning module.
        audio: As in [`from_official`].

    Returns:
        The configuration, the tensors under the tower's names, and what became of each key.

    Raises:
        CaeAvError: See [`from_official`].
    """
    state = without_prefix(without_prefix(state_dict), "sed_model.")
    values = audio_values(state, audio or {}, prefix="")
    try:
        config = CaeAvAudioConfig(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"no HTS-AT is of the sizes of the checkpoint and of what was given: {error}") from error
    with torch.device("meta"):
        expected = {key: value.shape for key, value in HtsatTower(config).state_dict().items()}
    tensors, report = convert_keys(state, expected, [section("", "", HTSAT, HTSAT_IGNORED)])
    indices = relative_position_indices(config, "audio_encoder.")
    report.missing = dict.fromkeys(indices, "a constant of the geometry, computed here")
    tensors |= indices
    if lacking := [key for key in expected if key not in tensors]:
        raise CaeAvError(f"the checkpoint lacks what is {lacking[0]!r} here, and {len(lacking) - 1} more")
    return config, tensors, report
