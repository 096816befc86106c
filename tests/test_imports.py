"""Importing the package and printing help load no heavy library, and Transformers still knows the classes."""

import json
import os
import subprocess
import sys

import pytest


HEAVY = ("torch", "transformers", "datasets", "timm", "open_clip", "matplotlib", "pandas", "pyarrow", "av", "peft")
TRANSFORMERS = "from transformers import AutoModel, AutoProcessor, pipeline"
KNOWN = """
from transformers import AutoConfig, AutoModel, pipelines
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = AutoConfig.for_model("cae_av", task="ave")
task = pipelines.PIPELINE_REGISTRY.check_task("audio-visual-segmentation")[1]
classes = [type(config), AutoModel._model_mapping[type(config)], PROCESSOR_MAPPING[type(config)], task["impl"]]
print([a_class.__name__ for a_class in classes])
"""


def run(code, *arguments):
    """Run Python code in a separate process and return its standard output."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "119"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code, names=HEAVY):
    last = run(f"{code}\nimport json, sys\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))")
    return json.loads(last.splitlines()[-1])


def test_importing_the_package_loads_no_library():
    assert loaded_after("import caeav_hf") == []


# The classes are registered where Transformers was loaded before or is loaded afterwards.
@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [f"import caeav_hf\n{TRANSFORMERS}", f"{TRANSFORMERS}\nimport caeav_hf"],
)
def test_registering_loads_no_towers_and_no_data_sets(code):
    assert loaded_after(code, ("datasets", "timm", "open_clip", "matplotlib", "pandas", "peft", "evaluate")) == []


FIRST = [
    "import caeav_hf",
    "import transformers; import caeav_hf",
    # Modules of the package that load Transformers themselves.
    "from caeav_hf.configuration_cae_av import CaeAvConfig",
    "from caeav_hf.media.clip import Clip",
    "from caeav_hf.modeling.modeling_cae_av import CaeAvModel",
    "from caeav_hf import CaeAvForSegmentation",
    "from caeav_hf import *",
]


# Each in a process of its own, forked after the import of PyTorch, which takes the most time.
FORKED = """
import os, sys, torch, torchvision
for code in sys.argv[1:]:
    assert not {"transformers", "caeav_hf"} & sys.modules.keys()
    if not os.fork():
        exec(code)
        break
    assert os.wait()[1] == 0, code
"""


@pytest.mark.slow
def test_transformers_knows_the_classes():
    names = run(FORKED, *(first + KNOWN for first in FIRST)).splitlines()
    known = ["CaeAvConfig", "CaeAvModel", "CaeAvProcessor", "AudioVisualSegmentationPipeline"]
    assert names == [str(known)] * len(FIRST)


def test_names_are_found():
    import caeav_hf
    import caeav_hf.captioning
    import caeav_hf.data
    import caeav_hf.processing

    for package in (caeav_hf, caeav_hf.data, caeav_hf.processing, caeav_hf.captioning):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert getattr(getattr(package, name), "__name__", name) == name
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018
    assert caeav_hf.visualization.__name__ == "caeav_hf.visualization"


def test_help_loads_no_library():
    """All commands in one process, since each takes a second to start."""
    printed = run(
        """
import contextlib, sys
from caeav_hf.cli import build_parser, main
commands = build_parser()._subparsers._group_actions[0].choices
import caeav_hf.training.command as training
for arguments in (["--help"], ["--version"], *([name, "--help"] for name in commands)):
    with contextlib.suppress(SystemExit):
        main(arguments)
with contextlib.suppress(SystemExit):
    training.main(["--help"])
loaded = [name for name in sys.argv[1:] if name in sys.modules]
print("loaded:", loaded)
""",
        *HEAVY,
    )
    assert printed.splitlines()[-1] == "loaded: []"
    assert "caeav-hf 0.1.0" in printed
    for flag in ("--max-frames", "--learning-rate", "--num-proc", "--adapter-only"):
        assert flag in printed
