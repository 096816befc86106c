"""
Run as a program: trainings with DeepSpeed on two processes and, to compare, without it on one. What came of each lies
in a folder of its name.

    deepspeed_run.py FOLDER
"""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState

from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from caeav_hf.training.loop import Trainer
from tests.training.distributed_run import start, toy_task
from tests.training.tiny_training import TinyData, TinyModel, tiny_model, tiny_recipe, tiny_trainer


def tiny(
    folder: Path, processes: int, max_steps: int | None = None, resume: bool = False, precision: str = "no", **place
) -> Trainer:
    """
    Eight clips a step in two batches, up to a step of the nine; goes on, if asked to, with what another left in the
    folder. The loss of the third step is not finite, though its gradient is, and neither is the gradient of the
    fourth, on one process.
    """
    recipe = tiny_recipe(
        epochs=3, batch_size=4 // processes, max_grad_norm=0.05, max_steps=max_steps, mixed_precision=precision
    )
    checkpoint = find_checkpoint(folder) if resume else None
    model = tiny_model(dropout=0.0, batch_norm=False) if checkpoint is None else TinyModel.from_pretrained(checkpoint)
    # Clips that cannot be decoded, so that one process has fewer clips than the other.
    data = TinyData(22, broken=(9, 10))
    trainer = tiny_trainer(folder, recipe, train=data, model=model, resume=checkpoint, **place)
    if checkpoint is not None:
        trainer.resume(checkpoint, read_loop_state(checkpoint))
    forward = trainer.bare_model.forward

    def spoilt(*arguments, **inputs):
        outputs = forward(*arguments, **inputs)
        if outputs.loss is not None and trainer.state.step == 2:
            outputs["loss"] = outputs.loss + math.inf
        if outputs.loss is not None and trainer.state.step == 3 and trainer.accelerator.is_main_process:
            outputs.loss.register_hook(lambda gradient: gradient * math.inf)
        return outputs

    trainer.bare_model.forward = spoilt
    trainer.fit()
    return trainer


def on_one(folder: Path) -> None:
    """What DeepSpeed is to be compared with. It takes a gradient that is missing as one of zeros."""
    update = Trainer._update

    def filled(trainer):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return update(trainer)

    Trainer._update = filled
    toy_task("ave", folder / "one", 1, dtype=torch.float32)


def on_two(folder: Path) -> None:
    # What `accelerate launch` would say, and would not say of CPUs.
    del os.environ["ACCELERATE_USE_CPU"]
    os.environ.update({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"})
    sent = count_sent()
    PartialState(backend="gloo")
    toy_task("ave", folder / "two", 2, sharding="zero", dtype=torch.float32)
    if PartialState().is_main_process:
        (folder / "two" / "sent.json").write_text(json.dumps(sent))
    for max_steps in (4, 6):
        tiny(folder / "tiny", 2, max_steps, resume=True, cpu=False)
    tiny(folder / "bf16", 2, precision="bf16", cpu=False)


def count_sent() -> list[int]:
    """Have noted how many numbers are sent to share the gradients of each step."""
    import deepspeed

    # Otherwise it compiles code for processes of one machine.
    deepspeed.ops.__compatible_ops__ = {}
    sent: list[int] = []
    share, reduce = deepspeed.DeepSpeedEngine.allreduce_gradients, torch.distributed.all_reduce

    def counted(function: Callable) -> Callable:
        def call(tensor, *arguments, **options):
            sent[-1] += tensor.numel()
            return function(tensor, *arguments, **options)

        return call

    def shared(engine):
        sent.append(0)
        torch.distributed.all_reduce = counted(reduce)
        share(engine)
        torch.distributed.all_reduce = reduce

    deepspeed.DeepSpeedEngine.allreduce_gradients = shared
    return sent


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    wait_for_one = start(1, on_one, folder)
    start(1, tiny, folder / "tiny", 1, 2)()
    start(2, on_two, folder)()
    wait_for_one()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
