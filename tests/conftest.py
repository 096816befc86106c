"""Shared by all tests."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState


# The tests' tensors are too small to share: more threads would only wait for each other.
torch.set_num_threads(1)

# DeepSpeed, which Accelerate imports where it is installed, otherwise says on standard output that it sees no GPU.
os.environ["DS_ACCELERATOR"] = "cpu"


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps the precision of the first accelerator for the whole process."""
    yield
    AcceleratorState._reset_state()
