"""Checkpoints without importing the package: `trust_remote_code=True` finds it, or says that it is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, pipeline

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvModel, CaeAvProcessor
from caeav_hf.assets import toy_towers
from caeav_hf.task import tasks


STUB = "caeav_hf_stub.py"

FOUND = """
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

folder, only_processor = sys.argv[1:]
assert "caeav_hf" not in sys.modules
# The processor first: nothing else has led to the package yet.
processor = AutoProcessor.from_pretrained(only_processor, trust_remote_code=True)
assert type(processor).__name__ == "CaeAvProcessor"
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__name__ == "CaeAvModel"
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)) is type(model.config)
for arguments in ((), ("audio-visual-event-localization",)):
    localize = pipeline(*arguments, model=folder, trust_remote_code=True)
    assert type(localize).__name__ == "AudioVisualEventLocalizationPipeline"
    assert type(localize.model).__name__ == "CaeAvForEventLocalization"
    assert localize.task == "audio-visual-event-localization"
# Saved again, the folder still contains the stub.
localize.save_pretrained(folder + "-again")
"""

FOUND_BY_PIPELINE = """
import sys
from transformers import pipeline

assert "caeav_hf" not in sys.modules
localize = pipeline(model=sys.argv[1], trust_remote_code=True)
assert type(localize).__name__ == "AudioVisualEventLocalizationPipeline"
assert type(localize.model).__name__ == "CaeAvForEventLocalization"
"""

MISSING = """
import sys
from transformers import AutoModel, AutoProcessor, pipeline

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "caeav_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
loaders = AutoModel.from_pretrained, AutoProcessor.from_pretrained
for load in (*loaders, lambda folder, **trust: pipeline(None, folder, **trust)):
    try:
        load(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        assert "pip install caeav-hf" in str(error), error
    else:
        raise AssertionError("loaded without the package")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", size="toy"))
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return folder


def run(program: str, home: Path, *arguments: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_transformers_alone_finds_the_package(folder, tmp_path):
    CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy")).save_pretrained(tmp_path / "processor")
    run(FOUND, tmp_path / "home", folder, tmp_path / "processor")
    again = folder.with_name(f"{folder.name}-again")
    assert (again / STUB).read_bytes() == (folder / STUB).read_bytes()
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
    for name in ("config.json", "processor_config.json"):
        maps = [json.loads((place / name).read_text())["auto_map"] for place in (folder, again)]
        assert maps[0] == maps[1]


@pytest.mark.slow
@pytest.mark.parametrize("program", [FOUND_BY_PIPELINE, MISSING])
def test_pipelines_find_the_package_or_say_how_to_install_it(program, folder, tmp_path):
    run(program, tmp_path, folder)


def test_the_stub_has_the_classes_that_a_checkpoint_names(folder, tmp_path):
    stub: dict = {}
    exec((folder / STUB).read_text(), stub)
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "caeav_hf_stub.CaeAvProcessor"
    for task in (record for entry in tasks().values() for record in entry.records()):
        config_class = task.config_class
        config_class.from_preset(task.name, size="toy").save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        model_class = config_class.__name__.replace("Config", "Model")
        assert config["auto_map"]["AutoModel"] == f"caeav_hf_stub.{model_class}"
        assert list(config["custom_pipelines"]) == ([] if task.pipeline_name is None else [task.pipeline_name])
        references = [*config["auto_map"].values(), f"caeav_hf_stub.{task.model_name}"]
        for found in config["custom_pipelines"].values():
            assert found["pt"] == [task.model_name]
            references.append(found["impl"])
        for reference in references:
            module, _, class_name = reference.partition(".")
            assert module == "caeav_hf_stub"
            assert stub[class_name].__name__ == class_name


@pytest.mark.slow
def test_without_trust_the_imported_package_serves(folder):
    localize = pipeline("audio-visual-event-localization", model=str(folder))
    assert type(localize.model) is CaeAvForEventLocalization
    assert pipeline(model=str(folder)).task == "audio-visual-event-localization"
    assert type(AutoModel.from_pretrained(folder)) is CaeAvModel


@pytest.mark.slow
def test_a_checkpoint_of_adapters_and_one_without_head_have_the_stub_too(tmp_path):
    model = CaeAvForEventLocalization.from_backbones(**toy_towers(), size="toy")
    model.save_pretrained(tmp_path / "adapters", adapter_only=True)
    assert (tmp_path / "adapters" / STUB).is_file()
    assert "audio-visual-event-localization" in list(
        json.loads((tmp_path / "adapters" / "config.json").read_text())["custom_pipelines"]
    )
    assert type(AutoModel.from_pretrained(tmp_path / "adapters", trust_remote_code=True)) is CaeAvModel
    CaeAvModel.from_pretrained(tmp_path / "adapters").save_pretrained(tmp_path / "encoder")
    assert (tmp_path / "encoder" / STUB).is_file()
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["custom_pipelines"] == {}
