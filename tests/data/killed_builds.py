"""
Run as a program: builds that are killed with SIGKILL, one after the other in the same folder.

    killed_builds.py CORPUS OUT KILLS SEED

Each build is a separate process, forked from one that has loaded the libraries, with the captions of one of two
files, so that some builds continue where another was killed and some need other shards. Half of them are killed from
outside after a random time, half kill themselves before a random file operation. After each kill all
existing shards are compared with those of uninterrupted builds. Prints a summary as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from caeav_hf.data import AveBuilder


CAPTIONS = ("captions.json", "other_captions.json")
SHARD_BYTES = 10_000
# `sys.audit` events of the operations that change the state of the folder.
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "shutil.rmtree"}


def build(corpus: Path, out: Path, captions: str) -> None:
    AveBuilder(
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / captions),
        cache_dir=str(corpus / "cache"),
        embed_media=True,
        num_proc=2,
    ).build(out, max_shard_bytes=SHARD_BYTES)


def fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def count_operations(corpus: Path, out: Path) -> int:
    """Count the file operations of one build, in a separate process."""
    reader, writer = os.pipe()

    def action() -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            count += event in OPERATIONS

        sys.addaudithook(hook)
        build(corpus, out, CAPTIONS[0])
        os.write(writer, str(count).encode())

    child = fork(action)
    os.waitpid(child, 0)
    return int(os.read(reader, 20))


def build_and_die(corpus: Path, out: Path, captions: str, before: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in OPERATIONS:
            return
        if count == before:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(hook)
    build(corpus, out, captions)


def undisturbed(corpus: Path, out: Path, captions: str) -> dict[str, bytes]:
    _, status = os.waitpid(fork(lambda: build(corpus, out, captions)), 0)
    assert status == 0
    return files_of(out)


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def look(out: Path, expected: dict[str, dict[str, bytes]]) -> str:
    """Check that each shard is right and the set complete, and return what the folder contains."""
    found = files_of(out) if out.exists() else {}
    for name, content in found.items():
        if name.endswith(".parquet"):
            # What `datasets` sees, and what the next build continues from.
            whole = name.replace(".unfinished/", "data/").replace(".replaced/", "data/")
            assert any(content == files[whole] for files in expected.values()), f"{name} is wrong"
            pq.read_table(out / name)
    data = {name: content for name, content in found.items() if name.startswith("data/")}
    if not data:
        return "no set"
    for captions, files in expected.items():
        if data == {name: content for name, content in files.items() if name.startswith("data/")}:
            assert found.get("README.md", files["README.md"]) == files["README.md"], "the card of another set"
            return captions
    raise AssertionError(f"a mixture: {sorted(data)}")


def main(corpus: Path, out: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    expected = {}
    for captions in CAPTIONS:
        started = time.perf_counter()
        expected[captions] = undisturbed(corpus, out.with_name(f"undisturbed_{captions}"), captions)
        seconds = time.perf_counter() - started
    operations = count_operations(corpus, out.with_name("counted"))
    states: Counter[str] = Counter()
    killed = 0
    while killed < kills:
        captions = rng.choice(CAPTIONS)
        if killed % 5 == 0:
            shutil.rmtree(out, ignore_errors=True)  # some begin from nothing, some from a finished set
        elif killed % 5 == 2:
            undisturbed(corpus, out, rng.choice(CAPTIONS))
        if killed % 2:
            before = rng.randrange(operations)
            child = fork(lambda c=captions, b=before: build_and_die(corpus, out, c, b))
        else:
            child = fork(lambda c=captions: build(corpus, out, c))
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
        states[look(out, expected)] += 1
    assert undisturbed(corpus, out, CAPTIONS[1]) == expected[CAPTIONS[1]], "the finished set is another one"
    shards = sum(name.endswith(".parquet") for name in expected[CAPTIONS[0]])
    print(json.dumps({"killed": killed, "states": states, "operations": operations, "shards": shards}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
