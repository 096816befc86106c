"""The commands `caeav caption` and `caeav encode-captions`, and the captioning options of other commands."""

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from ..constants import MODALITIES
from ..errors import CaeAvError


if TYPE_CHECKING:
    from ..captioning import Captioner, CaptionSettings


def add_commands(commands: Any) -> None:
    """Add both commands to the subparsers of `caeav`."""
    caption = commands.add_parser(
        "caption",
        help="write the two captions of every clip of a data set with a language model",
        description="Write a visual and an audio caption of every clip that has none yet. If it is stopped, running "
        "it again continues. Captions that were edited in the file are never changed. Clips that fail are listed in "
        "a report beside it and tried again by the next run.",
    )
    caption.add_argument(
        "dataset",
        nargs="+",
        metavar="DATASET",
        help="folder written by a builder, folder of media files, .txt file with one path per line, or media files",
    )
    caption.add_argument("--out", required=True, metavar="FILE.parquet", help="caption file")
    add_server_options(caption, prefix="")
    caption.add_argument("--local", action="store_true", help="run the model on this machine, with Transformers")
    caption.add_argument("--device", help="local: cpu, cuda, cuda:1 ... (default: the first accelerator, else cpu)")
    caption.add_argument(
        "--dtype", default="auto", help="local: dtype of the weights, e.g. bfloat16 (default: %(default)s)"
    )
    caption.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="local: clips per batch (default: %(default)s)"
    )
    caption.add_argument(
        "--attempts", type=int, metavar="N", help="maximum number of attempts per request (default for a server: 5)"
    )
    caption.add_argument(
        "--backoff",
        type=float,
        default=1.0,
        metavar="S",
        help="server: seconds before the second attempt, doubled each time (default: %(default)s)",
    )
    caption.add_argument("--limit", type=int, metavar="N", help="maximum number of clips to caption in this run")
    caption.add_argument(
        "--modalities",
        nargs="+",
        choices=MODALITIES,
        default=MODALITIES,
        help="captions to write; sound source understanding reads only visual ones (default: both)",
    )
    caption.add_argument(
        "--renew", action="store_true", help="also replace unedited captions of another model, prompt or settings"
    )
    _add_settings(caption)
    caption.set_defaults(run=_caption, next_step="run the same command again, which continues")

    encode = commands.add_parser(
        "encode-captions",
        help="precompute the frozen text features of all captions of a data set for training and evaluation",
        description="Compute the features of all captions of a data set with a model's frozen text tower, and store "
        "them in its folder. Training and evaluation with the same text tower use them; others compute their own.",
    )
    encode.add_argument("dataset", metavar="DATASET", help="folder written by a builder")
    encode.add_argument(
        "--model", required=True, metavar="DIR", help="model folder or Hub id whose text tower is used"
    )
    encode.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the first accelerator, else cpu)")
    encode.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="dtype of the stored features (default: %(default)s)",
    )
    encode.set_defaults(run=_encode, next_step="run the same command again, which continues")


def add_server_options(parser: argparse.ArgumentParser, prefix: str = "caption-") -> None:
    """Add the options that [`server_captioner`] reads."""
    parser.add_argument(
        f"--{prefix}server",
        dest="caption_server",
        metavar="URL",
        help="OpenAI-compatible server that writes captions, such as http://localhost:8000/v1",
    )
    parser.add_argument(
        f"--{prefix}model",
        dest="caption_model",
        metavar="NAME",
        help="captioning model, such as Qwen/Qwen2.5-Omni-7B",
    )
    parser.add_argument(
        f"--{prefix}key-variable",
        dest="caption_key_variable",
        metavar="NAME",
        help="environment variable with the server's API key",
    )
    parser.add_argument(
        f"--{prefix}concurrency",
        dest="caption_concurrency",
        type=int,
        default=16,
        metavar="N",
        help="number of concurrent requests (default: %(default)s)",
    )
    parser.add_argument(
        f"--{prefix}timeout",
        dest="caption_timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds to wait for an answer (default: %(default)s)",
    )


