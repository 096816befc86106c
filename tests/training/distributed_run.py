"""
Program that trains on two processes and, for comparison, on one. Each training writes to a folder of its name.

    distributed_run.py FOLDER

The processes are forked after importing the libraries, which takes the most time.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from caeav_hf import CaeAvConfig
from caeav_hf.data import CaeAvCollator
from caeav_hf.modeling.avmoe import FrameAttention
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.task import get_task
from caeav_hf.training.build import build_accelerator, load_split
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from caeav_hf.training.loop import Trainer
from caeav_hf.training.recipe import find_recipe, load_recipe
from caeav_hf.training.run_folder import RunFolder
from tests.lanes import METHODS
from tests.modeling.helpers import randomise
from tests.tasks.sound_source_understanding.helpers import NO_DROPOUT, small_config
from tests.training.random_clips import RandomClips
from tests.training.tiny_training import TinyData, TinyProcessor, tiny_model, tiny_recipe, tiny_trainer


# Task and method of each training, by the name of its folder.
JOBS: dict[str, tuple[str, str | None]] = {
    **{task: (task, None) for task in ("ave", "avvp", "avs_ms3", "avqa")},
    **{f"ave_{method}": ("ave", method) for method in METHODS},
    "avqa_dg_sct": ("avqa", "dg_sct"),
    "avs_ms3_dg_sct": ("avs_ms3", "dg_sct"),
    "avs_ms3_lavish": ("avs_ms3", "lavish"),
    "ra_ssu": ("ra_ssu", None),
}

# Task, sharding and steps of each training with FSDP.
SHARDED: dict[str, tuple[str, str, int | None]] = {
    "sharded": ("ave", "trained", 2),
    "sharded_with_towers": ("ave", "towers", 2),
    # To the epoch in which its tower of frames is trained; at times only one process has texts for its experts.
    "sharded_ra_ssu": ("ra_ssu", "trained", None),
}


def tiny(folder: Path, processes: int) -> None:
    """Train the tiny model, two batches per step."""
    recipe = tiny_recipe(epochs=2, batch_size=4 // processes, accumulation_steps=2)
    model = tiny_model(dropout=0.0, batch_norm=False)
    # Clips 9 and 10 cannot be decoded, so that one process has fewer clips than the other.
    trainer = tiny_trainer(folder, recipe, train=TinyData(21, broken=(9, 10)), test=TinyData(7, seed=1), model=model)
    sent = set()
    if processes > 1:

        def count(_, bucket):
            sent.add(sum(parameter.numel() for parameter in bucket.parameters()))
            return allreduce_hook(None, bucket)

        trainer.model.register_comm_hook(None, count)
    trainer.fit()
    leave(trainer, folder, sent=sorted(sent))


def toy_task(
    task: str,
    folder: Path,
    processes: int,
    max_steps: int | None = None,
    sharding: str | None = None,
    killed_at: int | None = None,
    resume: Path | None = None,
    method: str | None = None,
    **switches: Any,
) -> None:
    """
    Train a task's toy recipe, by default for an epoch and two steps, four clips per step, in double precision and
    without dropout, on random clips or the data set named in `switches`.
    """
    definition = get_task(task)
    # In steps of four, one clip is left for the last step of an epoch; three questions share a clip.
    num_rows = 21 if task == "avqa" else 9
    recipe = load_recipe(
        find_recipe(task, "toy"),
        {
            "batch_size": 4 // processes,
            "eval_batch_size": 4 // processes,
            "accumulation_steps": 1,
            "max_steps": num_rows // 4 + 3 if max_steps is None else max_steps,
            "shard_towers": sharding == "towers",
            **switches,
        },
    )
    torch.manual_seed(0)
    model = randomise(definition.model_class(_toy_config(task, method))).double()
    config = model.config
    for module in model.modules():
        if isinstance(module, FrameAttention):
            module.dropout = 0.0
    processor = CaeAvProcessor.from_config(config)
    run = RunFolder(folder)
    accelerator = build_accelerator(recipe, folder)
    if recipe.data is None:
        train = RandomClips(config, num_rows, broken=(5,), processor=processor)
        test = RandomClips(config, 5, seed=1, processor=processor)
    else:
        train = load_split(recipe, recipe.train_split, processor, accelerator, shuffle=True)
        test = load_split(recipe, recipe.eval_split, processor, accelerator)
    run.start(recipe, accelerator)
    if sharding in ("trained", "towers"):
        # Accelerate only shards models on an accelerator, although the same code works on CPUs.
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        accelerator.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    collator = CaeAvCollator(targets=definition.targets)
    trainer = Trainer(recipe, definition, model, TinyProcessor(), train, test, collator, accelerator, run)
    steps = []
    step = trainer._step

    def noted(window):
        if trainer.state.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        before = dict(trainer.state.loss_totals)
        loss = step(window)
        parts = {
            name: (total[0] - before.get(name, [0.0])[0], total[1] - before.get(name, [0.0, 0])[1])
            for name, total in trainer.state.loss_totals.items()
        }
        steps.append({"all": loss, **{name: total / clips for name, (total, clips) in parts.items() if clips}})
        return loss

    trainer._step = noted
    if resume is not None:
        checkpoint = find_checkpoint(resume)
        saved = definition.model_class.from_pretrained(checkpoint, dtype=torch.float64)
        trainer.bare_model.load_state_dict(saved.state_dict())
        trainer.resume(checkpoint, read_loop_state(checkpoint))
    if sharding is None and not recipe.save_steps:  # the tests do not read the checkpoints
        trainer._save = lambda name, is_averaged=False: None
    run.write_history = run.draw_curves = lambda history: None
    trainer.fit()
    leave(trainer, folder, steps=steps)


def _toy_config(task: str, method: str | None) -> Any:
    """Return the configuration of a small model without dropout."""
    if task == "ra_ssu":
        # The tower of frames is trained in the second epoch.
        return small_config(**NO_DROPOUT, unfreeze_vision_epoch=1, max_description_length=6)
    dropouts = ("attention_dropout", "branch_dropout", "head_dropout", "router_noise_std")
    quiet: dict[str, Any] = dict.fromkeys(dropouts, 0.0)
    if method == "stg_cma":
        quiet |= {"event_head_dropout": 0.0, "interaction_options": {"drop_path": 0.0}}
    shallow = {tower: {"depths": (1, 1, 1, 1)} for tower in ("vision_config", "audio_config")}
    agreement = {"agreement_loss_weight": 0.1} if method is None else {}
    return CaeAvConfig.from_preset(
        task, size="toy", method=method, num_frames=3, head_hidden_size=32, **agreement, **quiet, **shallow
    )


def leave(trainer: Trainer, folder: Path, **found) -> None:
    weights = get_model_state_dict(trainer.bare_model, options=StateDictOptions(full_state_dict=True))
    shares = [parameter for parameter in trainer.bare_model.parameters() if isinstance(parameter, DTensor)]
    if trainer.accelerator.is_main_process:
        torch.save(weights, folder / "weights.pt")
        found["here"] = sum(share.to_local().numel() for share in shares)
        found |= {"processes": trainer.accelerator.num_processes, "history": trainer.state.history}
        (folder / "found.json").write_text(json.dumps(found))


def everything(folder: Path, processes: int) -> None:
    tiny(folder / "tiny", processes)
    for name, (task, method) in JOBS.items():
        toy_task(task, folder / name, processes, method=method)


def sharded(folder: Path, processes: int, name: str) -> None:
    task, sharding, max_steps = SHARDED[name]
    toy_task(task, folder / name, processes, max_steps, sharding)


KILLED_RECIPE = {"epochs": 2, "accumulation_steps": 1, "save_steps": 1}


def killed(folder: Path, processes: int) -> None:
    """Train the tiny model, four clips per step, killed in the fourth of six steps of the first epoch."""
    recipe = tiny_recipe(batch_size=4 // processes, **KILLED_RECIPE)
    model = tiny_model(dropout=0.0, batch_norm=False)
    trainer = tiny_trainer(folder / "killed", recipe, train=TinyData(22), model=model)
    backward = trainer.accelerator.backward

    def fourth(loss):
        return os.kill(os.getpid(), signal.SIGKILL) if trainer.state.step == 3 else backward(loss)

    trainer.accelerator.backward = fourth
    trainer.fit()


def start(number: int, function: Callable[..., None], *arguments, status: int = 0) -> Callable[[], None]:
    """Call a function on `number` distributed processes; return a function that waits and checks their exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(number):
        if not (child := os.fork()):
            code = 1
            try:
                os.environ["ACCELERATE_USE_CPU"] = "true"
                if number > 1:
                    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
                    os.environ.update({name: str(value) for name, value in place.items()})
                    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
                function(*arguments)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)

    def wait() -> None:
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if set(codes) != {status}:
            sys.exit(f"{function.__name__} on {number} processes: exit codes {codes}")

    return wait


def main(folder: str) -> None:
    torch.set_num_threads(1)
    one, two = Path(folder) / "one", Path(folder) / "two"
    wait_for_one = start(1, everything, one, 1)
    start(2, everything, two, 2)()
    for name in SHARDED:
        start(2, sharded, two, 2, name)()
    start(2, killed, two, 2, status=-signal.SIGKILL)()
    wait_for_one()


if __name__ == "__main__":
    main(*sys.argv[1:])
