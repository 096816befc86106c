"""Captions from a server with the chat-completions protocol, such as vLLM or a hosted endpoint."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from ..errors import CaeAvError
from .captioner import Answer, Captioner
from .errors import CaptionerUnusableError, CaptioningError
from .request import CaptionRequest
from .settings import CaptionSettings


# The error class of httpx or httpx2, whichever the installed huggingface_hub uses.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
# A wrong key, model name or address fails for every clip.
_UNUSABLE = (401, 403, 404)
_PASSING = (408, 425)


class ServerCaptioner(Captioner):
    """
    Caption clips through a server, with several requests in parallel.

    ```python
    >>> captioner = ServerCaptioner("http://localhost:8000/v1", "Qwen/Qwen2.5-Omni-7B")
    >>> captioner.caption_clip("dog.mp4")
    {'visual': 'A brown dog runs over a lawn ...', 'audio': 'A dog barks twice ...'}
    ```

    Args:
        url: Address of the server; `/v1/chat/completions` is appended if missing.
        model: Name under which the server serves the model.
        settings: Frames, sound and sampling; by default [`CaptionSettings`]'s defaults.
        api_key: Sent as bearer token. Without a key a placeholder is sent, never the user's Hugging Face token.
        concurrency: Maximum number of parallel requests.
        timeout: Seconds to wait for a response.
        attempts, backoff, max_backoff: As for [`Captioner`].

    Raises:
        CaeAvError: An argument is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        settings: CaptionSettings | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        attempts: int = 5,
        backoff: float = 1.0,
        max_backoff: float = 60.0,
    ) -> None:
        super().__init__(model, settings, attempts=attempts, backoff=backoff, max_backoff=max_backoff)
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise CaeAvError(f"{url}: expected the address of a server, such as http://localhost:8000/v1")
        if concurrency < 1 or timeout <= 0:
            raise CaeAvError(f"`concurrency` and `timeout` must be positive, got {concurrency} and {timeout}")
        self.url, self.concurrency = url, concurrency
        # Given no key, the client would send the user's own token, to any address.
        self._client = InferenceClient(base_url=url, api_key=api_key or "none", timeout=timeout)

    def answer(self, requests: Sequence[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        return [self._ask(request, attempt) for request in requests]

    def _ask(self, request: CaptionRequest, attempt: int) -> Answer | CaptioningError:
        settings = self.settings
        try:
            completion: Any = self._client.chat_completion(
                request.server_messages(),
                model=self.model,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed + attempt,
            )
            choice = completion.choices[0]
            return Answer(choice.message.content or "", was_cut=choice.finish_reason == "length")
        except InferenceTimeoutError:
            return CaptioningError("timeout", f"{self.url} sent nothing for {self._client.timeout} s")
        except HfHubHTTPError as error:
            return self._http_error(error)
        except (_TransportError, OSError) as error:
            return CaptioningError("connection", f"{self.url}: {str(error) or type(error).__name__}")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            # Not JSON, or not a chat completion.
            return CaptioningError("malformed", f"{self.url}: no chat completion ({type(error).__name__}: {error})")

    def _http_error(self, error: HfHubHTTPError) -> CaptioningError:
        status, detail = error.response.status_code, " ".join(str(error).split())[:500]
        if status in _UNUSABLE:
            raise CaptionerUnusableError(
                f"{self.url} answered {status} for model {self.model!r}; expected a server that serves this model and "
                f"accepts the key: {detail}"
            ) from error
        if status == 429:
            return CaptioningError("rate_limited", detail, _seconds(error.response.headers.get("retry-after")))
        if status >= 500 or status in _PASSING:
            return CaptioningError("server_error", detail, _seconds(error.response.headers.get("retry-after")))
        return CaptioningError("rejected", detail)


def _seconds(header: str | None) -> float | None:
    """Parse a `Retry-After` header in seconds; `None` for its other form, a date."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