def server_captioner(
    options: argparse.Namespace, settings: "CaptionSettings | None" = None, **arguments: Any
) -> "Captioner | None":
    """
    Build the captioner that the options of [`add_server_options`] describe; None if they name no server.

    Raises:
        CaeAvError: The options name a server without a model, or a variable that is not set.
    """
    if options.caption_server is None:
        return None
    if options.caption_model is None:
        raise CaeAvError(f"{options.caption_server}: expected the name of the model that it serves as well")
    key = None
    if options.caption_key_variable is not None:
        key = os.environ.get(options.caption_key_variable)
        if not key:
            raise CaeAvError(f"{options.caption_key_variable}: expected an environment variable with the server's key")
    from ..captioning import ServerCaptioner

    return ServerCaptioner(
        options.caption_server,
        options.caption_model,
        settings,
        api_key=key,
        concurrency=options.caption_concurrency,
        timeout=options.caption_timeout,
        **arguments,
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from ..captioning.settings import CaptionSettings

    group = parser.add_argument_group("inputs of the model and sampling of its answers (the same for both modalities)")
    texts = {
        "max_frames": "maximum number of frames, evenly spaced",
        "frame_size": "maximum pixels of a frame's longer side",
        "max_seconds": "seconds of a clip, from its beginning",
        "max_tokens": "maximum tokens of an answer",
        "temperature": "sampling temperature; 0 takes the most likely token",
        "top_p": "nucleus sampling",
        "seed": "seed of sampling",
        "max_characters": "maximum characters of a caption",
        "prompt_version": "version of the prompts",
    }
    defaults = {item.name: item.default for item in dataclasses.fields(CaptionSettings)}
    for name, text in texts.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(defaults[name]),
            default=defaults[name],
            metavar=name.rsplit("_", maxsplit=1)[-1].upper(),
            help=f"{text} (default: %(default)s)",
        )


def _caption(options: argparse.Namespace) -> int:
    from ..captioning import CaptionSettings, LocalCaptioner, caption_clips, find_clips
    from ..captioning.job import report_path

    names = {item.name for item in dataclasses.fields(CaptionSettings)}
    settings = CaptionSettings(**{name: value for name, value in vars(options).items() if name in names})
    if options.local == (options.caption_server is not None):
        raise CaeAvError("expected either --server URL or --local")
    if options.caption_model is None:
        raise CaeAvError("expected the name of the model, --model NAME")
    if options.limit is not None and options.limit < 0:
        raise CaeAvError(f"--limit must not be negative, got {options.limit}")
    attempts: dict[str, Any] = {} if options.attempts is None else {"attempts": options.attempts}
    # Errors in the data set should come up before a model is loaded.
    clips = find_clips(options.dataset[0] if len(options.dataset) == 1 else options.dataset)
    captioner = server_captioner(
        options, settings, backoff=options.backoff, **attempts
    ) or LocalCaptioner.from_pretrained(
        options.caption_model,
        settings,
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        **attempts,
    )
    report = caption_clips(
        clips, captioner, options.out, modalities=options.modalities, renew=options.renew, limit=options.limit
    )
    print(
        f"{options.out}: {report.complete} of {report.clips} clips have captions, {report.captioned} written now in "
        f"{report.seconds:.1f} s; {report.edited} edited captions were kept"
    )
    if report.kept_from_elsewhere:
        print(
            f"{report.kept_from_elsewhere} clips keep captions of another model, prompt or settings; "
            "--renew replaces those that were not edited"
        )
    if not report.failed:
        return 0
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.failed_by_reason.items())
    print(
        f"caeav: error: {len(report.failed)} clips failed ({reasons}); {report_path(options.out)} says why. Run the "
        "command again to try them again",
        file=sys.stderr,
    )
    return 2


def _encode(options: argparse.Namespace) -> int:
    from ..training.encode import encode_captions

    store, added = encode_captions(
        options.dataset,
        options.model,
        device=options.device,
        dtype=options.dtype,
        show_progress=True,
    )
    print(f"{store.folder}: features of {len(store)} captions, {added} of them new")
    return 0
