"""`caeav toy-towers`, and the module that runs it."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from caeav_hf.assets import toy_vision_tower
from caeav_hf.cli import main
from caeav_hf.towers.loading import load_tower
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


@pytest.mark.slow
def test_the_swin_of_version_1_is_saved_as_the_one_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.randn(64, 3, 64, 64), torch.arange(64) % 3
    monkeypatch.setattr(toy_towers, "frames_and_labels", lambda *_: data)
    accuracy = toy_towers.make_swin(tmp_path, samples=64, epochs=1)
    assert 0 <= accuracy <= 1
    made, shipped = (load_tower("vision", folder) for folder in (tmp_path, toy_vision_tower("cae_av_swin")))
    assert made.model_type == shipped.model_type == "cae_av_swin"
    assert made.config == shipped.config
    assert {name: value.shape for name, value in made.state.items()} == {
        name: value.shape for name, value in shipped.state.items()
    }
