"""The commands `caeav toy-corpus` and `caeav toy-towers`. `dataset_scripts/toy.py` runs the first."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..toy.classes import HARD_MISALIGNMENTS, LEVELS


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `caeav`."""
    corpus = commands.add_parser(
        "toy-corpus",
        help="generate small clips of moving, sounding objects in the layout of a public data set",
        description="Generate the toy corpus: clips, annotations and captions in the layout of a public data set.",
    )
    corpus.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    corpus.add_argument(
        "--layout",
        default="ave",
        help="task whose data set to imitate: ave, avvp, avs_s4, avs_ms3, ra_ssu or avqa (default: %(default)s)",
    )
    corpus.add_argument(
        "--level",
        choices=LEVELS,
        default="normal",
        help="hard: weak signals, more misalignment, some wrong captions (default: %(default)s)",
    )
    corpus.add_argument(
        "--num-clips", type=int, default=240, metavar="N", help="total number of clips (default: %(default)s)"
    )
    corpus.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(4, 1, 1),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="proportions of the splits (default: %(default)s)",
    )
    corpus.add_argument(
        "--misalignment-rate",
        type=float,
        metavar="RATE",
        help="share of misaligned clips (default: that of the layout and level, see docs/data.md)",
    )
    for kind in HARD_MISALIGNMENTS:
        corpus.add_argument(
            f"--{kind.replace('_', '-')}",
            type=float,
            metavar="WEIGHT",
            help="weight among the misalignments (default: 1.0)",
        )
    corpus.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    # `MediaFormat` has the defaults of these; importing it would load PyAV.
    corpus.add_argument("--frame-size", type=int, metavar="PIXELS", help="side of a frame (default: 96)")
    corpus.add_argument("--frame-rate", type=int, metavar="N", help="frames per second (default: 8)")
    corpus.add_argument("--sampling-rate", type=int, metavar="HZ", help="audio samples per second (default: 32000)")
    corpus.add_argument(
        "--num-proc",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="rendering processes (default: number of processors)",
    )
    corpus.add_argument("--overwrite", action="store_true", help="replace an existing toy corpus")
    corpus.set_defaults(run=_generate, next_step="run the same command again with --overwrite")

    towers = commands.add_parser(
        "toy-towers",
        help="train the toy towers that come with the package",
        description="Train the toy towers that come with the package on single frames, seconds of sound and captions.",
    )
    towers.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    towers.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    towers.add_argument(
        "--samples",
        type=int,
        default=4500,
        metavar="N",
        help="training samples of the visual and of the audio tower (default: %(default)s)",
    )
    towers.add_argument("--epochs", type=int, default=10, metavar="N", help="default: %(default)s")
    towers.add_argument("--aligned", action="store_true", help="towers that match frames and sounds with class names")
    towers.set_defaults(run=_train_towers)


def _generate(options: argparse.Namespace) -> int:
    from ..toy import LAYOUTS, MediaFormat, generate

    weights = {}
    if options.layout in LAYOUTS:
        weights = dict.fromkeys(LAYOUTS[options.layout].levels[options.level].kinds, 1.0)
    weights |= {kind: value for kind in HARD_MISALIGNMENTS if (value := getattr(options, kind)) is not None}
    media = {name: getattr(options, name) for name in ("frame_size", "frame_rate", "sampling_rate")}
    scenes = generate(
        options.out,
        options.layout,
        options.num_clips,
        level=options.level,
        split=options.split,
        misalignment=options.misalignment_rate,
        misalignment_weights=weights,
        seed=options.seed,
        media_format=MediaFormat(**{name: value for name, value in media.items() if value is not None}),
        num_proc=options.num_proc,
        overwrite=options.overwrite,
    )
    aligned = sum(scene.is_aligned for scene in scenes)
    print(f"{options.out}: {len(scenes)} clips, {aligned} of them aligned")
    return 0


def _train_towers(options: argparse.Namespace) -> int:
    from ..training.toy_towers import make_aligned_towers, make_towers

    make = make_aligned_towers if options.aligned else make_towers
    accuracy = make(options.out, options.seed, options.samples, options.epochs)
    print("accuracy on unseen samples:", ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
    return 0
