"""
Pipelines of Transformers for CAE-AV: from media files to what a model finds in them.

`register` makes `transformers.pipeline("audio-visual-event-localization", ...)` and the others know them.
"""

from transformers.pipelines import PIPELINE_REGISTRY

from ..architectures import MODEL_PIPELINES, TASK_MODELS
from ..tasks.event_localization.modeling import CaeAvForEventLocalization
from ..tasks.question_answering.modeling import CaeAvForQuestionAnswering
from ..tasks.segmentation.modeling import CaeAvForSegmentation
from ..tasks.video_parsing.modeling import CaeAvForVideoParsing
from .base import CaeAvPipeline
from .event_localization import AudioVisualEventLocalizationPipeline
from .question_answering import AudioVisualQuestionAnsweringPipeline
from .segmentation import AudioVisualSegmentationPipeline
from .video_parsing import AudioVisualVideoParsingPipeline


# Which pipeline serves a model, by the task of its configuration.
TASK_PIPELINES = {task: MODEL_PIPELINES[model] for task, model in TASK_MODELS.items()}


def register() -> None:
    """Make the pipelines known to `transformers.pipeline`. Registering again changes nothing."""
    known = PIPELINE_REGISTRY.get_supported_tasks()
    for pipeline_class, model_class in (
        (AudioVisualEventLocalizationPipeline, CaeAvForEventLocalization),
        (AudioVisualVideoParsingPipeline, CaeAvForVideoParsing),
        (AudioVisualSegmentationPipeline, CaeAvForSegmentation),
        (AudioVisualQuestionAnsweringPipeline, CaeAvForQuestionAnswering),
    ):
        task = MODEL_PIPELINES[model_class.__name__]
        if task not in known:
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=model_class, type="multimodal"
            )


__all__ = [
    "TASK_PIPELINES",
    "AudioVisualEventLocalizationPipeline",
    "AudioVisualQuestionAnsweringPipeline",
    "AudioVisualSegmentationPipeline",
    "AudioVisualVideoParsingPipeline",
    "CaeAvPipeline",
    "register",
]
