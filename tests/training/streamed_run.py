"""
Program that trains on streamed rows, on two processes and, for comparison, on one.

    streamed_run.py FOLDER

FOLDER holds the data sets to stream: `raw`, `prepared` and `questions`.
"""

import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import torch

from tests.training.distributed_run import start, toy_task


STEPS = 5


def train(folder: Path, job: str, processes: int, **switches) -> None:
    """Train on ten clips of event localization, three steps per epoch, or on questions about two clips, one step."""
    task, data = ("avqa", "questions") if job == "questions" else ("ave", job.removesuffix("_killed"))
    toy_task(
        task,
        folder / str(processes) / job,
        processes,
        max_steps=STEPS,
        streaming=True,
        shuffle_buffer=4,
        data=str(folder / data),
        **switches,
    )


def everything(folder: Path, processes: int) -> None:
    for job in ("raw", "prepared", "questions"):
        train(folder, job, processes)


def killed(folder: Path, processes: int) -> None:
    """Train until killed after the first step of the second epoch."""
    train(folder, "prepared_killed", processes, save_steps=1, killed_at=4)


def main(name: str) -> None:
    torch.set_num_threads(1)
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    folder = Path(name)
    wait_for_one = start(1, everything, folder, 1)
    start(2, everything, folder, 2)()
    start(2, killed, folder, 2, status=-signal.SIGKILL)()
    wait_for_one()


if __name__ == "__main__":
    main(*sys.argv[1:])
