"""
Run as a program: a captioning job that is killed with SIGKILL twice.

    killed_job.py URL DATASET OUT

Each job is a separate process, forked from one that has loaded the libraries. The first is killed from outside once
there are 50 captions, the second while it writes a line of the journal. It starts after a line on standard input.
"""

import os
import signal
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from caeav_hf.captioning.table import CaptionTable
from caeav_hf.cli import main


OPTIONS = ["--model", "omni", "--timeout", "0.3", "--backoff", "0.01", "--attempts", "4", "--concurrency", "8"]


def kill_while_writing(after: int) -> None:
    """Make the process kill itself when half of a line is on the disk."""
    record, written = CaptionTable.record, []

    def counting(table: CaptionTable, *arguments: object) -> None:
        record(table, *arguments)  # type: ignore[arg-type]
        written.append(arguments)
        if len(written) == after:
            with table.journal.path.open("ab") as file:
                file.write(b'{"clip": "never')
            os.kill(os.getpid(), signal.SIGKILL)

    CaptionTable.record = counting  # type: ignore[method-assign]


def run_and_kill(job: list[str], journal: Path, from_outside: bool) -> None:
    child = os.fork()
    if not child:
        try:
            if not from_outside:
                kill_while_writing(60)
            main(job)
        finally:
            os._exit(1)  # it is still alive
    while from_outside and os.waitpid(child, os.WNOHANG) == (0, 0):
        if journal.is_file() and journal.read_bytes().count(b"\n") >= 50:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.005)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        sys.exit("it was not killed")


if __name__ == "__main__":
    url, dataset, out = sys.argv[1:]
    sys.stdin.readline()
    for from_outside in (True, False):
        run_and_kill(
            ["caption", dataset, "--out", out, "--server", url, *OPTIONS], Path(f"{out}.journal"), from_outside
        )
