"""The default device."""

import torch


def default_device() -> torch.device:
    """Return the first accelerator, or the CPU if there is none, whatever PyTorch was built for."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
