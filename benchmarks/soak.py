"""
Let four visitors, one of them hostile, use `caeav app` for a long time, and `stream` run beside it.

    python benchmarks/soak.py --minutes 30 --out soak

Three visitors predict and compare again and again, each with clips of a colour, a length and a name of its own, and
check that all that they see is of their clip. The hostile one hands over broken clips, bombs, other types of files,
long names with escapes, values that no control has, states and paths of others, and breaks off in the middle. What it
asks for has to be refused, and the others must not notice. Meanwhile the memory of the server, without files that the
operating system caches, its open files, threads and workers, and the files of visitors are counted. The server, in a
process of its own, is `caeav app` that keeps files of visitors for two minutes instead of an hour. At the end it gets
SIGTERM, and no file may stay.

`stream`, in another process, reads a feed with gaps and failures again and again.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import httpx
import numpy as np
from machine import processor_name
from matplotlib.axes import Axes
from runs import write
from visitor import RefusedError, Visitor, file_data

from caeav_hf.visualization.drawing import COLOURS, SERIES, make_bare, new_figure, save_figure


_MAX_MEGABYTES, _MAX_SECONDS = 4, 20
_KEPT_SECONDS, _LOOK_SECONDS = 120, 20
_SAMPLE_SECONDS = 5.0
# Share of the time before the memory is expected to stay.
_WARM_UP = 0.2
_COLOURS = {"red": (220, 30, 30), "green": (30, 190, 30), "blue": (40, 40, 220)}
_RATE = 16_000


def make_models(folder: Path) -> list[Path]:
    """Write untrained toy models of event localization and segmentation."""
    import torch

    from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvForSegmentation, CaeAvProcessor
    from caeav_hf.toy import CLASSES

    torch.manual_seed(0)
    events = CaeAvConfig.from_preset("ave", size="toy", id2label=dict(enumerate(CLASSES)))
    masks = CaeAvConfig.from_preset("avs_ms3", size="toy")
    paths = []
    for name, model_class, config in (
        ("events", CaeAvForEventLocalization, events),
        ("masks", CaeAvForSegmentation, masks),
    ):
        model_class(config).save_pretrained(folder / name)
        CaeAvProcessor.from_config(config).save_pretrained(folder / name)
        paths.append(folder / name)
    return paths


def clip_of(colour: tuple[int, int, int], seconds: int, pitch: float, size: int = 64, rate: int = 4) -> bytes:
    """Return an mp4 of one colour and one tone."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w") as container:
            video = container.add_stream("libx264", rate=rate, options={"threads": "1"})
            video.width = video.height = size
            video.pix_fmt = "yuv420p"
            audio = container.add_stream("aac", rate=_RATE, layout="mono")
            for _ in range(seconds * rate):
                picture = np.full((size, size, 3), colour, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
            tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(seconds * _RATE) / _RATE).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            samples.sample_rate = _RATE
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
        return Path(file.name).read_bytes()


