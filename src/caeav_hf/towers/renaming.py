"""
How the tensors of a checkpoint get their names here: rules as data, and what applies them.

The rules of a module are regular expressions and replacements that are applied, in order, to the rest of a key behind
the module's prefix. `SPLIT` in a new key stands for `query`, `key` and `value`, which others stack.
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

# Downsampling closed a stage in the timm that the authors used; now it opens the next one. Backwards, so that no stage
# is moved twice.
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

SWIN_V2_IGNORED: Rules = {
    r"^head\.": "the tower's own classifier",
    r"\.(?:attn_mask|relative_coords_table|relative_position_index)$": "a constant of the geometry, computed here",
    r"\.k_bias$": "always zero: keys have no bias",
}

HTSAT_IGNORED: Rules = {
    r"^spectrogram_extractor\.": "constants of the front end, which the feature extractor computes",
    r"^logmel_extractor\.": "constants of the front end, which the feature extractor computes",
    r"^(?:tscam_conv|head)\.": "the tower's own classifier",
    r"\.(?:attn_mask|relative_position_index)$": "a constant of the geometry, computed here",
}


@dataclass(frozen=True)
class Section:
    """
    A module of the authors' model.

    Attributes:
        pattern: Regular expression of the prefix of its keys.
        target: Its prefix here.
        rules: What happens to the rest of its keys.
        ignored: Regular expression of a rest to the reason why it has no place here.
    """

    pattern: str
    target: str
    rules: Rules
    ignored: Rules


def section(pattern: str, target: str, rules: Rules, ignored: Rules | None = None) -> Section:
    """A [`Section`]."""
    return Section(pattern, target, rules, ignored or {})


def rename(key: str, rules: Rules) -> str:
    """The new name of a key, which may contain `SPLIT`."""
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def reason_to_ignore(key: str, ignored: Rules) -> str | None:
    """Why a key has no place here, or `None` when it may have one."""
    return next((reason for pattern, reason in ignored.items() if re.search(pattern, key)), None)


def split(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What becomes of a tensor under its new name: itself, or queries, keys and values where they are stacked."""
    if SPLIT not in key:
        yield key, value
        return
    for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
        yield key.replace(SPLIT, name), part


def convert_keys(
    state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], found: list[Section], copy: bool = True
) -> tuple[dict[str, Tensor], ConversionReport]:
    """
    Tensors under our names.

    Args:
        state: Under the authors' names.
        expected: Shapes of ours.
        found: The sections of the authors' model, in order.
        copy: Whether they are copies, or share what memory they can.

    Raises:
        CaeAvError: A key is not explained, two keys become one, or a tensor has another shape than it should.
    """
    report = ConversionReport()
    tensors: dict[str, Tensor] = {}
    unexplained = []
    for key, stacked in state.items():
        prefix, part = next(
            (match.group(), part) for part in found if (match := re.match(part.pattern, key)) is not None
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
                    f"{key!r} has the shape {tuple(stacked.shape)}, but the rest of the checkpoint and what was given "
                    f"make it {tuple(expected[new_key])}"
                )
            if new_key in tensors:
                raise CaeAvError(f"{key!r} and another key of the checkpoint both hold what is {new_key!r} here")
            # The authors write linear maps as 1x1 convolutions, and scalars now with, now without a dimension.
            value = value.detach().reshape(expected[new_key])
            value = value.float() if value.is_floating_point() else value
            # A part of a tensor would keep the whole of it, and could not be saved beside the other parts.
            is_part = value.untyped_storage().nbytes() > value.nbytes
            tensors[new_key] = value.clone() if copy or is_part else value
            report.mapped.setdefault(key, []).append(new_key)
    if unexplained:
        raise CaeAvError(
            f"{len(unexplained)} keys of the checkpoint have no place in such a model, among them "
            f"{', '.join(repr(key) for key in unexplained[:5])}"
        )
    return tensors, report
