"""Clips at addresses, on a local server: they are read like files, within limits."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import probe
from caeav_hf.media.segment_stream import announced_seconds, read_segments
from caeav_hf.media.sound import load_audio
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline
from caeav_hf.processing import CaeAvProcessor
from tests.media_factory import write_clip
from tests.same import assert_same_clip


class Handler(BaseHTTPRequestHandler):
    """What goes wrong is named by the path."""

    content = b""
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        kind = self.path.strip("/").partition(".")[0]
        if kind in ("loop", "moved"):
            self.send_response(302)
            self.send_header("Location", "/loop.mp4" if kind == "loop" else "/a%20dog.mp4")
            self.end_headers()
        elif kind in ("missing", "forbidden"):
            self.send_error(404 if kind == "missing" else 403)
        else:
            self.send_response(200)
            if kind == "large":
                self.send_header("Content-Length", str(10**12))
            elif kind == "short":
                self.send_header("Content-Length", str(2 * len(self.content)))
            elif kind not in ("slow", "endless"):
                self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has closed the connection
                self.send(kind)

    def send(self, kind: str) -> None:
        if kind == "slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        elif kind == "endless":
            while True:
                self.wfile.write(bytes(100_000))
        else:
            self.wfile.write(self.content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("remote") / "a dog.mp4", seconds=2)


@pytest.fixture
def server(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    Handler.content, Handler.requests = path.read_bytes(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy"))


def test_streams_read_from_an_address_while_it_runs(tmp_path: Path, server: str) -> None:
    path = write_clip(tmp_path / "clip.mp4", seconds=2, index_first=True)
    Handler.content = path.read_bytes()
    form = {"segment_seconds": 1.0, "sampling_rate": 8000, "timeout": 30.0}
    address = f"{server}/a%20dog.mp4"
    segments = list(read_segments(address, **form))
    for segment, expected in zip(segments, read_segments(path, **form), strict=True):
        np.testing.assert_array_equal(segment.image, expected.image)
        np.testing.assert_array_equal(segment.sound, expected.sound)
    assert announced_seconds(address) == pytest.approx(2.0)
    with pytest.raises(MediaError, match=r"missing\.mp4"):
        list(read_segments(f"{server}/missing.mp4", **form))


def test_addresses_are_read_as_files(processor: CaeAvProcessor, path: Path, server: str) -> None:
    expected = processor(path)
    for address in (f"{server}/a%20dog.mp4", f"{server}/moved.mp4?token=1", path.as_uri()):
        assert_same_clip(processor({"bytes": None, "path": address}), expected)
    # Sound from another address.
    inputs = processor(path, audio=f"{server}/a%20dog.mp4")
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])
    assert probe(f"{server}/a%20dog.mp4").name == f"{server}/a%20dog.mp4"


def test_hub_addresses_go_through_fsspec(
    processor: CaeAvProcessor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub(MemoryFileSystem):
        protocol = "hf"
        store = {}  # noqa: RUF012 (the base class's own form)
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("hf://"))

    monkeypatch.setitem(_registry, "hf", Hub)
    address = "hf://datasets/someone/dogs/a dog.mp4"
    fsspec.filesystem("hf").pipe_file(address, path.read_bytes())
    inputs = processor(address)
    assert torch.equal(inputs["pixel_values_videos"], processor(path)["pixel_values_videos"])
    with pytest.raises(MediaError, match=r"^hf://datasets/someone/dogs/no\.mp4: cannot be fetched \(not found\)"):
        load_audio("hf://datasets/someone/dogs/no.mp4", sampling_rate=8000)
    monkeypatch.setenv("CAEAV_DOWNLOAD_MAX_MB", "0.001")
    with pytest.raises(MediaError, match="expected at most"):
        processor(address)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing.mp4", "not found"),
        ("forbidden.mp4", "403 Forbidden"),
        ("large.mp4", "has 1000000.0 MB; expected at most 0.5 MB"),
        ("endless.mp4", "has more than 0.5 MB; expected at most 0.5 MB"),
        ("slow.mp4", "was not there after 0.5 s"),
        ("loop.mp4", "redirects again and again"),
        ("short.mp4", "cannot be fetched"),
    ],
)
def test_errors_name_the_address(server: str, file: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAEAV_DOWNLOAD_MAX_MB", "0.5")
    monkeypatch.setenv("CAEAV_DOWNLOAD_TIMEOUT", "0.5" if file.startswith("slow") else "20")
    begun = time.monotonic()
    with pytest.raises(MediaError) as caught:
        load_audio(f"{server}/{file}", sampling_rate=8000)
    assert str(caught.value).startswith(f"{server}/{file}: ")
    assert words in str(caught.value)
    if file.startswith("slow"):
        assert time.monotonic() - begun < 8  # the whole body takes ten seconds


@pytest.mark.parametrize("address", ["http://no-such-host.invalid/dog.mp4", "http://127.0.0.1:9/dog.mp4"])
def test_wrong_host(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(MediaError, match=f"^{address}: cannot be fetched"):
        probe(address)


def test_local_addresses_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match="is on the host 'elsewhere'"):
        probe("file://elsewhere/dog.mp4")
    with pytest.raises(MediaError, match=r"no%20dog\.mp4: no such file"):
        probe((tmp_path / "no dog.mp4").as_uri())
    monkeypatch.setenv("CAEAV_DOWNLOAD_TIMEOUT", "soon")
    with pytest.raises(CaeAvError, match="CAEAV_DOWNLOAD_TIMEOUT is 'soon'; expected a positive number"):
        probe("https://example.org/dog.mp4")


def test_pipelines_fetch_a_clip_once(path: Path, server: str) -> None:
    torch.manual_seed(0)
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", size="toy"))
    localize = AudioVisualEventLocalizationPipeline(model, device="cpu")
    address = f"{server}/a%20dog.mp4"
    result = localize(address)
    assert result["file"] == address
    assert result["scores"] == pytest.approx(localize(str(path))["scores"], abs=1e-5)
    assert Handler.requests == ["/a%20dog.mp4"]
    failed, _ = localize([f"{server}/missing.mp4", str(path)], on_error="skip")
    assert failed["error"] == f"{server}/missing.mp4: cannot be fetched (not found)"
