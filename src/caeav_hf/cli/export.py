"""The commands `caeav export` and `caeav push`: export a trained model to a folder, to ONNX, or to the Hub."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CaeAvError


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `caeav`."""
    export = commands.add_parser(
        "export",
        help="write a trained model to a folder for sharing, with or without its frozen towers",
        description="Write model and processor of a checkpoint to a folder for from_pretrained, without the training "
        "state. With --adapter-only the configuration names the frozen towers instead, and from_pretrained fetches "
        "and verifies them. With --onnx, only the model is written, as an ONNX graph, and compared with the original "
        "on random clips.",
    )
    export.add_argument("checkpoint", metavar="RUN", help="run folder, whose best checkpoint is used, or a checkpoint")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--out", metavar="DIR", help="output folder")
    form.add_argument("--onnx", metavar="FILE", help="output file in ONNX format")
    add_options(export)
    export.set_defaults(run=_export)

    push = commands.add_parser(
        "push",
        help="upload a trained model to the Hub, and a Space that demonstrates it",
        description="Upload model, processor and model card of a checkpoint to the Hugging Face Hub, as written "
        "by `caeav export`. Requires a login, `hf auth login`.",
    )
    push.add_argument("checkpoint", metavar="RUN", help="run folder, whose best checkpoint is used, or a checkpoint")
    push.add_argument("repo", metavar="REPO", help="repository of the model, NAME/MODEL, created if missing")
    add_options(push)
    push.add_argument("--private", action="store_true", help="create repositories as private ones")
    push.add_argument("--space", metavar="REPO", help="also upload a Space: the page of `caeav app` for the model")
    push.set_defaults(run=_push)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select which weights are written."""
    parser.add_argument("--adapter-only", action="store_true", help="leave out the frozen towers")
    parser.add_argument(
        "--tower",
        nargs="+",
        default=[],
        metavar="KIND=NAME",
        help="source of the vision, audio or text tower, if it moved or the model does not record it",
    )
    parser.add_argument("--merge-lora", action="store_true", help="merge LoRA into the towers")


def tower_names(pairs: Sequence[str]) -> dict[str, str] | None:
    """Parse the values of `--tower`."""
    names = {}
    for pair in pairs:
        kind, equals, name = pair.partition("=")
        if not equals or not name:
            raise CaeAvError(f"--tower expects KIND=NAME, got {pair!r}")
        names[kind] = name
    return names or None


def export_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `training.export` for these options."""
    towers = tower_names(options.tower)
    if towers and not options.adapter_only:
        raise CaeAvError("--tower is for --adapter-only; a whole model holds its towers")
    if options.merge_lora and options.adapter_only:
        raise CaeAvError("--merge-lora changes the towers, which --adapter-only leaves out; use only one of them")
    return {"adapter_only": options.adapter_only, "towers": towers, "merge_lora": options.merge_lora}


def _push(options: argparse.Namespace) -> int:
    values = export_arguments(options)
    from ..training.export import push

    for url in push(options.checkpoint, options.repo, private=options.private, space=options.space, **values):
        print(f"uploaded: {url}")
    return 0


def _export(options: argparse.Namespace) -> int:
    values = export_arguments(options)
    if options.onnx is not None and options.adapter_only:
        raise CaeAvError("--adapter-only is for --out; an ONNX graph holds its towers")
    # Imported here since these take seconds to load.
    from ..training.export import export, write_onnx

    if options.onnx is not None:
        difference = write_onnx(options.checkpoint, options.onnx, merge_lora=options.merge_lora)
        size = sum(file.stat().st_size for file in Path(options.onnx).parent.glob(Path(options.onnx).name + "*"))
        print(f"{options.onnx}: {size / 1e6:.1f} MB")
        if difference is None:
            print('not compared with the model; this needs onnxruntime: pip install "caeav-hf[export]"')
        else:
            print(f"largest difference to the model, in onnxruntime on random clips: {difference:.1e}")
        return 0
    model = export(options.checkpoint, options.out, **values)
    size = sum(file.stat().st_size for file in Path(options.out).glob("*.safetensors"))
    print(f"{type(model).__name__} written to {options.out}, {size / 1e6:.1f} MB")
    return 0
