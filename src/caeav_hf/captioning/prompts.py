"""
What the model is asked: one template for both modalities, filled with the words that name them.

A changed text is a new version: add it to `_TEMPLATES` under a new number and let `PROMPT_VERSION` name it, so that a
caption file keeps telling which text its captions answer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CaeAvError


if TYPE_CHECKING:
    from .material import ClipMaterial


MODALITIES = ("visual", "audio")
PROMPT_VERSION = "1"

SYSTEM_PROMPT = (
    "You describe short clips for people who can neither see nor hear them. Each time you are given one modality of a "
    "clip, and you describe that one alone."
)

_TEMPLATES = {
    "1": (
        "You {sense} the {material} of one short clip, in temporal order. Describe in one or two plain English "
        "sentences, at most 40 words, what can be {sensed}: which {content} there are, what they are like, and how "
        "they change from the beginning of the clip to its end. Say only what can be {sensed} in the {material}; "
        "guess nothing else. Answer with the description alone."
    ),
}

# The only words in which the two prompts differ.
MODALITY_WORDS = {
    "visual": {"sense": "see", "material": "frames", "sensed": "seen", "content": "objects and actions"},
    "audio": {"sense": "hear", "material": "sound", "sensed": "heard", "content": "sources and sounds"},
}


def instruction(modality: str, version: str = PROMPT_VERSION) -> str:
    """
    The instruction for one modality.

    Raises:
        CaeAvError: There is no such version of the prompts.
    """
    if version not in _TEMPLATES:
        raise CaeAvError(f"prompt version must be one of {', '.join(_TEMPLATES)}, got {version!r}")
    return _TEMPLATES[version].format(**MODALITY_WORDS[modality])


@dataclass(frozen=True, eq=False)
class CaptionRequest:
    """
    One question: a modality of a clip, and the version of the prompt.

    Args:
        material: What is shown or played.
        modality: `"visual"` or `"audio"`.
        version: Version of the prompts.
    """

    material: "ClipMaterial"
    modality: str
    version: str = PROMPT_VERSION

    def server_messages(self) -> list[dict[str, Any]]:
        """The messages of the chat-completions protocol: frames as JPEG, or the sound as one WAV, in base64."""
        from .material import data_url, jpeg_bytes, to_base64, wav_bytes

        if self.modality == "visual":
            parts = [
                {"type": "image_url", "image_url": {"url": data_url(jpeg_bytes(frame), "image/jpeg")}}
                for frame in self.material.frames
            ]
        else:
            wav = wav_bytes(self.material.waveform, self.material.sampling_rate)
            parts = [{"type": "input_audio", "input_audio": {"data": to_base64(wav), "format": "wav"}}]
        return [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": [*parts, {"type": "text", "text": instruction(self.modality, self.version)}]},
        ]

    def template_messages(self) -> list[dict[str, Any]]:
        """The same messages as a processor's chat template takes them: a placeholder for each frame or the sound."""
        parts = [{"type": "image"}] * len(self.material.frames) if self.modality == "visual" else [{"type": "audio"}]
        text = {"type": "text", "text": instruction(self.modality, self.version)}
        return [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": [*parts, text]},
        ]
