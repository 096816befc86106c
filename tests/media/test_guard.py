"""Decoding in guarded workers: the same results, and a clear error where a file takes too much or kills its worker."""

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from caeav_hf.data.cutting import cut
from caeav_hf.data.images import read_frame, read_mask
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media import guard, memory
from caeav_hf.media.clip import load_clip, probe
from caeav_hf.media.containers import MediaFile
from caeav_hf.media.guard import end_workers, guarded_decoding, is_guarded
from caeav_hf.media.segment_stream import read_segments
from caeav_hf.media.sound import load_audio
from caeav_hf.visualization.overlay import write_overlay
from tests.corpora import build
from tests.media import guarded_functions
from tests.media_factory import corrupt, set_display_matrix, truncate, write_clip, write_jpg


NONE = MediaFile(io.BytesIO(b"x"), "some.mp4")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("guard") / "clip.mp4", seconds=2)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, short_clip):
    """Return clips of several containers and codecs, whole and damaged."""
    folder = tmp_path_factory.mktemp("kinds")
    copies = {name: folder / f"{name}.mp4" for name in ("turned", "truncated", "damaged")}
    write_clip(folder / "indexed.mp4", seconds=2, index_first=True).rename(copies["truncated"])
    for name in ("turned", "damaged"):
        copies[name].write_bytes(short_clip.read_bytes())
    set_display_matrix(copies["turned"], (0, 1, -1, 0))
    truncate(copies["truncated"], 0.5)
    corrupt(copies["damaged"], 0.3, 0.5)
    times = [0.0, 0.04, 0.5, 0.9, 1.0, 1.7]
    return {
        "mp4": short_clip,
        "webm": write_clip(
            folder / "a.webm", seconds=1, audio_codec="libopus", audio_rate=48_000, video_codec="libvpx-vp9"
        ),
        "late and uneven": write_clip(folder / "a.mkv", frame_times=times, audio_start=0.4),
        **copies,
    }


@contextmanager
def recorded(monkeypatch):
    """Give the names of the functions that workers run in the block."""
    names, call = [], guard._Worker.call

    def record(worker, made):
        names.append(made.function.__name__)
        return call(worker, made)

    monkeypatch.setattr(guard._Worker, "call", record)
    yield names


def everything_of(source):
    """Return what the functions that open media give for a clip."""
    clip = load_clip(source, num_segments=2, sampling_rate=16_000)
    spread = load_clip(source, num_segments=3, sampling_rate=16_000, frame_sampling="spread")
    segments = list(read_segments(source, segment_seconds=1.0, sampling_rate=16_000))
    return [clip, spread, load_audio(source, sampling_rate=8_000), probe(source), *segments]


def assert_same(given, expected):
    assert type(given) is type(expected)
    if isinstance(expected, np.ndarray):
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)
    elif hasattr(expected, "__dataclass_fields__"):
        for name in expected.__dataclass_fields__:
            assert_same(getattr(given, name), getattr(expected, name))
    else:
        assert given == expected


def assert_all_same(given, expected):
    for one, other in zip(given, expected, strict=True):
        assert_same(one, other)


def test_results_and_warnings_are_the_same(kinds, caplog):
    def own_messages():
        # Old versions of torchvision have FFmpeg log its errors too.
        return [record.getMessage() for record in caplog.records if record.name.startswith("caeav_hf")]

    for path in kinds.values():
        with caplog.at_level(logging.WARNING):
            expected, warnings = everything_of(path), own_messages()
            caplog.clear()
            with guarded_decoding():
                given = everything_of(path)
            assert own_messages() == warnings
            assert bool(warnings) == (path.stem == "truncated")
            caplog.clear()
        assert_all_same(given, expected)


def test_any_source_gives_the_same(short_clip, tmp_path, monkeypatch):
    content = short_clip.read_bytes()
    expected = everything_of(short_clip)
    monkeypatch.chdir(tmp_path)  # workers may have been started elsewhere
    (tmp_path / "clip.mp4").write_bytes(content)
    with guarded_decoding(), short_clip.open("rb") as file:
        for source in (content, io.BytesIO(content), {"bytes": content, "path": "a.mp4"}, file, "clip.mp4"):
            given = everything_of(source)
            assert_all_same([given[0].frames, given[0].waveform], [expected[0].frames, expected[0].waveform])
            assert len(given) == len(expected)


