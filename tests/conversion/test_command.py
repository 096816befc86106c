"""`caeav convert`, and the files it reads."""

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.cli import main
from caeav_hf.conversion import load_checkpoint
from tests.conversion.official_state import official_state, small_config, small_model
from tests.conversion.test_dg_sct import dg_sct_model, dg_sct_state


SMALL = (
    "--audio",
    "tile_seconds=1",
    "--config",
    "head_num_heads=4",
    "text_config={'num_hidden_layers': 1, 'vocab_size': 514}",
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(small_model(small_config("ave")))


@pytest.mark.parametrize(
    "kind", ["pth", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("safetensors", "two files"))]
)
def test_convert(kind: str, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [tmp_path / "best.pth"]
    if kind == "safetensors":
        files = [tmp_path / "best.safetensors"]
        save_file(state, files[0])
    elif kind == "two files":
        files.append(tmp_path / "rest.pt")
        for file, remainder in zip(files, (0, 1), strict=True):
            torch.save({key: state[key] for number, key in enumerate(state) if number % 2 == remainder}, file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 7}, files[0])
    out = tmp_path / "model"
    arguments = [
        "convert",
        *map(str, files),
        "--task",
        "ave",
        "--out",
        str(out),
        "--option",
        "num_skip=2",
        "is_gate=1",
        "backbone_type=audioset",
    ]
    assert main([*arguments, *SMALL]) == 0
    assert f"{out}" in capsys.readouterr().out
    model = CaeAvForEventLocalization.from_pretrained(out)
    assert torch.equal(model.head.visual_scores.weight, state["CMBS.video_cas.weight"])
    processor = CaeAvProcessor.from_pretrained(out)
    assert processor.feature_extractor.sampling_rate == 32_000
    report = json.loads((out / "conversion.json").read_text())
    assert list(report["without_effect"]) == ["backbone_type"]
    assert {key.removeprefix("module.") for key in report["mapped"] | report["ignored"]} == set(state)
    # Transformers builds it in memory that is not cleared.
    assert not model.model.text_tower.transformer.resblocks[0].attn.in_proj_bias.any()
    card = (out / "README.md").read_text()
    assert "text tower" in card
    assert "official formulation" in card


@pytest.mark.slow
def test_convert_dg_sct(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The folder states the input that the checkpoint was trained on."""
    save_file(dg_sct_state(dg_sct_model("avs_ms3"), unused=False), tmp_path / "best.safetensors")
    arguments = ["convert", str(tmp_path / "best.safetensors"), "--task", "avs_ms3", "--out", str(tmp_path / "model")]
    # Without its masks, the checkpoint does not determine the size of the windows.
    arguments += ["--vision", "window_size=4", "--config", "head_num_heads=4", "mask_size=96"]
    assert main([*arguments, "--method", "avmoe"]) == 2
    assert "'dg_sct'" in capsys.readouterr().err
    assert main([*arguments, "--method", "dg_sct", "--option", "gamma=0.2"]) == 0
    config = CaeAvConfig.from_pretrained(tmp_path / "model")
    assert (config.interaction, config.head_gate_scale, config.matching_loss_form) == ("dg_sct", 0.2, "sum")
    processor = CaeAvProcessor.from_pretrained(tmp_path / "model")
    assert dict(processor.video_processor.size) == {"height": 96, "width": 96}
    assert processor.feature_extractor.tile_seconds == 5
    card = (tmp_path / "model" / "README.md").read_text()
    assert "text tower" not in card
    assert "- dg-sct\n" in card


def test_errors(state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "best.pth"
    torch.save(state, file)
    base = ["convert", str(file), "--task", "ave", "--out", str(tmp_path / "model")]
    assert main([*base, "--option", "num_skip=1"]) == 2
    assert "'num_skip'" in capsys.readouterr().err
    assert main([*base, "--option", "num_skip"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    assert main([*base, "--config", "mask_sise=64"]) == 2
    assert "mask_sise" in capsys.readouterr().err
    assert main([*base, "--audio", "hop_length=0"]) == 2
    assert "hop_length" in capsys.readouterr().err
    assert main([*base[:1], str(file), *base[1:]]) == 2
    assert "another file" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


class Dangerous:
    def __reduce__(self):
        return (Path.touch, (Path("dangerous-was-here"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, options in (("new.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save({"state_dict": {"weight": torch.ones(2)}, "extra": Dangerous()}, tmp_path / name, **options)
        with contextlib.suppress(CaeAvError):
            load_checkpoint(tmp_path / name)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(CaeAvError, match=r"plain\.pt"):
        load_checkpoint(tmp_path / "plain.pt")
    assert not (tmp_path / "dangerous-was-here").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.zip", b"", "ending in"),
        ("model.pt", b"no checkpoint", "cannot be read"),
        ("model.safetensors", b"no checkpoint", "cannot be read"),
        ("absent.pt", None, "cannot be read"),
    ],
)
def test_files_that_are_no_checkpoints(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CaeAvError, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert name in str(caught.value)


def test_files_without_tensors(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, {"weight": torch.ones(1), "epoch": 3}, [1, 2], {}):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(CaeAvError, match="expected tensors by name"):
            load_checkpoint(tmp_path / "model.pt")
