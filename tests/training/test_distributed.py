"""Two processes train and score as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caeav_hf.training.checkpointing import find_checkpoint
from tests.training.distributed_run import main


PROGRAM = Path(__file__).with_name("distributed_run.py")


def run_here(folder, batch_size, capsys):
    capsys.readouterr()
    main(str(folder), str(batch_size))
    return read(folder, capsys.readouterr().out)


def run_apart(folder, batch_size, processes):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(folder), str(batch_size)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return read(folder, done.stdout)


def read(folder, printed):
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    return json.loads(line), torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed training")
def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path, capsys):
    one, weights_of_one = run_here(tmp_path / "one", 4, capsys)
    two, weights_of_two = run_apart(tmp_path / "two", 2, 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, tensor in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=1e-4, atol=1e-6)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert (second["step"], second["train/dropped_clips"]) == (first["step"], first["train/dropped_clips"])
        assert (second["eval/clips"], second["eval/dropped_clips"]) == (7, 0)
        assert second["eval/error"] == pytest.approx(first["eval/error"], rel=1e-4)
        assert second["train/loss"] == pytest.approx(first["train/loss"], rel=1e-4)
    # Every process left its own random generators to resume from.
    state = find_checkpoint(tmp_path / "two") / "training_state"
    assert {path.name for path in state.glob("random-*.pt")} == {"random-0.pt", "random-1.pt"}
