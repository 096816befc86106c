"""Training on Accelerate: recipes, the loop, checkpoints that survive a kill, evaluation."""

from .recipe import Recipe, available_recipes, find_recipe, load_recipe, override_recipe


__all__ = ["Recipe", "available_recipes", "find_recipe", "load_recipe", "override_recipe"]