def test_images_cuts_and_overlays_are_the_same(short_clip, tmp_path):
    picture = write_jpg(tmp_path / "a.jpg")
    masks = np.zeros((2, 48, 64), bool)
    masks[1, 10:20] = True
    results = []
    for name in ("alone", "guarded"):
        out = tmp_path / f"{name}.mp4"
        write_overlay(short_clip, masks, out, captions=["one", "two"])
        results.append([out.read_bytes(), read_frame(picture), read_mask(picture), cut(short_clip, 0.5, 1.5)])
        if name == "alone":
            guard._num_users += 1
    guard._num_users -= 1
    assert_all_same(results[1], results[0])


def test_errors_keep_class_and_text(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 40)

    def error_of(function, *args, **kwargs):
        with pytest.raises(CaeAvError) as error:
            function(*args, **kwargs)
        return type(error.value), str(error.value)

    attempts = [
        lambda: load_clip(path, num_segments=1, sampling_rate=16_000),
        lambda: load_audio(path, sampling_rate=16_000, name="named"),
        lambda: list(read_segments(path, segment_seconds=1.0, sampling_rate=16_000)),
        lambda: probe(tmp_path / "missing.mp4"),
        lambda: read_frame(path),
        lambda: write_overlay(path, np.zeros((1, 4, 4), bool), tmp_path / "out.mp4"),
    ]
    alone = [error_of(attempt) for attempt in attempts]
    with guarded_decoding():
        assert [error_of(attempt) for attempt in attempts] == alone


def test_a_source_that_fails(short_clip):
    class Failing(io.BytesIO):
        error: Exception

        def read(self, size=-1):
            raise self.error

    source = Failing(short_clip.read_bytes())
    with guarded_decoding():
        source.error = OSError("the tape is torn")
        with pytest.raises(MediaError, match="the tape is torn"):
            probe(source)
        source.error = RuntimeError("a defect")
        with pytest.raises(RuntimeError, match="a defect"):
            probe(source)


@linux
def test_memory_is_limited(monkeypatch):
    monkeypatch.setenv("CAEAV_DECODING_MEMORY_MB", "200")
    with guarded_decoding():
        assert guarded_functions.take_memory(NONE, 100) == 1
        with pytest.raises(MediaError, match=r"^some.mp4: takes more than 200 MB of memory .*_MEMORY_MB"):
            guarded_functions.take_memory(NONE, 600)


def test_a_decoder_that_lacks_memory_does_not_pass_for_a_damaged_packet(kinds, monkeypatch):
    class Short:
        def keep(self, num_bytes):
            pass

        def is_short(self, num_bytes):
            return True

    load_clip(kinds["damaged"], num_segments=2, sampling_rate=8_000)
    monkeypatch.setattr(memory, "watcher", Short())
    with pytest.raises(MemoryError):
        load_clip(kinds["damaged"], num_segments=2, sampling_rate=8_000)


@pytest.mark.slow
def test_processor_time_is_limited(monkeypatch):
    monkeypatch.setenv("CAEAV_DECODING_SECONDS", "0.5")
    expected = r"^some.mp4: takes more than 0.5 s of processor time .*CAEAV_DECODING_SECONDS"
    with guarded_decoding(), pytest.raises(MediaError, match=expected):
        guarded_functions.compute_for_ever(NONE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_time_by_the_clock_is_limited(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "clip.mp4")
    with guarded_decoding():
        guarded_functions.process_id(NONE)  # started before
        monkeypatch.setenv("CAEAV_DECODING_SECONDS", "0.02")
        for attempt in (guarded_functions.wait, lambda media: probe(tmp_path / "clip.mp4")):
            with pytest.raises(MediaError, match=r"\.mp4: was not decoded after 0.12 s; .*CAEAV_DECODING_SECONDS"):
                attempt(NONE)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (guarded_functions.crash, "signal SIGSEGV"),
        (guarded_functions.leave, "exit status 3"),
        (guarded_functions.fail, "decoding it failed .KeyError: 'moov'."),
    ],
)
def test_a_crash_is_an_error_and_the_next_call_works(function, text):
    with guarded_decoding():
        with pytest.raises(MediaError, match=f"^some.mp4: .*{text}"):
            function(NONE)
        assert guarded_functions.process_id(NONE) != os.getpid()


def test_a_worker_is_kept_and_replaced_if_something_ends_it():
    with guarded_decoding():
        first = guarded_functions.process_id(NONE)
        assert guarded_functions.process_id(NONE) == first
        (worker,) = [worker for worker in guard._idle if worker.process.pid == first]
        worker.process.kill()
        worker.process.wait()
        assert guarded_functions.process_id(NONE) != first


