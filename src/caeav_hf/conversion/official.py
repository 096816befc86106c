"""Conversion of the authors' CAE-AV, AVMoE, DG-SCT and LAVisH checkpoints to models of the official formulation."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError, last_line
from ..modeling.modeling_cae_av import CaeAvPreTrainedModel
from ..task import get_task
from ..towers.checkpoint_files import without_prefix
from ..towers.loading import load_text_tower
from ..towers.renaming import Rules, convert_keys, reason_to_ignore
from ..towers.report import ConversionReport
from ..towers.sizes import relative_position_indices
from .flags import FLAGS
from .key_map import sections
from .methods import find_method
from .sizes import official_config


# Tensors without effect in evaluation, which a checkpoint may lack.
_OPTIONAL: Rules = {
    r"\.num_batches_tracked$": "counter that evaluation does not read",
    r"\.(?:template|unused_self_attention)\.": "never runs; newly initialised",
}
_CLASS_TEXTS = "class names, of which the checkpoint holds no ids; store them with `model.name_classes(processor)`"
_NO_TEXT = "text tower, not in the authors' checkpoints; pass `text`, or give caption features to the model"


def _refuse_misshapen(convert: Callable[..., CaeAvPreTrainedModel]) -> Callable[..., CaeAvPreTrainedModel]:
    """Convert what reading tensors of other shapes than the authors' raises to an error of the package."""

    @wraps(convert)
    def convert_or_raise(*args: Any, **kwargs: Any) -> CaeAvPreTrainedModel:
        try:
            return convert(*args, **kwargs)
        except CaeAvError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CaeAvError(f"`state_dict` has no tensors of the authors' shapes: {last_line(error)}") from error

    return convert_or_raise


@_refuse_misshapen
def from_official(
    state_dict: Mapping[str, Tensor],
    task: str,
    options: Mapping[str, Any] | argparse.Namespace | None = None,
    vision: Mapping[str, Any] | None = None,
    audio: Mapping[str, Any] | None = None,
    text: str | os.PathLike | Mapping[str, Any] | None = None,
    copy: bool = True,
    method: str | None = None,
    **overrides: Any,
) -> CaeAvPreTrainedModel:
    """
    Build a model of the official formulation, in evaluation mode, from a checkpoint of the authors' code.

    Checkpoints of plain AVMoE, of DG-SCT, of LAVisH and of STG-CMA also load; see `conversion.methods`. Without
    tensors of CASTE and CASE the model has neither.

    Args:
        state_dict: Tensors under the authors' names, with or without `DataParallel`'s prefix.
        task: `ave`, `avvp`, `avs_s4`, `avs_ms3` or `avqa`, or for DG-SCT's few-shot checkpoints `ave_few_shot`,
            `ave_few_shot_classification` or `avvp_few_shot_classification`.
        options: The authors' training flags under their own names, such as `num_skip`, or the whole namespace of a
            run (`args` or `vars(args)`) of any of their tasks. Sizes are inferred from the tensors, and flags that
            shape the model must agree with them. The report lists all other flags as without effect.
        vision: Sizes of a Swin-V2 that differ from the usual ones: `img_size`, `window_size`, `embed_dim`, `depths`,
            `num_heads`. Only `window_size` cannot be inferred from the tensors. Of a few-shot checkpoint only
            `num_heads`, where a head of CLIP's vision transformer is not 64 wide.
        audio: Sizes of an HTS-AT that differ from the usual ones: `spec_size`, `window_size`, `embed_dim`, `depths`,
            `num_heads`, `mel_bins`; and settings of its front end that differ from the public checkpoints', under the
            names of `CaeAvAudioConfig`. For LAVisH, settings of the filter banks, `mel_bins` and `frames` among them.
        text: The text tower for captions, which the authors' checkpoints do not contain: an open_clip name with the
            tag of its weights (`ViT-L-14/openai`) or a folder, see `from_backbones`; or sizes for `CaeAvTextConfig`.
            Without it the tower is randomly initialised, and the model expects caption features instead of captions.
        copy: Whether the model gets copies; if not, it shares memory with tensors that need no conversion.
        method: Method of the checkpoint: `cae_av`, `avmoe`, `dg_sct`, `lavish` or `stg_cma`; by default that of its
            keys. For `stg_cma`, `vision` and `audio` are described by [`~conversion.stg_cma.read_stg_cma`].
        overrides: Fields of the configuration that cannot be inferred from the tensors, such as `mask_size`.

    Returns:
        The model. Its `conversion_report`, a [`ConversionReport`], says how each key was converted.

    Raises:
        CaeAvError: An argument contradicts a tensor, none of the authors' programs has a flag, a key is not
            recognised, or one is missing. The message names the key.
    """
    if task not in FLAGS:
        raise CaeAvError(f"`task` must be one of {', '.join(FLAGS)}, got {task!r}")
    state = without_prefix(state_dict)
    found = find_method(state, method)
    text_values, text_state = _text(text)
    if text_state:
        overrides.setdefault("use_text_tower", True)
    towers = vision or {}, audio or {}
    if found.read_checkpoint is not None:
        if text_values is not None:
            overrides["text_config"] = text_values
        config, parts, without_effect = found.read_checkpoint(state, task, options, *towers, overrides)
    else:
        config, pairs, without_effect = official_config(
            state, task, found, options, *towers, text_values, {**overrides}
        )
        has_old_swin = any(key.startswith("swin.layers.0.downsample.") for key in state)
        rules = found.adapter, found.adapter_ignored.get(task), found.head_ignored
        parts = sections(task, pairs, has_old_swin, *rules)
    model_class = get_task(task).model_class
    with torch.device("meta"):
        expected = {key: value.shape for key, value in model_class(config).state_dict().items()}
    tensors, report = convert_keys(found.prepare(state), expected, parts, copy)
    report.without_effect |= without_effect
    prefix = "model.audio_tower.audio_encoder."
    known = {} if config.shared_tower else relative_position_indices(config.audio_config, prefix)
    for key, value in text_state.items():
        tensors[f"model.text_tower.{key}"] = value
        report.missing[f"model.text_tower.{key}"] = "text tower, loaded from `text`"
    for key, value in known.items():
        tensors[key] = value
        report.missing[key] = "constant, computed from the sizes"
    absent = [key for key in expected if key not in tensors]
    for key in absent:
        reason = _NO_TEXT if key.startswith("model.text_tower.") else reason_to_ignore(key, _OPTIONAL)
        if key.endswith("_prompt_ids"):
            reason, tensors[key] = _CLASS_TEXTS, torch.zeros(expected[key], dtype=torch.long)
        if reason is not None:
            report.missing[key] = reason
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.zeros((), dtype=torch.long)
    if lacking := [key for key in absent if key not in report.missing]:
        raise CaeAvError(
            f"the checkpoint lacks {len(lacking)} tensors of a model for {task!r}; the first is named {lacking[0]!r} "
            "in this package"
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
    # The report replaces Transformers' warnings about keys.
    with _quiet_transformers():
        loaded = model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    model = cast(CaeAvPreTrainedModel, loaded)
    model.config._name_or_path = ""
    model.conversion_report = report
    return model.eval()
