"""The kernels of one call on a GPU, by time and by kind; on a CPU, PyTorch's operators stand for them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from throughput import seconds


SMALL_KERNEL = 10e-6
# Kinds of kernels and of PyTorch's operators by their names; the first match counts.
KINDS = {
    "attention": r"flash|fmha|attention",
    "convolutions": r"convol|conv\dd|fprop|dgrad|wgrad",
    "matrix products": r"gemm|gemv|cutlass|xmma|nvjet|splitk|aten::(add|b|badd)?mm$|::_?linear",
    "optimizer": r"multi_tensor|adam",
    "copies": r"copy|memcpy|memset|cat(array|$)|aten::cat",
    "normalization": r"norm",
    "softmax": r"softmax",
    "reductions": r"reduce|aten::(sum|mean)",
    "element by element": r"elementwise|vectorized|triton_poi|aten::(add|mul|gelu|div|sub)_?$",
}


def trace(function: Callable[[], Any], device: str) -> tuple[list[tuple[str, float]], int]:
    """Return the name and the seconds of each kernel in one call, and the number of the host's launches."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    is_gpu = device.startswith("cuda")
    if is_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        seconds(function, device)
    if not is_gpu:  # An operator's own time stands for a kernel.
        operators = [(event.name, event.self_cpu_time_total / 1e6) for event in profiler.events()]
        return [(name, time) for name, time in operators if "::" in name], 0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return read_trace(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])


def read_trace(events: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, float]], int]:
    """Return the name and the seconds of each kernel and copy on the GPU, and the number of launches by the host."""
    on_gpu = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launches = sum(
        event.get("cat") in ("cuda_runtime", "cuda_driver") and "Launch" in event["name"] for event in events
    )
    return [(event["name"], event["dur"] / 1e6) for event in on_gpu], launches


def summarize_kernels(kernels: Sequence[tuple[str, float]], wall: float, top: int = 25) -> dict[str, Any]:
    """
    Add up kernels by name and by kind.

    Args:
        kernels: Name and seconds of each.
        wall: Seconds of the same call without the profiler.
        top: Number of names to return.

    Raises:
        RuntimeError: There are none.
    """
    if not kernels:
        raise RuntimeError("the profiler recorded no kernels; expected some, is its use of the GPU restricted?")
    total = sum(time for _, time in kernels)
    names: dict[str, list[float]] = {}
    kinds: dict[str, list[float]] = {}
    for name, duration in kernels:
        names.setdefault(name, []).append(duration)
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")
        kinds.setdefault(kind, []).append(duration)
    small = [time for _, time in kernels if time < SMALL_KERNEL]

    def rows(groups: dict[str, list[float]]) -> list[dict[str, Any]]:
        return [
            {"name": name[:160], "count": len(times), "seconds": sum(times), "share": sum(times) / total}
            for name, times in sorted(groups.items(), key=lambda item: -sum(item[1]))
        ]

    return {
        "kernels": len(kernels),
        "kernel_seconds": total,
        "busy_share": total / wall,
        "small_kernels": {
            "shorter_than_seconds": SMALL_KERNEL,
            "count": len(small),
            "share_of_kernel_seconds": sum(small) / total,
        },
        "kinds": rows(kinds),
        "top_kernels": rows(names)[:top],
    }
