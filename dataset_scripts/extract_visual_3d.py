"""Writes R(2+1)D-18 features of clips: `python dataset_scripts/extract_visual_3d.py --media DIR --out DIR`."""

import argparse
import os

from caeav_hf.data.schema import LLP_NUM_SEGMENTS
from caeav_hf.devices import default_device
from caeav_hf.errors import CaeAvError
from caeav_hf.tasks.video_parsing.visual_3d import FRAMES_PER_SEGMENT, extract_folder, load_network


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Writes R(2+1)D-18 features of every clip of a folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--media", required=True, metavar="DIR", help="folder with clips, or one that llp.py wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--weights",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="parameters, safetensors or of torch.save (default: torchvision's, which are downloaded)",
    )
    parser.add_argument("--frames-per-segment", type=int, default=FRAMES_PER_SEGMENT, help="frames of each second")
    parser.add_argument("--num-segments", type=int, default=LLP_NUM_SEGMENTS, help="most seconds of a clip")
    parser.add_argument("--clips-per-batch", type=int, default=4, help="clips that the network sees at a time")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--device", default=str(default_device()), help="where the network runs")
    options = vars(parser.parse_args(arguments))
    try:
        network = load_network(options.pop("weights", None))
        report = extract_folder(options.pop("media"), options.pop("out"), network, **options)
    except CaeAvError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for reason in report["broken"].values():
        print(f"left out: {reason}")
    print(f"{report['written']} written, {report['already_there']} there already, {len(report['broken'])} broken")


if __name__ == "__main__":
    main()
