"""Shared by all tests."""

import torch


# The tests' tensors are too small to share: more threads would only wait for each other.
torch.set_num_threads(1)
