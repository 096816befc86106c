"""
Measure what a training step spends before the first trained layer, and what a cache of the towers saves.

    python benchmarks/frozen_inputs.py --out frozen_inputs.json

Of models whose first layer is trained, only the embedding of frames and sounds comes before it: "before" are its
seconds, and the gain is what a cache without any cost could reach. Of the others, steps with and without
`tower_cache` take turns, on clips that are stored: the gain is the median of the ratios per turn, "before" the median
of the differences.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from throughput import Settings, bind_cases, describe_machine, make_inputs, multiply_accumulates, seconds
from tqdm.auto import tqdm

from caeav_hf.modeling.frames import FrameLayout
from caeav_hf.task import get_task


# Task, method and what differs from its preset.
CONFIGURATIONS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "CAE-AV": ("ave", None, {}),
    "AVMoE": ("ave", "avmoe", {}),
    "DG-SCT": ("ave", "dg_sct", {}),
    "LAVisH": ("ave", "lavish", {}),
    "STG-CMA": ("ave", "stg_cma", {}),
    "AVMoE, last two stages": ("ave", "avmoe", {"adapter_stages": -2}),
    "AVMoE, last stage": ("ave", "avmoe", {"adapter_stages": -1}),
    "head alone": ("ave", "avmoe", {"adapter_stages": 0}),
    "segmentation, last stage": ("avs_ms3", "avmoe", {"adapter_stages": -1}),
    "SSUFormer, tower of frames frozen": ("avs_ms3", "ssuformer", {}),
}


def build(settings: Settings, changes: dict[str, Any]) -> Any:
    """Build a model; `adapter_stages` are the last ones, as many as the negative number says."""
    record = get_task(settings.task, settings.method)
    config = record.config_class.from_preset(settings.task, settings.size, method=settings.method)
    if "adapter_stages" in changes:
        stages = range(1, config.num_stages + 1)
        changes = {"adapter_stages": tuple(stages[changes["adapter_stages"] :]) if changes["adapter_stages"] else ()}
    config = record.config_class.from_preset(settings.task, settings.size, method=settings.method, **changes)
    torch.manual_seed(settings.seed)
    return record.model_class(config).to(settings.device)


def measure(settings: Settings, changes: dict[str, Any]) -> dict[str, Any]:
    """
    Return the multiply-accumulates and seconds of a step, both also before the first trained layer, the gain, and MB
    per clip if there is a cache.

    Args:
        settings: Model, sizes, device and number of turns.
        changes: See `build`.
    """
    model = build(settings, changes)
    inputs = make_inputs(model.config, settings)
    step = bind_cases(None, model, inputs, "fp32", settings.device)["model training step"]
    encoder, device = model.base_model, settings.device
    clips = [inputs[name] for name in ("pixel_values_videos", "input_features")]
    frames = FrameLayout(settings.batch_size, settings.frames)

    @torch.no_grad()
    def embed() -> None:
        encoder._start_walks(*map(frames.to_list, clips), frames)

    turns = []
    with TemporaryDirectory() as folder:
        if encoder.has_frozen_part:
            encoder.use_tower_cache(folder)
        cache = encoder.tower_cache
        # This also stores the clips, and makes the optimizer's state.
        work = multiply_accumulates(step)
        before = multiply_accumulates(embed) if cache is None else work - multiply_accumulates(step)
        for _ in range(settings.repeats):
            encoder.tower_cache = None
            whole = seconds(step, device)
            encoder.tower_cache = cache
            turns.append((whole, whole - seconds(embed, device) if cache is None else seconds(step, device)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return {
        "seconds": statistics.median(whole for whole, _ in turns),
        "seconds_before": statistics.median(whole - rest for whole, rest in turns),
        "gain": statistics.median(whole / rest for whole, rest in turns),
        "gmac": work / 1e9,
        "gmac_before": before / 1e9,
        "mb_per_clip": size / settings.batch_size / 1e6 if size else None,
        "all_seconds": turns,
    }


def report(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    lines = [f"{'':36}{'GMAC':>10}{'before':>10}{'seconds':>10}{'before':>10}{'gain':>8}{'MB per clip':>14}"]
    for name, values in result["configurations"].items():
        size = "no cache" if values["mb_per_clip"] is None else f"{values['mb_per_clip']:.1f}"
        lines.append(
            f"{name:36}{values['gmac']:10.1f}{values['gmac_before']:10.1f}{values['seconds']:10.3f}"
            f"{values['seconds_before']:10.3f}{values['gain']:8.2f}{size:>14}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, default=5, help="frames per clip")
    parser.add_argument("--repeats", type=int, default=1, help="turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = vars(parser.parse_args())
    names, out = arguments.pop("configurations"), arguments.pop("out")
    settings = Settings(task="ave", method=None, formulation=None, **arguments)
    torch.set_num_threads(settings.threads)
    result: dict[str, Any] = {"settings": vars(settings), "machine": describe_machine(settings), "configurations": {}}
    for name in tqdm(names, desc="configurations", leave=False):
        task, method, changes = CONFIGURATIONS[name]
        result["configurations"][name] = measure(replace(settings, task=task, method=method), changes)
    print(report(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
