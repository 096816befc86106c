"""Pipeline of event localization."""

from typing import Any

from ..tasks.event_localization.results import LocalizedSegments, localized_of, segment_scores
from .base import CaeAvPipeline
from .segments import Found, SegmentResults, label_entries, with_agreement


class AudioVisualEventLocalizationPipeline(CaeAvPipeline):
    """
    Pipeline `"audio-visual-event-localization"`: finds the event that is both seen and heard in a clip, and when.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> localize = pipeline("audio-visual-event-localization", model="path/to/model")
    >>> localize("dog.mp4", visual_caption="a dog on a lawn", audio_caption="a dog barks")
    {'file': 'dog.mp4', 'duration': 10.0, 'has_audio': True, 'analyzed': {'start': 0.0, 'end': 10.0, 'segments': 10},
     'intervals': [{'label': 'Bark', 'label_id': 2, 'start': 2.0, 'end': 5.0, 'score': 0.93}], 'segments': [...],
     'scores': [...], 'agreement': [...], 'misaligned': [...]}
    ```

    The result's keys are those of [`CaeAvProcessor.post_process_event_localization`]. A segment is an event if its
    probability exceeds `threshold` (default 0.5); with head `mlp`, which predicts a class per segment, this is the
    probability of the class against background.

    A clip that is longer than the model's `num_frames` segments is processed in independent, consecutive windows of
    that many segments. The class of an event is that of its window, with head `mlp` that of its segments. Events of
    one class that meet at the border of two windows are joined to one interval, whose score is the mean over its
    segments. With `windows="first"` only the first window is processed.
    """

    _describe_parameters = ("threshold",)
    _output_names = (
        *("event_logits", "class_logits", "frame_log_probs"),
        *("agreement", "agreement_probs", "frame_mask"),
    )

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], threshold: float = 0.5, **parameters: Any
    ) -> list[LocalizedSegments]:
        """Return the events in the segments of each window."""
        return self.processor.localized_segments(model_outputs, threshold)

    def join(self, clip: dict[str, Any], results: list[LocalizedSegments], **parameters: Any) -> dict[str, Any]:
        """Return the events of all windows, joined across their borders."""
        return self.processor.events_of(LocalizedSegments.joined(results))

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the probabilities of classes in the segments of each window."""
        return [{name: part for name, part in one.items() if name != "real"} for one in segment_scores(model_outputs)]

    def segment_results(
        self, scores: dict[str, Any], size: tuple[int, int], threshold: float = 0.5, **parameters: Any
    ) -> SegmentResults:
        """Return the event of each segment."""
        segments = localized_of(scores, threshold)
        labels = [self.processor.label_name(label_id) for label_id in segments.label_ids.tolist()]
        found: list[dict[Found, float | None]] = [
            {Found("intervals", label_entries(label, label_id)): score} if active else {}
            for label, label_id, active, score in zip(
                labels, segments.label_ids.tolist(), segments.active, segments.scores.tolist(), strict=True
            )
        ]
        named = [label if active else "background" for label, active in zip(labels, segments.active, strict=True)]
        values = {"segments": named, "scores": segments.scores.tolist()}
        return with_agreement(SegmentResults(values, found), scores)
