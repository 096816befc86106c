"""`caeav toy-towers`, and the module that runs it."""

import runpy
import sys
from pathlib import Path

import pytest

from caeav_hf.cli import main
from caeav_hf.training import toy_towers


CALLS = [(Path("towers"), 0, 8, 10)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    made: list[tuple] = []
    monkeypatch.setattr(toy_towers, "make_towers", lambda *arguments: made.append(arguments) or {"vision": 0.5})
    return made


def test_command(calls: list[tuple], capsys: pytest.CaptureFixture) -> None:
    assert main(["toy-towers", "--out", "towers", "--samples", "8"]) == 0
    assert calls == CALLS
    assert "vision 50.0%" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_module(calls: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["toy_towers", "--out", "towers", "--samples", "8"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(toy_towers.__name__, run_name="__main__")
    assert end.value.code == 0
    assert calls == CALLS
    monkeypatch.setattr(sys, "argv", ["toy_towers", "--samlpes", "8", "--out", "towers"])
    with pytest.raises(SystemExit):
        runpy.run_module(toy_towers.__name__, run_name="__main__")
    assert "did you mean --samples?" in capsys.readouterr().err
