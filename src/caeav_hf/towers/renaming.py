"""
Renaming of a checkpoint's tensors to this package's names, by rules.

Each module has regular expressions and replacements, applied in order to the part of a key after the module's prefix.
`SPLIT` in a new key stands for `query`, `key` and `value`, which other implementations stack in one tensor.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CaeAvError
from .report import ConversionReport


Rules = Mapping[str, str]

SPLIT = "{qkv}"

# In the authors' version of timm, downsampling ends a stage; now it starts the next one. The order is descending so
# that no key is renamed twice.
SWIN_V2_OLD: Rules = {rf"^layers\.{stage}\.downsample": f"layers.{stage + 1}.downsample" for stage in range(8, -1, -1)}

SWIN_V2: Rules = {}

HTSAT: Rules = {
    r"^bn0": "batch_norm",
    r"norm1": "layernorm_before",
    r"norm2": "layernorm_after",
    r"attn\.qkv": f"attention.self.{SPLIT}",
    r"attn\.proj": "attention.output.dense",
    r"attn\.relative_position_bias_table": "attention.self.relative_position_bias_table",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
    r"^": "audio_encoder.",
}

# OpenAI's CLIP to `VitTower`.
CLIP_VIT: Rules = {
    r"^conv1": "patch_embed.proj",
    r"^class_embedding$": "cls_token",
    r"^positional_embedding$": "pos_embed",
    r"^transformer\.resblocks": "layers",
    r"^ln_pre": "norm_pre",
    r"^ln_post": "norm",
    r"\.ln_([12])": r".norm\1",
    r"attn\.in_proj_": "attn.qkv.",
    r"attn\.out_proj": "attn.proj",
    r"mlp\.c_fc": "mlp.fc1",
    r"mlp\.c_proj": "mlp.fc2",
    r"^proj$": "projection",
}

SWIN_V2_IGNORED: Rules = {
    r"^head\.": "the tower's own classifier",
    r"\.(?:attn_mask|relative_coords_table|relative_position_index)$": "constant, computed from the sizes",
    r"\.k_bias$": "always zero: keys have no bias",
}

HTSAT_IGNORED: Rules = {
    r"^spectrogram_extractor\.": "constants of the front end, which the feature extractor computes",
    r"^logmel_extractor\.": "constants of the front end, which the feature extractor computes",
    r"^(?:tscam_conv|head)\.": "the tower's own classifier",
    r"\.(?:attn_mask|relative_position_index)$": "constant, computed from the sizes",
}


@dataclass(frozen=True)
class Section:
    """
    Renaming of one module of the authors' model.

    Attributes:
        pattern: Regular expression of the prefix of its keys.
        target: Its prefix in this package.
        rules: Rules for the rest of its keys.
        ignored: Regular expressions of keys (without the prefix) to ignore, with the reasons.
    """

    pattern: str
    target: str
    rules: Rules
    ignored: Rules


def section(pattern: str, target: str, rules: Rules, ignored: Rules | None = None) -> Section:
    """Build a [`Section`]."""
    return Section(pattern, target, rules, ignored or {})


def rename(key: str, rules: Rules) -> str:
    """Return the new name of a key, which may contain `SPLIT`."""
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def reason_to_ignore(key: str, ignored: Rules) -> str | None:
    """Return the reason to ignore a key, or `None`."""
    return next((reason for pattern, reason in ignored.items() if re.search(pattern, key)), None)


def split(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor under its new name, or its three parts if it stacks queries, keys and values."""
    if SPLIT not in key:
        yield key, value
        return
    for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
        yield key.replace(SPLIT, name), part


def convert_keys(
    state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], sections: list[Section], copy: bool = True
) -> tuple[dict[str, Tensor], ConversionReport]:
    """
    Rename tensors to this package's names.

    Args:
        state: Tensors under the authors' names.
        expected: Shapes of the converted tensors by their new names.
        sections: Sections of the authors' model, in order.
        copy: Whether to copy the tensors; if not, they share memory where possible.

    Returns:
        The renamed tensors, and the report of the conversion.

    Raises:
        CaeAvError: A key is not recognised, two keys get the same name, or a tensor has an unexpected shape.
    """
    report = ConversionReport()
    tensors: dict[str, Tensor] = {}
    unexplained = []
    for key, stacked in state.items():
        prefix, part = next(
            (match.group(), part) for part in sections if (match := re.match(part.pattern, key)) is not None
        )
        rest = key[len(prefix) :]
        reason = reason_to_ignore(rest, part.ignored)
        if reason is not None:
            report.ignored[key] = reason
            continue
        for new_key, value in split(part.target + rename(rest, part.rules), stacked):
            if new_key not in expected:
                unexplained.append(key)
                break
            if value.numel() != expected[new_key].numel():
                raise CaeAvError(
                    f"{key!r} has the shape {tuple(stacked.shape)}, but the rest of the checkpoint and the arguments "
                    f"require {tuple(expected[new_key])}"
                )
            if new_key in tensors:
                raise CaeAvError(f"{key!r} and another key of the checkpoint are both converted to {new_key!r}")
            # The authors use 1x1 convolutions as linear layers, and scalars with or without a dimension.
            value = value.detach().reshape(expected[new_key])
            value = value.float() if value.is_floating_point() else value
            # A view would keep the whole tensor in memory, and safetensors cannot save views that share storage.
            is_view = value.untyped_storage().nbytes() > value.nbytes
            tensors[new_key] = value.clone() if copy or is_view else value
            report.mapped.setdefault(key, []).append(new_key)
    if unexplained:
        raise CaeAvError(
            f"{len(unexplained)} keys of the checkpoint do not belong to such a model, among them "
            f"{', '.join(repr(key) for key in unexplained[:5])}"
        )
    return tensors, report
