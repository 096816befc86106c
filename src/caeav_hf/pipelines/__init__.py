"""
Pipelines of Transformers for CAE-AV: from media files to what a model finds in them.

`register` makes `transformers.pipeline("audio-visual-event-localization", ...)` and the others know them.
"""

from transformers.pipelines import PIPELINE_REGISTRY

from ..task import Task, follow_tasks
from .base import CaeAvPipeline
from .event_localization import AudioVisualEventLocalizationPipeline
from .question_answering import AudioVisualQuestionAnsweringPipeline
from .segmentation import AudioVisualSegmentationPipeline
from .video_parsing import AudioVisualVideoParsingPipeline


def register() -> None:
    """
    Make the pipelines of all tasks, those registered later included, known to `transformers.pipeline`. Registering
    again changes nothing.
    """
    follow_tasks(_register)


def _register(task: Task) -> None:
    known = PIPELINE_REGISTRY.get_supported_tasks()
    if task.pipeline_name is not None and task.pipeline_name not in known:
        PIPELINE_REGISTRY.register_pipeline(
            task.pipeline_name, pipeline_class=task.pipeline_class, pt_model=task.model_class, type="multimodal"
        )


__all__ = [
    "AudioVisualEventLocalizationPipeline",
    "AudioVisualQuestionAnsweringPipeline",
    "AudioVisualSegmentationPipeline",
    "AudioVisualVideoParsingPipeline",
    "CaeAvPipeline",
    "register",
]
