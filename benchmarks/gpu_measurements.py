"""The measurements of `gpu.py`; each group runs in a process of its own."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import methods  # noqa: F401  (registers `head_alone`)
import torch
from gpu_kernels import summarize_kernels, trace
from gpu_plan import Group, Options
from machine import peak_memory, reset_peak_memory
from throughput import (
    PRECISIONS,
    Settings,
    autocast,
    bind_cases,
    describe_machine,
    make_config,
    make_floor,
    make_inputs,
    matrix_rate,
    multiply_accumulates,
    seconds,
    take_turns,
)
from torch import Tensor
from transformers import PvtV2Model

from caeav_hf.task import get_task
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.frozen_weights import cast_linear_layers
from caeav_hf.training.schedule import build_optimizer


# Clips per batch of the loss curves, and batches.
CURVE_CLIPS, CURVE_BATCHES = 8, 4


@contextmanager
def tf32_only_for(precision: str) -> Iterator[str]:
    """Allow TF32 in products and convolutions only for "tf32"; the value is the key of `PRECISIONS`."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    try:
        yield precision if precision in PRECISIONS else "fp32"
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def describe_error(error: BaseException) -> str:
    """Return the kind of an error and the beginning of its message."""
    return f"{type(error).__name__}: {error}"[:500]


def release(device: str) -> None:
    """Free what a failed measurement left on the device."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def allocated(device: str) -> int:
    """Return the bytes allocated on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def make_settings(options: Options, task: str, method: str | None, batch_size: int) -> Settings:
    """Return the settings of `throughput.py`, with as many frames as the preset has."""
    settings = Settings(
        task=task,
        size=options.size,
        method=method,
        formulation=None,
        device=options.device,
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        frames=0,
        repeats=options.repeats,
        seed=options.seed,
    )
    return replace(settings, frames=make_config(settings).num_frames)


def build_model(settings: Settings) -> Any:
    """Build the model on its device, where random weights are drawn faster than on the CPU."""
    torch.manual_seed(settings.seed)
    config = make_config(settings)
    if config.reads_captions:
        config.use_text_tower = False  # captions are encoded before, as in training
    with torch.device(settings.device):
        return get_task(settings.task, settings.method).model_class(config).eval()


def store_towers_in(precision: str, model: Any) -> None:
    """Store the linear layers of frozen towers in one of `PRECISIONS`, as mixed-precision training does."""
    for tower in model.base_model.towers():
        cast_linear_layers(PRECISIONS[precision], tower)
        tower.forget()


