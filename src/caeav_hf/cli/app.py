"""The command `caeav app`: a local page on which models are tried."""

import argparse
from typing import Any


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    app = commands.add_parser(
        "app",
        help="open a local page on which models are tried: drop a clip, see, edit, compare",
        description="Serve a page on which a clip is dropped or recorded and shown with what a model finds in it: a "
        "timeline, masks over the playing video, answers. Captions can be edited, and the clip's sound muted, delayed "
        "or swapped, to compare the predictions. Without a model it starts on untrained toy models. Needs Gradio: "
        'pip install "caeav-hf[app]".',
    )
    app.add_argument("models", nargs="*", metavar="MODEL", help="model folders or Hub ids (default: toy models)")
    app.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all networks (default: %(default)s)"
    )
    app.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)")
    app.add_argument("--share", action="store_true", help="also open a public address at gradio.live, for a week")
    app.add_argument("--open", action="store_true", help="open the page in a browser")
    app.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the first accelerator, else cpu)")
    app.add_argument(
        "--max-megabytes", type=float, default=200.0, metavar="N", help="largest file (default: %(default)g)"
    )
    app.add_argument(
        "--max-seconds", type=float, default=120.0, metavar="N", help="longest clip (default: %(default)g)"
    )
    app.set_defaults(run=_app)


def _app(options: argparse.Namespace) -> int:
    # Imported here since these take seconds to load.
    from ..app import Limits, launch_page

    launch_page(
        options.models,
        host=options.host,
        port=options.port,
        share=options.share,
        device=options.device,
        limits=Limits(options.max_megabytes, options.max_seconds),
        open_browser=options.open,
    )
    return 0
