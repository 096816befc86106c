"""
Captions from a server with the chat-completions protocol, such as vLLM or a hosted endpoint.

An answer has limits, whatever the server says and however slowly: of time as a whole, and of size. Redirects are not
followed, since frames, sound and key are for the given server alone, and answers are read uncompressed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import fsspec.asyn

from ..errors import CaeAvError
from ..files import parse_json
from ..media.remote import without_password
from .captioner import Answer, Captioner
from .errors import CaptionerUnusableError, CaptioningError
from .request import CaptionRequest
from .settings import CaptionSettings


# A wrong key, model name or address fails for every clip.
_UNUSABLE = (401, 403, 404)
_PASSING = (408, 425)
_PATH = "/chat/completions"
# Most bytes of an answer.
_MOST_BYTES = 4_000_000


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


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
        timeout: Seconds to wait for the whole of a response.
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
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port or a host that is none
            is_address = False
        if not is_address:
            raise CaeAvError(f"{url}: expected the address of a server, such as http://localhost:8000/v1")
        if concurrency < 1 or timeout <= 0:
            raise CaeAvError(f"`concurrency` and `timeout` must be positive, got {concurrency} and {timeout}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise CaeAvError("`api_key` has characters that cannot be sent; expected printable ASCII")
        self.url, self.concurrency, self.timeout = without_password(url), concurrency, timeout
        self._key = api_key
        path = parts.path.rstrip("/")
        if not path.endswith(_PATH):
            path += _PATH if path.endswith("/v1") else f"/v1{_PATH}"
        self._address = urlunsplit(parts._replace(path=path))
        # A password in the address takes the place of the key.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if parts.username is None:
            self._headers["Authorization"] = f"Bearer {api_key or 'none'}"
        self._proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)

    def answer(self, requests: Sequence[CaptionRequest], attempt: int) -> list[Answer | CaptioningError]:
        return [self._ask(request, attempt) for request in requests]

    def _ask(self, request: CaptionRequest, attempt: int) -> Answer | CaptioningError:
        import aiohttp  # slow to import

        settings = self.settings
        content = {
            "model": self.model,
            "messages": request.server_messages(),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed + attempt,
        }
        try:
            # The loop of fsspec's thread: that of a notebook is running already.
            response = fsspec.asyn.sync(fsspec.asyn.get_loop(), self._post, json.dumps(content).encode())
        except CaptioningError as error:
            return error
        except TimeoutError:
            return CaptioningError("timeout", f"{self.url} has not answered after {self.timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The messages of aiohttp may name the address.
            reason = f"{type(error).__name__}: {error}".replace(self._address, self.url)
            return CaptioningError("connection", f"{self.url}: {reason[:500]}")
        if response.status >= 300:
            return self._http_error(response)
        try:
            choice = parse_json(response.body)["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError(f"its content is a {type(text).__name__}")
            return Answer(text, was_cut=choice.get("finish_reason") == "length")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            # Not JSON, or not a chat completion.
            return CaptioningError("malformed", f"{self.url}: no chat completion ({type(error).__name__}: {error})")

    async def _post(self, content: bytes) -> _Response:
        import aiohttp

        limit, no_cookies = aiohttp.ClientTimeout(total=self.timeout), aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession(timeout=limit, auto_decompress=False, cookie_jar=no_cookies) as session,
            session.post(
                self._address, data=content, headers=self._headers, allow_redirects=False, proxy=self._proxy
            ) as response,
        ):
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise CaptioningError("malformed", f"{self.url}: its answer is compressed ({encoding[:50]})")
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > _MOST_BYTES:
                    raise CaptioningError(
                        "malformed", f"{self.url}: its answer is larger than {_MOST_BYTES / 1e6:g} MB"
                    )
            return _Response(response.status, response.headers, bytes(body))

    def _http_error(self, response: _Response) -> CaptioningError:
        status, detail = response.status, " ".join(response.body.decode(errors="replace").split())
        if self._key:
            detail = detail.replace(self._key, "***")
        detail = f"{self.url} answered {status}: {detail[:500]}"
        if status < 400:
            raise CaptionerUnusableError(
                f"{self.url} answered {status} and redirects to {response.headers.get('Location', 'nowhere')[:500]}; "
                "expected the address of the server itself, since frames, sound and key are sent to no other"
            )
        if status in _UNUSABLE:
            raise CaptionerUnusableError(
                f"{detail}; expected a server that serves the model {self.model!r} and accepts the key"
            )
        retry_after = _seconds(response.headers.get("Retry-After"))
        if status == 429:
            return CaptioningError("rate_limited", detail, retry_after)
        if status >= 500 or status in _PASSING:
            return CaptioningError("server_error", detail, retry_after)
        return CaptioningError("rejected", detail)


def _seconds(header: str | None) -> float | None:
    """Parse a `Retry-After` header in seconds; `None` for its other form, a date."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
