"""
Measure the cost of a method relative to its bare towers: forward pass, training step, peak memory.

    python benchmarks/throughput.py --out throughput.json
    python benchmarks/throughput.py --method dg_sct

The floor is the forward pass of the same two towers in timm and Transformers; a tower that reads both frames and sound
runs twice. The limit by arithmetic is the time that the multiply-accumulates of matrix products, convolutions and
attention alone would take at the rate of large products, measured in the same run. Floor and model alternate in one
process, so that drifts of the machine's speed affect both, and the ratio is the median of the ratios per turn. Caption
features are inputs, as in training, where each caption is encoded once. Peak memory is measured in a process per case:
resident memory on a CPU, including libraries, allocated memory on a GPU.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from machine import peak_memory, processor_name
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import ClapAudioModel

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization


CASES = ("floor forward", "model forward", "model training step")


@dataclass(frozen=True)
class Settings:
    """Model, inputs and device of a measurement."""

    task: str
    size: str
    method: str | None
    formulation: str | None
    device: str
    threads: int
    batch_size: int
    frames: int
    repeats: int
    seed: int


def make_config(settings: Settings) -> CaeAvConfig:
    """Return the preset; a method's own formulation unless another is asked for."""
    values = {} if settings.formulation is None else {"formulation": settings.formulation}
    return CaeAvConfig.from_preset(settings.task, settings.size, method=settings.method, **values)


def bare_tower(vision: Any, image_size: int | tuple[int, ...]) -> SwinTransformer | SwinTransformerV2:
    """Build a tower of frames in timm."""
    classes = {"cae_av_vision": SwinTransformerV2, "cae_av_swin": SwinTransformer}
    return classes[vision.model_type](
        img_size=image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.embed_dim,
        depths=tuple(vision.depths),
        num_heads=tuple(vision.num_heads),
        window_size=vision.window_size,
        num_classes=0,
    )


def make_floor(config: CaeAvConfig, inputs: dict[str, torch.Tensor], device: str) -> Callable[[], Any]:
    """Return the forward pass of the two towers without this package's layers."""
    vision, audio = config.vision_config, config.audio_config
    swin = bare_tower(vision, vision.image_size).eval().to(device)
    pixels, mels = (inputs[name].flatten(0, 1) for name in ("pixel_values_videos", "input_features"))
    if config.shared_tower:
        images = mels.expand(-1, vision.num_channels, -1, -1)
        listener = bare_tower(vision, tuple(images.shape[-2:])).eval().to(device)
        return lambda: (swin.forward_features(pixels), listener.forward_features(images))
    htsat = ClapAudioModel(audio).eval().to(device)
    return lambda: (swin.forward_features(pixels), htsat(input_features=mels))


def make_inputs(config: CaeAvConfig, settings: Settings) -> dict[str, torch.Tensor]:
    """Draw random inputs of the right sizes, including caption features where the model reads captions."""
    torch.manual_seed(settings.seed)
    shape = (settings.batch_size, settings.frames)
    audio, text, size = config.audio_config, config.text_config, config.vision_config.image_size
    captions = (settings.batch_size, text.context_length, text.hidden_size)
    inputs = {
        "pixel_values_videos": torch.randn(*shape, 3, size, size),
        "input_features": 15 * torch.randn(*shape, 1, *audio.spectrogram_size) - 30,
        "labels": torch.randint(0, config.num_labels + 1, shape),
    }
    if config.use_case:
        inputs |= {f"{name}_caption_embeds": torch.randn(captions) for name in ("visual", "audio")}
    return {name: value.to(settings.device) for name, value in inputs.items()}


