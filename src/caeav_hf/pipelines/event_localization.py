"""The pipeline of event localization."""

from typing import Any

from .base import CaeAvPipeline


class AudioVisualEventLocalizationPipeline(CaeAvPipeline):
    """
    Which event of a clip can be both seen and heard, and when: `"audio-visual-event-localization"`.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> localize = pipeline("audio-visual-event-localization", model="path/to/model")
    >>> localize("dog.mp4", visual_caption="a dog on a lawn", audio_caption="a dog barks")
    {'file': 'dog.mp4', 'duration': 10.0, 'intervals': [{'label': 'Bark', 'label_id': 2, 'start': 2.0, 'end': 5.0,
     'score': 0.93}], 'segments': [...], 'scores': [...], 'agreement': [...]}
    ```

    The result's keys are those of [`CaeAvProcessor.post_process_event_localization`]; `threshold` (default 0.5) is the
    probability above which a segment is an event.
    """

    _describe_parameters = ("threshold",)
    _output_names = ("event_logits", "class_logits", "agreement", "frame_mask")

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], threshold: float = 0.5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Intervals, segments, scores and agreement of each clip."""
        return self.processor.post_process_event_localization(model_outputs, threshold=threshold)
