"""The machine of a measurement: its processor, and the peak memory of a process."""

import contextlib
import platform
import resource
import sys
from pathlib import Path

import torch


def reset_peak_memory(device: str) -> None:
    """Reset what `peak_memory` returns; on a CPU this works only on Linux."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> float:
    """Return the peak memory of this process in GB: resident on a CPU, allocated on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    with contextlib.suppress(OSError):
        # Unlike getrusage, this excludes what the parent held when it started the process.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def processor_name() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
