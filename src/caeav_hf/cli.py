"""The `caeav` command: `predict` runs a model on media files, `demo` shows the whole package on a made-up data set."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .captioning_cli import add_commands, add_server_options, server_captioner
from .errors import CaeAvError, MediaError


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="caeav", description="CAE-AV audio-visual learning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"caeav-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict",
        help="run a model on clips: find their events, or the pixels that show what sounds",
        description="Run a model on clips. A model of event localization finds which events can be both seen and "
        "heard, and when. A model of segmentation finds the pixels that show what is heard, second by second. What a "
        "model does is in its configuration. A clip that cannot be read is reported and the others go on.",
        allow_abbrev=False,
    )
    predict.add_argument("clips", nargs="+", metavar="CLIP", help="media files with video and sound")
    predict.add_argument("--model", required=True, metavar="DIR", help="model folder or Hub id")
    predict.add_argument(
        "--out",
        metavar="FILE.json|DIR",
        help="events: JSON file for all clips, or folder for one a clip; masks: folder for index.json and, in folders "
        "of the clips' names, a PNG a second. Without it the JSON is printed",
    )
    predict.add_argument("--plot", metavar="FILE.png|DIR", help="picture of the clip, or folder for one a clip")
    predict.add_argument(
        "--overlay", metavar="FILE.mp4|DIR", help="masks: the clip, with its sound, with what sounds tinted"
    )
    predict.add_argument(
        "--captions",
        metavar="FILE",
        help="captions by file name or stem: the file of `caeav caption`, or JSON "
        '{clip: {"visual": text, "audio": text}}',
    )
    add_server_options(predict)
    predict.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="probability above which a second is an event or a pixel is in a mask",
    )
    predict.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; by default the first accelerator, else cpu")
    predict.add_argument("--batch-size", type=int, default=1, metavar="N", help="clips that run together")
    predict.set_defaults(run=_predict)

    add_commands(commands)

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
    clips = [{"clip": clip, **_captions_of(clip, captions)} for clip in options.clips]
    task = _task_of(options.model)
    output = (_Masks if task == "audio-visual-segmentation" else _Events)(options)

    # Only now, since these take seconds to load.
    from tqdm import tqdm

    model = _load_pipeline(task, options)
    failed = []
    captioner = server_captioner(options)
    stream = model((clip for clip in clips), batch_size=options.batch_size, captioner=captioner)
    with tqdm(total=len(clips), unit="clip", disable=len(clips) == 1) as progress:
        for clip, result in zip(options.clips, stream, strict=True):
            try:
                output.add(model, clip, result)
            except MediaError as error:  # it could be read for the model, but not once more for a picture
                result = {"error": str(error)}
            if "error" in result:
                failed.append(result["error"])
            progress.update()
    output.finish()
    for message in failed:
        print(f"caeav: error: {message}", file=sys.stderr)
    return 2 if failed else 0


class _Events:
    """What `predict` writes of events: JSON, and a timeline of each clip."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.overlay is not None:
            raise CaeAvError(f"--overlay needs a model of segmentation; {options.model} finds events")
        self.file = _target(options.out, options.clips, ".json", one_file_holds_all=True)
        self.picture = _target(options.plot, options.clips, ".png", one_file_holds_all=False)
        self.results: list[dict[str, Any]] = []

    def add(self, model: Any, clip: str, result: dict[str, Any]) -> None:
        self.results.append(result)
        if self.file is not None and self.file.one_a_clip:
            _write_json(self.file(clip), result)
        if self.picture is not None and "error" not in result:
            from .visualization import plot_event_timeline

            plot_event_timeline(
                model.load_clip(clip),
                result,
                path=self.picture(clip),
                segment_seconds=model.processor.segment_seconds,
                title=Path(clip).name,
            )

    def finish(self) -> None:
        if self.file is None:
            print(json.dumps(self.results, indent=2))
        elif not self.file.one_a_clip:
            _write_json(self.file.path, self.results)


