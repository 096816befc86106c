"""The command line of `train.py`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command_line import ArgumentParser, run_command
from ..errors import CaeAvError
from ..files import write_text
from .recipe import Recipe, add_recipe_flags, find_recipe, load_recipe, override_recipe, recipe_flags


_EPILOG = """\
examples:
  train.py --task ave --size toy --data toy_parquet --output-dir runs/toy
  accelerate launch train.py --task ave --data ave_parquet --output-dir runs/ave --mixed-precision bf16 \\
      --vision-tower swinv2_large_window12_192.ms_in22k --audio-tower DIR --text-tower ViT-L-14/openai
  train.py --resume runs/ave
  train.py --evaluate runs/ave/checkpoints/best --split test --out test.json
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser: the action, and one flag for every recipe value."""
    parser = ArgumentParser(
        prog="train.py",
        description="Train a CAE-AV model by a recipe, resume a run, or score a checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", metavar="FILE", help="recipe file (default: that of --task and --size)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--resume", metavar="RUN", help="resume this run folder, or a checkpoint in it")
    action.add_argument("--evaluate", metavar="CHECKPOINT", help="score this model folder instead of training")
    parser.add_argument("--split", help="split to score with --evaluate (default: the recipe's eval_split)")
    parser.add_argument("--out", metavar="FILE", help="also write the scores of --evaluate to this JSON file")
    parser.add_argument(
        "--add-to-card", action="store_true", help="also add the scores of --evaluate to the checkpoint's model card"
    )
    push = parser.add_argument_group("upload of the best checkpoint to the Hub (see also `caeav push`)")
    push.add_argument("--push-to-hub", metavar="REPO", help="upload model, processor and card after training")
    push.add_argument("--adapter-only", action="store_true", help="leave out the frozen towers")
    push.add_argument("--private", action="store_true", help="create the repository as a private one")
    add_recipe_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see [`run_command`])."""
    options = build_parser().parse_args(arguments)
    folder = options.resume or getattr(options, "output_dir", None)
    return run_command("train.py", lambda: _run(options), next_step=lambda: _next_step(options), place=folder)


def _run(options: argparse.Namespace) -> int:
    recipe = override_recipe(_base_recipe(options), recipe_flags(options))
    _check(options, recipe)
    # Import heavy libraries only after the arguments have been checked.
    if options.evaluate is not None:
        _evaluate(options, recipe)
        return 0
    from .run import train

    result = train(recipe, resume=options.resume)
    if result.is_main_process:
        print(f"best checkpoint: {result.best_checkpoint}")
        if result.state.averaged_epochs:
            print(f"mean of {result.state.averaged_epochs} epochs: {result.folder / 'checkpoints' / 'average'}")
        if options.push_to_hub is not None:
            _push(options, result.folder)
    return 0


def _next_step(options: argparse.Namespace) -> str:
    """Return advice on how to continue an interrupted run."""
    folder = options.resume or getattr(options, "output_dir", None)
    if options.evaluate is None and folder is not None:
        for run in (Path(folder), *Path(folder).resolve().parents[:2]):
            if (last := run / "checkpoints" / "last").exists():
                return f"run `train.py --resume {run}`, which continues from {last.resolve().name}"
    return "run the same command again"


def _base_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe that flags override: --recipe, that of the run to resume or score, or the preset's."""
    if options.recipe is not None:
        return load_recipe(options.recipe)
    for path in (options.resume, options.evaluate):
        if path is not None:
            # `path` is a run folder or <run>/checkpoints/<checkpoint>.
            for folder in (Path(path), *Path(path).resolve().parents[:2]):
                if (folder / "recipe.yaml").is_file():
                    recipe = load_recipe(folder / "recipe.yaml")
                    # The run folder may have been moved or copied since.
                    return override_recipe(recipe, {"output_dir": str(folder)})
    chosen = (getattr(options, name, getattr(Recipe, name)) for name in ("task", "size", "method"))
    return load_recipe(find_recipe(*chosen))


def _check(options: argparse.Namespace, recipe: Recipe) -> None:
    """Raise errors that would otherwise come up only after training."""
    if options.add_to_card and options.evaluate is None:
        raise CaeAvError("--add-to-card is for --evaluate; training adds its scores to the cards itself")
    if options.push_to_hub is None:
        if options.adapter_only or options.private:
            raise CaeAvError("--adapter-only and --private are for --push-to-hub")
        return
    if options.evaluate is not None:
        raise CaeAvError("--push-to-hub is for training; upload a checkpoint with `caeav push`")
    from ..hub import check_name

    check_name(options.push_to_hub)
    for place in (recipe.vision_tower, recipe.audio_tower, recipe.text_tower, recipe.region_tower):
        if options.adapter_only and place is not None and Path(place).exists():
            raise CaeAvError(
                f"--adapter-only: the tower {place} is a local path that only this machine can load; train with a "
                "tower from the Hub, or upload with `caeav push --tower`"
            )


def _push(options: argparse.Namespace, folder: Path) -> None:
    from .export import push

    (url,) = push(folder, options.push_to_hub, adapter_only=options.adapter_only, private=options.private)
    print(f"uploaded: {url}")


def _evaluate(options: argparse.Namespace, recipe: Recipe) -> None:
    from accelerate import PartialState

    from .run import score

    split = options.split or recipe.eval_split
    # Standard output is for the scores; optional libraries that Accelerate imports may print to it too.
    with contextlib.redirect_stdout(sys.stderr):
        metrics = score(options.evaluate, recipe, split)
    if PartialState().is_main_process:
        text = json.dumps({"checkpoint": options.evaluate, "data": recipe.data, "split": split, **metrics}, indent=2)
        print(text)
        if options.add_to_card:
            from .card import add_scores, eval_results

            add_scores(options.evaluate, eval_results(recipe, split, metrics))
        if options.out is not None:
            write_text(Path(options.out), text + "\n")
