"""
Measure every preset on a GPU: speed in each precision, compiled and not, memory, loss curves, a profile.

    python benchmarks/gpu.py --out gpu.json --plot loss_curves.png
    python benchmarks/gpu.py --device cpu --size toy --backend eager --steps 5 --only machine "presets ave" curves

`benchmarks/gpu.sh` also installs what this needs. Measured are, in this order, as long as `--minutes` last:

- the rate of large matrix products, the yardstick besides the card's nominal peak;
- forward pass and training step of `ave`, and its bare towers in timm and Transformers, in bf16, fp16, and fp32 with
  and without TF32;
- losses of training the toy preset on seeded random clips, in each precision;
- a profile of both passes: kernels by time and by kind, and how many of them are small;
- both passes replayed as CUDA graphs;
- the presets of the other tasks; this package's towers without any interaction (`head_alone`); the other methods;
- batches of `ave`;
- `torch.compile`; each pass may take `COMPILE_SHARE` of the time.

Floor and model take turns, as in `throughput.py`, and ratios are medians over the turns. Weights are random. Every
group is measured in a process of its own, so that running out of memory or a crash ends only that group. The JSON file
is rewritten after each measurement; `errors` has what failed and `left_out` what there was no time for. On a CPU, CUDA
graphs are left out, and memory is that of the process.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpu_plan import COMPILE_SHARE, CURVES, Group, Options, plan

from caeav_hf.files import atomic_write
from caeav_hf.visualization.drawing import COLOURS, SERIES, make_bare, new_figure, save_figure


# Dense TFLOP/s by the vendor's data sheets in fp32, TF32 and half precision with fp32 sums; boost clocks, no sparsity.
NOMINAL: dict[str, dict[str, float]] = {
    r"H100 80GB HBM3|H200$": {"fp32": 67, "tf32": 495, "fp16": 989, "bf16": 989},
    r"H100 PCIe": {"fp32": 51, "tf32": 378, "fp16": 756, "bf16": 756},
    r"A100": {"fp32": 19.5, "tf32": 156, "fp16": 312, "bf16": 312},
    r"L40S": {"fp32": 91.6, "tf32": 183, "fp16": 362, "bf16": 362},
    r"L4$": {"fp32": 30.3, "tf32": 60, "fp16": 121, "bf16": 121},
    r"A10$": {"fp32": 31.2, "tf32": 62.5, "fp16": 125, "bf16": 125},
    r"V100-SXM2": {"fp32": 15.7, "fp16": 125},
    r"T4$": {"fp32": 8.1, "fp16": 65},
    r"RTX 4090$": {"fp32": 82.6, "tf32": 82.6, "fp16": 165, "bf16": 165},
    r"RTX 3090$": {"fp32": 35.6, "tf32": 35.6, "fp16": 71, "bf16": 71},
}


def measure_in_child(sender: Connection, group: Group, options: Options) -> None:
    """Send the records of a group; its libraries are imported here, so that this command starts at once."""
    from gpu_measurements import send_measurements

    send_measurements(sender, group, options)


def measure(group: Group, options: Options, limit: float) -> Iterator[dict[str, Any]]:
    """
    Measure a group in a process of its own and yield its records, those of missing measurements last.

    Args:
        limit: Time of `time.monotonic` at which the process is stopped.
    """
    context = get_context("forkserver")
    # The server imports the libraries once, for all groups; this starts no CUDA.
    context.set_forkserver_preload(["gpu_measurements"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_in_child, args=(sender, group, options))
    process.start()
    sender.close()
    missing, reason = group.names(), {"left_out": "no time left"}
    try:
        while receiver.poll(max(0.0, limit - time.monotonic())):
            record = receiver.recv()
            if "name" not in record:  # the end
                reason = record
                process.join(10)
                break
            if record["name"] in missing:
                missing.remove(record["name"])
            yield record
    except EOFError:
        process.join(10)
        reason = {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
    for name in missing:
        yield {"name": name, **reason}


def nominal_peaks(name: str | None) -> dict[str, float]:
    """Return the data sheet's TFLOP/s of a card by precision; empty for unknown ones."""
    return next((peaks for pattern, peaks in NOMINAL.items() if name and re.search(pattern, name)), {})


