"""The command `caeav misalign`: write graded test sets in which sound and picture disagree."""

import argparse
import sys
from typing import Any

from ..data.misalign.kinds import CORRELATED, KINDS, LEVELS, MISALIGNMENT
from ..errors import CaeAvError
from ..task import tasks


_FAMILIES = (MISALIGNMENT, CORRELATED)


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    parser = commands.add_parser(
        "misalign",
        help="write test sets in which sound and picture disagree, or are corrupted, at five levels",
        description="Write test sets in which sound and picture of a data set disagree, or are corrupted together, "
        "with corrected labels: a folder <kind>_<level> for each kind and level (docs/robustness.md). No media are "
        "copied: the rows refer to the original clips, which are changed when they are decoded.",
    )
    parser.add_argument("dataset", metavar="DATA", help="folder written by a builder, or a data set on the Hub")
    parser.add_argument(
        "--kind",
        nargs="+",
        required=True,
        metavar="KIND",
        choices=("all", *_FAMILIES, *KINDS),
        help=f"{', '.join(KINDS)}; a family of these, {' or '.join(_FAMILIES)}; or all",
    )
    parser.add_argument(
        "--level",
        nargs="+",
        type=int,
        default=list(LEVELS),
        choices=(0, *LEVELS),
        metavar="N",
        help="severities from 1 to 5, or 0 for unchanged clips (default: 1 2 3 4 5)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the folders to")
    parser.add_argument(
        "--split", nargs="+", default=["test"], metavar="SPLIT", help="splits to misalign (default: test)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--task", choices=tasks(), help="task of the data set (default: the one that its columns name)"
    )
    parser.add_argument(
        "--num-proc", type=int, default=1, metavar="N", help="folders to write at a time (default: %(default)s)"
    )
    parser.set_defaults(run=_misalign, next_step="run the same command again, which continues")


def _misalign(options: argparse.Namespace) -> int:
    from ..data.misalign import write_misaligned

    if options.num_proc < 1:
        raise CaeAvError(f"--num-proc must be at least 1, got {options.num_proc}")
    kinds = [kind.name for kind in KINDS.values() if {"all", kind.family, kind.name} & set(options.kind)]
    folders = write_misaligned(
        options.dataset,
        options.out,
        kinds,
        sorted(set(options.level)),
        splits=options.split,
        seed=options.seed,
        task=options.task,
        num_proc=options.num_proc,
    )
    for folder in folders:
        if folder.problem is None:
            print(f"{folder.folder}: {', '.join(f'{count} {split} rows' for split, count in folder.rows.items())}")
        else:
            print(f"{folder.folder.name} is left out: {folder.problem}", file=sys.stderr)
    return 0
