"""
Memory of training: computed from the sizes of each preset, or measured with each memory-saving switch of the recipes.

    python benchmarks/memory.py
    python benchmarks/memory.py --measure --repeats 2

The computed memory is the constant part, in float32 with Adam: weights, gradients and two moments of trained
parameters, and the weights of the frozen towers that a step reads; activations are extra. Measured are steps of one
clip with stored caption features and towers kept in memory as training does, each set of switches in a separate
process: resident memory on a CPU, including libraries, allocated memory on a GPU.
"""

import argparse
import gc
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from machine import peak_memory, reset_peak_memory
from throughput import Settings, describe_machine, make_config, make_inputs, seconds
from tqdm.auto import tqdm

from caeav_hf import CaeAvConfig
from caeav_hf.command_line import tune_memory
from caeav_hf.task import get_task, tasks
from caeav_hf.training.checkpointing import CheckpointStore
from caeav_hf.training.frozen_weights import compact_frozen_towers
from caeav_hf.training.recipe import Recipe
from caeav_hf.training.schedule import build_optimizer, step_in_backward


SWITCHES = (
    "",
    "--gradient-checkpointing",
    "--mixed-precision bf16",
    "--mixed-precision bf16 --gradient-checkpointing",
    "--gradient-checkpointing --optimizer-in-backward",
    "--mixed-precision bf16 --gradient-checkpointing --optimizer-in-backward",
)


def compute(task: str, size: str) -> dict[str, float]:
    """Compute millions of parameters, and GB on one process and on each of four with DDP and with FSDP."""
    with torch.device("meta"):
        model = get_task(task).model_class(CaeAvConfig.from_preset(task, size))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    # FSDP keeps the text tower in memory.
    read = frozen - sum(parameter.numel() for parameter in model.cae_av.text_tower.parameters())
    return {
        "trained": trained / 1e6,
        "frozen": frozen / 1e6,
        "one": (16 * trained + 4 * read) / 1e9,
        # DDP also copies gradients to communication buckets.
        "DDP": (20 * trained + 4 * read) / 1e9,
        "FSDP": (16 * trained / 4 + 4 * frozen) / 1e9,
    }


def measure(arguments: tuple[Settings, str]) -> tuple[float, float, float]:
    """Return GB before the first step, peak GB, and seconds of the fastest step except the first."""
    settings, switches = arguments
    tune_memory()  # as the commands do
    torch.set_num_threads(settings.threads)
    config = make_config(settings)
    inputs = make_inputs(config, settings)
    model = get_task(settings.task).model_class(config).to(settings.device).train()
    checkpointing = "gradient-checkpointing" in switches
    if checkpointing:
        model.gradient_checkpointing_enable()  # the name that all supported versions have
    dtype = torch.bfloat16 if "bf16" in switches else None
    optimizer = build_optimizer(model, Recipe())
    if "optimizer-in-backward" in switches:
        step_in_backward(optimizer)

    def step() -> None:
        device = torch.device(settings.device).type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=not checkpointing):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with TemporaryDirectory() as folder:
        frozen_file = CheckpointStore(Path(folder), Accelerator()).keep_frozen(model)
        with compact_frozen_towers(model, frozen_file, dtype=dtype, reads_text=False):
            gc.collect()
            reset_peak_memory(settings.device)
            before = peak_memory(settings.device)
            # The first step allocates optimizer state and is not timed.
            times = [seconds(step, settings.device) for _ in range(1 + settings.repeats)]
            return before, peak_memory(settings.device), min(times[1:])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure event localization instead of computing")
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--formulation", choices=("paper", "official"), help="to measure; default: the preset's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2, help="timed steps")
    arguments = parser.parse_args()
    if not arguments.measure:
        print(f"{'':30}{'trained':>12}{'frozen':>12}{'one process':>14}{'DDP on 4':>12}{'FSDP on 4':>12}")
        for task in tasks():
            values = compute(task, arguments.size)
            parameters = "".join(f"{values[name]:10.1f} M" for name in ("trained", "frozen"))
            print(f"{task:30}{parameters}" + "".join(f"{values[name]:9.2f} GB" for name in ("one", "DDP", "FSDP")))
        return
    settings = Settings(
        task="ave",
        size=arguments.size,
        method=None,
        formulation=arguments.formulation,
        device=arguments.device,
        threads=arguments.threads,
        batch_size=1,
        frames=10,
        repeats=arguments.repeats,
        seed=0,
    )
    print(describe_machine(settings))
    for switches in tqdm(SWITCHES, desc="switches", leave=False):
        with get_context("spawn").Pool(1) as pool:
            before, peak, best = pool.map(measure, [(settings, switches)])[0]
        tqdm.write(f"{switches or 'none':72}{before:8.2f} GB before, {peak:6.2f} GB peak, {best:8.2f} s per step")


if __name__ == "__main__":
    main()
