"""A local server of the chat-completions protocol that checks requests and can be made to misbehave."""

import base64
import hashlib
import io
import json
import threading
import wave
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from caeav_hf.captioning.prompts import SYSTEM_PROMPT, instruction


# Responses other than an answer.
FAULTS = ("429", "500", "hang", "malformed", "empty", "refusal")

Plan = Callable[[str, int], str | None]
"""From what identifies the clip and modality, and how often it was asked about, to a fault or None."""


class ChatServer:
    """
    Args:
        plan: Decides about each request.
        model: The only model that it serves.
        key: The key that it wants, if any.
    """

    def __init__(
        self, plan: Plan = lambda _media, _attempt: None, model: str = "omni", key: str | None = None
    ) -> None:
        self.plan, self.model, self.key = plan, model, key
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bad_requests: list[str] = []
        self.settings: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._now = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers["Content-Length"])
        body = request.rfile.read(length)
        if len(body) < length:
            return  # the client was killed before it had sent its request
        with self.lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.headers.append(dict(request.headers))
        try:
            self._respond(request, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has disconnected
        finally:
            with self.lock:
                self._now -= 1

    def _respond(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _send(request, 401, {"error": {"message": "wrong key"}})
        try:
            sent = json.loads(body)
            if request.path != "/v1/chat/completions":
                raise ValueError(f"asked for {request.path}")
            if sent["model"] != self.model:
                return _send(request, 404, {"error": {"message": f"there is no model {sent['model']}"}})
            modality, media = read_messages(sent["messages"])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            self.bad_requests.append(f"{type(error).__name__}: {error}")
            return _send(request, 400, {"error": {"message": str(error)}})
        with self.lock:
            attempt = self.asked[media]
            self.asked[media] += 1
            decoding = {name: value for name, value in sent.items() if name not in ("model", "messages", "seed")}
            self.settings.add(json.dumps(decoding, sort_keys=True))
            fault = self.plan(media, attempt)
            if fault is not None:
                self.faults[fault] += 1
        if fault == "429":
            return _send(request, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
        if fault == "500":
            return _send(request, 500, {"error": {"message": "out of order"}})
        if fault == "hang":
            with self.lock:
                self._now -= 1
            self.closing.wait(30)
            with self.lock:
                self._now += 1
            return None
        if fault == "malformed":
            return _send(request, 200, b'{"choices": [{"message": {"content": "cut o')
        text = {"empty": "  \n", "refusal": "I'm sorry, but I can't help with that."}.get(
            fault or "", f'"Caption:  {answer_to(modality, media)}\n"'
        )
        if fault is None:
            with self.lock:
                self.answered[media] += 1
        return _send(
            request,
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": self.model,
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            },
        )


def answer_to(modality: str, media: str) -> str:
    """Return the server's answer in a clip's frames or sound."""
    return f"a {modality} thing numbered {media}."


def read_messages(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """Check the messages, and return their modality and a digest of the frames or the sound."""
    system, user = messages
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user["role"] == "user"
    *media, text = user["content"]
    kinds = {part["type"] for part in media}
    assert media, "no frames and no sound"
    assert text["type"] == "text"
    if kinds == {"image_url"}:
        contents = []
        for part in media:
            assert set(part) == {"type", "image_url"}
            head, data = part["image_url"]["url"].split(",")
            assert head == "data:image/jpeg;base64"
            contents.append(base64.b64decode(data, validate=True))
            assert Image.open(io.BytesIO(contents[-1])).format == "JPEG"
        modality = "visual"
    else:
        assert kinds == {"input_audio"}
        (part,) = media
        assert part["input_audio"]["format"] == "wav"
        contents = [base64.b64decode(part["input_audio"]["data"], validate=True)]
        with wave.open(io.BytesIO(contents[0])) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
            assert file.getnframes()
        modality = "audio"
    assert text["text"] == instruction(modality)
    return modality, digest(contents)


def digest(contents: list[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def _send(request: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
