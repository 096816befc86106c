"""The command `caeav robustness`: score models on graded test sets in which sound and picture disagree."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.misalign.kinds import CORRELATED, KINDS, LEVELS, MISALIGNMENT
from ..errors import CaeAvError


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    robustness = commands.add_parser(
        "robustness",
        help="score models on graded test sets in which sound and picture disagree, and compare them",
        description="Score models on a split and on each kind and level of its misalignment, and write numbers, "
        "tables and a picture: robustness.json, .csv, .md and .png. If it is stopped, running it again continues. "
        "Clips that cannot be decoded are left out.",
    )
    robustness.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="model folders, run folders (whose best checkpoints are used) or Hub ids; NAME=MODEL gives it a name",
    )
    robustness.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=MODEL,MODEL...",
        help="runs of one method with different seeds, shown as their mean with the interval over seeds; may be "
        "repeated",
    )
    robustness.add_argument("--data", required=True, metavar="DATA", help="folder written by a builder, or Hub id")
    robustness.add_argument("--split", default="test", help="split to score (default: %(default)s)")
    robustness.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help=f"{', '.join(KINDS)}; or a family of these, {MISALIGNMENT} or {CORRELATED} (default: all)",
    )
    robustness.add_argument(
        "--levels", nargs="+", type=int, choices=LEVELS, metavar="N", help="levels from 1 to 5 (default: all)"
    )
    robustness.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the misalignment (default: %(default)s)"
    )
    robustness.add_argument("--out", required=True, metavar="DIR", help="output folder")
    robustness.add_argument(
        "--reference",
        metavar="NAME",
        help="model or group that the corruption errors refer to (default: the first)",
    )
    robustness.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="resamples of the clips (default: %(default)s)"
    )
    robustness.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="clips per batch (default: %(default)s)"
    )
    robustness.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the first accelerator, else cpu)")
    robustness.add_argument(
        "--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="default: %(default)s, float32"
    )
    robustness.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="processes that decode clips (default: %(default)s)"
    )
    robustness.add_argument("--cache-dir", metavar="DIR", help="folder to cache processed clips; grows large")
    robustness.add_argument(
        "--models-at-a-time",
        type=int,
        metavar="N",
        help="models in memory at a time (default: all, so that each clip is decoded once for all of them)",
    )
    robustness.set_defaults(run=_robustness, next_step="run the same command again, which continues")


def _robustness(options: argparse.Namespace) -> int:
    methods = methods_of(options.models, options.group)
    from ..robustness import ScoringOptions, measure_robustness

    names = ("split", "kinds", "levels", "seed", "batch_size", "device", "mixed_precision", "num_workers", "cache_dir")
    scoring = ScoringOptions(
        **{name: getattr(options, name) for name in (*names, "models_at_a_time")}, show_progress=True
    )
    measure_robustness(
        methods, options.data, options.out, options=scoring, reference=options.reference, resamples=options.resamples
    )
    print((Path(options.out) / "robustness.md").read_text(encoding="utf-8"), end="")
    return 0


def methods_of(models: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """
    Return the models of each method by its name, from the command's arguments.

    Raises:
        CaeAvError: There is no model, a group is not of the form NAME=MODEL,MODEL..., or a name occurs twice.
    """
    from ..hub import short_name

    methods: dict[str, list[str]] = {}
    for argument in models:
        name, equals, model = argument.partition("=")
        if not equals or "/" in name:
            name, model = short_name(argument), argument
        _add(methods, name, [model])
    for argument in groups:
        name, equals, members = argument.partition("=")
        of_group = [member for member in members.split(",") if member]
        if not name or not of_group:
            raise CaeAvError(f"--group expects NAME=MODEL,MODEL..., got {argument!r}")
        _add(methods, name, of_group)
    if not methods:
        raise CaeAvError("expected at least one MODEL, or --group NAME=MODEL,MODEL...")
    return methods


def _add(methods: dict[str, list[str]], name: str, models: list[str]) -> None:
    if name in methods:
        raise CaeAvError(f"two models or groups are called {name!r}; name them apart with NAME=MODEL")
    methods[name] = models
