"""
Count the trainable parameters of the full-size models, by part, and compare them with the authors' code.

    python benchmarks/parameters.py              # all tasks
    python benchmarks/parameters.py --task ave   # one
"""

import argparse
import re
from typing import Any

import torch

from caeav_hf import CaeAvConfig, CaeAvPreTrainedModel
from caeav_hf.conversion.flags import FLAGS
from caeav_hf.task import get_task


# Modules that the authors' code builds but never runs; only the official formulation has them.
UNUSED = re.compile(r"\.template\.|unused_self_attention")

# Trainable parameters of the authors' code, counted in it: all it builds, and without the parts it never uses: the
# relation decoders' self-attention (ave), the gating's decoders and the layers around the PVT (avs_*), fc_a*_pure and
# norm3 (avqa).
AUTHORS = {
    "ave": (200_847_849, 200_321_513),
    "avvp": (214_464_467, 214_464_467),
    "avs_s4": (362_626_635, 342_878_795),
    "avs_ms3": (255_533_339, 235_785_499),
    "avqa": (278_462_326, 274_917_238),
}
# Table II: parameters of event localization with both backbones, in millions, and the trained share in percent.
TABLE_II = (460.9, 43.5)


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    if UNUSED.search(name):
        return "built, never used"
    if name.startswith("head."):
        return "task head"
    if "_caste." in name:
        return "CASTE"
    if ".interactions." in name:
        return "AVMoE"
    return {"caption_mapper": "caption mapper", "case": "CASE", "projections": "loss projections"}[name.split(".")[1]]


def build(task: str, formulation: str, **values: Any) -> CaeAvPreTrainedModel:
    """Build the full-size model on the meta device; video parsing with 3D features, as in the authors' code."""
    if task == "avvp":
        values["visual_3d_size"] = 512
    with torch.device("meta"):
        return get_task(task).model_class(CaeAvConfig.from_preset(task, formulation=formulation, **values))


def count(task: str, formulation: str, **values: Any) -> dict[str, int]:
    """Count the trainable parameters of each part."""
    parts: dict[str, int] = {}
    for name, parameter in build(task, formulation, **values).named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    return parts


def without_place(task: str) -> dict[str, int]:
    """Count parameters that the authors' code builds but never runs, and that conversion ignores."""

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    if task == "avqa":
        return {"fc_a1_pure, fc_a2_pure, norm3": linear(768, 1536) + linear(1536, 1536) + 2 * 1536}
    if not task.startswith("avs"):
        return {}
    attention, layer_norm = 4 * linear(256, 256), 2 * 256
    layer = 2 * attention + linear(256, 1024) + linear(1024, 256) + 2 * layer_norm
    decoders = 4 * (linear(512, 256) + linear(256, 256) + 2 * layer)
    pvt_widths = (64, 128, 320, 512)
    return {
        "gating's decoders and their templates": decoders + 8 * layer,
        "conv1-4": sum(4 * linear(9 * width, 256) for width in pvt_widths),
        "x1-4_linear": sum(linear(192 * 2**stage, width) for stage, width in enumerate(pvt_widths)),
        "path4.resConfUnit1": 2 * linear(9 * 256, 256),
    }


def show(task: str) -> None:
    """Print the table of a task."""
    columns = {formulation: count(task, formulation) for formulation in ("paper", "official")}
    print(f"{task:40}{'paper':>14}{'official':>14}")
    for part in sorted(set(columns["paper"]) | set(columns["official"])):
        print(f"{part:40}{columns['paper'].get(part, 0):14,}{columns['official'].get(part, 0):14,}")
    ours = {formulation: sum(parts.values()) for formulation, parts in columns.items()}
    print(f"{'trainable':40}{ours['paper']:14,}{ours['official']:14,}")
    total = ours["official"]
    for name, number in without_place(task).items():
        total += number
        print(f"{'  ignored: ' + name:40}{'':14}{number:14,}")
    built, used = AUTHORS[task]
    print(f"{'trainable, with ignored parts':40}{'':14}{total:14,}")
    print(f"{'the code: all it builds':40}{'':14}{built:14,}")
    print(f"{'the code: without unused parts':40}{'':14}{used:14,}")
    if task == "ave":
        show_table_ii(built)
    print()


def show_table_ii(trainable: int) -> None:
    """Print the totals of Table II: with both backbones, their original classifiers and the audio front end."""
    vision, audio, _ = build("ave", "official").cae_av.towers()
    frozen = sum(parameter.numel() for tower in (vision, audio) for parameter in tower.parameters())
    # The classifiers of ImageNet-22k, and of AudioSet: a convolution and a linear map.
    frozen += 1536 * 21841 + 21841 + (527 * 768 * 2 * 3 + 527) + (527 * 527 + 527)
    # HTS-AT keeps its Fourier matrices and mel filters as parameters.
    frozen += 2 * 513 * 1024 + 513 * 64
    total = trainable + frozen
    print(f"{'with both backbones, whole':40}{'':14}{total:14,}")
    print(f"{'  of which trainable':40}{'':14}{trainable / total:14.1%}")
    print(f"{'Table II, total in millions':40}{'':14}{TABLE_II[0]:14}")
    print(f"{'  of which trainable':40}{'':14}{TABLE_II[1]:13}%")


def show_shared() -> None:
    """Print the rows of Table II in which one Swin-V2 is shared by both streams."""
    base = {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}
    print(f"{'ave, one tower for both streams':40}{'paper':>14}{'official':>14}")
    for size, vision in (("large", {}), ("base", base)):
        for name, parts in (("CAE-AV", {}), ("AVMoE", {"interaction": "avmoe", "use_case": False})):
            values = {"shared_tower": True, "vision_config": vision, **parts}
            trainable = [sum(count("ave", formulation, **values).values()) for formulation in ("paper", "official")]
            print(f"{f'Swin-V2-{size}, {name}, trainable':40}{trainable[0]:14,}{trainable[1]:14,}")
    print()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=FLAGS, help="one task; by default all")
    task = parser.parse_args().task
    for name in FLAGS if task is None else (task,):
        show(name)
    if task in (None, "ave"):
        show_shared()


if __name__ == "__main__":
    main()
