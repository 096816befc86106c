"""Load the pipeline of a model for a command, with errors of one line."""

from typing import Any

from transformers import pipeline
from transformers.utils import logging

from ..errors import reading
from ..task import Task
from . import register


def load_pipeline(model: str, task: Task, device: Any = None, **parameters: Any) -> Any:
    """
    Load a model with the pipeline of its task.

    Args:
        model: Model folder or Hub id.
        task: The model's task, see `hub.read_config_and_task`.
        device: As for `transformers.pipeline`; by default the first accelerator.
        parameters: Further arguments of the pipeline.

    Raises:
        CaeAvError: The model cannot be loaded.
    """
    register()
    logging.disable_progress_bar()
    chosen = {} if device is None else {"device": device}
    name: Any = task.pipeline_name
    with reading(model, "a model"):
        return pipeline(name, model=model, **parameters, **chosen)
