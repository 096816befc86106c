"""The command `caeav sweep`: many runs of one recipe that differ in some values."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..training.recipe import add_recipe_flags, recipe_flags


def add_command(commands: Any) -> None:
    """Adds the command to the subparsers of `caeav`."""
    sweep = commands.add_parser(
        "sweep",
        help="train by a recipe with several values of its parameters, and say which did best",
        description="Train one run for each combination of values that a sweep file names, or for random ones, and "
        "write a table of how they did. A sweep that was interrupted goes on where it stopped.",
    )
    sweep.add_argument("sweep", metavar="FILE", help="sweep file: recipe, parameters and their values")
    sweep.add_argument("--out", required=True, metavar="DIR", help="folder for the runs and results.csv")
    add_recipe_flags(sweep)
    sweep.set_defaults(run=_sweep, next_step="run the same command again, which continues")


def _sweep(options: argparse.Namespace) -> int:
    from ..training.sweep import load_sweep, run_sweep

    rows = run_sweep(load_sweep(options.sweep), options.out, recipe_flags(options))
    for row in rows:
        if row["error"] is not None:
            print(f"caeav: error: trial {row['trial']}: {row['error']}", file=sys.stderr)
    done = [{name: value for name, value in row.items() if name != "error"} for row in rows if row["error"] is None]
    if done:
        table = [list(done[0]), *([str(value) for value in row.values()] for row in done)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(value.rjust(width) for value, width in zip(line, widths, strict=True)))
        print(f"best run: {Path(options.out) / 'trial-{:03d}'.format(done[0]['trial'])}")
    return 2 if len(done) < len(rows) else 0
