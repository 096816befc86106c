"""Metrics of the tasks, each as a function and as an `evaluate` metric that accumulates over batches and processes."""

from .event_localization import EventLocalizationAccuracy, event_localization_accuracy, event_localization_scores


__all__ = ["EventLocalizationAccuracy", "event_localization_accuracy", "event_localization_scores"]