def build_floor(settings: Settings, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """
    Build the bare towers on their device.

    With PVT-v2, this is the tower of the frames alone, since neither timm nor Transformers has VGGish.
    """
    config = make_config(settings)
    with torch.device(settings.device):
        if config.vision_config.model_type != "cae_av_pvt_v2":
            return make_floor(config, inputs, settings.device)
        tower, pixels = PvtV2Model(config.vision_config).eval(), inputs["pixel_values_videos"].flatten(0, 1)
    return lambda: tower(pixels)


def capture(function: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a function as a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def measure_machine(group: Group, options: Options) -> Iterator[dict[str, Any]]:
    """Describe the machine, and measure the rate of large products in each precision in TFLOP/s."""
    is_gpu = options.device.startswith("cuda")
    if is_gpu and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no CUDA device; expected one, or `--device cpu --size toy` for a trial")
    machine = describe_machine(make_settings(options, "ave", None, 1))
    if is_gpu:
        properties = torch.cuda.get_device_properties(options.device)
        machine |= {
            "memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    yield {"name": "machine", "section": "machine", "key": None, "value": machine}
    for name, precision in zip(group.names(), group.precisions, strict=True):

        def rate(precision: str = precision) -> dict[str, Any]:
            with tf32_only_for(precision) as known:
                return {"tflops": 2 * matrix_rate(options.device, known, side=8192 if is_gpu else 256) / 1e12}

        yield attempt(name, "rates", precision, rate, options.device)


def attempt(
    name: str, section: str, key: str | None, function: Callable[[], dict[str, Any]], device: str
) -> dict[str, Any]:
    """Return the record of a measurement: its value, or the error with which it failed."""
    try:
        return {"name": name, "section": section, "key": key, "value": function()}
    except Exception as error:
        record = {"name": name, "error": describe_error(error)}
    release(device)
    return record


def measure_presets(group: Group, options: Options) -> Iterator[dict[str, Any]]:
    """Measure the bare towers, the forward pass and the training step of a preset."""
    names = iter(group.names())
    settings = make_settings(options, group.task, group.method, 1)
    model = build_model(settings)
    for batch_size in group.batch_sizes:
        work: dict[str, float] = {}
        for precision in group.precisions:
            measured = partial(
                measure_preset,
                model,
                group,
                replace(settings, batch_size=batch_size),
                precision,
                work,
                options.backend,
            )
            yield attempt(next(names), "presets", None, measured, options.device)
            model.zero_grad()
            release(options.device)


def measure_preset(
    model: Any, group: Group, settings: Settings, precision: str, work: dict[str, float], backend: str
) -> dict[str, Any]:
    """
    Measure a model in one precision.

    Args:
        work: Multiply-accumulates of each case; counted if empty.
        backend: Backend of `torch.compile`.
    """
    device = settings.device
    inputs = make_inputs(model.config, settings)
    before = allocated(device)
    towers = build_floor(settings, inputs)
    held_by_floor = allocated(device) - before
    with tf32_only_for(precision) as known:
        store_towers_in(known, model)
        weights = (*model.parameters(), *model.buffers())
        held_by_model = sum(tensor.nbytes for tensor in weights if tensor.is_cuda)
        if not work:
            work |= count_work(bind_cases(towers, model, inputs, known, device))
            model.zero_grad()
            release(device)
        run = model
        if group.variant == "compiled":
            torch._dynamo.reset()
            model.base_model.keep_constants(PRECISIONS[known])
            run = torch.compile(model, backend=backend)
        functions = bind_cases(towers, run, inputs, known, device, capturable=group.variant == "graphed")
        cases: dict[str, dict[str, Any]] = {}
        for name in set(functions) - {"floor forward", *group.passes}:
            del functions[name]
        for name in list(functions):
            try:
                functions[name], cases[name] = warm_up(functions[name], group.variant, name, device)
                cases[name]["peak_gb"] -= (held_by_model if name == "floor forward" else held_by_floor) / 1e9
            except Exception as error:
                cases[name] = {"error": describe_error(error)}
                del functions[name]
                model.zero_grad()
            release(device)
        for name, times in take_turns(functions, range(settings.repeats), device).items():
            cases[name] |= {
                **times,
                "clips_per_second": settings.batch_size / times["seconds"],
                "gmac": work[name] / 1e9 if name in work else None,
            }
    return {
        "task": group.task,
        "method": group.method or "cae_av",
        "variant": group.variant,
        "precision": precision,
        "batch_size": settings.batch_size,
        "frames": settings.frames,
        "cases": cases,
    }


def count_work(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Count the multiply-accumulates of each function that runs."""
    work = {}
    for name, function in functions.items():
        with suppress(Exception):
            work[name] = multiply_accumulates(function)
    return work


def warm_up(
    function: Callable[[], Any], variant: str, name: str, device: str
) -> tuple[Callable[[], Any], dict[str, float]]:
    """
    Run a case a few times, so that constants are cached and the model compiled or captured.

    Returns:
        The function to time; and the seconds of the first call and the peak memory in GB.
    """
    reset_peak_memory(device)
    first = seconds(function, device)
    for _ in range(2):
        function()
    if variant == "graphed" and name != "floor forward":
        function = capture(function)
        function()
    return function, {"first_call_seconds": first, "peak_gb": peak_memory(device)}


def curve_batches(settings: Settings) -> list[dict[str, Tensor]]:
    """Draw batches whose frames and sound show the class of each segment as a pattern in noise."""
    config = make_config(settings)
    batches = []
    patterns: dict[str, Tensor] = {}
    for number in range(CURVE_BATCHES):
        batch = make_inputs(config, replace(settings, seed=settings.seed + number))
        for name in ("pixel_values_videos", "input_features"):
            if name not in patterns:
                shape = (config.num_labels + 1, *batch[name].shape[2:])
                patterns[name] = torch.randn(shape, device=settings.device) * batch[name].std()
            batch[name] = batch[name] + patterns[name][batch["labels"]]
        batches.append(batch)
    return batches


def measure_curves(group: Group, options: Options) -> Iterator[dict[str, Any]]:
    """Train the toy preset of `ave` by its recipe's optimizer with the same seeds in each precision."""
    settings = make_settings(replace(options, size="toy"), "ave", None, CURVE_CLIPS)
    batches = curve_batches(settings)

    def train(precision: str) -> dict[str, Any]:
        mixed = {"mixed_precision": precision if precision in ("fp16", "bf16") else "no"}
        recipe = load_recipe(find_recipe("ave", "toy"), mixed)
        model = build_model(settings).train()
        optimizer = build_optimizer(model, recipe)
        scaler = torch.amp.GradScaler(torch.device(options.device).type, enabled=precision == "fp16")
        first_scale = scaler.get_scale()
        torch.manual_seed(options.seed)
        losses = []
        started = time.perf_counter()
        with tf32_only_for(precision.removesuffix(" again")) as known:
            store_towers_in(known, model)
            for step in range(options.steps):
                with autocast(known, options.device):
                    loss = model(**batches[step % len(batches)]).loss
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm or math.inf)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                losses.append(loss.detach().float())
        values = torch.stack(losses).tolist()
        # Each skipped step halves the scale, which grows only after 2000 steps.
        skipped = round(math.log2(first_scale / scaler.get_scale())) if scaler.is_enabled() else 0
        return {"losses": values, "skipped_steps": skipped, "seconds": time.perf_counter() - started}

    for name, precision in zip(group.names(), group.precisions, strict=True):
        yield attempt(name, "loss_curves", precision, partial(train, precision), options.device)


def measure_profile(group: Group, options: Options) -> Iterator[dict[str, Any]]:
    """Profile one forward pass and one training step of a preset."""
    settings = make_settings(options, group.task, group.method, options.batch_size)
    model = build_model(settings)
    inputs = make_inputs(model.config, settings)
    store_towers_in(group.precisions[0], model)
    cases = bind_cases(None, model, inputs, group.precisions[0], options.device)
    for name, (case, function) in zip(group.names(), cases.items(), strict=True):

        def profile(function: Callable[[], Any] = function) -> dict[str, Any]:
            for _ in range(3):
                function()
            wall = min(seconds(function, options.device) for _ in range(3))
            kernels, launches = trace(function, options.device)
            return {"seconds": wall, "launch_calls": launches, **summarize_kernels(kernels, wall)}

        yield attempt(name, "profile", case, profile, options.device)


MEASUREMENTS: dict[str, Callable[[Group, Options], Iterator[dict[str, Any]]]] = {
    "machine": measure_machine,
    "presets": measure_presets,
    "curves": measure_curves,
    "profile": measure_profile,
}


def send_measurements(sender: Connection, group: Group, options: Options) -> None:
    """Send the records of a group, and then one without a name: empty, or with the error that ended the group."""
    try:
        for record in MEASUREMENTS[group.kind](group, options):
            sender.send(record)
        sender.send({})
    except Exception as error:
        sender.send({"error": describe_error(error)})
