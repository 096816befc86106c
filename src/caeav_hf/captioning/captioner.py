"""The interface of the captioning back ends, and what they share: settings, cleaning, asking again."""

import random
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CaeAvError
from .cleaning import clean_answer
from .errors import CaptionerUnusableError, CaptioningError
from .material import material_of
from .prompts import MODALITIES
from .request import CaptionRequest
from .settings import CaptionSettings


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and whether it broke off at the limit of tokens."""

    text: str
    was_cut: bool = False


class Captioner(ABC):
    """
    Writes captions. A back end gives `answer`; it may be called from several threads.

    Args:
        model: Name of the model, as it is noted beside the captions.
        settings: What decides a caption besides.
        attempts: How often a request is made at most, where asking again may help.
        backoff: Seconds to wait after the first failed attempt; doubled after each further one, up to `max_backoff`.
    """

    # Clips that `caption` takes best at a time, and calls of it that may run side by side.
    batch_size = 1
    concurrency = 1

    def __init__(
        self,
        model: str,
        settings: CaptionSettings | None = None,
        *,
        attempts: int = 5,
        backoff: float = 1.0,
        max_backoff: float = 60.0,
    ) -> None:
        if attempts < 1:
            raise CaeAvError(f"`attempts` must be at least 1, got {attempts}")
        if backoff < 0 or max_backoff < 0:
            raise CaeAvError(f"waiting times must not be negative, got {backoff} and {max_backoff} s")
        self.model, self.settings = model, settings or CaptionSettings()
        self.attempts, self.backoff, self.max_backoff = attempts, backoff, max_backoff
        # How often something was asked again, by reason.
        self.retries: Counter[str] = Counter()
        self._lock = threading.Lock()

    @abstractmethod
    def answer(self, requests: Sequence[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        """
        Asks once: an answer or what went wrong for each request, in their order.

        Raises:
            CaptionerUnusableError: No request can be answered.
        """

    def caption(
        self, requests: Sequence[CaptionRequest], stop: threading.Event | None = None
    ) -> list[str | CaptioningError]:
        """
        The captions of several requests, in their order; an error in the place of one that could not be made.

        Args:
            requests: What to caption.
            stop: Set by another thread to end the waiting for a further attempt.

        Raises:
            CaptionerUnusableError: No request can be answered.
        """
        stop = threading.Event() if stop is None else stop
        results: dict[int, str | CaptioningError] = {}
        open_requests = list(range(len(requests)))
        for attempt in range(self.attempts):
            if stop.is_set():
                break
            answers = self.answer([requests[number] for number in open_requests], attempt)
            results.update(zip(open_requests, map(self._clean, answers), strict=True))
            failed = {n: r for n in open_requests if isinstance(r := results[n], CaptioningError) and r.is_passing}
            open_requests = list(failed)
            if not failed or attempt + 1 == self.attempts:
                break
            with self._lock:
                self.retries.update(error.reason for error in failed.values())
            wanted = max(error.retry_after or 0.0 for error in failed.values())
            stop.wait(min(max(wanted, self._pause(attempt)), self.max_backoff))
        stopped = CaptioningError("stopped", "the job was stopped before it was asked")
        return [results.get(number, stopped) for number in range(len(requests))]

    def caption_clip(self, source: Any) -> dict[str, str]:
        """
        Both captions of one clip, a media file or a decoded [`~processing.Clip`]: `{"visual": ..., "audio": ...}`.

        Raises:
            MediaError: It cannot be decoded.
            CaptioningError: One of them could not be made.
        """
        material = material_of(source, self.settings)
        requests = [CaptionRequest(material, modality, self.settings.prompt_version) for modality in MODALITIES]
        captions = {}
        for modality, caption in zip(MODALITIES, self.caption(requests), strict=True):
            if isinstance(caption, CaptioningError):
                raise CaptioningError(caption.reason, f"{material.name}: no {modality} caption: {caption.message}")
            captions[modality] = caption
        return captions

    def _clean(self, answer: Answer | CaptioningError) -> str | CaptioningError:
        if isinstance(answer, CaptioningError):
            return answer
        try:
            return clean_answer(answer.text, self.settings.max_characters, was_cut=answer.was_cut)
        except CaptioningError as error:
            return error

    def _pause(self, attempt: int) -> float:
        # Spread out, so that requests which failed together do not come back together.
        return self.backoff * 2**attempt * random.uniform(0.5, 1.0)


__all__ = ["Answer", "CaptionSettings", "Captioner", "CaptionerUnusableError", "CaptioningError"]
