"""Features of a 3D network, with random weights, from small real clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.video import r2plus1d_18

from caeav_hf.cli import main
from caeav_hf.errors import CaeAvError, DataError, MediaError
from caeav_hf.tasks.video_parsing import visual_3d
from caeav_hf.tasks.video_parsing.visual_3d import (
    extract_folder,
    feature_file,
    load_network,
    read_features,
    read_segments,
)
from tests.corpora import run_script
from tests.media_factory import write_clip


pytestmark = pytest.mark.slow


# The network is of full size: few frames of few seconds are enough.
SMALL = {"frames_per_segment": 2, "num_segments": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(r2plus1d_18().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> torch.nn.Module:
    return load_network(weights)


@pytest.fixture
def media(tmp_path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for name, seconds in (("a", 3.0), ("b", 1.6), ("c", 5.0)):
        write_clip(folder / f"{name}.mp4", seconds=seconds, fps=8)
    return folder


def test_frames_are_those_at_the_middles_of_equal_parts(media, monkeypatch):
    monkeypatch.setattr(visual_3d, "_transform", lambda: lambda frames: frames)
    frames = read_segments(media / "a.mp4", 4, 3)
    assert frames.shape == (3, 4, 3, 48, 64)
    # Of 8 frames per second, those displayed at 1/8, 3/8, 5/8 and 7/8 of it.
    shown = [[int((float(frame[..., 34:].float().mean()) - 20) / 24 + 0.5) for frame in second] for second in frames]
    assert shown == [[index % 10 for index in range(8 * t + 1, 8 * t + 9, 2)] for t in range(3)]
    # 1.6 s are two segments; the last frame stays on in the second.
    short = read_segments(media / "b.mp4", 4, 3)
    assert short.shape[:2] == (2, 4)
    assert torch.equal(short[1, 3], short[1, 2])
    assert not torch.equal(short[1, 1], short[1, 0])
    with pytest.raises(MediaError, match=r"none\.mp4"):
        read_segments(media / "none.mp4", 4, 3)


def test_a_file_for_each_clip_with_a_feature_for_each_second(media, network, tmp_path):
    out = tmp_path / "out"
    report = extract_folder(media, out, network, clips_per_batch=2, **SMALL)
    assert report == {"written": 3, "already_there": 0, "broken": {}}
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        *("a.safetensors", "b.safetensors", "c.safetensors", "report.json", "settings.json")
    ]
    for name, count in (("a", 3), ("b", 2), ("c", 3)):
        features = read_features(feature_file(out, name))
        assert features.shape == (count, 512)
        assert features.dtype == np.float32
        # Features do not depend on the batches of clips.
        with torch.no_grad():
            alone = network(read_segments(media / f"{name}.mp4", 2, 3))
        np.testing.assert_allclose(features, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_a_stopped_run_continues(media, network, tmp_path):
    out = tmp_path / "out"
    extract_folder(media, out, network, **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    (out / "b.safetensors").unlink()
    assert extract_folder(media, out, network, num_workers=1, **SMALL)["already_there"] == 2
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert [name for name in before if before[name] != after[name]] == ["b.safetensors"]
    with pytest.raises(DataError, match=r"made with other settings \(frames_per_segment;"):
        extract_folder(media, out, network, frames_per_segment=4, num_segments=3)
    (out / "settings.json").unlink()
    with pytest.raises(DataError, match=r"no settings\.json"):
        extract_folder(media, out, network, **SMALL)


def test_broken_clips_are_reported(media, network, tmp_path):
    (media / "a.mp4").write_bytes(b"no clip at all")
    (media / "notes.txt").write_text("no clip either")
    report = extract_folder(media, tmp_path / "out", network, **SMALL)
    assert report["written"] == 2
    assert list(report["broken"]) == ["a.mp4"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert not feature_file(tmp_path / "out", "a").exists()
    for name in "bc":
        (media / f"{name}.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 3 clips can be read"):
        extract_folder(media, tmp_path / "none", network, **SMALL)


def test_weights_may_be_of_either_form_but_only_tensors(weights, network, tmp_path):
    state = load_file(weights)
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "bare.pth")
    other = load_network(tmp_path / "bare.pth")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    torch.save({"model": r2plus1d_18}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name, message in (
        ("code.pth", "expected tensors by name and nothing else"),
        ("list.pth", "got a list"),
        ("noise.safetensors", "expected tensors by name"),
        ("none.pth", "no such file of weights"),
    ):
        with pytest.raises(DataError, match=message):
            load_network(tmp_path / name)
    save_file({"stem.0.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(DataError, match="expected the parameters of torchvision's r2plus1d_18"):
        load_network(tmp_path / "part.safetensors")


def test_bad_arguments_are_refused(media, network, tmp_path):
    with pytest.raises(CaeAvError, match="`frames_per_segment` must be at least 1"):
        extract_folder(media, tmp_path / "out", network, frames_per_segment=0)
    with pytest.raises(DataError, match="no such folder"):
        extract_folder(tmp_path / "none", tmp_path / "out", network)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected clips"):
        extract_folder(tmp_path / "empty", tmp_path / "out", network)
    write_clip(media / "a.mkv", seconds=1, fps=8)
    with pytest.raises(DataError, match=r"a\.mkv and a\.mp4 are of one name"):
        extract_folder(media, tmp_path / "out", network)


def test_command_line(media, weights, tmp_path, capsys):
    (media / "b.mp4").write_bytes(b"no clip at all")
    arguments = ["--media", str(media), "--out", str(tmp_path / "out"), "--weights", str(weights)]
    options = ["--frames-per-segment", "2", "--num-segments", "1", "--num-workers", "0", "--device", "cpu"]
    assert run_script("extract_visual_3d.py", *arguments, *options) == 0
    printed = capsys.readouterr().out
    assert "left out:" in printed
    assert "2 written, 0 there already, 1 broken" in printed
    assert main(["extract-visual-3d", *arguments[:-1], str(tmp_path / "none"), *options]) == 2
    assert "no such file of weights" in capsys.readouterr().err
