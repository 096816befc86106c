"""Metrics of the tasks, each as a function and as an `evaluate` metric that accumulates over batches and processes."""

from .agreement import agreement_auc
from .event_localization import EventLocalizationAccuracy, event_localization_accuracy, event_localization_scores
from .question_answering import QuestionAnsweringAccuracy, question_answering_accuracy
from .segmentation import SegmentationScores, SegmentationSums, segmentation_scores, segmentation_sums
from .video_parsing import VideoParsingScores, VideoParsingSums, video_parsing_scores, video_parsing_sums


__all__ = [
    "EventLocalizationAccuracy",
    "QuestionAnsweringAccuracy",
    "SegmentationScores",
    "SegmentationSums",
    "VideoParsingScores",
    "VideoParsingSums",
    "agreement_auc",
    "event_localization_accuracy",
    "event_localization_scores",
    "question_answering_accuracy",
    "segmentation_scores",
    "segmentation_sums",
    "video_parsing_scores",
    "video_parsing_sums",
]
