"""
Checkpoints that Transformers loads without `import caeav_hf`, with `trust_remote_code=True`.

Transformers would copy the modules of a class beside its weights, and run the copies. Here a stub lies beside them
instead, which imports the installed package: the code is that of one version, and its classes are the package's own.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from .architectures import MODEL_PIPELINES


_STUB = Path(__file__).parent / "assets" / "caeav_hf_stub.py"

AUTO_MAP = {
    auto_class: f"{_STUB.stem}.{name}"
    for auto_class, name in (
        ("AutoConfig", "CaeAvConfig"),
        ("AutoModel", "CaeAvModel"),
        ("AutoFeatureExtractor", "CaeAvFeatureExtractor"),
        ("AutoVideoProcessor", "CaeAvVideoProcessor"),
        ("AutoProcessor", "CaeAvProcessor"),
    )
}


class RegisteredPipelines(dict[str, Any]):
    """
    `custom_pipelines` of a configuration: task to pipeline.

    `transformers.pipeline` takes the task of a checkpoint from here. A task that it finds in here again it would load
    from the stub, which needs `trust_remote_code`; with the package imported, as it is where this class is, it is to
    find the registered one.
    """

    def __contains__(self, task: object) -> bool:
        return False


def custom_pipelines(model_class: str) -> RegisteredPipelines:
    """The pipeline of a model class; none for the model without head."""
    task = MODEL_PIPELINES.get(model_class)
    if task is None:
        return RegisteredPipelines()
    name = f"{task.title().replace('-', '')}Pipeline"
    return RegisteredPipelines(
        {task: {"impl": f"{_STUB.stem}.{name}", "pt": [model_class], "type": "multimodal"}},
    )


def write_stub(folder: str | os.PathLike) -> None:
    """Put the stub into a folder, made if it is not there."""
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(_STUB, os.path.join(folder, _STUB.name))
