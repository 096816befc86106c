"""
Methods whose official checkpoints can be converted: one record each.

A record says how to recognise the method's checkpoints, the rules that rename an adapter's tensors, and how to read
the adapters' options from them. Towers, heads and captions are read in the same way for all methods, except for those
that read their whole checkpoint themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from ..towers.evidence import Evidence
from ..towers.renaming import Rules, Section
from . import few_shot, key_map, lavish, stg_cma
from .adapters import AdapterEvidence, read_avmoe, read_dg_sct
from .flags import SHAPING


# Flags of DG-SCT's programs that shape its models, with the types of the authors' parsers.
_DG_SCT_SHAPING: Mapping[str, type] = {
    **dict.fromkeys(("Adapter_downsample", "num_conv_group", "num_tokens", "is_bn", "is_gate", "is_multimodal"), int),
    **dict.fromkeys(("is_before_layernorm", "is_post_layernorm", "dim", "depth_aud", "depth_vis", "depth_av"), int),
    "gamma": float,
}


@dataclass(frozen=True)
class OfficialMethod:
    """
    Reading of the authors' checkpoints of an interaction method.

    Attributes:
        name: The method as `CaeAvConfig.interaction` names it.
        marker: Regular expression of a key that its checkpoints have, and those of the methods after it do not.
        adapter: Rules for an adapter's keys; see `key_map`.
        read: Function that infers the configuration's fields from the adapters, and records the values of the
            authors' flags with the keys that they come from.
        adapter_ignored: Keys of an adapter to ignore, by task, with the reasons.
        head_ignored: Keys outside adapters and towers to ignore, in addition to those of the task.
        shaping: The authors' flags that shape the model, with their types.
        read_checkpoint: In place of the above, a function of the checkpoint, its task, and the caller's `options`,
            `vision`, `audio` and overrides. It returns the configuration, the sections of the authors' model, and for
            each flag without effect the reason.
        prepare: Function that changes tensors of the checkpoint before they are renamed.
    """

    name: str
    marker: str
    adapter: Rules = field(default_factory=dict)
    read: Callable[[AdapterEvidence], dict[str, Any]] = lambda found: {}
    adapter_ignored: Mapping[str, Rules] = field(default_factory=dict)
    head_ignored: Rules = field(default_factory=dict)
    shaping: Mapping[str, type] = field(default_factory=lambda: SHAPING)
    read_checkpoint: Callable[..., tuple[CaeAvConfig, list[Section], dict[str, str]]] | None = None
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state


METHODS: tuple[OfficialMethod, ...] = (
    OfficialMethod(name="dg_sct", marker=few_shot.MARKER, read_checkpoint=few_shot.read_few_shot),
    OfficialMethod(
        name="dg_sct",
        marker=r"_adapter_blocks_p[12]\.\d+\.fc_affine_",
        adapter=key_map.DG_SCT,
        read=read_dg_sct,
        adapter_ignored={
            task: {**key_map.DG_SCT_IGNORED, **ignored} for task, ignored in key_map.DG_SCT_IGNORED_BY_TASK.items()
        },
        head_ignored=key_map.DG_SCT_HEAD_IGNORED,
        shaping=_DG_SCT_SHAPING,
    ),
    OfficialMethod(
        name="lavish", marker=r"_adapter_blocks_p[12]\.\d+\.my_tokens$", read_checkpoint=lavish.read_lavish
    ),
    OfficialMethod(
        name="stg_cma",
        marker=r"(?:^|\.)S_Adapter(?:_Audio)?\.D_fc1\.weight$",
        read_checkpoint=stg_cma.read_stg_cma,
        prepare=stg_cma.with_frames_first,
    ),
    OfficialMethod(name="cae_av", marker=r"^(?:vis|audio)_caste_blocks_p1\.", adapter=key_map.AVMOE, read=read_avmoe),
    OfficialMethod(name="avmoe", marker=r"_adapter_blocks_p1\.\d+\.", adapter=key_map.AVMOE, read=read_avmoe),
)


def find_method(state: Mapping[str, Tensor], name: str | None = None) -> OfficialMethod:
    """
    Return the method of a checkpoint.

    Args:
        state: The checkpoint.
        name: The method that the caller expects, if any.

    Raises:
        CaeAvError: The checkpoint has no adapters of any method, or is of another method than `name`.
    """
    known = list(dict.fromkeys(method.name for method in METHODS))
    if name is not None and name not in known:
        raise CaeAvError(f"`method` must be one of {', '.join(sorted(known))}, got {name!r}")
    evidence = Evidence(state)
    for method in METHODS:
        key = evidence.find(method.marker)
        if key is None:
            continue
        if name not in (None, method.name):
            raise CaeAvError(f"`method` is {name!r}, but {key!r} is a key of {method.name!r}")
        return method
    raise CaeAvError("the checkpoint has no adapters, neither 'vis_adapter_blocks_p1.0.' nor with '_moe'")