def test_workers_write_no_files(tmp_path):
    with guarded_decoding():
        with pytest.raises(MediaError, match=r"^some.mp4: .*File too large"):
            guarded_functions.write(NONE, str(tmp_path / "written"))
        assert guarded_functions.core_bytes(NONE) == 0


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def message(value, *sizes):
    header = json.dumps([value, sizes]).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.slow  # starts a worker for each
def test_what_a_worker_sends_is_not_trusted(tmp_path):
    def reply(result):
        return {"dict": [["result", result], ["log", []], ["is_spent", False]]}

    trapped = pickle.dumps(Trap(tmp_path / "sprung"))
    pointers = message(reply({"array": ["|O", [1]], "buffer": 0}), 8) + bytes(8)
    foreign = message(reply({"record": "pathlib:Path.touch", "fields": {"dict": [["self", str(tmp_path)]]}}))
    huge = message(reply({"array": ["|u1", [1 << 60]], "buffer": 0}), 1 << 60)
    for content in (trapped, len(trapped).to_bytes(8, "little") + trapped, pointers, foreign, huge, message([])):
        with guarded_decoding(), pytest.raises(MediaError, match=r"^some.mp4: "):
            guarded_functions.lie(NONE, content)
    assert not (tmp_path / "sprung").exists()


def test_threads_have_workers_of_their_own(short_clip):
    expected = load_clip(short_clip, num_segments=2, sampling_rate=8_000)
    with guarded_decoding(), ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(lambda _: load_clip(short_clip, num_segments=2, sampling_rate=8_000), range(12)))
    assert_all_same(clips, [expected] * 12)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_have_workers_of_their_own():
    with guarded_decoding():
        first = guarded_functions.process_id(NONE)
        reader, writer = os.pipe()
        if not (child := os.fork()):
            os.write(writer, str(guarded_functions.process_id(NONE)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(reader, 100)) != first
        assert guarded_functions.process_id(NONE) == first


ORPHAN = """
import threading, time
from caeav_hf.media.containers import MediaFile
from caeav_hf.media.guard import guarded_decoding
from tests.media.guarded_functions import process_id, wait
media = MediaFile("file:/dev/null", "none")
with guarded_decoding():
    worker = process_id(media)
    threading.Thread(target=wait, args=(media,), daemon=True).start()
    time.sleep(0.5)
    print(worker, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@linux
def test_a_worker_ends_with_its_process_even_within_a_call():
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=environment) as process:
        worker = Path("/proc") / process.stdout.readline().decode().strip()
        assert is_alive(worker)
        process.kill()
    deadline = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(worker)


def is_alive(process):
    try:
        return "zombie" not in (process / "status").read_text()
    except OSError:
        return False


def test_the_environment_decides(monkeypatch):
    assert not is_guarded()
    with guarded_decoding():
        assert is_guarded()
        monkeypatch.setenv(guard.VARIABLE, "0")
        assert not is_guarded()
    monkeypatch.setenv(guard.VARIABLE, "1")
    assert is_guarded()
    monkeypatch.setenv(guard.VARIABLE, "yes")
    with pytest.raises(CaeAvError, match="CAEAV_DECODING_WORKER is 'yes'; expected 0 or 1"):
        is_guarded()


@pytest.mark.slow
def test_builders_use_workers(corpus, tmp_path, monkeypatch):
    with recorded(monkeypatch) as names:
        build(corpus, tmp_path / "out")
    assert set(names) == {"_probe"}
    assert len(names) >= 24


def test_the_page_uses_workers(monkeypatch):
    page = pytest.importorskip("caeav_hf.app.page")

    class Blocks:
        def launch(self, **options):
            self.was_guarded = is_guarded()

        def close(self, verbose):
            pass

    monkeypatch.setattr(page, "build_page", lambda models, **options: Blocks())
    monkeypatch.setattr(page, "_theme", lambda: None)
    with page.serve_page() as blocks:
        assert blocks.was_guarded
        assert is_guarded()
    assert not is_guarded()


def test_a_worker_loads_no_heavy_library():
    end_workers()
    with guarded_decoding():
        loaded = guarded_functions.loaded(NONE, ["torch", "transformers", "datasets", "matplotlib", "pandas"])
    assert loaded == []
