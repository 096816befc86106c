"""Shared by all tests."""

import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

# The tests' tensors are too small to share: more threads would only wait for each other.
torch.set_num_threads(1)
