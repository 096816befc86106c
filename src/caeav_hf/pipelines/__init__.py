"""
Transformers pipelines for CAE-AV.

`register` makes them available as `transformers.pipeline("audio-visual-event-localization", ...)` and so on.
"""

from transformers.pipelines import PIPELINE_REGISTRY

from ..task import Task, follow_tasks
from .base import CaeAvPipeline
from .event_localization import AudioVisualEventLocalizationPipeline
from .question_answering import AudioVisualQuestionAnsweringPipeline
from .segmentation import AudioVisualSegmentationPipeline
from .sound_source_understanding import SoundSourceUnderstandingPipeline
from .video_parsing import AudioVisualVideoParsingPipeline
from .zero_shot_classification import AudioVisualZeroShotClassificationPipeline


def register() -> None:
    """
    Register the pipelines of all tasks, including tasks that are registered later, with `transformers.pipeline`;
    idempotent.
    """
    follow_tasks(_register)


def _register(task: Task) -> None:
    known = PIPELINE_REGISTRY.get_supported_tasks()
    if task.pipeline_name is not None and task.pipeline_name not in known:
        models = tuple(record.model_class for record in task.records())
        PIPELINE_REGISTRY.register_pipeline(
            task.pipeline_name, pipeline_class=task.pipeline_class, pt_model=models, type="multimodal"
        )


__all__ = [
    "AudioVisualEventLocalizationPipeline",
    "AudioVisualQuestionAnsweringPipeline",
    "AudioVisualSegmentationPipeline",
    "AudioVisualVideoParsingPipeline",
    "AudioVisualZeroShotClassificationPipeline",
    "CaeAvPipeline",
    "SoundSourceUnderstandingPipeline",
    "register",
]