def add_record(results: dict[str, Any], record: dict[str, Any], nominal: dict[str, float]) -> None:
    """Add a record to the results, with the shares of the peak and differences of loss curves that it allows."""
    for list_of in ("error", "left_out"):
        if list_of in record:
            section = "errors" if list_of == "error" else list_of
            results[section].append({"name": record["name"], "reason": record[list_of]})
            return
    section, value = record["section"], record["value"]
    if section == "machine":
        results["machine"] |= value
        return
    if section == "rates":
        peaks = nominal or nominal_peaks(results["machine"].get("gpu"))
        results["rates"][record["key"]] = {**value, "nominal_tflops": peaks.get(record["key"])}
        return
    if section == "presets":
        rate = results["rates"].get(value["precision"], {})
        for name, case in value["cases"].items():
            if "error" in case:
                results["errors"].append({"name": f"{record['name']}, {name}", "reason": case["error"]})
                continue
            case["tflops"] = case["gmac"] and 2 * case["gmac"] / case["seconds"] / 1e3
            for kind, peak in (("measured", rate.get("tflops")), ("nominal", rate.get("nominal_tflops"))):
                case[f"share_of_{kind}_peak"] = case["tflops"] / peak if peak and case["tflops"] else None
        results["presets"].append(value)
        return
    if section == "loss_curves" and (reference := results[section].get(CURVES[0])) is not None:
        differences = [abs(a - b) for a, b in zip(value["losses"], reference["losses"], strict=True)]
        value["largest_difference"] = max(differences)
        value["mean_difference"] = sum(differences) / len(differences)
    results[section][record["key"]] = value


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def report(results: dict[str, Any]) -> str:
    """Format the results as tables."""
    lines = [f"{key}: {value}" for key, value in results["machine"].items()]
    for precision, rate in results["rates"].items():
        nominal = "" if rate["nominal_tflops"] is None else f" of {rate['nominal_tflops']:.0f} nominal"
        lines.append(f"{precision} products: {rate['tflops']:.1f}{nominal} TFLOP/s")
    heads = ("seconds", "x floor", "clips/s", "of rate", "of peak", "peak GB")
    lines += ["", f"{'':58}" + "".join(f"{head:>10}" for head in heads)]
    for row in results["presets"]:
        label = f"{row['task']} {row['method']} {row['variant']} {row['precision']} x{row['batch_size']}"
        for name, case in row["cases"].items():
            title = f"{label + ', ' + name:58}"
            if "error" in case:
                lines.append(f"{title} {case['error'].splitlines()[0][:60]}")
                continue
            ratio = "" if case["ratio"] is None else f"{case['ratio']:.2f}"
            cells = (f"{case['seconds']:.4f}", ratio, f"{case['clips_per_second']:.1f}")
            shares = (percent(case["share_of_measured_peak"]), percent(case["share_of_nominal_peak"]))
            lines.append(title + "".join(f"{cell:>10}" for cell in (*cells, *shares, f"{case['peak_gb']:.2f}")))
    lines.append("")
    for precision, curve in results["loss_curves"].items():
        far = f", at most {curve['largest_difference']:.4f} from {CURVES[0]}" if "largest_difference" in curve else ""
        losses = curve["losses"]
        lines.append(f"loss in {len(losses)} steps, {precision}: {losses[0]:.4f} to {losses[-1]:.4f}{far}")
    for name, values in results["profile"].items():
        small = values["small_kernels"]
        lines.append(
            f"profile, {name}: {values['kernels']} kernels, busy {percent(values['busy_share'])} of "
            f"{values['seconds']:.4f} s; {small['count']} are small and take "
            f"{percent(small['share_of_kernel_seconds'])} of kernel time"
        )
    for section, title in (("errors", "failed"), ("left_out", "not measured")):
        lines += [f"{title}: {one['name']}: {one['reason'].splitlines()[0]}" for one in results[section]]
    return "\n".join(lines)


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the losses in each precision, and their differences to the reference."""
    figure = new_figure(13.0, 4.6)
    axes = figure.subplots(1, 2)
    for axis, title in zip(axes, ("Training loss", f"Difference to {CURVES[0]}"), strict=True):
        make_bare(axis, keep=("bottom", "left"))
        axis.grid(color=COLOURS["grid"])
        axis.set_axisbelow(True)
        axis.set_title(title, loc="left", fontsize=14)
        axis.set_xlabel("Step", fontsize=12)
    for number, (precision, curve) in enumerate(curves.items()):
        losses = curve["losses"]
        axes[0].plot(losses, color=SERIES[number], linewidth=1.5, label=precision)
        if precision != CURVES[0] and CURVES[0] in curves:
            differences = [a - b for a, b in zip(losses, curves[CURVES[0]]["losses"], strict=True)]
            axes[1].plot(differences, color=SERIES[number], linewidth=1.5)
    axes[0].legend(fontsize=11, frameon=False)
    figure.tight_layout(w_pad=2.5)
    save_figure(figure, path)


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results; the file is always whole."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="picture of the loss curves to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of it that installing took")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full", choices=("full", "toy"))
    parser.add_argument("--batch-size", type=int, default=2, help="clips")
    parser.add_argument("--repeats", type=int, default=7, help="turns; each times floor, forward pass and step once")
    parser.add_argument("--steps", type=int, default=200, help="steps of the loss curves")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--peak-tflops", nargs="+", default=[], metavar="PRECISION=TFLOPS", help="card's nominal peak")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="measure only groups with one of these in a name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    started = time.monotonic() - arguments.pop("spent")
    out, plot, minutes, only = (arguments.pop(name) for name in ("out", "plot", "minutes", "only"))
    nominal = {key: float(value) for key, _, value in (peak.partition("=") for peak in arguments.pop("peak_tflops"))}
    options = Options(**arguments)
    # Some versions of Python start the server without this script's folder on the path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.getenv("PYTHONPATH"))))
    results: dict[str, Any] = {
        "settings": {**asdict(options), "minutes": minutes},
        "machine": {},
        "rates": {},
        "presets": [],
        "loss_curves": {},
        "profile": {},
        "errors": [],
        "left_out": [],
    }
    end = started + 60 * minutes
    for group in plan(options):
        chosen = only is None or any(text in name for text in only for name in group.names())
        if not chosen and group.kind != "machine":
            continue
        reason = "no time left" if time.monotonic() >= end else None
        if group.variant == "graphed" and not options.device.startswith("cuda"):
            reason = "needs a GPU"
        if reason is not None:
            results["left_out"] += [{"name": name, "reason": reason} for name in group.names()]
            continue
        limit = min(end, time.monotonic() + COMPILE_SHARE * 60 * minutes) if group.variant == "compiled" else end
        for record in measure(group, options, limit):
            print(f"{time.monotonic() - started:6.0f} s  {record['name']}", flush=True)
            add_record(results, record, nominal)
            results["seconds"] = time.monotonic() - started
            save(results, out)
        if not results["machine"]:
            raise SystemExit(results["errors"][0]["reason"])
    save(results, out)
    if plot is not None and results["loss_curves"]:
        draw(results["loss_curves"], plot)
    print(f"\n{report(results)}\n\n{out.resolve()}")


if __name__ == "__main__":
    main()
