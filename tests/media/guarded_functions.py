"""What a decoder may do wrong, as functions that run in a guarded worker."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from caeav_hf.media.containers import MediaFile
from caeav_hf.media.guard import guarded


@guarded()
def core_bytes(media: MediaFile) -> int:
    return resource.getrlimit(resource.RLIMIT_CORE)[0]


@guarded()
def take_memory(media: MediaFile, megabytes: int) -> int:
    return int(np.ones(megabytes * 1_000_000, np.uint8)[-1])


@guarded()
def compute_for_ever(media: MediaFile) -> None:
    while True:
        pass


@guarded()
def wait(media: MediaFile) -> None:
    time.sleep(600)


@guarded()
def crash(media: MediaFile) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@guarded()
def leave(media: MediaFile) -> None:
    os._exit(3)


@guarded()
def fail(media: MediaFile) -> None:
    raise KeyError("moov")


@guarded()
def write(media: MediaFile, path: str) -> None:
    Path(path).write_text("text")


@guarded()
def process_id(media: MediaFile) -> int:
    return os.getpid()


@guarded()
def lie(media: MediaFile, content: bytes) -> None:
    """Send something else than a message, as a worker that was taken over might."""
    for number in range(3, 10):
        try:
            os.write(number, content)
        except OSError:
            continue
    os._exit(0)


@guarded()
def loaded(media: MediaFile, names: list[str]) -> list[str]:
    return [name for name in names if name in sys.modules]
