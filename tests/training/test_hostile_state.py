"""Recipes, training states and stored scores that are broken or made to do harm."""

import json
import re
from pathlib import Path

import pytest

from caeav_hf import CaeAvError
from caeav_hf.training.checkpointing import read_loop_state
from caeav_hf.training.recipe import load_recipe
from caeav_hf.training.state import LoopState


def laughs(levels: int) -> str:
    """Return aliases of aliases, which stand for 10 ** `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config:\n  x: &x [*x]", "aliases"),
        (f"model_config: {{x: 1}}\n{laughs(12)}", "aliases"),
        ("!!python/object/apply:os.system ['touch ran']", "cannot be read as a recipe"),
        ("epochs: !!int abc", "cannot be read as a recipe"),
        ("epochs: !!bool x", "cannot be read as a recipe"),
        ("epochs: 2024-13-45", "cannot be read as a recipe"),
        ("epochs: !!timestamp x", "cannot be read as a recipe"),
        ("[" * 1000, "cannot be read as a recipe"),
        ("epochs: 0x" + "f" * 5000, "must be an integer"),
        ("epochs: " + "a" * 90_000, "must be an integer"),
        ("model_config: {x: [" + "0," * 60_000 + "]}", "expected a recipe of at most 100,000"),
        ("num_workers: 1000000000", "'num_workers' must be at most"),
        ("seed: 100000000000000000000", "'seed' must be at most"),
    ],
)
def test_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(CaeAvError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_a_recipe_may_repeat_itself(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("lora_rank: &rank 8\nepochs: *rank\n")
    assert load_recipe(tmp_path / "recipe.yaml").epochs == 8


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": "3"},
        {"step": -1},
        {"step": True},
        {"best_value": "x"},
        {"best_checkpoint": "../../elsewhere"},
        {"best_checkpoint": 3},
        {"history": {}},
        {"unknown": 1},
        [],
    ],
)
def test_loop_states(tmp_path: Path, values: object) -> None:
    path = tmp_path / "training_state" / "loop.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**LoopState().to_dict(), **values} if isinstance(values, dict) else values))
    with pytest.raises(CaeAvError, match=re.escape(str(path))):
        read_loop_state(tmp_path)
