"""The command that measures presets on a GPU, on a CPU: its measurements, its records and how its processes end."""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Loss(NamedTuple):
    loss: torch.Tensor


@pytest.fixture(scope="module")
def command():
    """The modules of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("gpu", "gpu_plan", "gpu_measurements", "gpu_kernels")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def options(command):
    return command.gpu_plan.Options(
        device="cpu", size="toy", batch_size=1, repeats=1, steps=2, backend="eager", seed=0
    )


@pytest.fixture
def results():
    sections = {"machine": {"gpu": "NVIDIA A100-SXM4-40GB"}, "rates": {}, "loss_curves": {}, "profile": {}}
    return {**sections, "presets": [], "errors": [], "left_out": []}


def test_every_preset_precision_and_variant_is_planned(command, options) -> None:
    groups = command.gpu_plan.plan(options)
    names = [name for group in groups for name in group.names()]
    assert len(set(names)) == len(names)
    for task in ("ave", "avvp", "avs_s4", "avs_ms3", "avqa"):
        for method in ("", "dg_sct ", "lavish ", "stg_cma "):
            for precision in ("bf16", "fp16", "tf32", "fp32"):
                assert f"presets {task} {method}eager {precision} x1" in names
            assert f"presets {task} {method}compiled bf16 x1 model forward" in names
    assert "presets avs_ms3 ssuformer eager bf16 x1" in names
    # What needs least time for most is first.
    assert [group.kind for group in groups[:4]] == ["machine", "presets", "curves", "profile"]
    assert groups[-1].variant == "compiled"


@pytest.mark.slow
def test_a_pass_that_fails_is_an_error_and_the_rest_is_measured(command, options, results, monkeypatch) -> None:
    measurements = command.gpu_measurements
    bind_cases = measurements.bind_cases

    def without_memory(*arguments, **more):
        def step():
            raise torch.OutOfMemoryError("CUDA out of memory")

        return {**bind_cases(*arguments, **more), "model training step": step}

    monkeypatch.setattr(measurements, "bind_cases", without_memory)
    group = command.gpu_plan.Group("presets", task="avs_ms3", precisions=("fp32",), batch_sizes=(2,))
    (record,) = measurements.measure_presets(group, options)
    rate = {"name": "machine fp32", "section": "rates", "key": "fp32", "value": {"tflops": 0.5}}
    for one in (rate, record):
        command.gpu.add_record(results, one, {})
    cases = results["presets"][0]["cases"]
    assert results["presets"][0]["frames"] == 5
    for name in ("floor forward", "model forward"):
        case = cases[name]
        assert case["clips_per_second"] == pytest.approx(2 / case["seconds"])
        assert case["share_of_measured_peak"] == pytest.approx(2e9 * case["gmac"] / case["seconds"] / 0.5e12)
        assert case["share_of_nominal_peak"] == pytest.approx(case["share_of_measured_peak"] * 0.5 / 19.5)
    assert results["presets"][0]["cases"].keys() == {"floor forward", "model forward", "model training step"}
    assert cases["model forward"]["ratio"] == pytest.approx(
        cases["model forward"]["seconds"] / cases["floor forward"]["seconds"]
    )
    assert [error["name"] for error in results["errors"]] == ["presets avs_ms3 eager fp32 x2, model training step"]
    assert "OutOfMemoryError: CUDA out of memory" in command.gpu.report(results)


@pytest.mark.slow
def test_loss_curves_are_compared_with_the_first(command, options, results, tmp_path) -> None:
    for name, losses in (("fp32", [3.0, 2.0]), ("bf16", [3.25, 1.0])):
        value = {"losses": losses, "skipped_steps": 0}
        record = {"name": f"curves {name}", "section": "loss_curves", "key": name, "value": value}
        command.gpu.add_record(results, record, {})
    assert results["loss_curves"]["bf16"]["largest_difference"] == 1.0
    assert results["loss_curves"]["bf16"]["mean_difference"] == 0.625
    command.gpu.draw(results["loss_curves"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_of_a_trace_are_added_up(command) -> None:
    events = [
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 4.0},
        {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "dur": 4.0},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "dur": 90.0},
        {"cat": "kernel", "name": "sm90_xmma_gemm_bf16", "dur": 60.0},
        {"cat": "kernel", "name": "sm90_xmma_gemm_bf16", "dur": 20.0},
        {"cat": "kernel", "name": "vectorized_elementwise_kernel", "dur": 5.0},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "dur": 15.0},
        {"name": "process_name", "ph": "M"},
    ]
    kernels, launches = command.gpu_kernels.read_trace(events)
    found = command.gpu_kernels.summarize_kernels(kernels, wall=200e-6)
    assert (found["kernels"], launches) == (4, 2)
    assert found["busy_share"] == pytest.approx(0.5)
    assert found["small_kernels"]["count"] == 1
    assert found["small_kernels"]["share_of_kernel_seconds"] == pytest.approx(0.05)
    kinds = {row["name"]: (row["count"], round(row["share"], 3)) for row in found["kinds"]}
    assert kinds == {"matrix products": (2, 0.8), "copies": (1, 0.15), "element by element": (1, 0.05)}
    with pytest.raises(RuntimeError, match="no kernels"):
        command.gpu_kernels.summarize_kernels([], wall=1.0)


def ends_early(sender, group, options) -> None:
    sender.send({"name": "machine fp32", "section": "rates", "key": "fp32", "value": {"tflops": 1.0}})
    os._exit(7)


def takes_too_long(sender, group, options) -> None:
    time.sleep(60)


def fails(sender, group, options) -> None:
    sender.send({"error": "CaeAvError: no such preset"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("child", "rest"),
    [
        (ends_early, {"error": "the process ended with exit code 7"}),
        (takes_too_long, {"left_out": "no time left"}),
        (fails, {"error": "CaeAvError: no such preset"}),
    ],
)
def test_however_a_process_ends_every_measurement_has_a_record(command, options, child, rest, monkeypatch) -> None:
    # Forked, so that the child need not import the libraries.
    monkeypatch.setattr(command.gpu, "get_context", lambda method: multiprocessing.get_context("fork"))
    monkeypatch.setattr(command.gpu, "measure_in_child", child)
    group = command.gpu_plan.Group("machine", precisions=("fp32", "bf16"))
    started = time.monotonic()
    limit = started + (0.2 if child is takes_too_long else 30)
    records = list(command.gpu.measure(group, options, limit))
    assert time.monotonic() - started < 20
    assert [record["name"] for record in records] == ["machine fp32", "machine bf16"]
    assert ("value" in records[0]) == (child is ends_early)
    assert records[1] == {"name": "machine bf16", **rest}


class OneLayer(torch.nn.Module):
    """A model that is compiled at once."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(3, 1)
        self.kept: list[torch.dtype] = []

    @property
    def base_model(self):
        return SimpleNamespace(keep_constants=self.kept.append, towers=tuple)

    def forward(self, pixel_values_videos, input_features, labels=None, **captions) -> Loss:
        return Loss(self.layer(pixel_values_videos.mean((-1, -2))).square().mean())


