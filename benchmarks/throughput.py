"""
Measure the cost of a method relative to its bare towers: forward pass, training step, peak memory.

    python benchmarks/throughput.py --out throughput.json
    python benchmarks/throughput.py --method dg_sct

The floor is the forward pass of the same two towers in timm and Transformers; a tower that reads both frames and sound
runs twice. The limit by arithmetic is the time that the multiply-accumulates of matrix products, convolutions and
attention alone would take at the rate of large products, measured in the same run. Floor and model alternate in one
process, so that drifts of the machine's speed affect both, and the ratio is the median of the ratios per turn. Caption
features are inputs, as in training, where each caption is encoded once; with autocast, frozen linear layers are kept
in its precision, as in training too. Peak memory is measured in a process per case: resident memory on a CPU,
including libraries, allocated memory on a GPU. On a CPU, memory is tuned for floor and model as this package's
commands tune it, see `caeav_hf.command_line.tune_memory`.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterable
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

from caeav_hf import command_line
from caeav_hf.task import get_task
from caeav_hf.training.frozen_weights import cast_linear_layers
from caeav_hf.training.recipe import Recipe
from caeav_hf.training.schedule import build_optimizer


CASES = ("floor forward", "model forward", "model training step")
# Their matrix products; all but fp32 by autocast.
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    fast_floor: bool = False


def make_config(settings: Settings) -> Any:
    """Return the preset; a method's own formulation unless another is asked for."""
    values = {} if settings.formulation is None else {"formulation": settings.formulation}
    config_class = get_task(settings.task, settings.method).config_class
    return config_class.from_preset(settings.task, settings.size, method=settings.method, **values)


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


def make_floor(
    config: Any, inputs: dict[str, torch.Tensor], device: str, fast_products: bool = False
) -> Callable[[], Any]:
    """Return the forward pass of the two towers without this package's layers, or with its products only."""

    def prepared(tower: torch.nn.Module) -> Any:
        if fast_products:
            # Older revisions do not have it.
            from caeav_hf.towers.linear import speed_up_linear_layers

            speed_up_linear_layers(tower)
        return tower.eval().to(device)

    vision, audio = config.vision_config, config.audio_config
    swin = prepared(bare_tower(vision, vision.image_size))
    pixels, mels = (inputs[name].flatten(0, 1) for name in ("pixel_values_videos", "input_features"))
    if config.shared_tower:
        images = mels.expand(-1, vision.num_channels, -1, -1)
        listener = prepared(bare_tower(vision, tuple(images.shape[-2:])))
        return lambda: (swin.forward_features(pixels), listener.forward_features(images))
    htsat = prepared(ClapAudioModel(audio))
    return lambda: (swin.forward_features(pixels), htsat(input_features=mels))


def make_inputs(config: Any, settings: Settings) -> dict[str, torch.Tensor]:
    """Draw random inputs and labels of the right sizes, caption features too where the model reads captions."""
    torch.manual_seed(settings.seed)
    batch_size, shape = settings.batch_size, (settings.batch_size, settings.frames)
    audio, text, num_labels = config.audio_config, config.text_config, config.num_labels
    captions = (batch_size, text.context_length, text.hidden_size)
    inputs = {
        "pixel_values_videos": torch.randn(*shape, 3, *config.vision_config.input_size),
        "input_features": 15 * torch.randn(*shape, 1, *audio.spectrogram_size) - 30,
    }
    if settings.task == "ave":
        inputs["labels"] = torch.randint(0, num_labels + 1, shape)
    elif settings.task == "avvp":
        inputs["labels"] = torch.randint(0, 2, (batch_size, num_labels)).float()
    elif settings.task in ("avs_s4", "avs_ms3"):
        inputs["labels"] = torch.randint(0, 2, (*shape, config.mask_size, config.mask_size), dtype=torch.int8)
    elif settings.task == "avqa":
        inputs["labels"] = torch.randint(0, num_labels, (batch_size,))
        inputs["question_ids"] = torch.randint(1, config.question_vocab_size, (batch_size, 14))
    else:
        raise SystemExit(f"--task: {settings.task} has no random labels; expected ave, avvp, avs_s4, avs_ms3 or avqa")
    if config.reads_captions:
        inputs |= {f"{name}_caption_embeds": torch.randn(captions) for name in ("visual", "audio")}
    return {name: value.to(settings.device) for name, value in inputs.items()}


