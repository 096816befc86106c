"""
What benchmarks of interrupted work share: small inputs, the commands, processes to run them in, and the comparison of
what they leave with what an uninterrupted run leaves.

A command runs in a process forked from one that has imported the libraries, which takes longer than most commands.
"""

import importlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import datasets
import httpx
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from visitor import Visitor

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.captioning import job
from caeav_hf.cli import main as caeav
from caeav_hf.data import AveBuilder, builder, prepare
from caeav_hf.files import atomic_write, write_json
from caeav_hf.toy import CLASSES, MediaFormat, generate
from caeav_hf.training import encode
from caeav_hf.training.command import main as train


# Seconds after which a process has hung.
PATIENCE = 300.0
_MEDIA = MediaFormat(frame_size=64, frame_rate=4, sampling_rate=16_000)
# Values that differ from run to run: times, and what a run did itself rather than found.
VARYING = {"seconds", "clips_per_second", "captioned", "retries"}
# Names of files and folders that are being written, and of those that only say who writes.
UNFINISHED = ("*.part", "*.journal", ".partial-*", ".unfinished", ".replaced")
LOCKS = ("*.lock",)
# Largest difference of computed numbers, relative to the largest number of their tensor: rounding in which two loads
# of a model differ, amplified by a few steps of training.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Place:
    """
    Folders of a run. Every run has the same ones, so that paths in files agree.

    Args:
        inputs: Inputs of all commands.
        work: What a run writes: `out`, `hub`, `tmp` and `cache`.
    """

    inputs: Path
    work: Path

    @property
    def out(self) -> Path:
        """Folder of a command's outputs."""
        return self.work / "out"

    def clear(self) -> None:
        """Begin from nothing, except for the inputs that commands write to."""
        for name in ("out", "hub", "tmp", "cache"):
            empty(self.work / name)
            (self.work / name).mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.inputs / "data", self.out / "data")


