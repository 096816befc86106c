"""Building of a configuration from a task's preset, what a checkpoint determines, and what the caller overrides."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError


def converted_config(task: str, values: Mapping[str, Any], overrides: Mapping[str, Any], **preset: Any) -> CaeAvConfig:
    """
    Return the configuration of a converted checkpoint.

    Args:
        task: Its task.
        values: Fields that the checkpoint determines.
        overrides: Fields that the caller gives, which take precedence; a dict changes only the values that it names.
        preset: `method`, and fields that apply unless `values` or `overrides` set them.

    Raises:
        CaeAvError: No model has these values.
    """
    fields = dict(values)
    for name, value in overrides.items():
        known = fields.get(name)
        if isinstance(known, Mapping) and (value is None or isinstance(value, Mapping)):
            value = {**known, **(value or {})}
        fields[name] = value
    if fields.get("num_labels") == CaeAvConfig.from_preset(task).num_labels:
        # Keep the preset's class names; setting `num_labels` would replace them.
        del fields["num_labels"]
    try:
        return CaeAvConfig.from_preset(task, **{**preset, **fields})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"no model has the sizes of the checkpoint and of the arguments: {error}") from error
