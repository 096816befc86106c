"""
Sweeps: many runs of one recipe that differ in some values, each in a run folder, and a table of how they did.

A sweep file:

```yaml
recipe: ave_toy             # a recipe of the package, or a file
values:                     # put over the recipe for every run
  epochs: 3
search: grid                # every combination; or random
trials: 8                   # random: how many
seed: 0                     # random: of the draws
parameters:
  learning_rate: [1.0e-3, 2.0e-3]
  model_config.topk_ratio: [0.2, 0.3]
  weight_decay: {min: 1.0e-6, max: 1.0e-3, log: true}    # random only
```
"""

import csv
import io
import itertools
import json
import math
import random
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import CaeAvError
from .recipe import RECIPES, Recipe, load_recipe, override_recipe
from .run_folder import write_text


@dataclass(frozen=True)
class Sweep:
    """
    What a sweep file says.

    Attributes:
        parameters: For each recipe value its choices, or for a random search a range `min`, `max`, `log`. A name like
            `model_config.topk_ratio` is an entry of a mapping.
    """

    recipe: str
    parameters: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    search: str = "grid"
    trials: int = 10
    seed: int = 0

    def trials_of(self) -> list[dict[str, Any]]:
        """The values of each trial: for a random search the same ones each time, and those of fewer trials first."""
        if self.search == "grid":
            rows = itertools.product(*self.parameters.values())
            return [dict(zip(self.parameters, row, strict=True)) for row in rows]
        generator = random.Random(self.seed)
        return [
            {name: _draw(choices, generator) for name, choices in self.parameters.items()} for _ in range(self.trials)
        ]


def _draw(choices: Any, generator: random.Random) -> Any:
    if isinstance(choices, list):
        return generator.choice(choices)
    low, high = choices["min"], choices["max"]
    if choices.get("log"):
        return float(f"{math.exp(generator.uniform(math.log(float(low)), math.log(float(high)))):.6g}")
    if isinstance(low, int) and isinstance(high, int):
        return generator.randint(low, high)
    return float(f"{generator.uniform(float(low), float(high)):.6g}")


def load_sweep(path: str | Path) -> Sweep:
    """
    Read a sweep file.

    Raises:
        CaeAvError: it cannot be read, or something in it is not what it should be; the message names file and key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CaeAvError(f"{path}: cannot be read as a sweep: {error}") from error
    known = [item.name for item in fields(Sweep)]
    if not isinstance(content, dict) or not {"recipe", "parameters"} <= set(content) or not set(content) <= set(known):
        raise CaeAvError(
            f"{path}: a sweep is a mapping with recipe and parameters, and if need be {', '.join(known[2:])}"
        )
    sweep = Sweep(**content)
    if sweep.search not in ("grid", "random"):
        raise CaeAvError(f"{path}: search must be grid or random, got {sweep.search!r}")
    if not isinstance(sweep.parameters, dict) or not sweep.parameters or not isinstance(sweep.values, dict):
        raise CaeAvError(f"{path}: parameters must be a mapping of recipe values to choices, and values a mapping")
    names = typing.get_type_hints(Recipe)
    for name, choices in sweep.parameters.items():
        base, _, entry = str(name).partition(".")
        if base not in names or (entry and names[base] != dict[str, Any]) or base in ("output_dir", "task"):
            raise CaeAvError(f"{path}: {name!r} is no recipe value that can differ from run to run")
        if not ((sweep.search == "random" and _is_range(choices)) or (isinstance(choices, list) and choices)):
            wanted = "a list of choices" + (", or min < max (above 0 with log)" if sweep.search == "random" else "")
            raise CaeAvError(f"{path}: {name} must be {wanted}, got {choices!r}")
    return sweep


def _is_range(choices: Any) -> bool:
    try:
        low, high, is_log = float(choices["min"]), float(choices["max"]), choices.get("log", False)
        return low < high and (low > 0 or not is_log) and set(choices) <= {"min", "max", "log"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def run_sweep(sweep: Sweep, out: str | Path, overrides: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """
    Run what is not done yet of a sweep: finished trials are passed over, an interrupted one goes on. A trial that
    fails is noted, and the others go on.

    Args:
        out: Folder of the sweep: a run folder a trial, `results.csv`, and `plan.json`, by which it is known again.
        overrides: Recipe values for all trials, over those of the sweep.

    Returns:
        A row a trial, the best first: `trial`, the parameters, the metric, `epoch`, `step`, `error`. Those that failed
        come last, and are tried again the next time.

    Raises:
        CaeAvError: A recipe value is wrong, or the folder holds another sweep.
    """
    from accelerate import PartialState

    from .tasks import get_task

    out, state = Path(out), PartialState()
    base = override_recipe(_base_recipe(sweep.recipe), {**sweep.values, **(overrides or {})})
    trials = sweep.trials_of()
    recipes = [_trial_recipe(base, values, out / f"trial-{number:03d}") for number, values in enumerate(trials)]
    if state.is_main_process:
        _claim(out, json.dumps({"recipe": base.to_dict(), "trials": trials}, indent=1))
    state.wait_for_everyone()
    task, rows = get_task(base.task), []
    for number, (values, recipe) in enumerate(zip(trials, recipes, strict=True)):
        done = Path(str(recipe.output_dir)) / "result.json"
        result = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else None
        if result is None:
            result = _run_trial(recipe, task.best_metric)
            state.wait_for_everyone()
            if state.is_main_process and result["error"] is None:
                write_text(done, json.dumps(result, indent=1) + "\n")
            state.wait_for_everyone()
        rows.append({"trial": number, **values, **result})
        if state.is_main_process:
            write_text(out / "results.csv", _table(rows))
    sign = -1 if task.higher_is_better else 1
    return sorted(rows, key=lambda row: (row["error"] is not None, sign * (row[task.best_metric] or 0)))


def _base_recipe(name: str) -> Recipe:
    packaged = RECIPES / f"{name}.yaml"
    return load_recipe(packaged if packaged.is_file() else name)


def _trial_recipe(base: Recipe, values: dict[str, Any], folder: Path) -> Recipe:
    changes: dict[str, Any] = {"output_dir": str(folder)}
    for name, value in values.items():
        key, _, entry = name.partition(".")
        changes[key] = {**changes.get(key, {}), entry: value} if entry else value
    return override_recipe(base, changes)


def _claim(out: Path, plan: str) -> None:
    path = out / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != plan:
        raise CaeAvError(f"{out}: holds another sweep, or one with other values; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, plan)


def _run_trial(recipe: Recipe, metric: str) -> dict[str, Any]:
    """Train, or go on; what came of it."""
    from accelerate.state import AcceleratorState

    from .run import train

    folder = Path(str(recipe.output_dir))
    # Which precision to compute in is remembered for the whole process, and may be what is tried.
    AcceleratorState._reset_state()
    try:
        state = train(recipe, resume=folder if (folder / "checkpoints" / "last").exists() else None).state
        if state.best_value is None:
            raise CaeAvError(f"{metric} was never a number")
    except CaeAvError as error:
        return {metric: None, "epoch": None, "step": None, "error": str(error)}
    best = next(record for record in reversed(state.history) if record[f"eval/{metric}"] == state.best_value)
    return {metric: state.best_value, "epoch": best["epoch"], "step": best["step"], "error": None}


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