def empty(folder: Path) -> None:
    """Remove a folder, or what is in it where something is mounted."""
    if not os.path.ismount(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@dataclass(frozen=True)
class Command:
    """
    A command to interrupt.

    Args:
        arguments: Returns its arguments.
        program: What reads them.
        resume: Returns the arguments of the command that continues, by default the same; `None` for the same.
        processes: Number of processes.
        may_change: Patterns of files that a run replaces by later ones, each of them whole.
        may_vanish: Patterns of files that a run removes before it ends.
        whole: Folders that appear with all their files.
        layout: Layout of the toy corpus that it reads, besides the inputs of all commands.
    """

    arguments: Callable[[Place], Sequence[Any]]
    program: Callable[[Sequence[str]], int] = caeav
    resume: Callable[[Place], Sequence[Any] | None] = lambda place: None
    processes: int = 1
    may_change: tuple[str, ...] = ()
    may_vanish: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    layout: str | None = None

    @property
    def is_command(self) -> bool:
        """Whether a shell can run it."""
        return self.program in (caeav, train)

    def line(self, place: Place, *, again: bool = False) -> list[str]:
        """Return the arguments, of a run that continues if `again`."""
        resumed = self.resume(place) if again else None
        return list(map(str, self.arguments(place) if resumed is None else resumed))


def _build(name: str, layout: str, *more: str) -> Command:
    def arguments(place: Place) -> list[Any]:
        corpus = place.inputs / layout
        folders = ("--annotations", corpus / "annotations", "--media", corpus / "media", "--out", place.out / "built")
        return ["build", name, *folders, "--captions", corpus / "captions.json", *more, "--embed-media"]

    return Command(arguments, layout=layout)


def _training(processes: int) -> Command:
    def arguments(place: Place) -> list[Any]:
        recipe = ["--task", "ave", "--size", "toy", "--data", place.inputs / "data", "--output-dir", place.out / "run"]
        return [*recipe, "--batch-size", 4 // processes, "--max-steps", 4, "--save-steps", 1, "--num-workers", 0]

    def resume(place: Place) -> list[Any] | None:
        run = place.out / "run"
        return ["--resume", run] if (run / "checkpoints" / "last").exists() else None

    return Command(
        arguments,
        train,
        resume,
        processes,
        may_change=("run/history.jsonl", "run/curves.png", "run/checkpoints/last", "run/checkpoints/best"),
        may_vanish=("run/checkpoints/step-*",),
    )


def _visit(line: Sequence[str]) -> int:
    """Start `caeav app`, let a visitor predict for a clip, and stop it; the last arguments are clip and output."""
    *arguments, clip, out = line
    port = arguments[arguments.index("--port") + 1]

    def visit() -> None:
        while True:
            try:
                visitor = Visitor(f"http://127.0.0.1:{port}")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        try:
            with visitor:
                path = visitor.upload(Path(clip).read_bytes(), Path(clip).name)
                shown = visitor.predict(path, Path(clip).name)
                files = {Path(file["path"]).suffix: file["path"] for file in shown["caeav-files-one"]}
                write_json(Path(out), visitor.file(files[".json"]).json())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=visit, daemon=True).start()
    return caeav(arguments)


COMMANDS = {
    "build ave": _build("ave", "ave"),
    "build llp": _build("llp", "avvp"),
    "build avsbench s4": _build("avsbench", "avs_s4", "--setting", "s4"),
    "build avsbench ms3": _build("avsbench", "avs_ms3", "--setting", "ms3"),
    "build music_avqa": _build("music_avqa", "avqa"),
    "build ra_ssu": _build("ra_ssu", "ra_ssu"),
    "prepare": Command(
        lambda place: ["prepare", place.inputs / "data", "--model", place.inputs / "model", "--out", place.out / "set"]
    ),
    "caption": Command(
        lambda place: [
            *("caption", place.inputs / "data", "--out", place.out / "captions.parquet", "--concurrency", 2),
            *("--server", (place.inputs / "server").read_text(), "--model", "omni"),
        ],
        may_change=("captions.parquet", "captions.report.json"),
    ),
    "encode-captions": Command(
        lambda place: ["encode-captions", place.out / "data", "--model", place.inputs / "model", "--device", "cpu"]
    ),
    "train": _training(1),
    "train, 2 processes": _training(2),
    "convert": Command(
        lambda place: [
            *("convert", place.inputs / "official.pth", "--task", "ave", "--out", place.out / "model"),
            *("--audio", "tile_seconds=1", "--config", "head_num_heads=4"),
            "text_config={'num_hidden_layers': 1, 'vocab_size': 514}",
        ],
        whole=("model",),
    ),
    "export": Command(
        lambda place: ["export", place.inputs / "model", "--out", place.out / "model"],
        whole=("model",),
    ),
    "push": Command(lambda place: ["push", place.inputs / "model", "someone/model", "--space", "someone/page"]),
    "robustness": Command(
        lambda place: [
            *("robustness", f"one={place.inputs / 'model'}", "--data", place.inputs / "data", "--device", "cpu"),
            *("--kinds", "mute", "delay", "--levels", 3, 5, "--resamples", 20, "--out", place.out / "robustness"),
        ],
    ),
    "predict": Command(
        lambda place: [
            *("predict", place.inputs / "small" / "media" / "toy0000000?.mp4", "--model", place.inputs / "model"),
            *(
                "--device",
                "cpu",
                "--out",
                place.out / "found",
                "--plot",
                place.out / "plots",
                "--csv",
                place.out / "found.csv",
            ),
        ],
    ),
    "app": Command(
        lambda place: [
            *("app", place.inputs / "model", "--device", "cpu", "--port", free_port()),
            *(place.inputs / "small" / "media" / "toy00000000.mp4", place.out / "result.json"),
        ],
        _visit,
    ),
}


def make_inputs(folder: Path, commands: Sequence[str], num_clips: int) -> None:
    """
    Make the inputs of commands, unless they are there.

    Args:
        folder: Folder for the inputs.
        commands: Names of the commands.
        num_clips: Number of clips of the corpora that builders read; others read a quarter of that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"split": (2, 1, 1), "misalignment": 0.5, "media_format": _MEDIA, "progress": False}
    for layout in dict.fromkeys(COMMANDS[name].layout for name in commands):
        if layout is not None and not (folder / layout / "toy.json").exists():
            generate(folder / layout, layout, num_clips, overwrite=True, **options)
    if "convert" in commands and not (folder / "official.pth").exists():
        # A checkpoint under the authors' names, which the tests know how to make.
        sys.path.insert(0, str(Path(__file__).parents[1]))
        official = importlib.import_module("tests.conversion.official_state")
        with atomic_write(folder / "official.pth") as path:
            torch.save(official.official_state(official.small_model(official.small_config("ave"))), path)
    if (folder / "complete").exists():
        return
    corpus = folder / "small"
    generate(corpus, "ave", num_clips // 4, overwrite=True, **options)
    AveBuilder(
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / "captions.json"),
        cache_dir=str(folder / "cache"),
    ).build(folder / "data")
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("ave", size="toy", id2label=dict(enumerate(CLASSES)))
    model = CaeAvForEventLocalization(config).eval()
    with torch.no_grad():  # move scores to both sides of the threshold
        model.head.event_classifier.weight.mul_(30)
        model.head.event_classifier.bias.add_(8)
    model.save_pretrained(folder / "model")
    CaeAvProcessor.from_config(config).save_pretrained(folder / "model")
    (folder / "complete").touch()


def make_pieces_small() -> None:
    """Let the commands write many small pieces instead of few large ones, so that there is something to continue."""
    defaults: Any = builder.ClipBuilder.build.__defaults__
    assert defaults == (builder._SHARD_BYTES,)
    builder.ClipBuilder.build.__defaults__ = (400_000,)
    options: Any = prepare.prepare_clips.__kwdefaults__
    options["shard_clips"] = 4
    job._COMPACT_EVERY = 5
    encode._CAPTIONS_PER_FILE = 16


def serve_captions(port: socket.socket) -> None:
    """Answer requests of the chat-completions protocol, the same request always alike."""
    import hashlib

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.05)
            text = f"A thing of the kind {hashlib.sha256(body).hexdigest()[:8]} is there."
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            answer = json.dumps({"object": "chat.completion", "model": "omni", "choices": [choice]}).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:
                self.close_connection = True  # the client was killed

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *request: Any) -> None:
            pass  # the client was killed

    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = port
    server.serve_forever()


def start_captions(inputs: Path) -> int:
    """Start the caption server in a process, and write its address for the commands."""
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    port.listen(32)
    (inputs / "server").write_text(f"http://127.0.0.1:{port.getsockname()[1]}/v1")
    process = fork(lambda: serve_captions(port))
    port.close()
    return process


def free_port() -> int:
    """Return a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def fork(action: Callable[[], Any], output: Path | None = None) -> int:
    """Run a function in a process group of its own; its exit code is what it returns, or 1 after an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    code = 1
    try:
        os.setsid()
        if output is not None:
            with output.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
        code = action() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _use_own_folders(place: Place) -> None:
    """Let a process write temporary files and caches to its place, and uploads to a folder instead of the Hub."""
    os.environ.update(TMPDIR=str(place.work / "tmp"), ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    tempfile.tempdir = None
    datasets.config.HF_DATASETS_CACHE = str(place.work / "cache")

    def create_repo(api: Any, repo_id: str, **options: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(api: Any, *, folder_path: Path, repo_id: str, **options: Any) -> Any:
        # The Hub makes one commit of an upload, or none.
        partial, repo = place.work / "hub" / ".upload", place.work / "hub" / repo_id
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder_path, partial)
        repo.parent.mkdir(parents=True, exist_ok=True)
        if repo.exists():
            shutil.rmtree(repo)
        partial.rename(repo)
        return SimpleNamespace(commit_url=f"local/{repo_id}")

    for name, replacement in (("create_repo", create_repo), ("upload_folder", upload_folder)):
        setattr(huggingface_hub.HfApi, name, replacement)


def start(
    command: Command, place: Place, output: Path, *, again: bool = False, before: Callable[[], Any] = lambda: None
) -> list[int]:
    """
    Start a command; return its processes.

    Args:
        output: File that standard output and error are appended to.
        again: Whether it continues an interrupted one.
        before: Called in each process first.
    """
    line, port = command.line(place, again=again), free_port()

    def run(rank: int) -> int:
        _use_own_folders(place)
        if command.processes > 1:
            size = {"WORLD_SIZE": command.processes, "LOCAL_WORLD_SIZE": command.processes}
            values = {"RANK": rank, "LOCAL_RANK": rank, **size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in values.items()})
        before()
        return command.program(line)

    return [fork(lambda rank=rank: run(rank), output) for rank in range(command.processes)]  # type: ignore[misc]


def start_fresh(command: Command, place: Place, output: Path) -> list[int]:
    """Start a command in a new process that imports everything itself."""
    import subprocess

    assert command.processes == 1
    module = "caeav_hf.training.command" if command.program is train else "caeav_hf.cli"
    program = f"import sys; from interrupted import make_pieces_small; from {module} import main; "
    program += "make_pieces_small(); sys.exit(main())"
    environment = {
        "TMPDIR": str(place.work / "tmp"),
        "HF_DATASETS_CACHE": str(place.work / "cache"),
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *command.line(place)],
            env={**os.environ, **environment},
            cwd=Path(__file__).parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return [process.pid]


def wait(processes: Sequence[int], seconds: float = PATIENCE) -> list[int | None]:
    """Return the exit codes of processes, negative for signals; `None` for one that is killed after `seconds`."""
    deadline, codes = time.monotonic() + seconds, dict.fromkeys(processes)
    left = list(processes)
    while left and time.monotonic() < deadline:
        for process in list(left):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
                left.remove(process)
        time.sleep(0.005)
    for process in left:
        kill(process)
        os.waitpid(process, 0)
    return list(codes.values())


def kill(process: int) -> bool:
    """Kill a process and what it started; return `False` if it has ended."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        try:  # before it has a group of its own
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return True


def files_of(place: Place) -> dict[str, Path]:
    """Return the files and links that a run left, by their paths in `out` or, as `hub/...`, in the hub."""
    found = {}
    for folder, prefix in ((place.out, ""), (place.work / "hub", "hub/")):
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or path.is_file():
                found[prefix + path.relative_to(folder).as_posix()] = path
    return found


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a path or one of its parts matches a pattern."""
    return any(fnmatch(part, pattern) for pattern in patterns for part in (name, *name.split("/")))


def content(path: Path) -> Any:
    """
    Return what is in a file, so that damage raises an exception: links as their targets, numbers as tensors, JSON
    without what varies from run to run, and else bytes.
    """
    if path.is_symlink():
        return os.readlink(path)
    if path.suffix == ".json":
        return _without_varying(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines.pop() == "", "the last line is incomplete"
        return [_without_varying(json.loads(line)) for line in lines]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()} | {"": file.metadata()}  # noqa: SIM118
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return [table.to_pylist(), table.schema.metadata]
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            return np.array(image)
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return [frame.to_ndarray() for frame in container.decode(video=0)]
    return path.read_bytes()


def _without_varying(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_varying(item) for name, item in value.items() if name not in VARYING}
    return [_without_varying(item) for item in value] if isinstance(value, list) else value


@dataclass
class Kept:
    """What an uninterrupted run left: the bytes and the content of each file."""

    raw: dict[str, bytes]
    values: dict[str, Any]

    @classmethod
    def of(cls, place: Place) -> "Kept":
        """Read all files of a place."""
        files = files_of(place)
        left = [name for name in files if matches(name, UNFINISHED)]
        assert not left, f"an uninterrupted run leaves {left}"
        raw = {name: b"" if path.is_symlink() else path.read_bytes() for name, path in files.items()}
        return cls(raw, {name: content(path) for name, path in files.items()})


def differences(place: Place, kept: Kept) -> tuple[list[str], list[str]]:
    """
    Compare a finished place with that of an uninterrupted run.

    Returns:
        Files whose numbers differ by rounding; and descriptions of all other differences.
    """
    rounded, wrong = [], []
    files = {name: path for name, path in files_of(place).items() if not matches(name, LOCKS)}
    expected = {name for name in kept.raw if not matches(name, LOCKS)}
    wrong += [f"{name} is missing" for name in sorted(expected - set(files))]
    wrong += [f"{name} is left over" for name in sorted(set(files) - expected)]
    for name in sorted(expected & set(files)):
        path = files[name]
        if not path.is_symlink() and path.read_bytes() == kept.raw[name]:
            continue
        try:
            distance = largest_difference(content(path), kept.values[name])
        except Exception as error:  # whatever a damaged file raises
            wrong.append(f"{name} cannot be read: {type(error).__name__}: {error}")
            continue
        if distance > TOLERANCE:
            wrong.append(f"{name} differs by {distance:.1e}")
        elif distance:
            rounded.append(name)
    wrong += [f"{path.name} is left in the folder for temporary files" for path in (place.work / "tmp").iterdir()]
    return rounded, wrong


def damages(place: Place, kept: Kept, command: Command) -> list[str]:
    """Return what a reader would see half written, right after an interruption."""
    found = []
    files = files_of(place)
    for name, path in files.items():
        if matches(name, (*UNFINISHED, *LOCKS)):
            continue
        try:
            value = content(path)
        except Exception as error:  # whatever a damaged file raises
            found.append(f"{name} is half written: {type(error).__name__}: {error}")
            continue
        if name not in kept.values:
            if not matches(name, command.may_vanish) and not any(
                fnmatch(name, f"{pattern}/*") for pattern in command.may_vanish
            ):
                found.append(f"{name} is none of an uninterrupted run's files")
        elif not matches(name, command.may_change) and largest_difference(value, kept.values[name]) > TOLERANCE:
            found.append(f"{name} differs from that of an uninterrupted run")
    for folder in command.whole:
        there = {name for name in files if name.startswith(f"{folder}/")}
        if there and (missing := {name for name in kept.raw if name.startswith(f"{folder}/")} - there):
            found.append(f"{folder} lacks {', '.join(sorted(missing))}")
    return found


def largest_difference(one: Any, other: Any) -> float:
    """Return the largest difference of numbers relative to their size; infinity if anything else differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return math.inf
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return math.inf
        return max(map(largest_difference, one, other), default=0.0)
    if isinstance(one, torch.Tensor | np.ndarray) and isinstance(other, torch.Tensor | np.ndarray):
        left, right = torch.as_tensor(one), torch.as_tensor(other)
        if left.shape != right.shape or left.dtype != right.dtype:
            return math.inf
        if torch.equal(left, right):
            return 0.0
        if not left.is_floating_point():
            return math.inf
        left, right = left.double().nan_to_num(), right.double().nan_to_num()
        return float((left - right).abs().max() / right.abs().max().clamp(min=1e-6))
    if isinstance(one, float) and isinstance(other, float):
        return 0.0 if one == other else abs(one - other) / max(abs(other), 1e-2)
    return 0.0 if one == other else math.inf
