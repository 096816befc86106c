"""Generate the toy corpus: `python dataset_scripts/toy.py --layout avs_ms3 --out DIR --misalignment-rate 0.5`."""

import argparse
import os

from caeav_hf.errors import CaeAvError
from caeav_hf.toy import HARD_MISALIGNMENTS, LAYOUTS, LEVELS, MediaFormat, generate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="ave", help="data set whose layout to follow")
    parser.add_argument(
        "--level", choices=LEVELS, default="normal", help="hard: weak signal, more misalignment, some wrong captions"
    )
    parser.add_argument("--num-clips", type=int, default=240, help="total number of clips")
    parser.add_argument("--split", type=float, nargs=3, default=(4, 1, 1), metavar=("TRAIN", "VALIDATION", "TEST"))
    rates = ", ".join(
        f"{'/'.join(str(layout.levels[level].misalignment) for level in LEVELS)} in {name}"
        for name, layout in LAYOUTS.items()
    )
    parser.add_argument(
        "--misalignment-rate",
        type=float,
        default=argparse.SUPPRESS,
        metavar="RATE",
        help=f"share of misaligned clips (default, {'/'.join(LEVELS)}: {rates})",
    )
    for kind in HARD_MISALIGNMENTS:
        parser.add_argument(
            f"--{kind.replace('_', '-')}",
            type=float,
            default=argparse.SUPPRESS,
            metavar="WEIGHT",
            help="weight among the misalignments (default: 1.0)",
        )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frame-size", type=int, default=MediaFormat.frame_size, help="side of a frame in pixels")
    parser.add_argument("--frame-rate", type=int, default=MediaFormat.frame_rate, help="frames per second")
    parser.add_argument(
        "--sampling-rate", type=int, default=MediaFormat.sampling_rate, help="audio samples per second"
    )
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="rendering processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing toy corpus")
    options = parser.parse_args(arguments)
    given = {kind: getattr(options, kind) for kind in HARD_MISALIGNMENTS if hasattr(options, kind)}
    weights = {**dict.fromkeys(LAYOUTS[options.layout].levels[options.level].kinds, 1.0), **given}
    try:
        scenes = generate(
            options.out,
            options.layout,
            options.num_clips,
            level=options.level,
            split=options.split,
            misalignment=getattr(options, "misalignment_rate", None),
            misalignment_weights=weights,
            seed=options.seed,
            media_format=MediaFormat(options.frame_size, options.frame_rate, options.sampling_rate),
            num_proc=options.num_proc,
            overwrite=options.overwrite,
        )
    except CaeAvError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    aligned = sum(scene.is_aligned for scene in scenes)
    print(f"{options.out}: {len(scenes)} clips, {aligned} of them aligned")


if __name__ == "__main__":
    main()
