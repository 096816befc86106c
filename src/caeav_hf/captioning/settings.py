"""Settings of captioning."""

import json
from dataclasses import asdict, dataclass

from ..errors import CaeAvError
from .prompts import PROMPT_VERSION, instruction


@dataclass(frozen=True)
class CaptionSettings:
    """
    Everything besides the model that decides a caption, the same for both modalities.

    Args:
        prompt_version: Version of the prompts.
        max_frames: Maximum number of frames, evenly spaced.
        frame_size: Maximum length of a frame's longer side in pixels.
        sampling_rate: Audio samples per second.
        max_seconds: Caption only this many seconds, from the beginning of a clip.
        max_tokens: Maximum number of tokens of an answer.
        temperature, top_p: Sampling parameters; temperature 0 is greedy decoding.
        seed: Seed of sampling, if the back end takes one. Each further attempt adds 1.
        max_characters: Maximum length of a caption.
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
        instruction("visual", self.prompt_version)  # raises if the version is unknown
        for name in ("max_frames", "frame_size", "sampling_rate", "max_seconds", "max_tokens", "max_characters"):
            if getattr(self, name) <= 0:
                raise CaeAvError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise CaeAvError(
                f"`temperature` must be at least 0 and `top_p` in (0, 1], got {self.temperature} and {self.top_p}"
            )

    def to_json(self) -> str:
        """Return the settings as stored with a caption, without the prompt version, which has its own column."""
        values = {name: value for name, value in asdict(self).items() if name != "prompt_version"}
        return json.dumps(values, sort_keys=True)
