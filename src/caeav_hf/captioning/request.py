"""A request to caption one modality of a clip, as messages for a server or for a chat template."""

from dataclasses import dataclass
from typing import Any

from .material import ClipMaterial, data_url, jpeg_bytes, to_base64, wav_bytes
from .prompts import PROMPT_VERSION, SYSTEM_PROMPT, instruction


@dataclass(frozen=True, eq=False)
class CaptionRequest:
    """
    A request to caption one modality of a clip.

    Args:
        material: Frames and sound of the clip.
        modality: `"visual"` or `"audio"`.
        version: Version of the prompts.
    """

    material: ClipMaterial
    modality: str
    version: str = PROMPT_VERSION

    def server_messages(self) -> list[dict[str, Any]]:
        """Return messages of the chat-completions protocol, with frames as JPEG or the sound as WAV, in base64."""
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
        """Return the same messages for a processor's chat template, with a placeholder per frame or for the sound."""
        parts = [{"type": "image"}] * len(self.material.frames) if self.modality == "visual" else [{"type": "audio"}]
        text = {"type": "text", "text": instruction(self.modality, self.version)}
        return [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": [*parts, text]},
        ]
