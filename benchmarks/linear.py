"""
Compare linear maps in float32 by the package (oneDNN) and by PyTorch (MKL), in the sizes of the full `ave` model.

    python benchmarks/linear.py

Forward pass, and both with the backward pass to states and weight, in turns: billions of floating-point operations a
second of processor time, and the median of the ratios per turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import processor_name
from torch import Tensor

from caeav_hf.towers.linear import linear


# Rows, channels in, channels out: stages 1 and 3 of Swin-V2 and HTS-AT for ten frames, and a map over tokens.
SIZES = [
    (23040, 192, 768),
    (1440, 768, 3072),
    (1440, 3072, 768),
    (40960, 96, 384),
    (2560, 384, 1536),
    (320, 2304, 4096),
]


def measure(function: Callable[..., Tensor], states: Tensor, weight: Tensor, backward: bool) -> float:
    """Return the processor seconds of one call."""
    start = time.process_time()
    result = function(states, weight)
    if backward:
        torch.autograd.grad(result, (states, weight), torch.ones_like(result))
    return time.process_time() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(processor_name(), "torch", torch.__version__)
    print(f"{'rows':>8}{'in':>6}{'out':>6}{'':>12}{'PyTorch':>10}{'package':>10}{'ratio':>8}")
    for rows, inputs, outputs in SIZES:
        states, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        for backward in (False, True):
            states.requires_grad_(backward)
            weight.requires_grad_(backward)
            turns = [
                [measure(function, states, weight, backward) for function in (F.linear, linear)]
                for _ in range(arguments.repeats + 1)
            ][1:]  # the first is the warm-up
            operations = 2 * rows * inputs * outputs * (3 if backward else 1) / 1e9
            rates = [operations / statistics.median(times) for times in zip(*turns, strict=True)]
            ratio = statistics.median(pytorch / package for pytorch, package in turns)
            name = "and backward" if backward else "forward"
            print(f"{rows:8}{inputs:6}{outputs:6}{name:>13}{rates[0]:9.0f}{rates[1]:10.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
