"""What decides a caption besides the model."""

import json
from dataclasses import asdict, dataclass

from ..errors import CaeAvError
from .prompts import PROMPT_VERSION, instruction


@dataclass(frozen=True)
class CaptionSettings:
    """
    What decides a caption besides the model, the same for both modalities.

    Args:
        prompt_version: Version of the prompts.
        max_frames: Most frames that are shown, evenly chosen.
        frame_size: Most pixels of a frame's longer side.
        sampling_rate: Samples a second of the sound.
        max_seconds: Seconds of a clip, from its beginning, that are looked at and listened to.
        max_tokens: Most tokens of an answer.
        temperature, top_p: Of sampling; 0 takes the most likely token.
        seed: Of sampling, where the back end takes one. Each further attempt takes the next number.
        max_characters: Most characters of a caption.
    """

    prompt_version: str = PROMPT_VERSION
    max_frames: int = 10
    frame_size: int = 448
    sampling_rate: int = 16_000
    max_seconds: float = 60.0
    max_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_characters: int = 400

    def __post_init__(self) -> None:
        instruction("visual", self.prompt_version)  # there must be one
        for name in ("max_frames", "frame_size", "sampling_rate", "max_seconds", "max_tokens", "max_characters"):
            if getattr(self, name) <= 0:
                raise CaeAvError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise CaeAvError(
                f"`temperature` must not be negative and `top_p` lie in (0, 1], got {self.temperature}, {self.top_p}"
            )

    def to_json(self) -> str:
        """The settings as they are noted beside a caption; the version of the prompts has a column of its own."""
        values = {name: value for name, value in asdict(self).items() if name != "prompt_version"}
        return json.dumps(values, sort_keys=True)
