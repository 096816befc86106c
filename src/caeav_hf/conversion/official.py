"""The authors' checkpoints, of CAE-AV and of AVMoE, as models of the official formulation."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..modeling.modeling_cae_av import CaeAvPreTrainedModel
from ..task import get_task
from ..towers.checkpoint_files import without_prefix
from ..towers.loading import load_text_tower
from ..towers.renaming import convert_keys
from ..towers.report import ConversionReport
from ..towers.sizes import relative_position_indices
from .key_map import sections
from .sizes import official_config


_NO_TEXT = "the text tower: the authors read captions' features from files; give `text`, or features to the model"


def from_official(
    state_dict: Mapping[str, Tensor],
    task: str,
    options: Mapping[str, Any] | argparse.Namespace | None = None,
    vision: Mapping[str, Any] | None = None,
    audio: Mapping[str, Any] | None = None,
    text: str | os.PathLike | Mapping[str, Any] | None = None,
    copy: bool = True,
    **overrides: Any,
) -> CaeAvPreTrainedModel:
    """
    The model that a checkpoint of the authors' code holds, in evaluation mode, in the official formulation.

    Checkpoints of plain AVMoE load too: without CASTE's and CASE's tensors the model has neither.

    Args:
        state_dict: Tensors under the authors' names, with or without `DataParallel`'s prefix.
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3` or `avqa`.
        options: The authors' training flags under their own names, such as `num_skip`, or the whole namespace of a
            run (`args` or `vars(args)`), of any of their tasks. Sizes are inferred from the tensors; flags that shape
            the model must agree with them. The report lists all others as without effect.
        vision: Sizes of a Swin-V2 that is not the usual one: `img_size`, `window_size`, `embed_dim`, `depths`,
            `num_heads`. Only `window_size` is in no tensor.
        audio: Sizes of an HTS-AT that is not the usual one: `spec_size`, `window_size`, `embed_dim`, `depths`,
            `num_heads`, `mel_bins`; and what its front end has otherwise than the public checkpoints, under the names
            of `CaeAvAudioConfig`.
        text: The text tower of the captions, which the authors' checkpoints do not hold: an open_clip name with its
            weights' tag, `ViT-L-14/openai`, or a folder, see `from_backbones`; or sizes for `CaeAvTextConfig`. Without
            one the tower is new and random, and the model wants features of captions instead of captions.
        copy: Whether the model gets copies; if not, it shares the memory of the tensors that fit it as they are.
        overrides: Fields of the configuration that no tensor tells, such as `mask_size`.

    Returns:
        The model; what became of each key is its `conversion_report`, a [`ConversionReport`].

    Raises:
        CaeAvError: An argument contradicts a tensor, no program of the authors has such a flag, a key is neither known
            nor known to be unused, or one is missing. The message names the key.
    """
    state = without_prefix(state_dict)
    text_values, text_state = _text(text)
    config, pairs, without_effect = official_config(
        state, task, options, vision or {}, audio or {}, text_values, {**overrides}
    )
    has_old_swin = any(key.startswith("swin.layers.0.downsample.") for key in state)
    model_class = get_task(task).model_class
    with torch.device("meta"):
        expected = {key: value.shape for key, value in model_class(config).state_dict().items()}
    tensors, report = convert_keys(state, expected, sections(task, pairs, has_old_swin), copy)
    report.without_effect |= without_effect
    known = relative_position_indices(config.audio_config, "model.audio_tower.audio_encoder.")
    for key, value in text_state.items():
        tensors[f"model.text_tower.{key}"] = value
        report.missing[f"model.text_tower.{key}"] = "the text tower: from `text`"
    for key, value in known.items():
        tensors[key] = value
        report.missing[key] = "a constant of the geometry, computed here"
    absent = [key for key in expected if key not in tensors]
    for key in absent:
        if key.startswith("model.text_tower."):
            report.missing[key] = _NO_TEXT
    if lacking := [key for key in absent if key not in report.missing]:
        raise CaeAvError(
            f"the checkpoint lacks {len(lacking)} of the tensors of a model for {task!r}, the first of them what is "
            f"{lacking[0]!r} here"
        )
    return _build(model_class, config, tensors, report)


def _text(text: str | os.PathLike | Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    if text is None or isinstance(text, Mapping):
        return (None if text is None else dict(text)), {}
    return load_text_tower(str(text))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def _build(
    model_class: type[CaeAvPreTrainedModel], config: CaeAvConfig, tensors: dict[str, Tensor], report: ConversionReport
) -> CaeAvPreTrainedModel:
    # What Transformers would say about keys, the report says better.
    with _quiet_transformers():
        loaded = model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    model = cast(CaeAvPreTrainedModel, loaded)
    model.config._name_or_path = ""
    model.conversion_report = report
    return model.eval()