class Friend(threading.Thread):
    """A visitor who looks at the results of clips of one colour."""

    def __init__(self, address: str, name: str, until: float) -> None:
        super().__init__(name=name, daemon=True)
        self.address, self.colour, self.until = address, _COLOURS[name], until
        self.random = random.Random(name)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    def run(self) -> None:
        number = 0
        while time.monotonic() < self.until:
            number += 1
            try:
                with Visitor(self.address) as visitor:
                    for _ in range(3):
                        self.look(visitor, f"{self.name}-{number:05d}-{self.random.randrange(10**9):09d}")
            except RefusedError as error:
                # Visitors who wait are limited.
                self.counts["asked to come back" if "full" in str(error) else "refused"] += 1
                if "full" not in str(error):
                    self.problems.append(f"refused: {error}")
                time.sleep(1.0)
            except Exception as error:  # whatever a client raises
                self.problems.append(f"{type(error).__name__}: {error}")
                time.sleep(1.0)

    def look(self, visitor: Visitor, name: str) -> None:
        """Predict or compare, and check what is shown."""
        seconds = self.random.randrange(2, 7)
        content = clip_of(self.colour, seconds, self.random.uniform(200, 900))
        path = visitor.upload(content, f"{name}.mp4")
        models = visitor.choices("caeav-model")
        values = {"caeav-clip": file_data(path, f"{name}.mp4"), "caeav-model": self.random.choice(models)}
        button = self.random.choice(["caeav-predict", "caeav-predict", "caeav-compare"])
        if button == "caeav-compare":
            values["Sound"] = self.random.choice(["muted", "delayed"])
        begun = time.monotonic()
        shown = visitor.click(button, values)
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.counts[button.removeprefix("caeav-")] += 1
        text = json.dumps(shown)
        alert = json.dumps(shown.get("caeav-alert"))
        if 'role=\\"alert' in alert or "caeav-files-one" not in shown:
            self.problems.append(f"{name}: the page says {alert[:300]}")
            return
        if (
            any(other in text for other in _COLOURS if other != self.name and f"{other}-0" in text)
            or "hostile" in text
        ):
            self.problems.append(f"{name}: sees the clip of another visitor: {text[:500]}")
        (data,) = (file["path"] for file in shown["caeav-files-one"] if file["path"].endswith(".json"))
        result = visitor.file(data).json()
        if result["clip"] != f"{name}.mp4":
            self.problems.append(f"{name}: sees the result of {result['clip']}")
        video = visitor.file(shown["caeav-video-one"]["path"]).content
        if not self.is_mine(video, seconds):
            self.problems.append(f"{name}: sees a video of another colour or length")

    def is_mine(self, content: bytes, seconds: int) -> bool:
        """Return whether a video has the colour and length of the visitor's clip."""
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            Path(file.name).write_bytes(content)
            with av.open(file.name) as container:
                frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
                length = float((container.duration or 0) / av.time_base)
        # Masks tint a part of the picture.
        own = int(np.argmax(np.median(frame.reshape(-1, 3), axis=0))) == int(np.argmax(self.colour))
        tinted = bool((np.abs(frame.astype(int) - self.colour).sum(-1) < 60).any())
        return (own or tinted) and abs(length - seconds) < 1.1


