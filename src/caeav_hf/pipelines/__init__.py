"""
Pipelines of Transformers for CAE-AV: from media files to what a model finds in them.

`register` makes `transformers.pipeline("audio-visual-event-localization", ...)` and the others know them.
"""

from transformers.pipelines import PIPELINE_REGISTRY

from ..modeling import (
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
)
from .base import CaeAvPipeline
from .event_localization import AudioVisualEventLocalizationPipeline
from .question_answering import AudioVisualQuestionAnsweringPipeline
from .segmentation import AudioVisualSegmentationPipeline
from .video_parsing import AudioVisualVideoParsingPipeline


# Which pipeline serves a model, by the task of its configuration.
TASK_PIPELINES = {
    "ave": "audio-visual-event-localization",
    "avvp": "audio-visual-video-parsing",
    "avs_s4": "audio-visual-segmentation",
    "avs_ms3": "audio-visual-segmentation",
    "avqa": "audio-visual-question-answering",
}


def register() -> None:
    """Make the pipelines known to `transformers.pipeline`. Registering again changes nothing."""
    known = PIPELINE_REGISTRY.get_supported_tasks()
    for task, pipeline_class, model_class in (
        ("audio-visual-event-localization", AudioVisualEventLocalizationPipeline, CaeAvForEventLocalization),
        ("audio-visual-video-parsing", AudioVisualVideoParsingPipeline, CaeAvForVideoParsing),
        ("audio-visual-segmentation", AudioVisualSegmentationPipeline, CaeAvForSegmentation),
        ("audio-visual-question-answering", AudioVisualQuestionAnsweringPipeline, CaeAvForQuestionAnswering),
    ):
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
