"""
Compare the package's products with PyTorch's in the sizes of the full `ave` model: linear maps in float32 (oneDNN
against MKL), linear maps with a bias and with GELU in bfloat16, and attention within windows in bfloat16 (batched
products against the fused kernel).

    python benchmarks/products.py

Forward pass, and with the backward pass, in turns: billions of floating-point operations of linear maps in float32 a
second of processor time, or milliseconds of the others, and the median of the ratios per turn. Memory is tuned as the
commands tune it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import processor_name
from torch import Tensor, nn

from caeav_hf.command_line import tune_memory
from caeav_hf.towers.linear import Linear, hidden_layer, linear
from caeav_hf.towers.windows import biased_attention


# Rows, channels in, channels out: stages 1 and 3 of Swin-V2 and HTS-AT for ten frames, and a map over tokens.
SIZES = [
    (23040, 192, 768),
    (1440, 768, 3072),
    (1440, 3072, 768),
    (40960, 96, 384),
    (2560, 384, 1536),
    (320, 2304, 4096),
]
# Frames, windows times heads, tokens of a window and channels of a head: stages 1 and 3 of both towers for ten frames.
WINDOWS = [(10, 96, 144, 32), (10, 24, 144, 32), (10, 256, 64, 24), (10, 64, 64, 24)]


def measure(function: Callable[..., Tensor], inputs: list[Tensor], *constants: Tensor) -> float:
    """Return the processor seconds of one call, with its backward pass if the inputs require gradients."""
    start = time.process_time()
    result = function(*inputs, *constants)
    if inputs[0].requires_grad:
        torch.autograd.grad(result, inputs, torch.ones_like(result))
    return time.process_time() - start


def compare(
    functions: list[Callable[..., Tensor]], inputs: list[Tensor], constants: list[Tensor], repeats: int
) -> tuple[list[float], float]:
    """Return the median processor seconds of two functions in turns, and the median ratio of first to second."""
    # The first turn is the warm-up.
    turns = [[measure(function, inputs, *constants) for function in functions] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*turns, strict=True)], statistics.median(a / b for a, b in turns)


def hidden_states(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(states, weight, bias))


def package_hidden_states(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    layer = Linear(weight.shape[1], weight.shape[0], device="meta").requires_grad_(False)
    layer.weight, layer.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return hidden_layer(layer, nn.GELU(), states)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)


def batched_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return biased_attention(query, key, value, bias, 1.0)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    tune_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(processor_name(), "torch", torch.__version__)
    print(f"{'rows':>8}{'in':>6}{'out':>6}{'':>12}{'PyTorch':>10}{'package':>10}{'ratio':>8}")
    for rows, inputs, outputs in SIZES:
        tensors = [torch.randn(rows, inputs), torch.randn(outputs, inputs)]
        for backward in (False, True):
            tensors = [tensor.requires_grad_(backward) for tensor in tensors]
            times, ratio = compare([F.linear, linear], tensors, [], arguments.repeats)
            operations = 2 * rows * inputs * outputs * (3 if backward else 1) / 1e9
            name = "and backward" if backward else "forward"
            rates = "".join(f"{operations / value:10.0f}" for value in times)
            print(f"{rows:8}{inputs:6}{outputs:6}{name:>13}{rates}{ratio:8.2f}")
    for rows, inputs, outputs in SIZES[:-1]:
        tensors = [torch.randn(size).bfloat16() for size in ((rows, inputs), (outputs, inputs), (outputs,))]
        for name, functions in (("bias", [F.linear, linear]), ("GELU", [hidden_states, package_hidden_states])):
            times, ratio = compare(functions, tensors, [], arguments.repeats)
            seconds = "".join(f"{1e3 * value:10.1f}" for value in times)
            print(f"{rows:8}{inputs:6}{outputs:6}{'bf16, ' + name:>13}{seconds}{ratio:8.2f}")
    print(f"{'windows':>20}{'':>13}{'PyTorch':>10}{'package':>10}{'ratio':>8}")
    for shape in WINDOWS:
        tensors = [torch.randn(shape).bfloat16() for _ in range(3)]
        bias = torch.randn(1, shape[1], shape[2], shape[2]).bfloat16()
        for backward in (False, True):
            tensors = [tensor.requires_grad_(backward) for tensor in tensors]
            times, ratio = compare([fused_attention, batched_attention], tensors, [bias], arguments.repeats)
            name = "and backward" if backward else "forward"
            print(f"{shape!s:>20}{name:>13}" + "".join(f"{1e3 * value:10.1f}" for value in times) + f"{ratio:8.2f}")


if __name__ == "__main__":
    main()
