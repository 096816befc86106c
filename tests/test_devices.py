"""The default device of a model."""

import shutil

import pytest
import torch

from caeav_hf.captioning import LocalCaptioner
from caeav_hf.cli import main
from caeav_hf.devices import default_device
from caeav_hf.tasks.video_parsing import visual_3d
from tests.captioning.tiny_omni import tiny_omni
from tests.training.toy_files import toy_data, toy_model


@pytest.fixture
def _cuda_build_without_driver(monkeypatch):
    def current_accelerator(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_accelerator_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert default_device() == torch.device("mps")


@pytest.mark.usefixtures("_cuda_build_without_driver")
def test_the_cpu_where_no_accelerator_is(tmp_path):
    assert default_device() == torch.device("cpu")
    data = shutil.copytree(toy_data(), tmp_path / "data")
    assert main(["encode-captions", str(data), "--model", str(toy_model())]) == 0
    for part in tiny_omni():
        part.save_pretrained(tmp_path / "omni")
    captioner = LocalCaptioner.from_pretrained(tmp_path / "omni", dtype=torch.float32)
    assert captioner._model.device == torch.device("cpu")


@pytest.mark.usefixtures("_cuda_build_without_driver")
def test_visual_3d_features_run_there_too(monkeypatch):
    devices = []

    def extract(media, out, network, *, device, **settings):
        devices.append(torch.device(device))
        return {"written": 0, "already_there": 0, "broken": {}}

    monkeypatch.setattr(visual_3d, "load_network", lambda weights: None)
    monkeypatch.setattr(visual_3d, "extract_folder", extract)
    assert main(["extract-visual-3d", "--media", "clips", "--out", "features"]) == 0
    assert devices == [torch.device("cpu")]
