"""The command that hands over broken inputs: what it counts, and that its inputs follow from the seed."""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caeav_hf import CaeAvError


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("hostile")


@pytest.fixture(scope="module")
def mutators(command):
    return importlib.import_module("hostile_mutators")


def result(folder: Path) -> None:
    (folder / "file.txt").read_bytes()


def clear_error(folder: Path) -> None:
    raise CaeAvError(f"{folder / 'file.txt'}: expected something else")


def unnamed(folder: Path) -> None:
    raise CaeAvError("expected something else")


def wrong_error(folder: Path) -> None:
    json.loads("{")


def foreign_error(folder: Path) -> None:
    raise OSError(f"{folder / 'file.txt'}: not there")


def memory(folder: Path) -> None:
    raise MemoryError


def writes_elsewhere(folder: Path) -> None:
    (folder.parents[2] / "elsewhere").write_text("x")


def runs_a_program(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def connects(folder: Path) -> None:
    import socket

    socket.create_connection(("203.0.113.1", 80), timeout=0.1)


def hangs(folder: Path) -> None:
    time.sleep(60)


def dies(folder: Path) -> None:
    os._exit(3)


def make(folder: Path) -> None:
    (folder / "good").mkdir()
    (folder / "good" / "file.txt").write_text("one\ntwo\n")


# Whether `Traces` are installed in this process, which cannot be undone; they act only while they are switched on.
_TRACES: dict[str, object] = {}


@pytest.mark.parametrize(
    ("opened", "kind"),
    [
        (result, "result"),
        (clear_error, "error"),
        (unnamed, "unnamed"),
        (wrong_error, "wrong error"),
        (foreign_error, "library's error"),
        (memory, "memory"),
        (writes_elsewhere, "trace"),
        (runs_a_program, "trace"),
        (connects, "trace"),
    ],
)
def test_outcomes(command, mutators, opened, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "inner" / "input-7"
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text("x")
    door = mutators.Door("test", make, mutators.mutate_files(), opened, allowed=(OSError,))
    traces = _TRACES.setdefault("only", command.Traces(tmp_path))
    traces.folder = str(folder)
    assert command.hand_over(door, folder, traces).kind == kind
    assert not (tmp_path / "elsewhere").exists()


def test_inputs_follow_from_the_seed(command, mutators, tmp_path: Path) -> None:
    door = mutators.Door("test", make, mutators.mutate_files(), result)
    (tmp_path / "originals" / "test").mkdir(parents=True)
    make(tmp_path / "originals" / "test")

    def contents(name: str, seed: int) -> list[bytes]:
        written = []
        for number in range(30):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            command.write_input(door, tmp_path / "originals", seed, number, folder)
            path = folder / "file.txt"
            written.append(path.read_bytes() if path.is_file() else b"missing")
        return written

    first = contents("first", 0)
    assert first == contents("second", 0) != contents("third", 1)
    assert len(set(first)) > 20


def test_mutants_of_all_kinds_can_be_written(mutators) -> None:
    files = {
        "a.json": b'{"a": [1, "x", {"b": null}], "c": 1.5}',
        "a.jsonl": b'{"a": 1}\n{"b": [2]}\n',
        "a.yaml": b"a: 1\nb: [x, y]\n",
        "a.csv": b"a,b\n1,2\n",
        "a.tsv": b"a\tb\n1\t2\n",
        "a.txt": b"one\ntwo\n",
        "a.bin": bytes(range(256)),
    }
    for name, data in files.items():
        mutants = [mutators.mutate_file(random.Random(seed), name, data) for seed in range(100)]
        assert len({str(mutant)[:200] for mutant in mutants}) > 50


def test_shares_add_up(command, mutators) -> None:
    doors = [
        mutators.Door(str(n), make, mutators.mutate_files(), result, share=share)
        for n, share in enumerate((1, 2, 0.3))
    ]
    assert sum(command.shares(doors, 1000).values()) == 1000
    assert command.shares(doors, 330) == {"0": 100, "1": 200, "2": 30}


@pytest.mark.slow
def test_the_command_survives_hanging_and_dying_inputs(tmp_path: Path) -> None:
    (tmp_path / "hostile_models.py").write_text(
        "from hostile_mutators import Door, mutate_files\n"
        "from tests.test_hostile import clear_error, dies, hangs, make\n"
        "def hang_or_not(folder):\n    return hangs(folder) if folder.name == 'input-3' else clear_error(folder)\n"
        "def die_or_not(folder):\n    return dies(folder) if folder.name == 'input-2' else clear_error(folder)\n"
        "DOORS = (Door('hanging', make, mutate_files(), hang_or_not, seconds=2),"
        " Door('dying', make, mutate_files(), die_or_not))\n"
    )
    (tmp_path / "hostile_data.py").write_text("DOORS = ()\n")
    for name in ("hostile.py", "hostile_mutators.py", "machine.py"):
        (tmp_path / name).write_text((BENCHMARKS / name).read_text())
    run = [sys.executable, str(tmp_path / "hostile.py"), "--out", str(tmp_path / "out"), "--inputs", "12"]
    subprocess.run(run, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    found = json.loads((tmp_path / "out" / "hostile.json").read_text())
    assert [(door["error"], door["hang"], door["crash"]) for door in found["doors"]] == [(5, 1, 0), (5, 0, 1)]
    stored = tmp_path / "out" / "findings" / "dying" / "crash-1"
    assert (stored / "input").is_dir()
    assert json.loads((stored / "finding.json").read_text())["number"] == 2
