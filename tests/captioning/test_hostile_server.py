"""Caption servers that lie, never end or lead elsewhere."""

import gzip
import json
import time

import numpy as np
import pytest

from caeav_hf.captioning import CaptionerUnusableError, CaptioningError, CaptionRequest, ClipMaterial, ServerCaptioner
from caeav_hf.errors import CaeAvError
from tests.raw_server import endless, raw_server, response, slowly


CLIP = ClipMaterial("clip", (np.zeros((2, 2, 3), np.uint8),), np.zeros(160, np.float32), 16_000)
KEY = "sk-secret"


def ask(server, timeout=5.0, **arguments):
    captioner = ServerCaptioner(server.url, "omni", timeout=timeout, api_key=KEY, **arguments)
    (answer,) = captioner.answer([CaptionRequest(CLIP, "audio")], 0)
    return answer


def answered(text):
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize(
    "slow",
    [
        response(answered("a dog")),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + response(answered("a dog")),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000,
    ],
    ids=["trickle", "1xx", "chunks"],
)
def test_the_time_limit_holds_for_the_whole_answer(slow):
    # Each byte comes long before the limit.
    with raw_server(lambda _: slowly(slow)) as server:
        started = time.monotonic()
        answer = ask(server, timeout=0.5)
    assert isinstance(answer, CaptioningError)
    assert answer.reason == "timeout"
    assert "0.5 s" in str(answer)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"],
    ids=["until closed", "chunk"],
)
def test_endless_answers_end(head):
    with raw_server(lambda _: endless(head, b" " * 65536)) as server:
        answer = ask(server, timeout=60)
    assert answer.reason == "malformed"
    assert "larger than 4 MB" in str(answer)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (response(b"<html><h1>It works!</h1></html>", Content_Type="text/html"), "malformed"),
        (response(b"[" * 100_000), "malformed"),
        (response(b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "malformed"),
        (response(b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}'), "malformed"),
        (response(b'{"choices": {}}'), "malformed"),
        (response(b"null"), "malformed"),
        (response(b"\xff\xfe{"), "malformed"),
        (response(b""), "malformed"),
        (response(b"", "204 No Content"), "malformed"),
        (response(gzip.compress(b" " * 10**7), Content_Encoding="gzip"), "malformed"),
        (response(b"{}", Content_Length="1000000"), "connection"),
        (response(b"{}", Content_Length="-1"), "connection"),
        (response(b"{}", Transfer_Encoding="chunked"), "connection"),
        (response(b"{}", **{"X\x1b[2J": "a"}), "connection"),
        (response(b"{}", X="a" * 100_000), "connection"),
        (b"", "connection"),
        (b"SSH-2.0-OpenSSH\r\n", "connection"),
        (response(b"busy", "503 Busy", Retry_After="nan"), "server_error"),
        (response(b"a\x1b[2J" * 10**5, "429 Slow", Retry_After="1e400"), "rate_limited"),
        (response(b"no", "418 Teapot"), "rejected"),
    ],
    ids=[
        "a page",
        "deep JSON",
        "half a character",
        "parts without text",
        "choices that are no list",
        "null",
        "no UTF-8",
        "empty",
        "no content",
        "unpacks to 10 MB",
        "cut off",
        "negative length",
        "no chunks",
        "name with control characters",
        "long header",
        "closed at once",
        "no HTTP",
        "wait that is no number",
        "long control characters",
        "status 418",
    ],
)
def test_answers_that_are_none(content, reason):
    with raw_server(content) as server:
        answer = ask(server)
    assert isinstance(answer, CaptioningError)
    assert answer.reason == reason
    assert str(answer).isprintable()
    assert len(str(answer)) < 2000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_neither_key_nor_clip_elsewhere(status):
    with raw_server(response(answered("a dog"))) as other:
        for place in (f"{other.url}/v1/chat/completions", "file:///etc/passwd", "\x1b[2J", "//"):
            with (
                raw_server(response(b"", f"{status} Moved", Location=place)) as server,
                pytest.raises(CaptionerUnusableError, match="redirects") as error,
            ):
                ask(server)
            assert str(error.value).isprintable()
        assert not other.requests


def test_the_key_is_not_repeated_in_errors():
    with raw_server(response(f"wrong key: {KEY}".encode(), "401 No")) as server:
        with pytest.raises(CaptionerUnusableError, match=r"wrong key: \*\*\*"):
            ask(server)
        assert f"Bearer {KEY}" in server.requests[0]
        address = server.url.replace("//", "//me:pass@")
        with pytest.raises(CaptionerUnusableError) as error:
            ServerCaptioner(address, "omni").answer([CaptionRequest(CLIP, "audio")], 0)
    assert "pass" not in str(error.value)
    assert "Authorization: Basic" in server.requests[1]
    for key in ("a\nb", "\N{SNOWMAN}"):
        with pytest.raises(CaeAvError, match="api_key") as error:
            ServerCaptioner("http://localhost", "omni", api_key=key)
        assert key not in str(error.value)
    for url in ("http://[::1", "http://localhost:99999", "http://", "http://:1"):
        with pytest.raises(CaeAvError, match="expected the address"):
            ServerCaptioner(url, "omni")
