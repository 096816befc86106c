"""The command `caeav predict`: run a model on media files."""

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..constants import MEDIA_SUFFIXES
from ..errors import CaeAvError, MediaError, printable
from ..files import parse_json, read_bytes
from .captions import add_server_options, server_captioner


# Of a long clip: seconds of video that were processed, time that has passed and is left, and speed.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s of video [{elapsed}<{remaining}{postfix}]"


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    predict = commands.add_parser(
        "predict",
        help="run a model on clips: find events, find or describe what sounds, or answer questions",
        description="Run a model on clips. The task follows from the model's configuration. Event localization finds "
        "events that are both visible and audible, and their times; video parsing those that are visible, audible or "
        "both. Segmentation finds the pixels of sounding objects in every second. Sound source understanding also "
        "describes them in a sentence. Question answering answers each --question about every clip. Clips that cannot "
        "be read are reported and skipped.",
    )
    predict.add_argument(
        "clips",
        nargs="+",
        metavar="CLIP",
        help="media files, folders (searched with their subfolders), or quoted patterns such as 'clips/**/*.mp4'",
    )
    predict.add_argument("--model", required=True, metavar="DIR", help="model folder or Hub id")
    predict.add_argument(
        "--out",
        metavar="FILE.json|DIR",
        help="events and answers: JSON file for all clips, or folder for one file per clip; masks: folder for "
        "index.json and one folder per clip with a PNG per second (default: print the JSON)",
    )
    predict.add_argument(
        "--plot", metavar="FILE.png|DIR", help="picture of the clip, or folder for one picture per clip"
    )
    predict.add_argument(
        "--overlay",
        metavar="FILE.mp4|DIR",
        help="masks: video of the clip with sounding objects tinted, sentences below it, or folder for one per clip",
    )
    for option, suffix, what in (
        ("srt", "srt", "subtitles in the SubRip format"),
        ("vtt", "vtt", "subtitles in the WebVTT format"),
        ("csv", "csv", "a table of all clips"),
        ("eaf", "eaf", "a document of ELAN"),
        ("audacity", "txt", "a label track of Audacity"),
    ):
        predict.add_argument(
            f"--{option}",
            metavar=f"FILE.{suffix}|DIR",
            help=f"events, answers and sentences with their times: {what}, or folder for one file per clip",
        )
    predict.add_argument(
        "--question", action="append", metavar="TEXT", help="answers: question about every clip; may be repeated"
    )
    predict.add_argument(
        "--captions",
        metavar="FILE",
        help="captions by file name or stem: the file of `caeav caption`, or JSON "
        '{clip: {"visual": text, "audio": text}}; sound source understanding reads visual ones alone',
    )
    add_server_options(predict)
    predict.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="events and masks: probability above which a second is an event or a pixel is in a mask (default: 0.5)",
    )
    predict.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="sentences: most ids of each (default: the model's)"
    )
    predict.add_argument(
        "--video-threshold",
        type=float,
        metavar="P",
        help="video parsing: probability that a class also needs over the whole clip (default: 0.5)",
    )
    predict.add_argument(
        "--visual-3d",
        metavar="DIR",
        help="video parsing: folder with 3D features of the clips, for models that use them",
    )
    predict.add_argument(
        "--windows",
        choices=("all", "first"),
        help="windows of clips that are longer than the model's input: all (default) or only the first",
    )
    predict.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="segments from one window of a longer clip to the next, which overlap; as many as a window has for no "
        "overlap (default: half of these)",
    )
    predict.add_argument(
        "--on-missing-audio",
        choices=("silence", "error"),
        help="for a clip without a sound track: use silence (default) or report an error",
    )
    predict.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the first accelerator, else cpu)")
    predict.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="clips per batch (default: %(default)s)"
    )
    predict.set_defaults(run=_predict, next_step="run the same command again")


def _predict(options: argparse.Namespace) -> int:
    if options.batch_size < 1:
        raise CaeAvError(f"--batch-size must be at least 1, got {options.batch_size}")
    options.clips = find_clips(options.clips)
    # Imported here, like what follows, since these take seconds to load.
    from ..hub import read_config_and_task

    config, task = read_config_and_task(options.model)
    captions = _read_captions(options.captions, task.captions)
    task.prediction_class.check(options, config)
    output = task.prediction_class(options)
    clips = [{**output.clip_inputs(clip), **_captions_of(clip, captions)} for clip in options.clips]

    from tqdm import tqdm

    from ..pipelines.loading import load_pipeline

    model = load_pipeline(options.model, task, options.device, on_error="skip", **output.parameters())
    failed = []
    captioner = server_captioner(options)
    streams = output.streams and captioner is None and can_stream(model, options.windows)
    if options.stride is not None and not streams:
        raise CaeAvError(
            "--stride is for long clips, which this model does not process in overlapping windows, or not with "
            "--windows first or a caption server"
        )
    results = _results(model, clips, options, output, captioner, streams)
    try:
        with tqdm(total=len(clips), unit="clip", disable=len(clips) == 1) as progress:
            for clip, result in zip(options.clips, results, strict=True):
                try:
                    output.add(model, clip, result)
                    output.export(model, clip, result)
                except MediaError as error:  # read for the model, but not a second time for the picture
                    result = {"error": str(error)}
                if "error" in result:
                    failed.append(result["error"])
                progress.update()
    except KeyboardInterrupt:
        print(f"caeav: {progress.n} of {len(clips)} clips were processed and written", file=sys.stderr)
        output.finish()
        raise
    output.finish()
    for message in failed:
        print(f"caeav: error: {message}", file=sys.stderr)
    return 2 if failed else 0