@pytest.mark.slow
def test_each_pass_of_a_compiled_model_is_measured_alone(command, options, monkeypatch) -> None:
    measurements = command.gpu_measurements
    model = OneLayer(measurements.make_config(measurements.make_settings(options, "ave", None, 1)))
    monkeypatch.setattr(measurements, "build_model", lambda settings: model)
    compiled = [group for group in command.gpu_plan.plan(options) if group.variant == "compiled"][:2]
    backends: list[str] = []
    compile_model = torch.compile

    def recorded(model, backend):
        backends.append(backend)
        return compile_model(model, backend=backend)

    monkeypatch.setattr(torch, "compile", recorded)
    records = [record for group in compiled for record in measurements.measure_presets(group, options)]
    assert [record["name"] for record in records] == [
        "presets ave compiled bf16 x1 model forward",
        "presets ave compiled bf16 x1 model training step",
    ]
    for record, name in zip(records, ("model forward", "model training step"), strict=True):
        assert record["value"]["cases"].keys() == {"floor forward", name}
        assert record["value"]["cases"][name]["seconds"] > 0
    assert backends == ["eager", "eager"]
    assert model.kept == [torch.bfloat16, torch.bfloat16]


@pytest.mark.slow
def test_the_script_measures_and_writes_its_files(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", BENCHMARKS / "gpu.sh"], check=True)
    settings = ["--device", "cpu", "--size", "toy", "--batch-size", "1", "--repeats", "1", "--steps", "1"]
    chosen = ["--only", "curves fp16", "profile", "graphed"]
    run = subprocess.run(
        ["bash", BENCHMARKS / "gpu.sh", "--here", *settings, *chosen],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["errors"] == []
    assert found["rates"].keys() == {"bf16", "fp16", "tf32", "fp32"}
    assert len(found["loss_curves"]["fp16"]["losses"]) == 1
    assert all(found["profile"][name]["kernels"] > 0 for name in ("model forward", "model training step"))
    assert found["left_out"] == [{"name": "presets ave graphed bf16 x1", "reason": "needs a GPU"}]
    assert (tmp_path / "gpu_loss_curves.png").exists()
    assert run.stdout.rstrip().endswith(str(tmp_path / "gpu.json"))
    assert "loss in 1 steps, fp16" in run.stdout
