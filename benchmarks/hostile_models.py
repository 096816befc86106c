"""The doors of models: weights, configurations, processor and tokenizer files, recipes, authors' checkpoints."""

import shutil
from pathlib import Path

from hostile_mutators import Door, mutate_files

from caeav_hf.training.recipe import RECIPES, Recipe, load_recipe


# Recipes


def _make_recipes(folder: Path) -> None:
    for name in ("ave", "avqa_toy", "ra_ssu_toy"):
        (folder / name).mkdir()
        shutil.copyfile(RECIPES / f"{name}.yaml", folder / name / "recipe.yaml")


def _open_recipe(folder: Path) -> Recipe:
    return load_recipe(folder / "recipe.yaml")


DOORS = (Door("recipes", _make_recipes, mutate_files("*.yaml"), _open_recipe),)
