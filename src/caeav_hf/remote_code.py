"""
Checkpoints that load without `import caeav_hf`, with `trust_remote_code=True`.

Transformers would copy the modules of a class next to its weights and run the copies. Here a stub that imports the
installed package takes their place, so all code is of one version and the classes are the package's own.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from .task import tasks


_STUB = Path(__file__).parent / "model_cards" / "caeav_hf_stub.py"


def auto_map(model: str = "CaeAv") -> dict[str, str]:
    """Return the classes in the stub for each Auto class; names of configuration and model begin with `model`."""
    names = {
        "AutoConfig": f"{model}Config",
        "AutoModel": f"{model}Model",
        "AutoFeatureExtractor": "CaeAvFeatureExtractor",
        "AutoVideoProcessor": "CaeAvVideoProcessor",
        "AutoProcessor": "CaeAvProcessor",
    }
    return {auto_class: f"{_STUB.stem}.{name}" for auto_class, name in names.items()}


AUTO_MAP = auto_map()


class RegisteredPipelines(dict[str, Any]):
    """
    `custom_pipelines` of a configuration: task to pipeline.

    `transformers.pipeline` infers a checkpoint's task from this dict, then checks whether the task is in it, and if so
    loads the pipeline from the stub, which needs `trust_remote_code`. Where this class exists the package is imported
    and the pipeline registered, so `in` is always false.
    """

    def __contains__(self, task: object) -> bool:
        return False


def custom_pipelines(model_class: str) -> RegisteredPipelines:
    """Return the pipelines of a model class by name; empty for the model without a head."""
    pipelines = RegisteredPipelines()
    for record in (record for task in tasks().values() for record in task.records()):
        if record.model_name == model_class and record.pipeline_name is not None:
            implementation = f"{_STUB.stem}.{record.pipeline_class_name}"
            pipelines[record.pipeline_name] = {"impl": implementation, "pt": [model_class], "type": "multimodal"}
    return pipelines


def write_stub(folder: str | os.PathLike) -> None:
    """Copy the stub into a folder, which is created if needed."""
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(_STUB, os.path.join(folder, _STUB.name))
