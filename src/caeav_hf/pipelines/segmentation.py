"""Pipeline of segmentation."""

from typing import Any

import numpy as np
import torch

from ..tasks.segmentation.results import maps_of, segment_logits
from .base import CaeAvPipeline
from .segments import SegmentResults


class AudioVisualSegmentationPipeline(CaeAvPipeline):
    """
    Pipeline `"audio-visual-segmentation"`: segments the sounding objects in each second of a clip.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> segment = pipeline("audio-visual-segmentation", model="path/to/model")
    >>> result = segment("band.mp4")
    >>> result["masks"].shape, result["timestamps"]
    ((5, 360, 640), [0.48, 1.48, 2.48, 3.48, 4.48])
    ```

    Besides the common keys, a result has

    - **masks** (T, H, W) bool, one per segment, upright and at the clip's own resolution: mask `t` is that of the
      frame in the middle of the segment that starts at `t * segment_seconds`;
    - **probabilities** (T, H, W) float32 of a pixel to belong to a sounding object. Masks contain the pixels above
      `threshold` (default 0.5);
    - **timestamps**: presentation times of these T frames in seconds.

    A clip that is longer than the model's `num_frames` segments is processed in independent, consecutive windows of
    that many segments; `windows="first"` stops after the first. All processed frames and the results are kept in
    memory, about 8 bytes per pixel and segment.
    """

    _describe_parameters = ("threshold",)
    _output_names = ("logits", "frame_mask")

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], threshold: float = 0.5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Return masks and probabilities of each window."""
        return self.processor.post_process_segmentation(model_outputs, sizes, threshold=threshold)

    def join(self, clip: dict[str, Any], results: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        """Concatenate the maps of all windows."""
        maps = {name: np.concatenate([result[name] for result in results]) for name in ("masks", "probabilities")}
        return {"timestamps": clip["frame_times"].tolist(), **maps}

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the logits of each window, at the model's own resolution."""
        return [{"logits": maps.cpu().numpy()} for maps in segment_logits(model_outputs)]

    def segment_results(
        self, scores: dict[str, Any], size: tuple[int, int], threshold: float = 0.5, **parameters: Any
    ) -> SegmentResults:
        """Return the mask and the probabilities of each segment."""
        maps = maps_of(torch.as_tensor(scores["logits"], dtype=torch.float32), size, threshold)
        return SegmentResults(dict(maps), [{} for _ in maps["masks"]], ())
