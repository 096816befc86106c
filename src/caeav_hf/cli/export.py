"""The commands `caeav export` and `caeav push`: a trained model as a folder to give away, or on the Hub."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CaeAvError


def add_commands(commands: Any) -> None:
    """Adds the commands to the subparsers of `caeav`."""
    export = commands.add_parser(
        "export",
        help="write a trained model to a folder of its own, with or without its frozen towers",
        description="Write model and processor of a checkpoint to a folder for from_pretrained, without what only "
        "training needs. With --adapter-only the frozen towers are left out and named instead; from_pretrained "
        "fetches them and refuses others. With --onnx it is the model alone that is written, as a graph, and compared "
        "with the model on random clips.",
    )
    export.add_argument(
        "checkpoint", metavar="RUN", help="run folder, whose best checkpoint is taken, or a checkpoint"
    )
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--out", metavar="DIR", help="folder for the model")
    form.add_argument("--onnx", metavar="FILE", help="file for the model as ONNX")
    add_options(export)
    export.set_defaults(run=_export)

    push = commands.add_parser(
        "push",
        help="upload a trained model to the Hub, and a Space that shows it",
        description="Upload model, processor and model card of a checkpoint to the Hugging Face Hub, as `caeav "
        "export` writes them. Needs a login, `hf auth login`.",
    )
    push.add_argument("checkpoint", metavar="RUN", help="run folder, whose best checkpoint is taken, or a checkpoint")
    push.add_argument("repo", metavar="REPO", help="repository of the model, made where it does not exist: NAME/MODEL")
    add_options(push)
    push.add_argument("--private", action="store_true", help="make a repository that does not exist a private one")
    push.add_argument("--space", metavar="REPO", help="event localization: also a Space, a page that runs the model")
    push.set_defaults(run=_push)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what of a model is written."""
    parser.add_argument("--adapter-only", action="store_true", help="leave out the frozen towers")
    parser.add_argument(
        "--tower",
        nargs="+",
        default=[],
        metavar="KIND=NAME",
        help="where vision, audio or text tower are to be had, if the model does not remember it or they moved",
    )
    parser.add_argument("--merge-lora", action="store_true", help="merge LoRA into the towers")


def tower_names(pairs: Sequence[str]) -> dict[str, str] | None:
    """The values of `--tower`."""
    names = {}
    for pair in pairs:
        kind, equals, name = pair.partition("=")
        if not equals or not name:
            raise CaeAvError(f"--tower expects KIND=NAME, got {pair!r}")
        names[kind] = name
    return names or None


def what_to_write(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `training.export` that these options stand for."""
    towers = tower_names(options.tower)
    if towers and not options.adapter_only:
        raise CaeAvError("--tower is for --adapter-only; a whole model holds its towers")
    if options.merge_lora and options.adapter_only:
        raise CaeAvError("--merge-lora changes the towers, which --adapter-only leaves out: give one of the two")
    return {"adapter_only": options.adapter_only, "towers": towers, "merge_lora": options.merge_lora}


def _push(options: argparse.Namespace) -> int:
    values = what_to_write(options)
    from ..training.export import push

    for url in push(options.checkpoint, options.repo, private=options.private, space=options.space, **values):
        print(f"uploaded: {url}")
    return 0


def _export(options: argparse.Namespace) -> int:
    values = what_to_write(options)
    if options.onnx is not None and options.adapter_only:
        raise CaeAvError("--adapter-only is for --out: a graph holds its towers")
    # Only now, since these take seconds to load.
    from ..training.export import export, write_onnx

    if options.onnx is not None:
        difference = write_onnx(options.checkpoint, options.onnx, merge_lora=options.merge_lora)
        size = sum(file.stat().st_size for file in Path(options.onnx).parent.glob(Path(options.onnx).name + "*"))
        print(f"{options.onnx}: {size / 1e6:.1f} MB")
        if difference is None:
            print('not compared with the model, which needs onnxruntime: pip install "caeav-hf[export]"')
        else:
            print(f"largest difference to the model, in onnxruntime on random clips: {difference:.1e}")
        return 0
    model = export(options.checkpoint, options.out, **values)
    size = sum(file.stat().st_size for file in Path(options.out).glob("*.safetensors"))
    print(f"{type(model).__name__} written to {options.out}, {size / 1e6:.1f} MB")
    return 0
