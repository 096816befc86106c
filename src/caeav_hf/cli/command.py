"""The parser of the `caeav` command, and `caeav demo`."""

import argparse
from collections.abc import Sequence

from .. import __version__
from ..command_line import ArgumentParser, run_command
from . import app, build, captions, convert, export, misalign, predict, prepare, robustness, toy, visual_3d


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = ArgumentParser(prog="caeav", description="CAE-AV audio-visual learning.")
    parser.add_argument("--version", action="version", version=f"caeav-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict.add_command(commands)
    app.add_command(commands)
    captions.add_commands(commands)
    convert.add_command(commands)
    build.add_command(commands)
    visual_3d.add_command(commands)
    prepare.add_command(commands)
    misalign.add_command(commands)
    robustness.add_command(commands)
    export.add_commands(commands)
    toy.add_commands(commands)

    demo = commands.add_parser(
        "demo",
        help="generate a toy corpus, train on it, evaluate, predict and plot: minutes on a laptop",
        description="Generate a toy corpus, train a toy model on it, evaluate, save, reload, predict and plot.",
    )
    demo.add_argument("--out", default="caeav-demo", metavar="DIR", help="output folder (default: %(default)s)")
    demo.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the corpus and of training (default: %(default)s)"
    )
    demo.add_argument(
        "--quick", action="store_true", help="use few clips and one epoch: shows the steps, learns little"
    )
    demo.set_defaults(run=_demo, next_step="remove its folder and run the same command again")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code (see [`run_command`])."""
    options = build_parser().parse_args(arguments)
    next_step = getattr(options, "next_step", "run the same command again")
    return run_command(
        "caeav", lambda: options.run(options), next_step=lambda: next_step, place=getattr(options, "out", None)
    )


def _demo(options: argparse.Namespace) -> int:
    from ..demo import run_demo

    run_demo(options.out, seed=options.seed, quick=options.quick)
    return 0
