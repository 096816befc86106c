"""Metrics of the tasks, each as a function and as an `evaluate` metric that accumulates over batches and processes."""

from .event_localization import EventLocalizationAccuracy, event_localization_accuracy, event_localization_scores
from .segmentation import SegmentationScores, SegmentationSums, segmentation_scores, segmentation_sums


__all__ = [
    "EventLocalizationAccuracy",
    "SegmentationScores",
    "SegmentationSums",
    "event_localization_accuracy",
    "event_localization_scores",
    "segmentation_scores",
    "segmentation_sums",
]
