"""The `caeav` command: `predict` runs a model on media files, `demo` shows the whole package on a made-up data set."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import CaeAvError


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="caeav", description="CAE-AV audio-visual learning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"caeav-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict",
        help="find the events of clips and write them as JSON",
        description="Find which events of clips can be both seen and heard, and when; print or write them as JSON. A "
        "clip that cannot be read is reported and the others go on.",
        allow_abbrev=False,
    )
    predict.add_argument("clips", nargs="+", metavar="CLIP", help="media files with video and sound")
    predict.add_argument("--model", required=True, metavar="DIR", help="model folder or Hub id")
    predict.add_argument("--out", metavar="FILE.json|DIR", help="JSON file for all clips, or folder for one a clip")
    predict.add_argument("--plot", metavar="FILE.png|DIR", help="picture of the clip, or folder for one a clip")
    predict.add_argument(
        "--captions", metavar="FILE", help='JSON file {clip: {"visual": text, "audio": text}}, by file name or stem'
    )
    predict.add_argument("--threshold", type=float, default=0.5, help="probability above which a second is an event")
    predict.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; by default the first accelerator, else cpu")
    predict.add_argument("--batch-size", type=int, default=1, metavar="N", help="clips that run together")
    predict.set_defaults(run=_predict)

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
    from .demo import run_demo

    run_demo(options.out, seed=options.seed, quick=options.quick)
    return 0


def _predict(options: argparse.Namespace) -> int:
    if options.batch_size < 1:
        raise CaeAvError(f"--batch-size must be at least 1, got {options.batch_size}")
    captions = _read_captions(options.captions)
    results_file = _target(options.out, options.clips, ".json", one_file_holds_all=True)
    picture = _target(options.plot, options.clips, ".png", one_file_holds_all=False)
    clips = [{"clip": clip, **_captions_of(clip, captions)} for clip in options.clips]

    # Only now, since these take seconds to load.
    from tqdm import tqdm

    localize = _load_pipeline(options)
    results = []
    stream = localize((clip for clip in clips), batch_size=options.batch_size)
    with tqdm(total=len(clips), unit="clip", disable=len(clips) == 1) as progress:
        for clip, result in zip(options.clips, stream, strict=True):
            results.append(result)
            if picture is not None and "error" not in result:
                _plot(localize, clip, result, picture(clip))
            if results_file is not None and results_file.one_a_clip:
                _write_json(results_file(clip), result)
            progress.update()
    if results_file is None:
        print(json.dumps(results, indent=2))
    elif not results_file.one_a_clip:
        _write_json(results_file(clips[0]["clip"]), results)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"caeav: error: {result['error']}", file=sys.stderr)
    return 2 if failed else 0


class _Target:
    """Where the output of a clip goes: one file for all, or a file of the clip's name in a folder."""

    def __init__(self, path: Path, suffix: str, one_a_clip: bool) -> None:
        self.path, self.suffix, self.one_a_clip = path, suffix, one_a_clip

    def __call__(self, clip: str) -> Path:
        return self.path / (Path(clip).stem + self.suffix) if self.one_a_clip else self.path


def _target(path: str | None, clips: list[str], suffix: str, *, one_file_holds_all: bool) -> _Target | None:
    if path is None:
        return None
    target = _Target(Path(path), suffix, one_a_clip=Path(path).suffix == "" or Path(path).is_dir())
    if not target.one_a_clip:
        if len(clips) > 1 and not one_file_holds_all:
            raise CaeAvError(f"{path}: is one file, for {len(clips)} clips; give a folder")
        return target
    stems = [Path(clip).stem for clip in clips]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise CaeAvError(
            f"{path}: several clips would be written to {twice[0]}{suffix}; rename them or run them apart"
        )
    try:
        target.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be made a folder: {error}") from error
    return target


def _read_captions(path: str | None) -> dict[str, dict[str, str]]:
    if path is None:
        return {}
    expected = 'expected {clip: {"visual": text, "audio": text}}'
    try:
        captions = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaeAvError(f"{path}: cannot be read as captions, {expected}: {error}") from error
    if not isinstance(captions, dict):
        raise CaeAvError(f"{path}: {expected}, got a {type(captions).__name__}")
    for clip, caption in captions.items():
        if not isinstance(caption, dict) or not all(isinstance(caption.get(s), str) for s in ("visual", "audio")):
            raise CaeAvError(f"{path}: {expected}, got {json.dumps(caption)} for {clip!r}")
    return captions


def _captions_of(clip: str, captions: dict[str, dict[str, str]]) -> dict[str, str]:
    for key in (clip, Path(clip).name, Path(clip).stem):
        if key in captions:
            return {f"{side}_caption": captions[key][side] for side in ("visual", "audio")}
    return {}


def _load_pipeline(options: argparse.Namespace) -> Any:
    from transformers import pipeline
    from transformers.utils import logging

    from .pipelines import register

    register()
    logging.disable_progress_bar()
    device = {} if options.device is None else {"device": options.device}
    try:
        return pipeline(
            "audio-visual-event-localization",
            model=options.model,
            threshold=options.threshold,
            on_error="skip",
            **device,
        )
    except CaeAvError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CaeAvError(
            f"{options.model}: cannot be loaded as a model: {str(error).strip().splitlines()[-1]}"
        ) from error


def _plot(localize: Any, clip: str, result: dict[str, Any], path: Path) -> None:
    from .visualization import plot_event_timeline

    decoded = localize.processor.load_clip(clip)
    plot_event_timeline(
        decoded, result, path=path, segment_seconds=localize.processor.segment_seconds, title=Path(clip).name
    )


def _write_json(path: Path, content: Any) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