def can_stream(model: Any, windows: str | None) -> bool:
    """Return whether a pipeline processes clips that are longer than a window as streams."""
    from ..media.segments import is_spread
    from ..pipelines import CaeAvPipeline

    scores = getattr(type(model), "segment_scores", CaeAvPipeline.segment_scores)
    has_scores = scores is not CaeAvPipeline.segment_scores
    return has_scores and windows != "first" and not is_spread(model.processor.frame_sampling)


def _results(
    model: Any, clips: list[dict[str, Any]], options: argparse.Namespace, output: Any, captioner: Any, streams: bool
) -> Iterator[Any]:
    """Yield the result of each clip: of short ones by the pipeline, in batches, of long ones as a stream."""
    from ..pipelines.base import LazyClips

    named = zip(options.clips, clips, strict=True)
    for is_long, group in groupby(named, key=lambda item: streams and _is_long(model, item[0])):
        if is_long:
            for name, clip in group:
                yield _streamed(model, name, clip, options, output)
        else:
            few = LazyClips(clip for _, clip in group)
            yield from model(few, batch_size=options.batch_size, captioner=captioner)


def _is_long(model: Any, clip: str) -> bool:
    """Return whether a clip is longer than a window of the model, or its length is not known."""
    from ..media.remote import download_limits, is_address
    from ..media.segment_stream import announced_seconds, is_live
    from ..media.segments import count_segments

    if is_live(clip):
        return True
    if is_address(clip) and not clip.lower().startswith(("http:", "https:", "file:")):
        return False  # it is fetched
    try:
        seconds = announced_seconds(clip, download_limits()[1])
    except MediaError:
        return False  # the pipeline reports it
    processor = model.processor
    return seconds is None or count_segments(seconds, processor.segment_seconds) > processor.num_frames


def _streamed(model: Any, name: str, clip: dict[str, Any], options: argparse.Namespace, output: Any) -> Any:
    """Return the result of a long clip, with a progress bar in seconds of video."""
    from tqdm import tqdm

    from ..media.containers import source_name
    from ..media.remote import download_limits
    from ..media.segment_stream import announced_seconds, is_live
    from ..streaming import stream

    parameters = {key: value for key, value in clip.items() if key != "clip"}
    begun = time.monotonic()
    try:
        updates = stream(model, name, stride=options.stride, batch_size=options.batch_size, **parameters)
        total = None if is_live(name) else announced_seconds(name, download_limits()[1])
        with tqdm(
            total=None if total is None else round(total),
            desc=printable(Path(name).name),
            bar_format=_BAR if total is not None else None,
            unit="s of video",
        ) as bar:

            def watched() -> Iterator[Any]:
                for update in updates:
                    bar.update(round(update.end) - bar.n)
                    bar.set_postfix_str(f"{update.end / (time.monotonic() - begun):.1f}x real time", refresh=False)
                    yield update

            return output.collect(model, name, watched())
    except MediaError as error:
        return {"file": source_name(name), "error": str(error)}


def find_clips(names: Sequence[str]) -> list[str]:
    """
    Expand the command's arguments to clips, those of a folder or a pattern sorted by path.

    A folder expands to the media files in it and its subfolders, a pattern (`*`, `?`, `[...]`, `**` for any depth) to
    the files that it matches. Files and URLs are returned unchanged.

    Raises:
        CaeAvError: A folder or a pattern has no clip.
    """
    clips: list[str] = []
    for name in names:
        path = Path(name)
        if os.path.isdir(name):  # false, unlike `Path.is_dir`, for a name that is too long
            files = (file for file in path.rglob("*") if file.suffix.lower() in MEDIA_SUFFIXES)
            found = sorted(str(file) for file in files if file.is_file() and not file.name.startswith("."))
            expected = f"expected a folder with media files ({', '.join(MEDIA_SUFFIXES)})"
        elif "://" not in name and not os.path.exists(name) and glob.has_magic(name):
            found = sorted(file for file in glob.iglob(name, recursive=True) if Path(file).is_file())
            expected = "no file matches this pattern"
        else:
            found = [name]
        if not found:
            raise CaeAvError(f"{name}: {expected}")
        clips += found
    return clips


def _read_captions(path: str | None, sides: Sequence[str]) -> dict[str, dict[str, str]]:
    """
    Return the captions of these sides by clip.

    Raises:
        CaeAvError: It is not a caption file, or in JSON a clip has not all of them.
    """
    if path is None:
        return {}
    if Path(path).suffix == ".parquet":
        from ..data.caption_file import read_captions

        return {
            clip: {side: text for side in sides if (text := of_clip[side])}
            for clip, of_clip in read_captions(path).items()
            if all(of_clip[side] for side in sides)
        }
    texts = ", ".join(f'"{side}": text' for side in sides)
    expected = f"expected {{clip: {{{texts}}}}}"
    content = read_bytes(Path(path), "caption file")
    try:
        captions = parse_json(content.decode())
    except ValueError as error:
        raise CaeAvError(f"{path}: cannot be read as captions, {expected}: {error}") from error
    if not isinstance(captions, dict):
        raise CaeAvError(f"{path}: {expected}, got a {type(captions).__name__}")
    for clip, caption in captions.items():
        if not isinstance(caption, dict) or not all(isinstance(caption.get(side), str) for side in sides):
            raise CaeAvError(f"{path}: {expected}, got {json.dumps(caption)} for {clip!r}")
    return {clip: {side: caption[side] for side in sides} for clip, caption in captions.items()}


def _captions_of(clip: str, captions: dict[str, dict[str, str]]) -> dict[str, str]:
    for key in (clip, Path(clip).name, Path(clip).stem):
        if key in captions:
            return {f"{side}_caption": text for side, text in captions[key].items()}
    return {}
