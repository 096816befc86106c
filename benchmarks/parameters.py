"""
Counts the trainable parameters of a full-size model, part by part, on the meta device.

    python benchmarks/parameters.py --task ave
"""

import argparse
import re

import torch

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvForSegmentation


# What the authors' code builds and never runs; the official formulation has it, the paper's does not.
UNUSED = re.compile(r"\.template\.|unused_self_attention")


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    if UNUSED.search(name):
        return "built, never used"
    if name.startswith("head."):
        return "task head"
    if "_caste." in name:
        return "CASTE"
    if ".interactions." in name:
        return "AVMoE"
    return {"caption_mapper": "caption mapper", "case": "CASE", "projections": "loss projections"}[name.split(".")[1]]


def count(task: str, formulation: str) -> dict[str, int]:
    """Trainable parameters of each part."""
    model_class = CaeAvForSegmentation if task.startswith("avs") else CaeAvForEventLocalization
    with torch.device("meta"):
        model = model_class(CaeAvConfig.from_preset(task, formulation=formulation))
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    return parts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ave", choices=("ave", "avs_s4", "avs_ms3"))
    task = parser.parse_args().task
    columns = {formulation: count(task, formulation) for formulation in ("paper", "official")}
    print(f"{task:20}{'paper':>14}{'official':>14}")
    for part in sorted(set(columns["paper"]) | set(columns["official"])):
        print(f"{part:20}{columns['paper'].get(part, 0):14,}{columns['official'].get(part, 0):14,}")
    print(f"{'trainable':20}{sum(columns['paper'].values()):14,}{sum(columns['official'].values()):14,}")


if __name__ == "__main__":
    main()
