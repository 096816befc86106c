"""Training with Accelerate: recipes, training loop, crash-safe checkpoints, evaluation."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .recipe import Recipe, available_recipes, find_recipe, load_recipe, override_recipe


if TYPE_CHECKING:
    from .run import TrainingResult, train


__all__ = [
    "Recipe",
    "TrainingResult",
    "available_recipes",
    "find_recipe",
    "load_recipe",
    "override_recipe",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, {".run": ("TrainingResult", "train")})
