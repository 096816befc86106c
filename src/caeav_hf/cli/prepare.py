"""The command `caeav prepare`: decode the clips of a data set once."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import CaeAvError, reading
from ..task import get_task, tasks


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    prepare = commands.add_parser(
        "prepare",
        help="decode every clip of a data set once, so that training reads frames and sound instead of video",
        description="Decode every clip of a data set once and store its frames, at the model's size, and its sound, "
        "at the model's sampling rate, as a data set that training and evaluation read instead. If it is stopped, "
        "running it again continues. Clips that cannot be decoded are reported and left out.",
    )
    prepare.add_argument("dataset", metavar="DATASET", help="folder written by a builder")
    prepare.add_argument("--out", required=True, metavar="DIR", help="output folder")
    prepare.add_argument("--model", metavar="DIR", help="model folder or Hub id to prepare the data for")
    prepare.add_argument(
        "--task", choices=tasks(), help="without --model: prepare for the model of this task's recipe ..."
    )
    prepare.add_argument("--method", help="... by a method with recipes, such as dg_sct (default: the task's) ...")
    prepare.add_argument("--size", choices=("full", "toy"), default="full", help="... and size (default: %(default)s)")
    prepare.add_argument(
        "--format",
        choices=("jpeg", "png"),
        default="jpeg",
        help="format of the frames: jpeg, quality 95, or png, which is lossless but larger (default: %(default)s)",
    )
    prepare.add_argument(
        "--num-proc",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of clips decoded in parallel (default: number of processors)",
    )
    prepare.set_defaults(run=_prepare, next_step="run the same command again, which continues")


def _prepare(options: argparse.Namespace) -> int:
    import torch

    from ..data.prepare import prepare_clips

    if (options.model is None) == (options.task is None):
        raise CaeAvError("expected either --model DIR or --task TASK")
    if options.model is not None and options.method is not None:
        raise CaeAvError("--method belongs to --task; a model in --model has its own")
    if options.num_proc < 1:
        raise CaeAvError(f"--num-proc must be at least 1, got {options.num_proc}")
    task, processor = _processor_of(options)
    # Clips are processed in parallel, where threads within each would only compete.
    torch.set_num_threads(1)
    report = prepare_clips(
        options.dataset,
        processor,
        options.out,
        task=task,
        image_format=options.format,
        num_proc=options.num_proc,
    )
    for split, part in report.items():
        done = part.clips - len(part.failed)
        print(f"{split}: {done} of {part.clips} clips, {part.rows} rows in {len(part.shards)} shards")
    failed = [reason for part in report.values() for reason in part.failed.values()]
    if failed:
        print(
            f"{len(failed)} clips could not be decoded and are left out, e.g. {failed[0]}; "
            f"{Path(options.out) / 'report.json'} names them",
            file=sys.stderr,
        )
    return 0


def _processor_of(options: argparse.Namespace) -> tuple[str, Any]:
    """Return the task and the processor of the model that the options name."""
    from transformers import AutoConfig

    from ..hub import check_model
    from ..processing import CaeAvProcessor

    if options.model is None:
        from ..training.recipe import find_recipe, load_recipe

        recipe = load_recipe(find_recipe(options.task, options.size, options.method))
        method = {} if recipe.method is None else {"method": recipe.method}
        config = get_task(recipe.task, recipe.method).config_class.from_preset(
            recipe.task, recipe.size, **method, **recipe.model_config
        )
        return config.task, CaeAvProcessor.from_config(config)
    check_model(options.model)
    with reading(options.model, "a model and its processor"):
        config = AutoConfig.from_pretrained(options.model)
        return config.task, CaeAvProcessor.from_pretrained(options.model)
