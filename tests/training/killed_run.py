"""
Program with tiny trainings, each of which kills itself with SIGKILL at a given moment, for tests to resume.

    killed_run.py FOLDER MOMENT [FOLDER MOMENT ...]

Each run is a process, forked after importing the libraries, which takes the most time.
"""

import os
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.training.tiny_training import TinyData, tiny_recipe, tiny_trainer


def kill_myself(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder: str, moment: str) -> None:
    recipe = tiny_recipe(save_steps=5, max_steps=10, epochs=9)
    train = TinyData(14)
    trainer = tiny_trainer(folder, recipe, train=train)
    if moment == "between checkpoints":
        step = trainer._step

        def step_seven(window):
            return kill_myself() if trainer.state.step == 7 else step(window)

        trainer._step = step_seven
    elif moment == "while a checkpoint is written":
        save = torch.save

        def save_second(content, path, **options):
            if trainer.state.step > 5 and str(path).endswith("random-0.pt"):
                kill_myself()
            save(content, path, **options)

        torch.save = save_second
    elif moment == "before a checkpoint is linked":
        link = trainer.store._link
        trainer.store._link = lambda name, target: kill_myself() if trainer.state.step > 5 else link(name, target)
    elif moment == "between last and best":
        trainer.store.link_best = lambda state: kill_myself() if state.step > 5 else None
    trainer.fit()


def main(*runs: str) -> None:
    torch.set_num_threads(1)
    for folder, moment in zip(runs[::2], runs[1::2], strict=True):
        if not (child := os.fork()):
            try:
                run(folder, moment)
            finally:
                os._exit(1)  # the kill did not happen
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"{moment}: was not killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
