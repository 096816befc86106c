"""The pipeline of segmentation."""

from typing import Any

import numpy as np

from .base import CaeAvPipeline


class AudioVisualSegmentationPipeline(CaeAvPipeline):
    """
    Which pixels of a clip show what is heard, second by second: `"audio-visual-segmentation"`.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> segment = pipeline("audio-visual-segmentation", model="path/to/model")
    >>> result = segment("band.mp4")
    >>> result["masks"].shape, result["timestamps"]
    ((5, 360, 640), [0.48, 1.48, 2.48, 3.48, 4.48])
    ```

    A result has, beside what every result has,

    - **masks** (T, H, W) bool, one a segment, at the clip's own resolution, upright: mask `t` belongs to the seconds
      from `t * segment_seconds` on and was found in the frame in their middle;
    - **probabilities** (T, H, W) float32: of "this pixel shows what sounds". A mask is where they are above
      `threshold` (default 0.5);
    - **timestamps**: seconds at which those T frames begin to be shown.

    A clip that is longer than the model's `num_frames` segments is processed in consecutive windows of that many
    segments, which know nothing of each other; `windows="first"` stops after the first. All frames that are looked at,
    and the results, lie in memory: some 8 bytes a pixel for each second.
    """

    _describe_parameters = ("threshold",)
    _output_names = ("logits", "frame_mask")

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], threshold: float = 0.5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Masks and probabilities of each window."""
        return self.processor.post_process_segmentation(model_outputs, sizes, threshold=threshold)

    def join(self, clip: dict[str, Any], results: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        """The maps of all windows, one after the other."""
        maps = {name: np.concatenate([result[name] for result in results]) for name in ("masks", "probabilities")}
        return {"timestamps": clip["frame_times"].tolist(), **maps}