class Foe(threading.Thread):
    """A visitor who hands over what nobody expects."""

    def __init__(self, address: str, until: float, seed: int, bombs: dict[str, bytes], temporary: Path) -> None:
        super().__init__(name="hostile", daemon=True)
        self.address, self.until, self.random, self.bombs = address, until, random.Random(seed), bombs
        self.temporary = temporary
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest: dict[str, float] = {}

    def run(self) -> None:
        acts: list[Callable[[], str]] = [
            self.broken_clip,
            self.bomb,
            self.other_type,
            self.long_name,
            self.wrong_values,
            self.states_of_others,
            self.paths_of_others,
            self.large_upload,
            self.break_off_upload,
            self.break_off_prediction,
            self.many_at_once,
            self.odd_requests,
        ]
        while time.monotonic() < self.until:
            act = self.random.choice(acts)
            begun = time.monotonic()
            try:
                outcome = act()
            except RefusedError:
                outcome = "refused"
            except httpx.HTTPError as error:
                outcome = f"no answer: {type(error).__name__}"
            except Exception as error:  # whatever a client raises
                outcome = f"{type(error).__name__}"
                self.problems.append(f"{act.__name__}: {type(error).__name__}: {error}")
            name = act.__name__.replace("_", " ")
            self.counts[f"{name}: {outcome}"] += 1
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - begun)

    def hand_over(self, content: bytes, name: str, **values: Any) -> str:
        """Predict for a file, and return whether there is a result, or an error that the page shows."""
        with Visitor(self.address) as visitor:
            path = visitor.upload(content, name)
            shown = visitor.click("caeav-predict", {"caeav-clip": file_data(path, name), **values})
        return self.outcome(shown)

    def outcome(self, shown: dict[str, Any]) -> str:
        alert = json.dumps(shown.get("caeav-alert"))
        if 'role=\\"alert' not in alert:
            return "result"
        if "<script" in alert or "Traceback" in alert:
            self.problems.append(f"the page shows {alert[:300]}")
        return "error that names the clip"

    def broken_clip(self) -> str:
        content = bytearray(clip_of((90, 90, 90), 3, 300))
        for _ in range(self.random.randrange(1, 200)):
            content[self.random.randrange(len(content))] = self.random.randrange(256)
        end = self.random.choice([len(content), self.random.randrange(len(content))])
        return self.hand_over(bytes(content[:end]), "hostile.mp4")

    def bomb(self) -> str:
        name = self.random.choice(list(self.bombs))
        return self.hand_over(self.bombs[name], f"hostile {name}")

    def other_type(self) -> str:
        name, content = self.random.choice(
            [
                ("hostile.mp4", b"<html><script>alert(1)</script>"),
                ("hostile.mp4", b""),
                ("hostile.webm", b"\x1aE\xdf\xa3" + bytes(1000)),
                ("hostile.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
                ("hostile.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
                ("hostile.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
                ("hostile.wav", b"RIFF$\x00\x00\x00WAVEfmt " + bytes(100)),
                ("hostile.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
            ]
        )
        return self.hand_over(content, name)

    def long_name(self) -> str:
        name = self.random.choice(
            [
                "hostile" + "A" * 3000,
                "\x1b[2J\x1b]0;hostile\x07\n",
                "../../hostile",
                "<script>alert(1)</script>",
                "\u202e",
            ]
        )
        return self.hand_over(clip_of((90, 90, 90), 2, 300), f"{name}.mp4")

    def wrong_values(self) -> str:
        all_values: list[dict[str, Any]] = [
            {"caeav-model": "/etc/passwd"},
            {"Threshold": self.random.choice([1e308, -1, "x", None, [], {"__type__": "update"}])},
            {"Caption: what is seen (optional)": "a " * 500_000, "Caption: what is heard (optional)": "b"},
            {"Caption: what is seen (optional)": ["a"], "Caption: what is heard (optional)": {"b": 1}},
            {"Sound": "other", "compare": True},
            {
                "Sound": "delayed",
                "Delay of the sound in seconds": self.random.choice([1e12, -1e12]),
                "compare": True,
            },
            {"Sound": "swapped", "caeav-other-sound": file_data("/etc/passwd", "passwd"), "compare": True},
            {"Captions": "edited", "Edited caption: what is seen": "c" * 10**6, "compare": True},
        ]
        values = dict(self.random.choice(all_values))
        button = "caeav-compare" if values.pop("compare", False) else "caeav-predict"
        with Visitor(self.address) as visitor:
            path = visitor.upload(clip_of((90, 90, 90), 2, 300), "hostile.mp4")
            return self.outcome(visitor.click(button, {"caeav-clip": file_data(path, "hostile.mp4"), **values}))

    def states_of_others(self) -> str:
        # The page removes the folder that its state names; only the server may say which.
        victim = self.temporary / "victim"
        victim.mkdir(exist_ok=True)
        with Visitor(self.address) as visitor:
            path = visitor.upload(clip_of((90, 90, 90), 2, 300), "hostile.mp4")
            state = {"folder": str(victim), "compares": False}
            endpoint = visitor.endpoint("caeav-predict")
            values = [
                state if visitor.components[number]["type"] == "state" else value
                for number, value in zip(
                    endpoint["inputs"],
                    visitor.values(endpoint, {"caeav-clip": file_data(path, "hostile.mp4")}),
                    strict=True,
                )
            ]
            found = self.outcome(visitor.ask(endpoint, values))
        if not victim.exists():
            self.problems.append("a visitor removed a folder of the server")
        return found

    def paths_of_others(self) -> str:
        with Visitor(self.address) as visitor:
            own = visitor.upload(clip_of((90, 90, 90), 2, 300), "hostile.mp4")
            top = Path(own).parents[1]
            secret = self.temporary.parent / "secret.txt"
            asked = [
                *("/etc/passwd", "/proc/self/environ", str(top), f"{top}/", str(secret), f"{top}/.lock"),
                f"{own}/../../../{secret.name}",
                f"{top}/../../{secret.name}",
                quote(f"{top}/../../{secret.name}", safe=""),
                f"{top}/..%2f..%2f{secret.name}",
                f"file://{secret}",
                f"{top}/{'0' * 64}/red-00001.mp4",
                f"{top}/toy/../../../{secret.name}",
            ]
            for path in asked:
                answer = visitor.file(path)
                if answer.status_code == 200:
                    self.problems.append(f"the page hands out {path}")
            shown = visitor.click("caeav-predict", {"caeav-clip": file_data(str(secret), "secret.txt")})
            if "is secret" in json.dumps(shown):
                self.problems.append("the page shows a file of the server")
            return self.outcome(shown)

    def large_upload(self) -> str:
        return self.hand_over(bytes(round(2e6 * _MAX_MEGABYTES)), "hostile.mp4")

    def break_off_upload(self) -> str:
        host, port = self.address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            begin = '--b\r\nContent-Disposition: form-data; name="files"; filename="hostile.mp4"\r\n\r\n'
            connection.sendall(f"{head}Content-Length: 3000000\r\n\r\n{begin}".encode() + bytes(500_000))
        return "gone"

    def break_off_prediction(self) -> str:
        visitor = Visitor(self.address)
        path = visitor.upload(clip_of((90, 90, 90), 6, 300), "hostile.mp4")
        endpoint = visitor.endpoint("caeav-predict")
        visitor.join(endpoint["id"], visitor.values(endpoint, {"caeav-clip": file_data(path, "hostile.mp4")}))
        if self.random.random() < 0.5:
            with visitor.http.stream("GET", "/queue/data", params={"session_hash": visitor.session}) as answer:
                next(answer.iter_lines())
        visitor.http.close()
        return "gone"

    def many_at_once(self) -> str:
        with Visitor(self.address) as visitor:
            endpoint = visitor.endpoint("caeav-predict")
            codes = {
                visitor.join(endpoint["id"], visitor.values(endpoint, {"caeav-clip": None})).status_code
                for _ in range(40)
            }
        return "asked to come back" if codes - {200} else "result"

    def odd_requests(self) -> str:
        with Visitor(self.address) as visitor:
            for data in (None, [], "x", [None] * 1000, [{"path": "/etc/passwd"}] * 10):
                visitor.join(self.random.choice([0, 1, 2, 5, 99, -1, "x", None]), data)
            for path in ("/", "/queue/data", "/proxy=http://127.0.0.1:22/", "/stream/x/y/z", "/component_server"):
                answer = visitor.http.request(self.random.choice(["GET", "POST", "PUT"]), path, timeout=5.0)
                if answer.status_code == 500:
                    return "error of the server"
        return "refused"


class Meter(threading.Thread):
    """Measures a process until it is stopped."""

    def __init__(self, process: int, temporary: Path | None = None) -> None:
        super().__init__(daemon=True)
        self.process, self.temporary = process, temporary
        self.samples: list[dict[str, float]] = []
        self.begun, self.stopped = time.monotonic(), threading.Event()
        # Whose visits are counted.
        self.visitors: list[Any] = []

    def run(self) -> None:
        while not self.stopped.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                self.samples.append({"seconds": time.monotonic() - self.begun, **self.sample()})

    def sample(self) -> dict[str, float]:
        """Return memory in MB, without the operating system's cache, of the process and of its workers, and counts."""
        workers = _children(self.process)
        folder = Path("/proc") / str(self.process)
        found: dict[str, float] = {
            "memory": _memory(self.process),
            "memory of workers": sum(map(_memory, workers)),
            "workers": len(workers),
            "threads": len(list((folder / "task").iterdir())),
            "open files": len(list((folder / "fd").iterdir())),
        }
        if self.visitors:
            found["visits"] = sum(visitor.counts.total() for visitor in self.visitors)
        if self.temporary is not None:
            files = [path for path in self.temporary.rglob("*") if path.is_file()]
            found |= {"files": len(files), "MB of files": sum(path.stat().st_size for path in files) / 1e6}
        return found

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the mean after the warm-up, the most, and the slope per hour of what was measured."""
        warm = [item for item in self.samples if item["seconds"] > _WARM_UP * self.samples[-1]["seconds"]]
        hours = np.array([item["seconds"] for item in warm]) / 3600
        found = {}
        for name in list(self.samples[-1])[1:]:
            values = np.array([item[name] for item in warm])
            slope = float(np.polyfit(hours, values, 1)[0]) if len(values) > 2 else 0.0
            most = max(item.get(name, 0) for item in self.samples)
            found[name] = {"mean": float(values.mean()), "most": most, "per hour": slope}
        return found


def _memory(process: int) -> float:
    """Return the resident memory of a process in MB, without mapped files."""
    with contextlib.suppress(OSError):
        for line in (Path("/proc") / str(process) / "status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1000
    return 0.0


def _children(process: int) -> list[int]:
    found = []
    for task in (Path("/proc") / str(process) / "task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def make_bombs() -> dict[str, bytes]:
    """Return small files of large frames, and one that claims to last for years."""
    bombs = {}
    for name, size, codec in (("8000.mp4", 8000, "libx264"), ("4000.mkv", 4000, "mjpeg")):
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            with av.open(file.name, "w") as container:
                options = {"preset": "ultrafast", "threads": "1"} if codec == "libx264" else {}
                video = container.add_stream(codec, rate=4, options=options)
                video.width = video.height = size
                video.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
                frame = av.VideoFrame(size, size, video.pix_fmt)
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                for number in range(12 if size == 8000 else 40):
                    frame.pts = number
                    container.mux(video.encode(frame))
                container.mux(video.encode(None))
            bombs[name] = Path(file.name).read_bytes()
    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        with av.open(file.name, "w") as container:
            video = container.add_stream("mjpeg", rate=1)
            video.width = video.height = 64
            video.pix_fmt = "yuvj420p"
            for time_stamp in (0, 10**6, 2 * 10**6):
                frame = av.VideoFrame(64, 64, "yuvj420p")
                frame.pts = time_stamp
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        bombs["years.mkv"] = Path(file.name).read_bytes()
    return bombs


def serve(models: list[str], port: str) -> int:
    """Serve the page, in a process of its own, with files of visitors that are kept for a short time."""
    from caeav_hf.app import page
    from caeav_hf.cli import main as caeav

    page._DELETE_EVERY, page._DELETE_AFTER = _LOOK_SECONDS, _KEPT_SECONDS
    limits = ["--max-megabytes", str(_MAX_MEGABYTES), "--max-seconds", str(_MAX_SECONDS)]
    return caeav(["app", *models, "--port", port, "--device", "cpu", *limits])


def keep_streaming(model: str, minutes: float, out: str) -> int:
    """Stream feeds with gaps until the time is over, and write what was measured."""
    import torch
    from transformers import pipeline

    from caeav_hf.pipelines import register
    from caeav_hf.streaming import Feed, stream

    torch.set_num_threads(1)
    register()
    localize = pipeline("audio-visual-event-localization", model=model, device="cpu")
    chooser = random.Random(0)

    def feed() -> Iterator[tuple[float, np.ndarray]]:
        fails, gap = chooser.randrange(40, 60), chooser.randrange(5, 30)
        for quarter in range(240):
            second = quarter / 4
            if gap < second < gap + 6:
                continue
            if second > fails:
                raise OSError("the camera is gone")
            yield second, np.full((120, 160, 3), quarter % 256, np.uint8)
            yield second, np.zeros(4000, np.float32)

    meter = Meter(os.getpid())
    meter.start()
    until, counts = time.monotonic() + 60 * minutes, Counter[str]()
    while time.monotonic() < until:
        end, gaps = 0.0, 0
        for update in stream(localize, Feed(feed(), sampling_rate=_RATE), live=False):
            end, gaps = max(end, update.end), gaps + len(update.gaps)
        counts += Counter({"feeds": 1, "seconds": round(end), "gaps": gaps, "feeds without gaps": not gaps})
    meter.stopped.set()
    write(Path(out), json.dumps({"counts": counts, "measured": meter.summary(), "samples": meter.samples}))
    return 0


def main() -> None:
    """Run the server, its visitors and the streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="default: %(default)g")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the hostile visitor; default: %(default)s"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    temporary = out / "tmp" / "server"
    temporary.mkdir(parents=True, exist_ok=True)
    (out / "tmp" / "secret.txt").write_text("this is secret")
    models = [str(path) for path in make_models(out / "models")]
    bombs = make_bombs()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    # Memory that is free goes back to the operating system, or counts as used for ever.
    environment["MALLOC_ARENA_MAX"] = "2"
    this = [sys.executable, __file__]
    streamed = out / "streaming.json"
    with open(out / "server.txt", "wb") as log, open(out / "streaming.txt", "wb") as other_log:
        server = subprocess.Popen(
            [*this, "serve", str(port), *models], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        streaming = subprocess.Popen(
            [*this, "stream", models[0], str(options.minutes), str(streamed)],
            env={**environment, "TMPDIR": str(out / "tmp")},
            stdout=other_log,
            stderr=other_log,
        )
        _wait_for(address, server)
        meter = Meter(server.pid, temporary)
        meter.start()
        until = time.monotonic() + 60 * options.minutes
        friends = [Friend(address, name, until) for name in _COLOURS]
        foe = Foe(address, until, options.seed, bombs, temporary)
        visitors: list[Any] = [*friends, foe]
        meter.visitors = visitors
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join(60 * options.minutes + 600)
        problems = [f"{visitor.name} hangs" for visitor in visitors if visitor.is_alive()]
        problems += [f"{visitor.name}: {problem}" for visitor in visitors for problem in visitor.problems]
        meter.stopped.set()
        meter.join()
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(60)
        except subprocess.TimeoutExpired:
            problems.append("the server does not end at SIGTERM")
            os.killpg(server.pid, signal.SIGKILL)
            code = server.wait()
        ended = time.monotonic() - begun
        (temporary / "victim").rmdir() if (temporary / "victim").exists() else None
        left = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))
        problems += [f"{len(left)} files stay, such as {left[0]}"] if left else []
        problems += [f"the server ends with {code}"] if code not in (0, 130) else []
        if streaming.wait(600):
            problems.append("streaming failed")
    of_streaming = json.loads(streamed.read_text()) if streamed.exists() else None
    results = {
        "minutes": options.minutes,
        "seed": options.seed,
        "processor": processor_name(),
        "visitors": {friend.name: {**friend.counts, "slowest": friend.slowest} for friend in friends},
        "hostile": dict(sorted(foe.counts.items())),
        "slowest of the hostile": foe.slowest,
        "seconds to end": ended,
        "problems": problems,
        "server": meter.summary(),
        "samples": meter.samples,
        "streaming": of_streaming,
    }
    write(out / "results.json", json.dumps(results, indent=1))
    text = report(results)
    write(out / "soak.md", text)
    draw(results, out / "soak.png")
    print(text)
    for problem in problems[:50]:
        print(problem)
    sys.exit(int(bool(problems)))


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(1200):
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(address, trust_env=False)
            return
        if server.poll() is not None:
            raise SystemExit("the server did not start; see server.txt")
        time.sleep(0.1)
    raise SystemExit("the server did not answer within two minutes")


def report(results: dict[str, Any]) -> str:
    """Return the tables of a run as Markdown."""
    lines = ["| | mean | most | per hour |", "|---|---:|---:|---:|"]
    parts = [("app", results["server"])]
    if results["streaming"]:
        parts.append(("streaming", results["streaming"]["measured"]))
    for part, measured in parts:
        for name, values in measured.items():
            unit = " (MB)" if "memory" in name else ""
            cells = f"{values['mean']:.0f} | {values['most']:.0f} | {values['per hour']:+.0f}"
            lines.append(f"| {part}: {name}{unit} | {cells} |")
    lines += ["", "| visitor | outcomes | slowest answer |", "|---|---|---:|"]
    for name, counts in results["visitors"].items():
        outcomes = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "slowest")
        lines.append(f"| {name} | {outcomes} | {counts['slowest']:.0f} s |")
    acts: dict[str, list[str]] = {}
    for name, count in results["hostile"].items():
        act, _, outcome = name.partition(": ")
        acts.setdefault(act, []).append(f"{count} {outcome}")
    slowest = results["slowest of the hostile"]
    lines += [f"| hostile: {act} | {', '.join(found)} | {slowest[act]:.0f} s |" for act, found in acts.items()]
    lines += [
        "",
        f"{len(results['problems'])} problems; the server ended {results['seconds to end']:.1f} s after SIGTERM.",
    ]
    if results["streaming"]:
        counts = results["streaming"]["counts"]
        lines.append(f"{counts['feeds']} feeds of {counts['seconds']} s, with {counts['gaps']} gaps.")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw memory and files over time."""
    figure = new_figure(9, 4.5)
    top, bottom = (figure.add_subplot(2, 1, number) for number in (1, 2))

    def curve(axis: Axes, samples: list[dict[str, float]], name: str, label: str, number: int) -> None:
        minutes = [item["seconds"] / 60 for item in samples]
        axis.plot(minutes, [item[name] for item in samples], color=SERIES[number], label=label)

    curve(top, results["samples"], "memory", "app", 0)
    curve(top, results["samples"], "memory of workers", "its workers", 1)
    if results["streaming"]:
        curve(top, results["streaming"]["samples"], "memory", "streaming", 2)
    top.set_ylabel("memory in MB")
    curve(bottom, results["samples"], "files", "files of visitors", 3)
    curve(bottom, results["samples"], "open files", "open files", 4)
    curve(bottom, results["samples"], "threads", "threads", 5)
    bottom.set_xlabel("minutes")
    for axis in (top, bottom):
        make_bare(axis, keep=("left", "bottom"))
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", color=COLOURS["grid"])
        axis.legend(fontsize=10, frameon=False, ncols=3)
    figure.tight_layout()
    save_figure(figure, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[3:], sys.argv[2]))
    if sys.argv[1:2] == ["stream"]:
        sys.exit(keep_streaming(sys.argv[2], float(sys.argv[3]), sys.argv[4]))
    main()