class _Masks:
    """What `predict` writes of masks: PNGs with an index, a contact sheet and a video of each clip."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.out is not None and Path(options.out).suffix == ".json":
            raise CaeAvError(f"{options.out}: masks are written to a folder; give one")
        several = len(options.clips) > 1
        self.folder = None
        if options.out is not None:
            self.folder = _Target(Path(options.out), "", one_a_clip=True)
            self.folder.make(options.clips)
        self.picture = _target(options.plot, options.clips, ".png", one_file_holds_all=False)
        self.video = _target(options.overlay, options.clips, ".mp4", one_file_holds_all=False)
        self.show_frames = not several
        self.index: list[dict[str, Any]] = []

    def add(self, model: Any, clip: str, result: dict[str, Any]) -> None:
        if "error" in result:
            self.index.append(result)
            return
        seconds, masks = model.processor.segment_seconds, result["masks"]
        frames = []
        for number, (time, mask) in enumerate(zip(result["timestamps"], masks, strict=True)):
            frame = {"timestamp": time, "start": number * seconds, "end": (number + 1) * seconds}
            if self.folder is not None:
                path = self.folder(clip) / f"{number:05d}.png"
                _write_mask(path, mask)
                frame["mask"] = path.relative_to(self.folder.path).as_posix()
            frames.append({**frame, "covered": float(mask.mean())})
        height, width = masks.shape[1:]
        entry = {"file": result["file"], "duration": result["duration"], "width": width, "height": height}
        self.index.append({**entry, "frames": frames})
        if self.picture is not None:
            from .visualization import plot_masks

            plot_masks(model.load_clip(clip), masks, path=self.picture(clip), title=Path(clip).name)
        if self.video is not None:
            from .overlay import write_overlay

            write_overlay(clip, masks, self.video(clip), segment_seconds=seconds, show_progress=self.show_frames)

    def finish(self) -> None:
        if self.folder is None:
            print(json.dumps(self.index, indent=2))
        else:
            _write_json(self.folder.path / "index.json", self.index)


class _Target:
    """Where the output of a clip goes: one file for all, or a file of the clip's name in a folder."""

    def __init__(self, path: Path, suffix: str, one_a_clip: bool) -> None:
        self.path, self.suffix, self.one_a_clip = path, suffix, one_a_clip

    def __call__(self, clip: str) -> Path:
        return self.path / (Path(clip).stem + self.suffix) if self.one_a_clip else self.path

    def make(self, clips: list[str]) -> None:
        """
        Make the folder.

        Raises:
            CaeAvError: it cannot be made, or several clips would be written to one file.
        """
        stems = [Path(clip).stem for clip in clips]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            name = f"{twice[0]}{self.suffix}"
            raise CaeAvError(f"{self.path}: several clips would be written to {name}; rename them or run them apart")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaeAvError(f"{self.path}: cannot be made a folder: {error}") from error


def _target(path: str | None, clips: list[str], suffix: str, *, one_file_holds_all: bool) -> _Target | None:
    if path is None:
        return None
    target = _Target(Path(path), suffix, one_a_clip=Path(path).suffix == "" or Path(path).is_dir())
    if not target.one_a_clip:
        if len(clips) > 1 and not one_file_holds_all:
            raise CaeAvError(f"{path}: is one file, for {len(clips)} clips; give a folder")
        return target
    target.make(clips)
    return target


def _read_captions(path: str | None) -> dict[str, dict[str, str]]:
    if path is None:
        return {}
    if Path(path).suffix == ".parquet":
        from .data.caption_file import read_captions

        pairs = {clip: {s: text for s, text in pair.items() if text} for clip, pair in read_captions(path).items()}
        return {clip: pair for clip, pair in pairs.items() if len(pair) == 2}
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


def _task_of(model: str) -> str:
    """The pipeline that a model is for, by the task of its configuration."""
    from huggingface_hub.errors import StrictDataclassError

    from .configuration_cae_av import CaeAvConfig
    from .pipelines import TASK_PIPELINES

    try:
        task = CaeAvConfig.from_pretrained(model).task
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"{model}: cannot be loaded as a model: {str(error).strip().splitlines()[-1]}") from error
    if task not in TASK_PIPELINES:
        raise CaeAvError(f"{model}: is for task {task!r}; there is prediction for {', '.join(TASK_PIPELINES)}")
    return TASK_PIPELINES[task]


def _load_pipeline(task: str, options: argparse.Namespace) -> Any:
    from transformers import pipeline
    from transformers.utils import logging

    from .pipelines import register

    register()
    logging.disable_progress_bar()
    device = {} if options.device is None else {"device": options.device}
    try:
        return pipeline(task, model=options.model, threshold=options.threshold, on_error="skip", **device)
    except CaeAvError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CaeAvError(
            f"{options.model}: cannot be loaded as a model: {str(error).strip().splitlines()[-1]}"
        ) from error


def _write_mask(path: Path, mask: Any) -> None:
    """A mask (H, W) bool as a PNG, white where it is true."""
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype("uint8") * 255).save(path)
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error


def _write_json(path: Path, content: Any) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
