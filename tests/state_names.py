"""
The names and shapes of the tensors of every kind of model, as text to compare.

    python -m tests.state_names

adds a listing for each variant that has none yet; existing listings are never rewritten, since published checkpoints
have these names.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

import caeav_hf
from caeav_hf import CaeAvConfig
from caeav_hf.towers.lora import tower_lora_config


LISTINGS = Path(__file__).parent / "fixtures" / "compatibility" / "state_names"

TASKS = {
    "ave": "CaeAvForEventLocalization",
    "avvp": "CaeAvForVideoParsing",
    "avs_s4": "CaeAvForSegmentation",
    "avs_ms3": "CaeAvForSegmentation",
    "avqa": "CaeAvForQuestionAnswering",
}
# Name of the variant to its model class, preset and changes to that.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{task}_paper": (model, task, {}) for task, model in TASKS.items()},
    **{f"{task}_official": (model, task, {"formulation": "official"}) for task, model in TASKS.items()},
    "encoder": ("CaeAvModel", "ave", {}),
    "ave_avmoe": (TASKS["ave"], "ave", {"interaction": "avmoe"}),
    "ave_mlp": (TASKS["ave"], "ave", {"event_head": "mlp"}),
    "ave_cmbs_linear": (TASKS["ave"], "ave", {"event_head": "cmbs_linear"}),
    "ave_without_case": (TASKS["ave"], "ave", {"use_case": False}),
    "ave_agreement_loss": (TASKS["ave"], "ave", {"agreement_loss_weight": 0.1}),
    "ave_shared_tower": (TASKS["ave"], "ave", {"shared_tower": True}),
    "avvp_3d": (TASKS["avvp"], "avvp", {"visual_3d_size": 512}),
}


def build(variant: str) -> Any:
    """Build a toy model of the variant, with LoRA on all towers if its name ends in that."""
    name = variant.removesuffix("+lora")
    model_class, task, overrides = VARIANTS[name]
    model = getattr(caeav_hf, model_class)(CaeAvConfig.from_preset(task, size="toy", **overrides))
    if name != variant:
        model.add_lora(tower_lora_config(rank=2, towers=("vision", "audio", "text")))
    return model


def listing(state: dict[str, Tensor]) -> list[str]:
    """
    Return one line per group of tensors whose names differ in their numbers alone: the name with stars, and for each
    shape the numbers.
    """
    lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in state.items():
        numbers = ".".join(re.findall(r"(?<=\.)\d+(?=\.)", name))
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        lines[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)][shape].append(numbers)
    return sorted(
        f"{name} " + "; ".join(" ".join([shape, *sorted(filter(None, of))]) for shape, of in sorted(shapes.items()))
        for name, shapes in lines.items()
    )


def difference(lines: list[str], base: list[str]) -> list[str]:
    """Return the lines that are only in this listing (+) or only in the base (-)."""
    return sorted([f"- {line}" for line in set(base) - set(lines)] + [f"+ {line}" for line in set(lines) - set(base)])


def recorded(variant: str) -> list[str]:
    """Return the stored listing, as `described` returns it."""
    return (LISTINGS / f"{variant}.txt").read_text().splitlines()


ALL = [*VARIANTS, "ave_paper+lora"]


def described(variant: str) -> list[str]:
    """Return the current listing of a variant; for other than presets, the difference from the preset's."""
    state = build(variant).state_dict()
    if variant == "encoder":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    lines = listing(state)
    _, task, _ = VARIANTS[variant.removesuffix("+lora")]
    base = f"{task}_paper"
    return lines if variant == base else difference(lines, listing(build(base).state_dict()))


if __name__ == "__main__":
    LISTINGS.mkdir(parents=True, exist_ok=True)
    for variant in ALL:
        path = LISTINGS / f"{variant}.txt"
        if not path.exists():
            path.write_text("\n".join(described(variant)) + "\n")
