"""Memory of a conversion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.official_state import official_state, small_config, small_model


CONVERT = r"""
import re
import sys
from pathlib import Path

from caeav_hf.cli import main
from caeav_hf.conversion import from_official
from caeav_hf.processing import CaeAvProcessor


def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


before = peak()
assert main(["convert", sys.argv[1], "--task", "ave", "--out", sys.argv[2], *sys.argv[3:]]) == 0
print("bytes", peak() - before)
"""
# The checkpoint has no text tower, so a small one is enough.
SMALL_TEXT = "text_config={'num_hidden_layers': 1, 'vocab_size': 514}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux tells it")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converting_takes_at_most_twice_the_checkpoint(suffix: str, tmp_path: Path) -> None:
    vision = {"image_size": 64, "window_size": 4, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}
    model = small_model(small_config("ave", vision_config=vision))
    state = {key: value.contiguous() for key, value in official_state(model).items()}
    checkpoint = tmp_path / f"best{suffix}"
    if suffix == ".pth":
        torch.save(state, checkpoint)
    else:
        save_file(state, checkpoint)
    size = checkpoint.stat().st_size
    assert size > 100e6
    arguments = ["--vision", "window_size=4", "--audio", "window_size=4", "tile_seconds=1"]
    arguments += ["--config", "head_num_heads=4", "mask_size=64", SMALL_TEXT]
    finished = subprocess.run(
        [sys.executable, "-c", CONVERT, str(checkpoint), str(tmp_path / "out"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    taken = int(finished.stdout.split("bytes")[-1])
    print(f"{taken / size:.2f} of the checkpoint's {size / 1e6:.0f} MB")
    assert taken <= 2 * size
