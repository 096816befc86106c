"""Captions from a Qwen2.5-Omni model, run by Transformers in this process."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..constants import MODALITIES
from ..devices import default_device
from ..errors import CaeAvError
from .captioner import Answer, Captioner
from .errors import CaptioningError
from .request import CaptionRequest
from .settings import CaptionSettings


class LocalCaptioner(Captioner):
    """
    Caption batches of clips with the thinker of Qwen2.5-Omni, the part that writes text.

    ```python
    >>> captioner = LocalCaptioner.from_pretrained("Qwen/Qwen2.5-Omni-3B", dtype="bfloat16", device="cuda")
    ```

    Args:
        model: A `Qwen2_5OmniThinkerForConditionalGeneration`.
        processor: Its `Qwen2_5OmniProcessor`.
        settings: Frames, sound and sampling; by default [`CaptionSettings`]'s defaults.
        name: Name of the model, stored with the captions.
        batch_size: Clips per call of the model.
        attempts: Maximum number of attempts per request; more than one helps only with a temperature.
    """

    # One call runs the model while the other decodes the next clips.
    concurrency = 2

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: CaptionSettings | None = None,
        *,
        name: str | None = None,
        batch_size: int = 8,
        attempts: int = 1,
    ) -> None:
        if batch_size < 1:
            raise CaeAvError(f"`batch_size` must be at least 1, got {batch_size}")
        super().__init__(name or model.config.name_or_path or model.config.model_type, settings, attempts=attempts)
        rate = processor.feature_extractor.sampling_rate
        if self.settings.sampling_rate != rate:
            raise CaeAvError(f"`sampling_rate` must be the model's, {rate}, got {self.settings.sampling_rate}")
        self._model, self._processor, self.batch_size = model.eval(), processor, batch_size
        self._model_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        settings: CaptionSettings | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 8,
        attempts: int = 1,
    ) -> "LocalCaptioner":
        """
        Load a captioner from a model folder or Hub id.

        Args:
            name: Folder or id of a whole Qwen2.5-Omni or of its thinker.
            settings, batch_size, attempts: As for the class.
            dtype: Data type of the weights; `"auto"` keeps that of the file.
            device: Where to run; by default the first accelerator, else the CPU.

        Raises:
            CaeAvError: The model cannot be loaded.
        """
        from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

        try:
            model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(name, dtype=dtype)
            processor = Qwen2_5OmniProcessor.from_pretrained(name)
            model = model.to(device or default_device())
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CaeAvError(f"{name}: cannot be loaded as a Qwen2.5-Omni model: {reason}") from error
        return cls(model, processor, settings, name=str(name), batch_size=batch_size, attempts=attempts)

    def answer(self, requests: Sequence[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        answers: dict[int, Answer | CaptioningError] = {}
        # One modality at a time: its prompts are of similar length, so there is little padding.
        for modality in MODALITIES:
            chosen = [number for number, request in enumerate(requests) if request.modality == modality]
            for start in range(0, len(chosen), self.batch_size):
                numbers = chosen[start : start + self.batch_size]
                answers.update(
                    zip(numbers, self._generate([requests[number] for number in numbers], attempt), strict=True)
                )
        return [answers[number] for number in range(len(requests))]

    def _generate(self, requests: list[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        """Generate answers to requests of one modality."""
        settings = self.settings
        texts = [
            self._processor.apply_chat_template(
                request.template_messages(), tokenize=False, add_generation_prompt=True
            )
            for request in requests
        ]
        media: dict[str, Any] = {}
        if requests[0].modality == "visual":
            media["images"] = [Image.fromarray(frame) for request in requests for frame in request.material.frames]
        else:
            media["audio"] = [request.material.waveform for request in requests]
            media["sampling_rate"] = settings.sampling_rate
        # Padded on the left, so that every answer directly follows its prompt.
        inputs = self._processor(text=texts, **media, return_tensors="pt", padding=True, padding_side="left")
        inputs = inputs.to(self._model.device, self._model.dtype)
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
        with self._model_lock, torch.random.fork_rng(_devices(self._model.device)), torch.inference_mode():
            torch.manual_seed(settings.seed + attempt)
            output = self._model.generate(**inputs, max_new_tokens=settings.max_tokens, **sampling)
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        ends = self._end_tokens()
        return [
            Answer(text, was_cut=len(tokens) >= settings.max_tokens and not ends.intersection(tokens.tolist()))
            for text, tokens in zip(texts, written, strict=True)
        ]

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set() if ends is None else set(ends if isinstance(ends, list) else [ends])


def _devices(device: torch.device) -> list[torch.device]:
    """Return the devices, besides the CPU, whose random state is restored after sampling."""
    return [device] if device.type == "cuda" else []
