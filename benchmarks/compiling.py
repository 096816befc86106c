"""
Measure `torch.compile` of the encoder with inductor against eager mode: forward pass and training step, compile time.

    python benchmarks/compiling.py --out compiling.json
    python benchmarks/compiling.py --size toy --precisions fp32

One model runs compiled and uncompiled in turns; the gain is the median of the ratios per turn. "frozen" is inductor's
`freezing`, which takes the weights as constants and so only serves inference. The first call compiles, without
inductor's caches; the difference to a later call is the compile time. The outputs of both are compared.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from scaling import FORWARD, STEP, Case, Runner
from throughput import Settings, add_model_options, describe_machine, seconds
from torch._inductor import config as inductor
from tqdm.auto import tqdm

from caeav_hf.command_line import tune_memory


COMPILED, FROZEN = "compiled", "compiled, frozen"
# What a training step changes cannot be a constant of its graph.
CASES = ((FORWARD, COMPILED), (FORWARD, FROZEN), (STEP, COMPILED))


def measure(settings: Settings, precision: str, name: str, way: str) -> dict[str, Any]:
    """
    Return the seconds of both, the gain, the seconds of compiling and, of a forward pass, the relative difference of
    its logits.

    Args:
        settings: Model, sizes, device and number of turns.
        precision: `"fp32"` or `"bf16"`.
        name: `FORWARD` or `STEP`.
        way: `COMPILED` or `FROZEN`.
    """
    torch._dynamo.reset()
    runner = Runner(settings, precision)
    runner.model.to(settings.device)
    run = runner.prepare(Case(name, settings.batch_size, settings.frames))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    runner.model.base_model.keep_constants(dtype)
    expected = run()  # The first step makes the optimizer's state.
    runner.model.base_model.compile()
    with inductor.patch(freezing=way == FROZEN, force_disable_caches=True):
        first = seconds(run, settings.device)
        turns = []
        for _ in tqdm(range(settings.repeats), desc=f"{precision} {name}, {way}", unit="turn", leave=False):
            with torch.compiler.set_stance("force_eager"):
                eager = seconds(run, settings.device)
            turns.append((eager, seconds(run, settings.device)))
        found = run() if name == FORWARD else None
    compiled = statistics.median(one for _, one in turns)
    off = None
    if found is not None:
        off = float((found.event_logits - expected.event_logits).norm() / expected.event_logits.norm())
    return {
        "eager_seconds": statistics.median(one for one, _ in turns),
        "compiled_seconds": compiled,
        "gain": statistics.median(one / two for one, two in turns),
        "compile_seconds": first - compiled,
        "difference": off,
        "all_seconds": turns,
    }


def report(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    lines = [f"{'':38}{'eager, s':>10}{'compiled, s':>13}{'gain':>8}{'compiling, s':>14}{'difference':>12}"]
    for precision, cases in result["precisions"].items():
        for name, values in cases.items():
            off = "" if values["difference"] is None else f"{values['difference']:.0e}"
            lines.append(
                f"{precision + ' ' + name:38}{values['eager_seconds']:10.3f}{values['compiled_seconds']:13.3f}"
                f"{values['gain']:8.2f}{values['compile_seconds']:14.1f}{off:>12}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    tune_memory()  # as the commands do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, default=10, help="frames per clip")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--cases", nargs="+", choices=(FORWARD, STEP), default=[FORWARD, STEP])
    parser.add_argument("--repeats", type=int, default=3, help="turns; each times both once")
    arguments = vars(parser.parse_args())
    precisions, names, out = (arguments.pop(name) for name in ("precisions", "cases", "out"))
    settings = Settings(task="ave", **arguments)
    torch.set_num_threads(settings.threads)
    result: dict[str, Any] = {"settings": vars(settings), "machine": describe_machine(settings), "precisions": {}}
    for precision in precisions:
        cases = result["precisions"][precision] = {}
        for name, way in CASES:
            if name not in names:
                continue
            cases[f"{name}, {way}"] = measure(settings, precision, name, way)
            # A case takes many minutes, so a run that is stopped keeps those before.
            if out is not None:
                out.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
