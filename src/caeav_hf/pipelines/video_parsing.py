"""Pipeline of video parsing."""

from typing import Any

import torch

from ..errors import CaeAvError
from ..media.clip import Clip
from ..tasks.video_parsing.results import ParsedSegments, parsed_of, segment_scores
from .base import CaeAvPipeline
from .segments import Found, SegmentResults, label_entries, with_agreement


class AudioVisualVideoParsingPipeline(CaeAvPipeline):
    """
    Pipeline `"audio-visual-video-parsing"`: finds which events of a clip are heard, which are seen, and when.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> parse = pipeline("audio-visual-video-parsing", model="path/to/model")
    >>> parse("street.mp4")
    {'file': 'street.mp4', 'duration': 10.0, 'has_audio': True, 'analyzed': {'start': 0.0, 'end': 10.0, 'segments':
     10}, 'audible': [{'label': 'Car', 'label_id': 1, 'start': 0.0, 'end': 7.0, 'score': 0.93}, {'label': 'Speech',
     ...}], 'visible': [...], 'both': [...], 'agreement': [...], 'misaligned': [...]}
    ```

    The result's keys are those of [`CaeAvProcessor.post_process_video_parsing`]. `threshold` and `video_threshold`
    (default 0.5) are the minimum probabilities of a class in a segment and in the whole window.

    A clip that is longer than the model's `num_frames` segments is processed in independent, consecutive windows of
    that many segments; an event that continues in the next window is one interval. With `windows="first"` only the
    first window is processed.

    A model with `visual_3d_size` requires features of a 3D network for each segment: `visual_3d_features`,
    (T, visual_3d_size), as an argument or beside `clip` in a dict (see `caeav_hf.tasks.video_parsing.visual_3d`).
    """

    _input_parameters = ("visual_3d_features",)
    _describe_parameters = ("threshold", "video_threshold")
    _output_names = (
        *("audio_probs", "visual_probs", "audio_frame_probs", "visual_frame_probs"),
        *("agreement", "agreement_probs", "frame_mask"),
    )

    def _model_inputs(
        self, clip: Clip, captions: dict[str, str | None], visual_3d_features: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        windows = super()._model_inputs(clip, captions)
        size = self.model.config.visual_3d_size
        if visual_3d_features is None and not size:
            return windows
        expected = f"({len(clip.frames)}, {size})" if size else "none: the model has no such input"
        message = f"{clip.name}: expected `visual_3d_features` of shape {expected}; got "
        if visual_3d_features is None:
            raise CaeAvError(message + "none")
        try:
            features = torch.as_tensor(visual_3d_features, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CaeAvError(f"{message}something other than an array of numbers: {error}") from error
        if features.ndim != 2 or features.shape[1] != size or len(features) < len(clip.frames):
            raise CaeAvError(f"{message}{tuple(features.shape)}")
        start = 0
        for window in windows:
            count = len(window["pixel_values_videos"])
            window["visual_3d_features"] = features[start : start + count]
            start += count
        return windows

    def describe(
        self,
        model_outputs: Any,
        sizes: list[tuple[int, int]],
        threshold: float = 0.5,
        video_threshold: float = 0.5,
        **parameters: Any,
    ) -> list[ParsedSegments]:
        """Return what is heard and seen in the segments of each window."""
        return self.processor.parsed_segments(model_outputs, threshold, video_threshold)

    def join(self, clip: dict[str, Any], results: list[ParsedSegments], **parameters: Any) -> dict[str, Any]:
        """Return the tracks of all windows, joined across their borders."""
        return self.processor.parsing_tracks(ParsedSegments.joined(results))

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the probabilities of classes in the segments of each window."""
        return segment_scores(model_outputs)

    def segment_results(
        self,
        scores: dict[str, Any],
        size: tuple[int, int],
        threshold: float = 0.5,
        video_threshold: float = 0.5,
        **parameters: Any,
    ) -> SegmentResults:
        """Return what is heard and seen in each segment."""
        segments = parsed_of(scores, threshold, video_threshold)
        tracks = {
            "audible": (segments.audible, segments.audible_scores),
            "visible": (segments.visible, segments.visible_scores),
            "both": (segments.audible & segments.visible, segments.audible_scores * segments.visible_scores),
        }
        found: list[dict[Found, float | None]] = [
            {
                Found(track, label_entries(self.processor.label_name(label_id), label_id)): float(values[t, label_id])
                for track, (active, values) in tracks.items()
                for label_id in active[t].nonzero()[0].tolist()
            }
            for t in range(len(segments.audible))
        ]
        return with_agreement(SegmentResults({}, found, tuple(tracks)), scores)
