"""The command `caeav build`: the public data sets as Parquet. The programs in `dataset_scripts/` call it."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import CaeAvError


# The builder of each data set, a name of `caeav_hf.data`, and its title. A builder is imported when it runs, since
# `datasets` loads slowly.
_DATA_SETS = {
    "ave": ("AveBuilder", "AVE"),
    "llp": ("LlpBuilder", "LLP"),
    "avsbench": ("AvsBenchBuilder", "AVSBench"),
    "music_avqa": ("MusicAvqaBuilder", "MUSIC-AVQA"),
    "ra_ssu": ("RaSsuBuilder", "f-Music or f-Lifescene"),
}
_COMMON = ("command", "data_set", "run", "next_step", "out", "push_to_hub", "private")


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    build = commands.add_parser(
        "build",
        help="write a public data set as Parquet, from its annotations and media",
        description="Write a public data set as Parquet shards, from its annotations and media (docs/data.md).",
    )
    data_sets = build.add_subparsers(dest="data_set", required=True, metavar="DATASET")
    parsers = {}
    for name, (_, title) in _DATA_SETS.items():
        parser = parsers[name] = data_sets.add_parser(
            name, help=title, description=f"Write {title} as Parquet shards. Run again to continue."
        )
        parser.add_argument("--annotations", required=True, metavar="DIR", help="folder with the annotation files")
        parser.add_argument("--media", required=True, metavar="DIR", help="folder with the clips")
        parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
        parser.add_argument("--captions", metavar="FILE", help="caption file: Parquet, or JSON")
        parser.add_argument("--embed-media", action="store_true", help="store the clips' bytes instead of their paths")
        parser.add_argument("--strict", action="store_true", help="fail if anything of a clip is missing or broken")
        parser.add_argument(
            "--num-proc",
            type=int,
            default=os.cpu_count() or 1,
            metavar="N",
            help="rows to check, or shards to write, at a time (default: number of processors)",
        )
        parser.add_argument(
            "--push-to-hub",
            metavar="REPO",
            help="upload the data set to this repository; needs --embed-media",
        )
        parser.add_argument("--private", action="store_true", help="make a new repository visible to you alone")
        parser.set_defaults(run=_build, next_step="run the same command again, which continues")
    parsers["ave"].add_argument(
        "--clip-times",
        nargs="+",
        default=(),
        metavar="FILE",
        help="AudioSet's files of segments, where the videos are there in full length",
    )
    parsers["llp"].add_argument(
        "--visual-3d",
        metavar="DIR",
        help="features of the clips as dataset_scripts/extract_visual_3d.py writes them",
    )
    parsers["avsbench"].add_argument(
        "--setting", required=True, choices=("s4", "ms3"), help="single source or multiple sources"
    )
    for name in ("avsbench", "ra_ssu"):
        parsers[name].add_argument(
            "--from-videos",
            action="store_true",
            help="take frames, at the middle of each second, and sound from videos/<name>.mp4 or <name>.mp4",
        )


def _build(options: argparse.Namespace) -> int:
    from .. import data
    from ..data.builder import ensure_can_push, push_to_hub

    builder_class = getattr(data, _DATA_SETS[options.data_set][0])
    if options.num_proc < 1:
        raise CaeAvError(f"--num-proc must be at least 1, got {options.num_proc}")
    if options.push_to_hub is not None:
        ensure_can_push(options.push_to_hub, options.embed_media)
    settings = {name: value for name, value in vars(options).items() if name not in _COMMON}
    report = builder_class(**settings).build(options.out)
    for split, written in report.written.items():
        lost = len(report.lost[split])
        besides = f", which lack {lost} files" if lost else ""
        print(f"{split}: {written} of {report.annotated[split]} rows in {report.shards[split]} shards{besides}")
    if kept := sum(report.shards.values()) - report.written_shards:
        print(f"{kept} of the shards were there already")
    if options.push_to_hub is not None:
        print(f"uploaded: {push_to_hub(Path(options.out), options.push_to_hub, options.private)}")
    return 0
