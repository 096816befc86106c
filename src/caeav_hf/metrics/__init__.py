"""Metrics of the tasks, each as a function and as an `evaluate` metric that accumulates over batches and processes."""

from ..tasks.agreement import agreement_auc
from ..tasks.event_localization.metric import (
    EventLocalizationAccuracy,
    event_localization_accuracy,
    event_localization_scores,
)
from ..tasks.question_answering.metric import QuestionAnsweringAccuracy, question_answering_accuracy
from ..tasks.segmentation.metric import SegmentationScores, SegmentationSums, segmentation_scores, segmentation_sums
from ..tasks.sound_source_understanding.metric import (
    DescriptionSums,
    SoundSourceUnderstandingScores,
    description_scores,
    description_sums,
)
from ..tasks.video_parsing.metric import VideoParsingScores, VideoParsingSums, video_parsing_scores, video_parsing_sums


__all__ = [
    "DescriptionSums",
    "EventLocalizationAccuracy",
    "QuestionAnsweringAccuracy",
    "SegmentationScores",
    "SegmentationSums",
    "SoundSourceUnderstandingScores",
    "VideoParsingScores",
    "VideoParsingSums",
    "agreement_auc",
    "description_scores",
    "description_sums",
    "event_localization_accuracy",
    "event_localization_scores",
    "question_answering_accuracy",
    "segmentation_scores",
    "segmentation_sums",
    "video_parsing_scores",
    "video_parsing_sums",
]
