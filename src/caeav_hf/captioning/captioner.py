"""Base class of the captioning back ends, with what they share: settings, cleaning of answers, retries."""

import random
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..constants import MODALITIES
from ..errors import CaeAvError
from .cleaning import clean_answer
from .errors import CaptionerUnusableError, CaptioningError
from .material import material_of
from .request import CaptionRequest
from .settings import CaptionSettings


@dataclass(frozen=True)
class Answer:
    """Text written by a model, and whether it was cut at the token limit."""

    text: str
    was_cut: bool = False


class Captioner(ABC):
    """
    Base class of captioners. Back ends implement `answer`, which may be called from several threads.

    Args:
        model: Name of the model, stored with the captions.
        settings: Frames, sound and sampling; by default [`CaptionSettings`]'s defaults.
        attempts: Maximum number of attempts per request; only errors that may pass are retried.
        backoff: Seconds to wait after the first failed attempt; doubled after each further one, up to `max_backoff`.
    """

    # Best number of clips per call of `caption`, and number of calls that may run in parallel.
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
        # Number of retries, by reason.
        self.retries: Counter[str] = Counter()
        self._lock = threading.Lock()

    @abstractmethod
    def answer(self, requests: Sequence[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        """
        Send each request once and return, in the same order, its answer or its error.

        Raises:
            CaptionerUnusableError: No request can be answered.
        """

    def caption(
        self, requests: Sequence[CaptionRequest], stop: threading.Event | None = None
    ) -> list[str | CaptioningError]:
        """
        Return the captions of several requests, in the same order, with an error in place of each that failed.

        Args:
            requests: What to caption.
            stop: When set by another thread, no further attempt is made or waited for.

        Raises:
            CaptionerUnusableError: No request can be answered.
        """
        stop = threading.Event() if stop is None else stop
        results: dict[int, str | CaptioningError] = {}
        pending = list(range(len(requests)))
        for attempt in range(self.attempts):
            if stop.is_set():
                break
            answers = self.answer([requests[number] for number in pending], attempt)
            results.update(zip(pending, map(self._clean, answers), strict=True))
            failed = {n: r for n in pending if isinstance(r := results[n], CaptioningError) and r.is_passing}
            pending = list(failed)
            if not failed or attempt + 1 == self.attempts:
                break
            with self._lock:
                self.retries.update(error.reason for error in failed.values())
            retry_after = max(error.retry_after or 0.0 for error in failed.values())
            stop.wait(min(max(retry_after, self._pause(attempt)), self.max_backoff))
        stopped = CaptioningError("stopped", "the job was stopped before this request was sent")
        return [results.get(number, stopped) for number in range(len(requests))]

    def caption_clip(self, source: Any, modalities: Sequence[str] = MODALITIES) -> dict[str, str]:
        """
        Return both captions of a media file or decoded [`~processing.Clip`]: `{"visual": ..., "audio": ...}`.

        Args:
            source: The clip.
            modalities: Captions to write, if not both.

        Raises:
            MediaError: The clip cannot be decoded.
            CaptioningError: A caption could not be written.
        """
        material = material_of(source, self.settings)
        requests = [CaptionRequest(material, modality, self.settings.prompt_version) for modality in modalities]
        captions = {}
        for modality, caption in zip(modalities, self.caption(requests), strict=True):
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
        # Random jitter, so that requests that failed together are not retried together.
        return self.backoff * 2**attempt * random.uniform(0.5, 1.0)


__all__ = ["Answer", "CaptionSettings", "Captioner", "CaptionerUnusableError", "CaptioningError"]