def make_cases(settings: Settings, names: tuple[str, ...], precision: str) -> dict[str, Callable[[], Any]]:
    """Build a function to time for each of `names`."""
    # Revisions that commits.py compares may lack it.
    getattr(command_line, "tune_memory", lambda: None)()
    torch.set_num_threads(settings.threads)
    config = make_config(settings)
    inputs = make_inputs(config, settings)
    if "visual_caption_embeds" in inputs:
        config.use_text_tower = False  # training does not keep it in memory either
    towers = make_floor(config, inputs, settings.device, settings.fast_floor) if "floor forward" in names else None
    model = None
    if {"model forward", "model training step"} & set(names):
        model = get_task(settings.task, settings.method).model_class(config).eval().to(settings.device)
        if precision != "fp32":
            for tower in model.base_model.towers():
                cast_linear_layers(PRECISIONS[precision], tower)
    cases = bind_cases(towers, model, inputs, precision, settings.device)
    return {name: cases[name] for name in names}


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    """Return the context in which a model computes in one of `PRECISIONS`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=PRECISIONS[precision])


def bind_cases(
    towers: Callable[[], Any] | None,
    model: Any,
    inputs: dict[str, torch.Tensor],
    precision: str,
    device: str,
    capturable: bool = False,
) -> dict[str, Callable[[], Any]]:
    """
    Return the functions to time.

    Args:
        towers: Forward pass of the bare towers; `None` to leave its case out.
        model: The model, compiled or not; `None` to leave its cases out.
        inputs: Inputs of the model with labels.
        precision: Key of `PRECISIONS`. fp16 scales the loss.
        device: Device of all of them.
        capturable: Whether CUDA graphs can capture the training step.
    """
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    cases: dict[str, Callable[[], Any]] = {}

    if towers is not None:

        @torch.inference_mode()
        def floor() -> None:
            with autocast(precision, device):
                towers()

        cases["floor forward"] = floor
    if model is None:
        return cases

    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        with autocast(precision, device):
            model(**without_labels)

    optimizer = build_optimizer(model, Recipe(mixed_precision="no" if precision == "fp32" else precision))
    for group in optimizer.param_groups:
        group["capturable"] = capturable
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=precision == "fp16")

    def step() -> None:
        model.train()
        with autocast(precision, device):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return cases | {"model forward": forward, "model training step": step}


def seconds(function: Callable[[], Any], device: str) -> float:
    """Measure one call in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matrix_rate(device: str, precision: str, side: int = 2048) -> float:
    """Return the multiply-accumulates a second of large matrix products by the faster of PyTorch's libraries."""
    left, right = (torch.randn(side, side, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    products: list[Callable[[], Any]] = [lambda: torch.mm(left, right)]
    if device == "cpu" and precision == "fp32" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))
    return side**3 / min(seconds(product, device) for product in products for _ in range(11))


def linear_flops(states: torch.Size, weight: torch.Size, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Return the floating-point operations of a linear map that PyTorch's counter does not know."""
    return 2 * states.numel() * weight[0]


def multiply_accumulates(function: Callable[[], Any]) -> float:
    """Count the multiply-accumulates of the matrix products, convolutions and attention in one call."""
    # Without the inference mode: in it, the counter's hooks fail on modules that get a parameter as an input.
    function = getattr(function, "__wrapped__", function)
    mapping = {torch.ops.mkldnn._linear_pointwise: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return counter.get_total_flops() / 2


def measure_time(settings: Settings, precision: str) -> dict[str, Any]:
    """Measure the median seconds of each case and its median ratio to the floor; the cases take turns."""
    cases = make_cases(settings, CASES, precision)
    # Counting is the first half of the warm-up. In the second call too, memory that is kept still grows.
    work = {name: multiply_accumulates(cases[name]) for name in tqdm(cases, desc=f"{precision}: warm-up", leave=False)}
    rate = matrix_rate(settings.device, precision)
    take_turns(cases, range(1), settings.device)
    turns = tqdm(range(settings.repeats), desc=f"{precision}: timing", unit="turn", leave=False)
    times = take_turns(cases, turns, settings.device)
    return {name: {**times[name], "gmac": work[name] / 1e9, "limit_seconds": work[name] / rate} for name in cases}


def take_turns(cases: dict[str, Callable[[], Any]], turns: Iterable[Any], device: str) -> dict[str, dict[str, Any]]:
    """Time each case once per turn; return median seconds and, if there is a floor, the median ratio to it."""
    times = [{name: seconds(function, device) for name, function in cases.items()} for _ in turns]
    result: dict[str, dict[str, Any]] = {}
    for name in cases:
        ratios = [turn[name] / turn["floor forward"] for turn in times if "floor forward" in turn]
        result[name] = {
            "seconds": statistics.median(turn[name] for turn in times),
            "ratio": statistics.median(ratios) if ratios else None,
            "all_seconds": [turn[name] for turn in times],
        }
    return result


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


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of model, device, seed and output that the benchmarks of speed share."""
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--method", help="interaction method (default: CAE-AV)")
    parser.add_argument("--formulation", choices=("paper", "official"), help="default: the one of the method's preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ave")
    add_model_options(parser)
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, default=10, help="frames per clip")
    parser.add_argument("--repeats", type=int, default=5, help="turns; each times floor and model once")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=list(PRECISIONS))
    parser.add_argument("--fast-floor", action="store_true", help="the bare towers use this package's products too")
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
