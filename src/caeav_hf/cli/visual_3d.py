"""The command `caeav extract-visual-3d`. `dataset_scripts/extract_visual_3d.py` runs it."""

import argparse
import os
from typing import Any


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    extract = commands.add_parser(
        "extract-visual-3d",
        help="extract R(2+1)D-18 features, which video parsing reads, of every clip of a folder",
        description="Extract R(2+1)D-18 features of every clip of a folder. Run again to continue.",
    )
    extract.add_argument("--media", required=True, metavar="DIR", help="folder with clips, or one built from LLP")
    extract.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    extract.add_argument(
        "--weights",
        metavar="FILE",
        help="parameters, as safetensors or written by torch.save (default: torchvision's, which are downloaded)",
    )
    # `extract_folder` has the defaults of these; importing it would load PyTorch.
    extract.add_argument("--frames-per-segment", type=int, metavar="N", help="frames per second (default: 8)")
    extract.add_argument("--num-segments", type=int, metavar="N", help="maximum seconds of a clip (default: 10)")
    extract.add_argument("--clips-per-batch", type=int, metavar="N", help="clips per forward pass (default: 4)")
    extract.add_argument(
        "--num-workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="decoding processes (default: number of processors)",
    )
    extract.add_argument("--device", help="device of the network (default: an accelerator that works, or else cpu)")
    extract.set_defaults(run=_extract, next_step="run the same command again, which continues")


def _extract(options: argparse.Namespace) -> int:
    from ..devices import default_device
    from ..tasks.video_parsing.visual_3d import extract_folder, load_network

    settings = {name: getattr(options, name) for name in ("frames_per_segment", "num_segments", "clips_per_batch")}
    report = extract_folder(
        options.media,
        options.out,
        load_network(options.weights),
        num_workers=options.num_workers,
        device=options.device or default_device(),
        **{name: value for name, value in settings.items() if value is not None},
    )
    for reason in report["broken"].values():
        print(f"left out: {reason}")
    print(f"{report['written']} written, {report['already_there']} there already, {len(report['broken'])} broken")
    return 0
