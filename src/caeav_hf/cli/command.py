"""The `caeav` command: `predict` runs a model on media files, `demo` shows the whole package on a made-up data set."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import CaeAvError
from . import captions, convert, export, predict, prepare, sweep


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="caeav", description="CAE-AV audio-visual learning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"caeav-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict.add_command(commands)
    captions.add_commands(commands)
    convert.add_command(commands)
    prepare.add_command(commands)
    export.add_commands(commands)
    sweep.add_command(commands)

    demo = commands.add_parser(
        "demo",
        help="make a toy corpus, train on it, evaluate, predict and draw: minutes on a laptop",
        description="Make a toy corpus, train a toy model on it, evaluate, save, reload, predict and draw.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--out", default="caeav-demo", metavar="DIR", help="folder for everything (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the corpus and of training")
    demo.add_argument("--quick", action="store_true", help="a few clips and one epoch: shows the way, learns little")
    demo.set_defaults(run=_demo)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after errors, which are printed in one line each."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except CaeAvError as error:
        print(f"caeav: error: {error}", file=sys.stderr)
        return 2


def _demo(options: argparse.Namespace) -> int:
    from ..demo import run_demo

    run_demo(options.out, seed=options.seed, quick=options.quick)
    return 0