def make_cases(settings: Settings, names: tuple[str, ...], precision: str) -> dict[str, Callable[[], Any]]:
    """Build a function to time for each of `names`."""
    torch.set_num_threads(settings.threads)
    config = make_config(settings)
    inputs = make_inputs(config, settings)
    labels = inputs.pop("labels")
    cases: dict[str, Callable[[], Any]] = {}

    def autocast() -> contextlib.AbstractContextManager:
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16)

    if "floor forward" in names:
        towers = make_floor(config, inputs, settings.device)

        @torch.inference_mode()
        def floor() -> None:
            with autocast():
                towers()

        cases["floor forward"] = floor
    if {"model forward", "model training step"} & set(names):
        model = CaeAvForEventLocalization(config).eval().to(settings.device)
        if "model forward" in names:

            @torch.inference_mode()
            def forward() -> None:
                model.eval()
                with autocast():
                    model(**inputs)

            cases["model forward"] = forward
        if "model training step" in names:
            optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)

            def step() -> None:
                model.train()
                with autocast():
                    loss = model(**inputs, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            cases["model training step"] = step
    return cases


def seconds(function: Callable[[], Any], device: str) -> float:
    """Measure one call in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matrix_rate(settings: Settings, precision: str) -> float:
    """Return the multiply-accumulates a second of large matrix products, the best of ten."""
    side, dtype = 2048, torch.float32 if precision == "fp32" else torch.bfloat16
    left, right = (torch.randn(side, side, device=settings.device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    return side**3 / min(seconds(lambda: torch.mm(left, right), settings.device) for _ in range(10))


def multiply_accumulates(function: Callable[[], Any]) -> float:
    """Count the multiply-accumulates of the matrix products, convolutions and attention in one call."""
    # Without the inference mode: in it, the counter's hooks fail on modules that get a parameter as an input.
    function = getattr(function, "__wrapped__", function)
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


def measure_time(settings: Settings, precision: str) -> dict[str, Any]:
    """Measure the median seconds of each case and its median ratio to the floor; the cases take turns."""
    cases = make_cases(settings, CASES, precision)
    # Counting is also the warm-up.
    work = {name: multiply_accumulates(cases[name]) for name in tqdm(cases, desc=f"{precision}: warm-up", leave=False)}
    rate = matrix_rate(settings, precision)
    turns = []
    for _ in tqdm(range(settings.repeats), desc=f"{precision}: timing", unit="turn", leave=False):
        turns.append({name: seconds(function, settings.device) for name, function in cases.items()})
    floor = [turn["floor forward"] for turn in turns]
    return {
        name: {
            "seconds": statistics.median(turn[name] for turn in turns),
            "ratio": statistics.median(turn[name] / base for turn, base in zip(turns, floor, strict=True)),
            "gmac": work[name] / 1e9,
            "limit_seconds": work[name] / rate,
            "all_seconds": [turn[name] for turn in turns],
        }
        for name in cases
    }


def measure_memory(arguments: tuple[Settings, str, str]) -> float:
    """Measure the peak memory of one case in GB; call it in a separate process."""
    settings, name, precision = arguments
    function = make_cases(settings, (name,), precision)[name]
    for _ in range(2):
        function()
    return peak_memory(settings.device)


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Describe the processor and library versions of the measurement."""
    machine = {
        "processor": processor_name(),
        "threads": settings.threads,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    if settings.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(settings.device)
    return machine


def report(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    lines = [f"{'':28}{'seconds':>10}{'x floor':>10}{'limit':>10}{'GMAC':>10}{'peak GB':>10}"]
    for precision, cases in result["precisions"].items():
        for name, values in cases.items():
            lines.append(
                f"{precision + ' ' + name:28}{values['seconds']:10.3f}{values['ratio']:10.2f}"
                f"{values['limit_seconds']:10.3f}{values['gmac']:10.1f}{values['peak_gb']:10.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ave")
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--method", help="interaction method (default: CAE-AV)")
    parser.add_argument("--formulation", choices=("paper", "official"), help="default: the one of the method's preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, default=10, help="frames per clip")
    parser.add_argument("--repeats", type=int, default=5, help="turns; each times floor and model once")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args())
    precisions, out = arguments.pop("precisions"), arguments.pop("out")
    settings = Settings(**arguments)
    result: dict[str, Any] = {"settings": vars(settings), "machine": describe_machine(settings), "precisions": {}}
    for precision in precisions:
        cases = measure_time(settings, precision)
        for name in tqdm(CASES, desc=f"{precision}: peak memory", leave=False):
            with get_context("spawn").Pool(1) as pool:
                cases[name]["peak_gb"] = pool.map(measure_memory, [(settings, name, precision)])[0]
        result["precisions"][precision] = cases
    print(report(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
